"""The campaign's judge objects to every kind of breach, and to nothing else: histories made by hand, with one breach each.

The clean one: instance one owns from 10 to its death at 20; its last sign of life is from 19, so its deadline is 27. Instance
two owns from 20.1, and closes its term at 40. Two updates in one chat: the first runs on one, the second is killed with it and
runs again on two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from deploy.local.history import Death, Delivery, Ending, Row, Run
from tests.campaign.evidence import Call, Evidence, Freeze, InboxChange, Probe, Sign, Standstill, TermChange
from tests.campaign.judge import Invariant, Reruns, judge

ONE, TWO = "one-aaaaaaaa", "two-bbbbbbbb"
ONE_URL, TWO_URL = "https://bot.example.com/webhook/one", "https://bot.example.com/webhook/two"
FIRST, SECOND = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"


def change(
    at: float, update_id: int, old: str | None, new: str | None, *, term: str | None = None, starts: int = 0
) -> InboxChange:
    """A change of an update's row, committed 2 ms after its statement; a claim is one that leads to `claimed`."""
    old_term = None if old in (None, "pending") else term
    new_term = term if new in ("claimed", "dead") else None
    backend = {None: 100, FIRST: 101, SECOND: 102}[term]
    return InboxChange(
        at, at + 0.002, backend, update_id, update_id, old, new, old_term, new_term, starts, starts
    )


def run(
    update_id: int, owner: str, at: float, until: float, ending: Ending = Ending.WELL, *, told: bool = True
) -> Run:
    """A run on an instance, whose worker's pid is 11 or 12."""
    instance = owner.rpartition("-")[0]
    return Run(update_id, 7, instance, 11 if owner == ONE else 12, at, until, ending, told, owner)


UNANSWERED = Probe("one", 13.0, 18.0, None, has_timed_out=True)
"""Between two that process 0 of one answered."""

CLEAN = Evidence(
    deliveries=[Delivery(1, 7, 11.0, 11.1), Delivery(2, 7, 19.0, 19.1)],
    runs=[
        run(1, ONE, 11.5, 12.0),
        run(2, ONE, 19.5, 19.9, Ending.INTERRUPTED, told=False),
        run(2, TWO, 28.5, 29.0),
    ],
    rows=[Row(1, "done", 12.01), Row(2, "done", 29.01)],
    deaths=[Death("one", 20.0)],
    changes=[
        change(11.05, 1, None, "pending"),
        change(11.4, 1, "pending", "claimed", term=FIRST, starts=1),
        change(12.01, 1, "claimed", "done", term=FIRST, starts=1),
        change(19.05, 2, None, "pending"),
        change(19.4, 2, "pending", "claimed", term=FIRST, starts=1),
        replace(change(28.4, 2, "claimed", "claimed", term=SECOND, starts=2), old_term=FIRST),
        change(29.01, 2, "claimed", "done", term=SECOND, starts=2),
    ],
    terms=[
        TermChange(10.0, 10.002, 201, 1, FIRST, ONE),
        TermChange(20.1, 20.102, 202, 2, SECOND, TWO),
        TermChange(40.0, 40.002, 202, 2, SECOND, TWO, ended=True, closed=True),
    ],
    signs=[
        *(Sign(float(at), 201, ONE) for at in (10, 13, 16, 19)),
        *(Sign(20.1 + 2 * step, 202, TWO) for step in range(10)),
    ],
    probes=[
        Probe("one", 11.0, 11.01, 200, "ACTIVE"),
        Probe("one", 26.9, 26.95, 200, "ACTIVE"),
        Probe("two", 11.0, 11.01, 200, "PASSIVE"),
        Probe("two", 21.0, 21.01, 200, "ACTIVE"),
    ],
    calls=[Call("setWebhook", 10.1, 200, ONE_URL), Call("setWebhook", 20.2, 200, TWO_URL)],
    urls={"one": ONE_URL, "two": TWO_URL, "three": TWO_URL},
    ended_at=40.0,
)  # fmt: skip


def test_a_clean_history_is_not_objected_to() -> None:
    """The rerun is counted, and explained by the death."""
    judgement = judge(CLEAN)
    assert judgement.objections == ()
    assert (judgement.verdict.sent, judgement.done, judgement.dead, judgement.verdict.rerun) == (2, 2, 0, 1)
    assert judgement.verdict.in_flight_at_deaths == 1
    assert judgement.reruns == Reruns(after_ends=1, in_flight=1)


@dataclass(frozen=True, slots=True)
class Breach:
    """How a clean history is spoilt, and what must be said about it."""

    name: str
    invariant: Invariant
    spoil: Callable[[Evidence], Evidence]
    says: str


def without_runs(evidence: Evidence, update_id: int) -> list[Run]:
    """All runs but those of one update."""
    return [item for item in evidence.runs if item.update_id != update_id]


def run_again_under_its_term(evidence: Evidence, ending: Ending) -> Evidence:
    """The second update is given back after a run whose end was told, and run again by the same owner."""
    return replace(
        evidence,
        runs=[*evidence.runs[:2], run(2, TWO, 28.5, 28.7, ending), run(2, TWO, 29.2, 29.3)],
        rows=[evidence.rows[0], Row(2, "done", 29.4)],
        changes=[
            *evidence.changes[:6],
            change(28.75, 2, "claimed", "pending", term=SECOND, starts=2),
            change(29.1, 2, "pending", "claimed", term=SECOND, starts=3),
            change(29.4, 2, "claimed", "done", term=SECOND, starts=3),
        ],
    )


def run_again_on_two(evidence: Evidence, ending: Ending) -> Evidence:
    """The second update runs once more, in the middle of a term that nothing disturbs."""
    return replace(
        evidence,
        runs=[
            *evidence.runs[:2],
            run(2, TWO, 28.5, 28.7, ending, told=ending is Ending.WELL),
            run(2, TWO, 29.2, 29.3),
        ],
        rows=[evidence.rows[0], Row(2, "done", 29.4)],
        changes=[
            *evidence.changes[:6],
            change(29.1, 2, "claimed", "claimed", term=SECOND, starts=3),
            change(29.4, 2, "claimed", "done", term=SECOND, starts=3),
        ],
    )


BREACHES = [
    Breach(
        "answered 200 and pending at the end",
        Invariant.LOSS,
        lambda e: replace(e, rows=[e.rows[0], Row(2, "pending", None)]),
        "pending at the end",
    ),
    Breach(
        "answered 200 and not in the inbox", Invariant.LOSS, lambda e: replace(e, rows=e.rows[:1]), "not in the inbox"
    ),
    Breach(
        "run again after its completion",
        Invariant.ONCE,
        lambda e: replace(e, runs=[*e.runs, run(1, TWO, 21.0, 21.2)]),
        "ran after its completion",
    ),
    Breach(
        "two runs at one time",
        Invariant.ONCE,
        lambda e: replace(e, runs=[*e.runs, run(2, TWO, 28.8, 29.0)]),
        "ran twice at one time",
    ),
    Breach(
        "completed twice, in one row",
        Invariant.ONCE,
        lambda e: replace(
            e,
            changes=[
                *e.changes,
                change(29.5, 2, "done", "claimed", term=SECOND, starts=3),
                change(29.6, 2, "claimed", "done", term=SECOND, starts=3),
            ],
        ),
        "was completed twice",
    ),
    Breach(
        "completed twice, in two rows",
        Invariant.ONCE,
        lambda e: replace(
            e, changes=[*e.changes, replace(change(29.6, 2, "claimed", "done", term=SECOND, starts=1), seq=3)]
        ),
        "was completed twice",
    ),
    Breach(
        "second before first in a chat",
        Invariant.SEQUENCE,
        lambda e: replace(
            e,
            deliveries=[Delivery(1, 7, 11.0, 11.1), Delivery(2, 7, 11.2, 11.3)],
            runs=[run(1, ONE, 11.5, 12.0), run(2, ONE, 11.4, 11.9, Ending.INTERRUPTED, told=False), e.runs[2]],
            changes=[
                *(e.changes[:4]),
                replace(e.changes[4], at=11.35, committed_at=11.36),
                *(e.changes[5:]),
            ],
        ),
        "began before 1 was over",
    ),
    Breach(
        "completed by a superseded term",
        Invariant.FENCE,
        lambda e: replace(e, changes=[*e.changes[:5], change(21.0, 2, "claimed", "done", term=FIRST, starts=1)]),
        "under term 1",
    ),
    Breach(
        "completed in a statement from before, committed after",
        Invariant.FENCE,
        lambda e: replace(
            e,
            changes=[
                *e.changes[:5],
                replace(change(20.0, 2, "claimed", "done", term=FIRST, starts=1), committed_at=20.2),
            ],
        ),
        "under term 1",
    ),
    Breach(
        "given back by a superseded term",
        Invariant.FENCE,
        lambda e: replace(
            e,
            changes=[
                *e.changes[:5],
                change(21.0, 2, "claimed", "pending", term=FIRST, starts=1),
                change(28.4, 2, "pending", "claimed", term=SECOND, starts=2),
                e.changes[6],
            ],
        ),
        "became pending under term 1",
    ),
    Breach(
        "claimed under a superseded term",
        Invariant.FENCE,
        lambda e: replace(e, changes=[*e.changes, change(21.0, 3, "pending", "claimed", term=FIRST, starts=1)]),
        "became claimed under term 1",
    ),
    Breach(
        "completed after its owner had closed the term",
        Invariant.FENCE,
        lambda e: replace(e, changes=[*e.changes[:6], change(40.5, 2, "claimed", "done", term=SECOND, starts=2)]),
        "under term 2",
    ),
    Breach(
        "ran on past the deadline",
        Invariant.EXCLUSION,
        lambda e: replace(
            e,
            runs=[e.runs[0], run(2, ONE, 19.5, 27.5, Ending.INTERRUPTED, told=False), e.runs[2]],
        ),
        "had passed its deadline",
    ),
    Breach(
        "began past the deadline",
        Invariant.EXCLUSION,
        lambda e: replace(e, runs=[run(1, ONE, 27.2, 27.3), *e.runs[1:]], rows=[Row(1, "done", 27.31), e.rows[1]]),
        "had passed its deadline",
    ),
    Breach(
        "signs of another session of the owner do not count",
        Invariant.EXCLUSION,
        lambda e: replace(
            e,
            runs=[e.runs[0], run(2, ONE, 19.5, 27.5, Ending.INTERRUPTED, told=False), e.runs[2]],
            signs=[*e.signs, Sign(24.0, 777, ONE)],
        ),
        "had passed its deadline",
    ),
    Breach(
        "a sign after the deadline revives nothing",
        Invariant.EXCLUSION,
        lambda e: replace(
            e,
            runs=[e.runs[0], run(2, ONE, 19.5, 27.5, Ending.INTERRUPTED, told=False), e.runs[2]],
            signs=[*e.signs, Sign(27.2, 201, ONE)],
        ),
        "had passed its deadline",
    ),
    Breach(
        "did more after a freeze than to end the step that it was stopped in",
        Invariant.EXCLUSION,
        lambda e: replace(
            e,
            runs=[run(1, ONE, 19.2, 28.7), run(2, ONE, 19.5, 28.6), e.runs[2]],
            rows=[Row(1, "done", 28.71), e.rows[1]],
            freezes=[Freeze(11, 19.9, 28.6)],
        ),
        "update 1 ran on one-aaaaaaaa 1.700 s after",
    ),
    Breach(
        "another process than the one that was frozen",
        Invariant.EXCLUSION,
        lambda e: replace(
            e, runs=[e.runs[0], run(2, ONE, 19.5, 28.2), e.runs[2]], freezes=[Freeze(12, 19.9, 28.1)]
        ),
        "had passed its deadline",
    ),
    Breach(
        "ran on after its owner had closed the term",
        Invariant.EXCLUSION,
        lambda e: replace(
            e, runs=[*e.runs[:2], run(2, TWO, 39.5, 40.2)], rows=[e.rows[0], Row(2, "done", 40.3)]
        ),
        "was closed",
    ),
    Breach(
        "ran on an instance that never owned",
        Invariant.EXCLUSION,
        lambda e: replace(e, runs=[run(1, "six-cccccccc", 11.5, 12.0), *e.runs[1:]]),
        "without a term",
    ),
    Breach(
        "began before its start was counted",
        Invariant.COUNTED,
        lambda e: replace(
            e,
            changes=[
                item if item.update_id != 1 else replace(item, starts=1 if item.new_state == "done" else 0)
                for item in e.changes
            ],
        ),
        "run 1 of update 1",
    ),
    Breach(
        "began before its claim was committed",
        Invariant.COUNTED,
        lambda e: replace(
            e, changes=[item if item.at != 11.4 else replace(item, committed_at=11.6) for item in e.changes]
        ),
        "run 1 of update 1",
    ),
    Breach(
        "ran again and nobody had died",
        Invariant.COUNTED,
        lambda e: run_again_on_two(e, Ending.INTERRUPTED),
        "nothing had ended its run",
    ),
    Breach(
        "ran again after the death of another",
        Invariant.COUNTED,
        lambda e: replace(run_again_on_two(e, Ending.INTERRUPTED), deaths=[*e.deaths, Death("one", 29.0)]),
        "nothing had ended its run",
    ),
    Breach(
        "ran again after it had ended well",
        Invariant.ONCE,
        lambda e: run_again_on_two(e, Ending.WELL),
        "ran again after it had ended well",
    ),
    Breach(
        "interrupted, and run again under the same term",
        Invariant.ONCE,
        lambda e: run_again_under_its_term(e, Ending.INTERRUPTED),
        "update 2 ran again 1 times after runs under term 2 that had not failed, and was not in flight at its end",
    ),
    Breach(
        "run again after the end of a term by which it was completed",
        Invariant.ONCE,
        lambda e: replace(
            e, changes=[*e.changes[:5], change(19.9, 2, "claimed", "done", term=FIRST, starts=1), *e.changes[5:]]
        ),
        "update 2 ran again 1 times after runs under term 1 that had not failed, and was not in flight at its end",
    ),
    Breach(
        "in flight once, and run again twice",
        Invariant.ONCE,
        lambda e: replace(e, runs=[*e.runs[:2], run(2, TWO, 28.0, 28.2, Ending.INTERRUPTED), e.runs[2]]),
        "update 2 ran again 2 times after runs under term 1 that had not failed, and was in flight at its end",
    ),
    Breach(
        "said ACTIVE past the deadline",
        Invariant.TRUTH,
        lambda e: replace(e, probes=[*e.probes, Probe("one", 27.1, 27.2, 200, "ACTIVE")]),
        "one said ACTIVE 0.100 s after its last term was over",
    ),
    Breach(
        "said ACTIVE when the term had been closed",
        Invariant.TRUTH,
        lambda e: replace(e, probes=[*e.probes, Probe("two", 40.6, 40.7, 200, "ACTIVE")]),
        "two said ACTIVE 0.100 s after its last term was over",
    ),
    Breach(
        "said ACTIVE without ever having owned",
        Invariant.TRUTH,
        lambda e: replace(e, probes=[*e.probes, Probe("six", 11.0, 11.1, 200, "ACTIVE")]),
        "never had a term",
    ),
    Breach(
        "a term that lasted and never asserted",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=e.calls[:1]),
        "term 2 of two-bbbbbbbb lasted 18 s and never asserted the webhook",
    ),
    Breach(
        "a term in which another's webhook was set, and not the owner's",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=[e.calls[0], replace(e.calls[1], url=ONE_URL)]),
        "term 2 of two-bbbbbbbb lasted 18 s and never asserted the webhook",
    ),
    Breach(
        "a term whose assertion was refused, and not repeated",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=[e.calls[0], replace(e.calls[1], status=429)]),
        "term 2 of two-bbbbbbbb lasted 18 s and never asserted the webhook",
    ),
    Breach(
        "a probe without an answer, of a process that was up before and after",
        Invariant.AVAILABLE,
        lambda e: replace(e, probes=[*e.probes, UNANSWERED]),
        "one did not answer a probe on the public port within 5.0 s",
    ),
    Breach(
        "a probe without an answer when another instance stood still, and this one before",
        Invariant.AVAILABLE,
        lambda e: replace(
            e,
            probes=[*e.probes, UNANSWERED],
            standstills=[Standstill("two", 12.0, 19.0), Standstill("one", 11.5, 12.9)],
        ),
        "did not answer a probe",
    ),
    Breach(
        "the webhook deleted",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=[*e.calls, Call("deleteWebhook", 39.0, 200)]),
        "deleted the webhook by deleteWebhook",
    ),
    Breach(
        "the webhook set to nothing",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=[*e.calls, Call("setWebhook", 39.0, 200, "")]),
        "deleted the webhook by setWebhook",
    ),
    Breach(
        "a call that failed before its URL was read, outside of any term",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=[*e.calls, Call("setWebhook", 41.0, 429, "")]),
        "began outside of its terms",
    ),
    Breach(
        "the webhook set by an owner whose term was over",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=[*e.calls, Call("setWebhook", 27.6, 200, ONE_URL)]),
        "a setWebhook of one began outside of its terms",
    ),
    Breach(
        "the webhook set by a standby",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=[*e.calls, Call("setWebhook", 12.0, 200, TWO_URL)]),
        "a setWebhook of three, two began outside of its terms",
    ),
    Breach(
        "the webhook set on the way out, after the term was closed",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=[*e.calls, Call("setWebhook", 41.0, None, TWO_URL)]),
        "began outside of its terms",
    ),
    Breach(
        "the webhook set to what no instance has",
        Invariant.WEBHOOK,
        lambda e: replace(e, calls=[*e.calls, Call("setWebhook", 12.0, 200, "https://elsewhere.example.com/")]),
        "a setWebhook of nobody",
    ),
    Breach(
        "an unexpected dead letter",
        Invariant.DEAD,
        lambda e: replace(e, rows=[e.rows[0], Row(2, "dead", 29.01)]),
        "dead letters",
    ),
]  # fmt: skip


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.name)
def test_every_breach_is_objected_to(breach: Breach) -> None:
    """Among what the judge says is what was done to the history; a breach often shows in more than one way."""
    objections = judge(breach.spoil(CLEAN)).objections
    said = [item.why for item in objections if item.invariant is breach.invariant]
    assert any(breach.says in why for why in said), f"it says only {[str(item) for item in objections]}"


@pytest.mark.parametrize("invariant", sorted(set(Invariant) - {Invariant.HYGIENE, Invariant.FAILED}))
def test_no_invariant_is_without_a_breach(invariant: Invariant) -> None:
    """Those two are not read from a history."""
    assert invariant in {breach.invariant for breach in BREACHES}


FINE: list[tuple[str, Callable[[Evidence], Evidence]]] = [
    (
        "a cancelled run is repeated",
        lambda e: replace(
            e, deaths=[], runs=[e.runs[0], run(2, ONE, 19.5, 19.9, Ending.INTERRUPTED), e.runs[2]]
        ),
    ),
    (
        "a failed run is repeated",
        lambda e: replace(e, deaths=[], runs=[e.runs[0], run(2, ONE, 19.5, 19.9, Ending.FAILED), e.runs[2]]),
    ),
    ("a failed run is repeated under the same term", lambda e: run_again_under_its_term(e, Ending.FAILED)),
    (
        "what was in flight is made a dead letter without a run, and still carries the old term",
        lambda e: replace(
            e,
            runs=e.runs[:2],
            changes=[*e.changes[:5], replace(change(28.4, 2, "claimed", "dead", term=FIRST, starts=1), backend=102)],
        ),
    ),
    (
        "a dead owner's worker works on for a moment beside the next owner",
        lambda e: replace(
            e, runs=[e.runs[0], run(2, ONE, 19.5, 20.4, Ending.INTERRUPTED, told=False), e.runs[2]]
        ),
    ),
    (
        "who loses its term may have ended well and not have committed it",
        lambda e: replace(e, deaths=[], runs=[e.runs[0], run(2, ONE, 19.5, 19.9), e.runs[2]]),
    ),
    (
        "a step that was begun before a freeze ends when the process goes on, beside the next owner's run",
        lambda e: replace(
            e, deaths=[], runs=[e.runs[0], run(2, ONE, 19.5, 28.6), e.runs[2]], freezes=[Freeze(11, 19.9, 28.6)]
        ),
    ),
    (
        "a run that was let go before a freeze begins when the process goes on",
        lambda e: replace(
            e, runs=[e.runs[0], run(2, ONE, 28.6, 28.6, Ending.INTERRUPTED), e.runs[2]], freezes=[Freeze(11, 19.5, 28.6)]
        ),
    ),
    (
        "a probe without an answer of a process that stood still for a part of that time",
        lambda e: replace(e, probes=[*e.probes, UNANSWERED], standstills=[Standstill("one", 17.0, 20.0)]),
    ),
    (
        "a probe that fails at once: its connection was refused, or reset by a worker's end",
        lambda e: replace(e, probes=[*e.probes, replace(UNANSWERED, answered_at=13.1, has_timed_out=False)]),
    ),
    (
        "probes without an answer before a process is up, and when it ends",
        lambda e: replace(
            e,
            probes=[
                *e.probes,
                replace(UNANSWERED, pid=77),
                Probe("one", 19.0, 19.1, 200, "PASSIVE", pid=77),
                Probe("one", 21.0, 26.0, None, pid=77, has_timed_out=True),
            ],
        ),
    ),
    (
        "another system, which the scenario plays, sets the webhook",
        lambda e: replace(
            e, calls=[*e.calls, Call("setWebhook", 12.0, 200, "https://other/")], urls_of_others=["https://other/"]
        ),
    ),
    (
        "a call failed before its URL was read",
        lambda e: replace(e, calls=[*e.calls, Call("setWebhook", 11.0, 429, "")]),
    ),
    (
        "a call of an owner is read when its term has just been closed",
        lambda e: replace(e, calls=[*e.calls, Call("setWebhook", 40.1, 200, TWO_URL)]),
    ),
    (
        "a term without an assertion that was not confirmed for long: its database went away",
        lambda e: replace(
            e, calls=e.calls[:1], terms=e.terms[:2],
            signs=[sign for sign in e.signs if sign.instance_id == ONE or sign.at < 25.0],
        ),
    ),
    (
        "an assertion that the scenario has the emulator fail before it reads the URL",
        lambda e: replace(e, calls=[e.calls[0], Call("setWebhook", 20.2, 502, "", fault="server error")]),
    ),
    (
        "ACTIVE a moment after the term was closed: the worker had not been told",
        lambda e: replace(e, probes=[*e.probes, Probe("two", 40.4, 40.5, 200, "ACTIVE")]),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change_it"), FINE, ids=[name for name, _ in FINE])
def test_what_is_promised_is_not_objected_to(name: str, change_it: Callable[[Evidence], Evidence]) -> None:
    """Reruns that are explained, and what the deadline allows."""
    assert judge(change_it(CLEAN), expects_dead_letters=True).objections == ()


def test_reruns_are_told_apart_by_what_made_them_necessary() -> None:
    """What had failed is tried again by whoever owns, in flight or not; everything else needs the end of a term."""
    judgement = judge(run_again_under_its_term(CLEAN, Ending.FAILED))
    assert judgement.reruns == Reruns(after_ends=1, in_flight=1, retried=1)
    assert judgement.verdict.rerun == 2
