"""Judges the history of a simulation by the invariants of SCENARIOS.md: L O S F X W T, and A after the last fault.

    L  every update answered 200 ends done, or dead where its handler deserves it; what is not done was not answered
    O  at most one committed completion for each update, and no run of it begins after that
    S  in a lane, what was answered 200 before another was first sent begins first, and is over when that begins
    F  no commit under a term that is not the present one
    X  no run and no timers past their owner's deadline; no two runs at one time of an update, or of a lane; timers in one
       worker at a time
    W  a term's first call is setWebhook, and one that lasts makes it; nobody calls it before its first term, or after the end
       of its last one; nobody deletes; no process calls within a flood limit that it was told of, whatever its term; in the
       end Telegram has the owner's registration, and only one instance owns
    P  an update is not started again once its process has ended MAX_ATTEMPTS times while it ran
    T  no process says that its instance owns past that one's deadline, by the answers of the database and the clock: asked of
       every process that can answer, at every probe of the platform and at the very end of every deadline
    A  everything is in order again within a bound after the plan and the end of its last fault

After a failover L, O, S and X are judged on what the replica had: what was answered, claimed or completed between its last
byte and its promotion may be gone. Knows nothing of how the product works; sabotage.py takes its safeties out one by one and
sees it object.

Not judged: how long anything takes but recovery; reruns, which are promised (they are counted).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from supervisor.state import DEADLINE_SECONDS
from tests.models.inbox import Row
from tests.simulation.history import Delivery, History, Run
from tests.simulation.world import World
from webhook_worker.lanes import State

_SAME_MOMENT = 1e-6

MAX_ATTEMPTS = 5

ASSERTION_SECONDS = 10.0
"""A term that was confirmed for so long calls setWebhook: it does at once, or 3 s later where a flood limit is in force. A slow
network may need 7 s for what comes before."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a simulation came to.

    Attributes:
        breaches: each begins with its letter.
        sent: updates that Telegram had; `taken` of them were answered 200 and `expired` were not.
        done, dead, innocent, forgotten: of those taken. `innocent`: dead too, but their handlers did nothing wrong, and their
            end could not be committed MAX_ATTEMPTS times; they are not among `dead`. `forgotten`: by a failover.
        unanswered: of the others, those that are in the inbox all the same, since the answer 200 was lost.
        rerun: runs beyond the first of an update.
        claims: of ownership, which probes were told.
        recovery_seconds: from the end of the last fault until everything from before that is settled, one instance owns, and
            Telegram has its registration, to the second; None: it did not come to that. Of a kill or a deploy the end is its
            begin; a fault that the end of the plan cuts off ends there.
        limit_seconds: within which all is settled, what came since too, after the plan and the end of its last fault.
        resumed_seconds: for each return of the database, until the next answer 200.
    """

    seed: int
    breaches: tuple[str, ...]
    sent: int
    taken: int
    expired: int
    done: int
    dead: int
    innocent: int
    forgotten: int
    unanswered: int
    rerun: int
    terms: int
    claims: int
    recovery_seconds: float | None
    limit_seconds: float
    resumed_seconds: tuple[float, ...]
    simulated_seconds: float
    digest: str


def judge(world: World) -> Report:
    """The report on a simulation that has been run."""
    history = world.history
    fates = _fates(world)
    breaches = [
        *history.breaches,
        *_find_lost(world),
        *_find_unaccounted(world, fates),
        *_find_doubled(history),
        *_find_out_of_order(history),
        *_find_superseded(history),
        *_find_overlapping(history),
        *_find_late(world),
        *_find_not_asserted(world),
        *_find_forgotten(world),
        *_find_foreign_calls(world),
        *_find_early(world),
        *_find_not_counted(history),
        *_find_untrue(history),
        *_find_unrecovered(world),
    ]
    runs = Counter(run.update_id for run in history.runs)
    return Report(
        seed=world.plan.seed,
        breaches=tuple(breaches),
        sent=len(history.deliveries),
        taken=sum(fates[fate] for fate in _TAKEN),
        expired=fates[Fate.EXPIRED] + fates[Fate.UNANSWERED],
        done=fates[Fate.DONE],
        dead=fates[Fate.DEAD],
        innocent=fates[Fate.INNOCENT],
        forgotten=fates[Fate.FORGOTTEN],
        unanswered=fates[Fate.UNANSWERED],
        rerun=sum(count - 1 for count in runs.values()),
        terms=len(history.terms),
        claims=len(history.claims),
        recovery_seconds=world.recovery_seconds,
        limit_seconds=world.limit_seconds,
        resumed_seconds=tuple(_resumed(history)),
        simulated_seconds=world.agenda.now - 1000.0,
        digest=history.digest(),
    )


class Fate(Enum):
    """What became of an update."""

    DONE = "done"
    DEAD = "a dead letter"
    INNOCENT = "a dead letter, although its handler does nothing wrong"
    FORGOTTEN = "not in the inbox any more: forgotten by a failover, or lost"
    WAITING = "answered 200, and not settled"
    UNANSWERED = "expired at Telegram, and in the inbox all the same: the answer 200 was lost"
    EXPIRED = "expired at Telegram"
    UNTAKEN = "still at Telegram"


_TAKEN = (Fate.DONE, Fate.DEAD, Fate.INNOCENT, Fate.FORGOTTEN, Fate.WAITING)


def _fates(world: World) -> Counter[Fate]:
    rows = {row.update_id: row for row in world.postgres.store.rows.values()}
    return Counter(_fate(world, one, rows.get(one.update_id)) for one in world.history.deliveries.values())


def _fate(world: World, delivery: Delivery, row: Row | None) -> Fate:
    if delivery.taken_at is None:
        if not delivery.is_expired(world.agenda.now):
            return Fate.UNTAKEN
        return Fate.EXPIRED if row is None else Fate.UNANSWERED
    if row is None:
        return Fate.FORGOTTEN
    if row.state is State.DEAD:
        return Fate.INNOCENT if world.is_innocent(row.update_id) else Fate.DEAD
    return Fate.DONE if row.state is State.DONE else Fate.WAITING


def _resumed(history: History) -> Iterator[float]:
    taken = sorted(at for one in history.deliveries.values() for at, status in one.answers if status == 200)
    for returned_at in history.database_returns:
        at = next((at for at in taken if at >= returned_at), None)
        if at is not None:
            yield at - returned_at


def _may_be_forgotten(history: History, at: float) -> bool:
    """Whether a failover may have lost what was committed by then."""
    return any(one.replicated_at <= at <= one.promoted_at + 1.0 for one in history.failovers)


def _find_lost(world: World) -> Iterator[str]:
    history = world.history
    rows = {row.update_id: row for row in world.postgres.store.rows.values()}
    ran = {run.update_id for run in history.runs}
    for delivery in history.deliveries.values():
        taken = [at for at, status in delivery.answers if status == 200]
        for _, status in delivery.answers:
            if status is not None and status not in (200, 502, 503):
                yield f"L update {delivery.update_id} was answered {status}"
        if not taken:
            if world.is_recovered and not delivery.is_over(world.agenda.now):
                yield f"L update {delivery.update_id} was never taken, nor did it expire"
            continue
        row = rows.get(delivery.update_id)
        if row is None:
            if not all(_may_be_forgotten(history, at) for at in taken):
                yield f"L update {delivery.update_id} was answered 200 and is not in the inbox"
        elif row.state not in (State.DONE, State.DEAD):
            if world.is_recovered:
                yield f"L update {delivery.update_id} was answered 200 and is {row.state.value} at the end"
        elif delivery.update_id not in ran:
            yield f"L update {delivery.update_id} is {row.state.value} and never ran"
        elif row.state is State.DEAD and world.is_innocent(delivery.update_id):
            # One whose end could not be committed MAX_ATTEMPTS times, for whatever reason, cannot be told from one that kills.
            # An end that a failover forgot is none: the replica has the row as it was claimed.
            ends = sum(
                commit.update_id == delivery.update_id
                and commit.state is State.PENDING
                and not _may_be_forgotten(history, at)
                for at, commit in history.commits
            )
            runs = sum(run.update_id == delivery.update_id for run in history.runs)
            if runs - ends < MAX_ATTEMPTS:
                yield f"L update {delivery.update_id} is dead, and its handler did nothing wrong: {row.error}"


def _find_unaccounted(world: World, fates: Counter[Fate]) -> Iterator[str]:
    """What is in the inbox must be what was sent and neither expired nor forgotten, each of it once."""
    rows = Counter(row.update_id for row in world.postgres.store.rows.values())
    for update_id in rows.keys() - world.history.deliveries.keys():
        yield f"L update {update_id} is in the inbox, and Telegram never had it"
    stored = sum(fates[fate] for fate in (*_TAKEN, Fate.UNANSWERED)) - fates[Fate.FORGOTTEN]
    if world.is_recovered and rows.total() != stored:
        said = ", ".join(f"{count} {fate.value}" for fate, count in fates.items())
        yield f"L the inbox has {rows.total()} rows, and should have {stored}: {said}"


def _find_doubled(history: History) -> Iterator[str]:
    finished: dict[int, list[float]] = defaultdict(list)
    for at, commit in history.commits:
        if commit.state in (State.DONE, State.DEAD):
            finished[commit.update_id].append(at)
    for update_id, moments in finished.items():
        lasting = [at for at in moments if not _may_be_forgotten(history, at)]
        if len(lasting) > 1:
            yield f"O update {update_id} was completed {len(lasting)} times"
    for run in history.runs:
        for at in finished[run.update_id]:
            if run.began_at > at + _SAME_MOMENT and not _may_be_forgotten(history, at):
                yield f"O update {run.update_id} ran at {run.began_at:.4f}, completed at {at:.4f}"


def _find_out_of_order(history: History) -> Iterator[str]:
    runs_of: dict[int, list[Run]] = defaultdict(list)
    for run in history.runs:
        runs_of[run.update_id].append(run)
    finished: dict[int, list[float]] = defaultdict(list)
    for at, commit in history.commits:
        if commit.state in (State.DONE, State.DEAD):
            finished[commit.update_id].append(at)
    lanes: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in history.deliveries.values():
        lanes[delivery.lane].append(delivery)
    for deliveries in lanes.values():
        taken = [
            (delivery.taken_at, delivery)
            for delivery in deliveries
            if delivery.taken_at is not None and not _may_be_forgotten(history, delivery.taken_at)
        ]
        for second in deliveries:
            its_runs = runs_of.get(second.update_id)
            if not its_runs or second.first_sent_at is None:
                continue
            began_at = its_runs[0].began_at
            for taken_at, first in taken:
                if first is second or taken_at > second.first_sent_at:
                    continue
                if not any(at <= began_at + _SAME_MOMENT for at in finished[first.update_id]):
                    yield (
                        f"S update {second.update_id} began at {began_at:.4f} before {first.update_id} was over,"
                        f" which was answered at {taken_at:.4f}, before it was sent at {second.first_sent_at:.4f}"
                    )
                    break


def _find_superseded(history: History) -> Iterator[str]:
    for at, commit in history.commits:
        if commit.term != commit.present_term:
            yield f"F at {at:.4f} update {commit.update_id} became {commit.state.value} under a superseded term"


def _find_overlapping(history: History) -> Iterator[str]:
    claims: dict[int, list[float]] = defaultdict(list)
    for at, commit in history.commits:
        if commit.state is State.CLAIMED:
            claims[commit.update_id].append(at)

    def is_known(run: Run) -> bool:
        # A claim that a failover forgot is one that the next owner cannot know of.
        claimed_at = max((at for at in claims[run.update_id] if at <= run.began_at), default=run.began_at)
        return not _may_be_forgotten(history, claimed_at)

    by_update: dict[int, list[Run]] = defaultdict(list)
    by_lane: dict[int, list[Run]] = defaultdict(list)
    for run in history.runs:
        by_update[run.update_id].append(run)
        by_lane[run.lane].append(run)
    for runs in (*by_update.values(), *by_lane.values()):
        for one, following in pairwise(sorted(runs, key=lambda run: (run.began_at, run.seen_at))):
            if following.began_at < one.seen_at - _SAME_MOMENT and is_known(one):
                yield (
                    f"X updates {one.update_id} and {following.update_id} of one lane ran at one time at"
                    f" {following.began_at:.4f}, in {one.worker} and {following.worker}"
                )
    for before, after in pairwise(sorted(history.timers, key=lambda timers: timers.began_at)):
        if before.ended_at is None or after.began_at < before.ended_at - _SAME_MOMENT:
            yield f"X timers ran in {before.worker} and {after.worker} at one time, at {after.began_at:.4f}"


def _find_late(world: World) -> Iterator[str]:
    history = world.history
    for run in history.runs:
        deadline = history.deadlines.get(run.term)
        if deadline is None:
            yield f"X update {run.update_id} ran under a term that nobody had"
        elif run.seen_at > deadline + _SAME_MOMENT:
            yield f"X update {run.update_id} ran until {run.seen_at:.4f}, the deadline was {deadline:.4f}"
    for timers in history.timers:
        ended_at = timers.ended_at
        if ended_at is None:
            # Where things are not in order at the end, a process may stand still there with its timers.
            ended_at = world.agenda.now if world.is_recovered else timers.began_at
        deadline = history.deadlines.get(timers.term, -math.inf)
        if ended_at > deadline + _SAME_MOMENT:
            yield f"X timers ran until {ended_at:.4f} in {timers.worker}, the deadline was {deadline:.4f}"


def _find_not_asserted(world: World) -> Iterator[str]:
    by_instance: dict[str, list[float]] = defaultdict(list)
    for term in world.history.terms:
        by_instance[term.instance].append(term.began_at)
    for instance, moments in by_instance.items():
        calls = [(at, method) for at, caller, method in world.telegram.calls if caller == instance]
        for began_at, ended_at in pairwise([*moments, math.inf]):
            first = next((method for at, method in calls if began_at <= at < ended_at), None)
            if first not in (None, "setWebhook"):
                yield f"W the term of {instance} that began at {began_at:.4f} calls {first} before setWebhook"


def _find_forgotten(world: World) -> Iterator[str]:
    """Terms that lasted, and never asserted. Who was told that its token is refused waits for minutes."""
    history, telegram = world.history, world.telegram
    for term in history.terms:
        confirmed_until = history.deadlines.get(term.uuid, -math.inf) - DEADLINE_SECONDS
        until = min(confirmed_until, history.ends.get(term.uuid, math.inf))
        if until - term.began_at <= ASSERTION_SECONDS or term.instance in telegram.refused:
            continue
        if not any(
            caller == term.instance and method == "setWebhook" and term.began_at <= at <= until
            for at, caller, method in telegram.calls
        ):
            lasted = until - term.began_at
            yield f"W no setWebhook in {lasted:.0f} s of the term of {term.instance} that began at {term.began_at:.4f}"


def _find_foreign_calls(world: World) -> Iterator[str]:
    """setWebhook is its owner's alone, and only within its last term; nobody here deletes, or polls."""
    history, closed_terms = world.history, world.postgres.closed_terms
    for at, instance, method in world.telegram.calls:
        if method == "deleteWebhook":
            yield f"W deleteWebhook by {instance} at {at:.4f}"
        if method != "setWebhook":
            continue
        begun = (one for one in reversed(history.terms) if one.instance == instance and one.began_at <= at)
        term = next(begun, None)
        if term is None:
            yield f"W setWebhook by {instance} at {at:.4f}, which never had a term"
            continue
        until = min(history.deadlines.get(term.uuid, -math.inf), closed_terms.get(term.uuid, math.inf))
        if at > until + _SAME_MOMENT:
            yield f"W setWebhook by {instance} at {at:.4f}, its term was over at {until:.4f}"


def _find_early(world: World) -> Iterator[str]:
    for at, instance, method in world.telegram.early_calls:
        yield f"W {instance} calls {method} at {at:.4f}, within the flood limit that it was told of"


def _find_not_counted(history: History) -> Iterator[str]:
    died = Counter(run.update_id for run in history.runs if run.ended == "died")
    # What a failover forgets was not counted in the end.
    most = MAX_ATTEMPTS + MAX_ATTEMPTS * len(history.failovers)
    for update_id, times in died.items():
        if times > most:
            yield f"P update {update_id} was started {times} times whose process ended while it ran"


def _find_untrue(history: History) -> Iterator[str]:
    untrue = [one for one in history.claims if one.until is None or one.at >= one.until]
    # Once for each, however often it was asked.
    for claim in {(one.who, one.until): one for one in reversed(untrue)}.values():
        began = (term for term in reversed(history.terms) if term.began_at <= claim.at)
        owner = next((term.instance for term in began), None)
        deadline = "it never had a term" if claim.until is None else f"the deadline was {claim.until:.4f}"
        beside = f", and {owner} had begun another" if owner not in (None, claim.instance) else ""
        yield f"T {claim.who} said at {claim.at:.4f} that it owns, {deadline}{beside}"


def _find_unrecovered(world: World) -> Iterator[str]:
    owners = [one for one in world.platform.instances() if one.owns]
    if not world.is_recovered:
        waiting = sum(row.state not in (State.DONE, State.DEAD) for row in world.postgres.store.rows.values())
        yield (
            f"A not in order {world.limit_seconds:g} s after the last fault: owners {[one.name for one in owners]},"
            f" {world.telegram.pending} updates at Telegram, {waiting} in the inbox,"
            f" deploys {'over' if world.platform.is_quiet else 'under way'}"
        )
        return
    if len(owners) != 1:
        yield f"W {len(owners)} instances own in the end"
    elif not world.is_registered(owners[0]):
        yield "W Telegram has another registration than the owner's in the end"
