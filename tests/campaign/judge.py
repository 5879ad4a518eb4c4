"""Judges a scenario: everything of SCENARIOS.md, part B, that a history can show. Pure.

    L O S   deploy.local.history.judge: lost, doubled, out of order
    O       the inbox's own history: a second committed completion; an update that ran again more often than it was in flight at
            the end of a term (Reruns)
    F       a change of the inbox committed under a term that had been superseded by then
    X       a run that began or was seen past its owner's deadline (tenure.py), or without a term at all
    C       a run that no committed claim had counted before it began; a rerun that nothing explains
    T       /healthz said ACTIVE when the instance's last term was closed, or past its deadline
    W       a term that lasted and never asserted its owner's webhook; a deleteWebhook; a setWebhook outside of any term of an
            instance whose URL it sets
    A       a probe without an answer within its limit, between two that were answered by the same process on the same port

H, and the state of the webhook at the end, are looked at while the system still stands (field.py).

Not promised: that a breach shorter than what the writers can see is found: runs are seen ten times a second, health five times.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from http import HTTPStatus
from itertools import pairwise
from math import inf

from deploy.local import history
from deploy.local.history import Death, Ending, Run, Verdict
from tests.campaign.evidence import Evidence, Freeze, InboxChange, Probe
from tests.campaign.tenure import Tenure, instance_of, tenures

TOLERANCE_SECONDS = 0.005
"""Between the database's clock and the machine's."""

ARRIVAL_SECONDS = 0.5
"""From an owner's decision to call until the emulator has read the call, on a busy machine."""

ASSERTION_SECONDS = 10.0
"""A term that was confirmed for so long without an assertion has forgotten it: the first call is made at once, and a second
later where Telegram refused it because somebody else's was as recent. The rest is for a busy machine."""

TOLD_SECONDS = 0.5
"""From the statement that closes a term until its worker, which answers on the public port, knows of it, on a busy machine."""


class Invariant(StrEnum):
    """What was broken; the letters of SCENARIOS.md, and C."""

    LOSS = "L"
    ONCE = "O"
    SEQUENCE = "S"
    FENCE = "F"
    EXCLUSION = "X"
    COUNTED = "C"
    WEBHOOK = "W"
    HYGIENE = "H"
    TRUTH = "T"
    DEAD = "D"  # a dead letter where none was to be expected
    AVAILABLE = "A"  # it did not go on as promised: refused, or an owner changed for nothing
    FAILED = "!"  # the scenario itself did not come to its end


@dataclass(frozen=True, slots=True)
class Objection:
    """One breach."""

    invariant: Invariant
    why: str

    def __str__(self) -> str:
        return f"{self.invariant.value}: {self.why}"


@dataclass(frozen=True, slots=True)
class Reruns:
    """Runs beyond an update's first, by what made them necessary.

    A worker dispatches under one term in its life, so what was in flight when it died was in flight when its term was over.

    Attributes:
        after_ends: nothing had failed: the term under which the update ran was over before that was committed.
        in_flight: updates that had begun under a term and were not committed when it was over, summed over all terms; each of
            them may run again once, and nothing else may.
        retried: its handlers had failed, and the owner tries again, as it has to while something outside is away.
    """

    after_ends: int = 0
    in_flight: int = 0
    retried: int = 0

    @property
    def figures(self) -> dict[str, float]:
        """For the report."""
        return {
            "run again after the end of a term": self.after_ends,
            "in flight at the end of a term": self.in_flight,
            "run again after a failure": self.retried,
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a scenario's history.

    Attributes:
        verdict: lost, doubled, out of order, and the counts.
        reruns: what the verdict's are made of.
        objections: every breach, those of the verdict too.
        done: updates that were handled, at the end.
        dead: dead letters at the end.
    """

    verdict: Verdict
    reruns: Reruns
    objections: tuple[Objection, ...]
    done: int
    dead: int


def judge(
    evidence: Evidence,
    *,
    expects_dead_letters: bool = False,
    expects_assertions: bool = True,
    expects_answers: bool = True,
) -> Judgement:
    """The verdict on a history that is over.

    Args:
        evidence: all of it.
        expects_dead_letters: whether updates may end as dead letters here.
        expects_assertions: whether setWebhook could be called all the time.
        expects_answers: whether the machine had the time to answer probes.
    """
    terms = tenures(evidence.terms, evidence.signs)
    evidence = replace(
        evidence,
        deaths=[*evidence.deaths, *_lost_terms(terms, evidence.deaths)],
        runs=_date_interrupted_steps(evidence.runs, evidence.freezes),
    )
    verdict = history.judge(evidence.deliveries, evidence.runs, evidence.rows, evidence.deaths)
    runs_of: dict[int, list[Run]] = defaultdict(list)
    for run in sorted(evidence.runs, key=lambda run: run.started_at):
        runs_of[run.update_id].append(run)
    dead = sum(row.state == "dead" for row in evidence.rows)
    reruns, repeated = _count_reruns(runs_of, evidence.changes, terms)
    found = [
        *(Objection(Invariant.LOSS, f"update {item.update_id} {item.why}") for item in verdict.lost),
        *(Objection(Invariant.ONCE, f"update {item.update_id} {item.why}") for item in verdict.doubled),
        *(
            Objection(Invariant.SEQUENCE, f"update {item.update_id} {item.why}")
            for item in verdict.out_of_order
        ),
        *_find_second_completions(evidence.changes),
        *repeated,
        *_find_unfenced(evidence.changes, terms),
        *_find_late_runs(evidence.runs, terms),
        *_find_uncounted(runs_of, evidence.changes),
        *_find_unexplained(runs_of, evidence),
        *_find_untrue(evidence, terms),
        *(_find_unasserted(evidence, terms) if expects_assertions else ()),
        *_find_foreign_calls(evidence, terms),
        *(_find_unanswered(evidence) if expects_answers else ()),
    ]
    if dead and not expects_dead_letters:
        letters = [str(row.update_id) for row in evidence.rows if row.state == "dead"]
        found.append(Objection(Invariant.DEAD, f"{dead} dead letters: updates {', '.join(letters[:5])}"))
    done = sum(row.state == "done" for row in evidence.rows)
    return Judgement(verdict, reruns, tuple(found), done, dead)


def _date_interrupted_steps(runs: Sequence[Run], freezes: Iterable[Freeze]) -> list[Run]:
    """A worker that is stopped in the middle of a handler's step ends that step when it goes on, whatever the time is then.

    The step was begun before, and there is one at most, since an event loop does one thing at a time: so the first sign of
    life after a freeze is dated to its begin, and every further one stands as it was written.
    """
    dated = list(runs)
    for freeze in freezes:
        after = [
            (min(at for at in (run.started_at, run.last_seen_at) if at >= freeze.until), index)
            for index, run in enumerate(dated)
            if run.pid == freeze.pid and run.last_seen_at >= freeze.until
        ]
        if after:
            first_at, index = min(after)
            run = dated[index]
            dated[index] = replace(
                run,
                started_at=freeze.at if run.started_at == first_at else run.started_at,
                last_seen_at=freeze.at if run.last_seen_at == first_at else run.last_seen_at,
            )
    return dated


def _lost_terms(terms: Iterable[Tenure], deaths: Sequence[Death]) -> Iterable[Death]:
    """Whoever loses its term may have ended handlers well and not have committed that: as with a kill, they run again."""
    for tenure in terms:
        instance = instance_of(tenure.instance_id)
        was_killed = any(
            death.instance == instance and tenure.last_sign_at <= death.at <= tenure.deadline
            for death in deaths
        )
        if tenure.closed_at is None and tenure.superseded_at is not None and not was_killed:
            yield Death(instance, tenure.last_sign_at, tenure.deadline)


def _find_second_completions(changes: Iterable[InboxChange]) -> Iterable[Objection]:
    completed: dict[int, InboxChange] = {}
    for change in sorted(changes, key=lambda change: change.committed_at):
        if not change.is_completion:
            continue
        first = completed.setdefault(change.update_id, change)
        if first is not change:
            yield Objection(
                Invariant.ONCE,
                f"update {change.update_id} was completed twice: seq {first.seq} ({first.new_state}), "
                f"seq {change.seq} ({change.new_state})",
            )


def _count_reruns(
    runs_of: dict[int, list[Run]], changes: Iterable[InboxChange], terms: Sequence[Tenure]
) -> tuple[Reruns, list[Objection]]:
    """What ran again and why; and whatever did so oftener than it was in flight at the end of the term that ran it before."""
    claims: dict[int, list[tuple[float, str]]] = defaultdict(list)
    completed_at: dict[int, float] = {}
    for change in changes:
        if change.is_claim and change.new_term is not None:
            claims[change.update_id].append((change.committed_at, change.new_term))
        elif change.is_completion:
            first = completed_at.get(change.update_id, change.committed_at)
            completed_at[change.update_id] = min(first, change.committed_at)
    by_uuid = {tenure.uuid: tenure for tenure in terms}
    found = []
    after_ends = in_flight = retried = 0
    for update_id, its_runs in runs_of.items():
        its_claims = sorted(claims[update_id])
        again: Counter[str] = Counter()
        last_under: dict[str, Run] = {}
        for number, run in enumerate(its_runs, start=1):
            known = bisect_right(its_claims, run.started_at + TOLERANCE_SECONDS, key=lambda claim: claim[0])
            if not known:
                continue  # not counted: objected to elsewhere
            uuid = its_claims[known - 1][1]
            last_under[uuid] = run
            if number < len(its_runs):
                if _has_failed(run):
                    retried += 1
                else:
                    again[uuid] += 1
        after_ends += again.total()
        for uuid, run in last_under.items():
            over_at = by_uuid[uuid].superseded_at if uuid in by_uuid else None
            # A failure that waits for its next try is in flight no more.
            was_in_flight = (
                not _has_failed(run) and over_at is not None and completed_at.get(update_id, inf) > over_at
            )
            in_flight += was_in_flight
            if again[uuid] > was_in_flight:
                number_of_it = by_uuid[uuid].number if uuid in by_uuid else uuid
                found.append(
                    Objection(
                        Invariant.ONCE,
                        f"update {update_id} ran again {again[uuid]} times after runs under term {number_of_it} that had not "
                        f"failed, and was {'' if was_in_flight else 'not '}in flight at its end",
                    )
                )
    return Reruns(after_ends, in_flight, retried), found


def _has_failed(run: Run) -> bool:
    return run.is_told and run.ending is Ending.FAILED


def _find_unfenced(changes: Iterable[InboxChange], terms: Sequence[Tenure]) -> Iterable[Objection]:
    by_uuid = {tenure.uuid: tenure for tenure in terms}
    claimed_under: dict[int, str] = {}
    for change in sorted(changes, key=lambda change: change.at):
        if change.is_claim and change.new_term is not None:
            # A worker's session claims under one term in its life: what else it does, it does under that.
            claimed_under[change.backend] = change.new_term
        term = by_uuid.get(_acting_term(change, claimed_under) or "")
        if term is None or term.superseded_at is None or change.committed_at <= term.superseded_at:
            continue
        yield Objection(
            Invariant.FENCE,
            f"update {change.update_id} became {change.new_state} under term {term.number} "
            f"{change.committed_at - term.superseded_at:.3f} s after it was over",
        )


def _acting_term(change: InboxChange, claimed_under: dict[int, str]) -> str | None:
    """Under which term a change was made; None where that cannot be known."""
    if change.old_state is None or change.new_state is None:
        return None  # stored by anybody, or forgotten by whoever keeps house
    if change.is_claim:
        return change.new_term
    known = claimed_under.get(change.backend)
    if known is not None:
        return known
    # What an owner makes a dead letter of without running it still carries the term that ran it last.
    return None if change.new_state == "dead" else change.old_term


def _find_late_runs(runs: Iterable[Run], terms: Sequence[Tenure]) -> Iterable[Objection]:
    of_owner: dict[str, list[Tenure]] = defaultdict(list)
    for tenure in terms:
        of_owner[tenure.instance_id].append(tenure)
    for run in runs:
        owned = of_owner.get(run.owner, [])
        begun = [tenure for tenure in owned if tenure.began_at <= run.started_at + TOLERANCE_SECONDS]
        if not begun:
            yield Objection(
                Invariant.EXCLUSION,
                f"update {run.update_id} ran on {run.owner or run.instance} without a term",
            )
            continue
        late = run.last_seen_at - begun[-1].over_at
        if late > TOLERANCE_SECONDS:
            what = "was closed" if begun[-1].over_at == begun[-1].closed_at else "had passed its deadline"
            yield Objection(
                Invariant.EXCLUSION,
                f"update {run.update_id} ran on {run.owner} {late:.3f} s after its term {begun[-1].number} {what}",
            )


def _find_uncounted(runs_of: dict[int, list[Run]], changes: Iterable[InboxChange]) -> Iterable[Objection]:
    claims: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for change in changes:
        if change.starts:
            claims[change.update_id].append((change.committed_at, change.starts))
    for update_id, its_runs in runs_of.items():
        counted = sorted(claims[update_id])
        for number, run in enumerate(its_runs, start=1):
            known = bisect_right(counted, (run.started_at + TOLERANCE_SECONDS, 1 << 30))
            starts = max((count for _, count in counted[:known]), default=0)
            if starts < number:
                yield Objection(
                    Invariant.COUNTED,
                    f"run {number} of update {update_id} began when {starts} starts of it were committed",
                )
                break


def _find_unexplained(runs_of: dict[int, list[Run]], evidence: Evidence) -> Iterable[Objection]:
    for its_runs in runs_of.values():
        for earlier, later in pairwise(its_runs):
            if earlier.is_told and earlier.ending is not Ending.WELL:
                continue  # cancelled by the end of its term, or it failed and is repeated
            if any(
                death.instance == earlier.instance
                and earlier.started_at <= death.last_begin_at
                and death.at <= later.started_at
                for death in evidence.deaths
            ):
                continue
            yield Objection(
                Invariant.COUNTED,
                f"update {later.update_id} ran again on {later.instance}, and nothing had ended its run on "
                f"{earlier.instance}/{earlier.pid}",
            )


def _find_untrue(evidence: Evidence, terms: Sequence[Tenure]) -> Iterable[Objection]:
    of_instance: dict[str, list[Tenure]] = defaultdict(list)
    for tenure in terms:
        of_instance[instance_of(tenure.instance_id)].append(tenure)
    for probe in evidence.probes:
        if probe.role != "ACTIVE":
            continue
        begun = [
            tenure
            for tenure in of_instance[probe.instance]
            if tenure.began_at <= probe.answered_at + TOLERANCE_SECONDS
        ]
        late = probe.asked_at - max((_may_say_until(tenure) for tenure in begun), default=-inf)
        if late > TOLERANCE_SECONDS:
            why = f"{late:.3f} s after its last term was over" if begun else "and never had a term"
            yield Objection(Invariant.TRUTH, f"{probe.instance} said ACTIVE {why}")


def _may_say_until(tenure: Tenure) -> float:
    if tenure.closed_at is None:
        return tenure.deadline
    return min(tenure.deadline, tenure.closed_at + TOLD_SECONDS)


def _find_unasserted(evidence: Evidence, terms: Sequence[Tenure]) -> Iterable[Objection]:
    """What another sets, or what Telegram refuses, asserts nothing. More than to call can nobody who is made to fail; and
    nobody calls when the database is away."""
    asserted: dict[str, list[float]] = defaultdict(list)
    for call in evidence.calls:
        if call.method.lower() == "setwebhook" and (call.status == HTTPStatus.OK or call.fault):
            asserted[call.url].append(call.at)
    for index, tenure in enumerate(terms):
        following = terms[index + 1].began_at if index + 1 < len(terms) else evidence.ended_at
        confirmed_until = min(tenure.last_sign_at, following)
        lasted = confirmed_until - tenure.began_at
        # Without a URL: it was failed before that had been read.
        calls = [*asserted[evidence.urls.get(instance_of(tenure.instance_id), "")], *asserted[""]]
        if lasted > ASSERTION_SECONDS and not any(
            tenure.began_at - TOLERANCE_SECONDS <= at <= confirmed_until for at in calls
        ):
            yield Objection(
                Invariant.WEBHOOK,
                f"term {tenure.number} of {tenure.instance_id} lasted {lasted:.0f} s and never asserted the webhook",
            )


def _find_foreign_calls(evidence: Evidence, terms: Sequence[Tenure]) -> Iterable[Objection]:
    """No scenario has WEBHOOK_ON_EXIT=delete, so nobody may delete; and only an owner sets, and only what is its own."""
    names_of: dict[str, set[str]] = defaultdict(set)
    for name, url in evidence.urls.items():
        names_of[url].add(name)
    for call in evidence.calls:
        if call.method.lower() == "deletewebhook" or (not call.url and call.status == 200):
            yield Objection(Invariant.WEBHOOK, f"somebody deleted the webhook by {call.method}")
            continue
        if call.url in evidence.urls_of_others:
            continue
        if not any(
            (not call.url or instance_of(tenure.instance_id) in names_of[call.url])
            and tenure.began_at - TOLERANCE_SECONDS <= call.at <= tenure.over_at + ARRIVAL_SECONDS
            for tenure in terms
        ):
            names = ", ".join(sorted(names_of[call.url])[:3]) or "nobody's URL"
            yield Objection(Invariant.WEBHOOK, f"a setWebhook of {names} began outside of its terms")


def _find_unanswered(evidence: Evidence) -> Iterable[Objection]:
    """Health is answered from memory: a process that was up before and after, and did not stand still, has to answer.

    One that starts, stops, or is killed is no other matter than that: its port is not bound, or its connections are reset.
    """
    asked: dict[tuple[str, int, bool], list[Probe]] = defaultdict(list)
    for probe in evidence.probes:
        asked[probe.instance, probe.pid, probe.is_public].append(probe)
    for (instance, _, is_public), probes in asked.items():
        answered = sorted(probe.asked_at for probe in probes if probe.status is not None)
        for probe in probes:
            was_up = answered and answered[0] < probe.asked_at < answered[-1]
            if (
                probe.has_timed_out
                and was_up
                and not any(still.excuses(probe) for still in evidence.standstills)
            ):
                port = "the public port" if is_public else "its own port"
                seconds = probe.answered_at - probe.asked_at
                yield Objection(
                    Invariant.AVAILABLE, f"{instance} did not answer a probe on {port} within {seconds:.1f} s"
                )
