"""A failover to a lagging replica takes back what the replica had not, and excuses nothing else."""

from __future__ import annotations

from dataclasses import replace

from deploy.local.history import Delivery, Ending, Row, Run
from tests.campaign.evidence import Evidence, InboxChange, Sign, TermChange
from tests.campaign.judge import Invariant, judge
from tests.campaign.lagging import Failover, count_forgotten, judge_by_replica

ONE = "one-aaaaaaaa"
OLD, NEW = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
LAGGED_AT, OVER_AT = 20.0, 23.0


def change(
    at: float, update_id: int, old: str | None, new: str, term: str | None, starts: int
) -> InboxChange:
    old_term = None if old in (None, "pending") else term
    new_term = None if new == "done" else term
    backend = {None: 100, OLD: 101, NEW: 102}[term]
    return InboxChange(
        at, at + 0.002, backend, update_id, update_id, old, new, old_term, new_term, starts, starts
    )


def run(update_id: int, at: float, pid: int) -> Run:
    return Run(update_id, update_id, "one", pid, at, at + 0.5, Ending.WELL, True, ONE)


# 1: stored and run before the lag, its completion lost: runs again.   2: stored before, claimed in the lag: runs again.
# 3: answered 200 in the lag, and gone.                                4: after the failover.
LAGGED = Evidence(
    deliveries=[
        Delivery(1, 1, 19.0, 19.1),
        Delivery(2, 2, 19.5, 19.6),
        Delivery(3, 3, 21.0, 21.1),
        Delivery(4, 4, 24.0, 24.1),
    ],
    runs=[run(1, 19.8, 11), run(2, 20.5, 11), run(3, 21.5, 11), *(run(n, 24.0 + n, 12) for n in (1, 2, 4))],
    rows=[Row(1, "done", 25.6), Row(2, "done", 26.6), Row(4, "done", 28.6)],
    changes=[
        change(19.05, 1, None, "pending", None, 0),
        change(19.55, 2, None, "pending", None, 0),
        change(19.7, 1, "pending", "claimed", OLD, 1),
        replace(change(24.9, 1, "claimed", "claimed", NEW, 2), old_term=OLD),
        change(25.6, 1, "claimed", "done", NEW, 2),
        change(25.9, 2, "pending", "claimed", NEW, 1),
        change(26.6, 2, "claimed", "done", NEW, 1),
        change(24.05, 4, None, "pending", None, 0),
        change(27.9, 4, "pending", "claimed", NEW, 1),
        change(28.6, 4, "claimed", "done", NEW, 1),
    ],
    terms=[TermChange(10.0, 10.002, 201, 1, OLD, ONE), TermChange(23.5, 23.502, 202, 2, NEW, ONE)],
    signs=[
        *(Sign(at, 201, ONE) for at in (10.0, 13.0, 16.0, 19.0)),
        Sign(23.5, 202, ONE),
        Sign(27.0, 202, ONE),
    ],
    ended_at=30.0,
)
FAILOVER = Failover(LAGGED_AT, OVER_AT, starts={1: 1, 2: 0}, signs=[Sign(22.0, 201, ONE)])


def letters(evidence: Evidence) -> set[Invariant]:
    found = judge(judge_by_replica(evidence, [FAILOVER]), expects_assertions=False).objections
    return {objection.invariant for objection in found}


def test_b12_what_the_replica_had_not_is_not_judged() -> None:
    """Lost with the primary, or done again since its completion was: no breach. Without the failover it is one."""
    assert letters(LAGGED) == set()
    assert judge(LAGGED, expects_assertions=False).objections != ()


def test_b12_what_is_not_judged_is_counted() -> None:
    """The third update; its run, and the second one's, of whose claims the replica knew nothing."""
    forgotten = count_forgotten(LAGGED, judge_by_replica(LAGGED, [FAILOVER]))
    assert list(forgotten.values()) == [1, 2]


def test_b12_what_the_replica_had_is_judged() -> None:
    """An update that it knew and that is not handled is lost."""
    assert letters(replace(LAGGED, rows=[*LAGGED.rows[:1], LAGGED.rows[2]])) == {Invariant.LOSS}


def test_b12_what_was_answered_outside_the_lag_is_judged() -> None:
    """A row that is gone, of an update from before the lag or from after the failover, is lost."""
    early, late = LAGGED.deliveries[2], LAGGED.deliveries[3]
    assert Invariant.LOSS in letters(
        replace(LAGGED, deliveries=[*LAGGED.deliveries[:2], replace(early, answered_at=19.9), late])
    )
    assert Invariant.LOSS in letters(replace(LAGGED, rows=LAGGED.rows[:2]))


def test_b12_what_runs_twice_after_the_failover_is_judged() -> None:
    """The excuse ends where the new primary begins."""
    assert Invariant.ONCE in letters(replace(LAGGED, runs=[*LAGGED.runs, run(4, 29.0, 12)]))
