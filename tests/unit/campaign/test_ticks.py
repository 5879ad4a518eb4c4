"""The judge of timers and jobs objects to each thing that it looks for, and to nothing else."""

from __future__ import annotations

from tests.campaign.tenure import Tenure
from tests.campaign.ticks import Tick, judge


def term(number: int, owner: str, began_at: float, closed_at: float | None) -> Tenure:
    return Tenure(
        uuid=str(number),
        number=number,
        instance_id=owner,
        began_at=began_at,
        committed_at=began_at,
        deadline=began_at + 8.0,
        closed_at=closed_at,
        superseded_at=closed_at,
    )


def ticking(owner: str, pid: int, begin: float, end: float) -> list[Tick]:
    return [Tick("timer", owner, pid, begin + step * (end - begin) / 4) for step in range(5)]


TERMS = [term(1, "one-a", 10.0, 12.0), term(2, "two-b", 12.1, None)]


def test_timers_of_owners_one_after_the_other_are_well() -> None:
    """Until the close of the one term, and until the deadline of the other."""
    assert judge([*ticking("one-a", 1, 10.1, 11.9), *ticking("two-b", 2, 12.2, 20.0)], TERMS) == []


def test_a_timer_that_outlives_its_term_is_a_breach() -> None:
    """Its close, or its deadline."""
    assert len(judge(ticking("one-a", 1, 10.1, 12.05), TERMS)) == 1
    assert len(judge(ticking("two-b", 2, 12.2, 20.2), TERMS)) == 1


def test_a_timer_without_a_term_is_a_breach() -> None:
    """Before it, or on a standby."""
    assert len(judge(ticking("two-b", 2, 12.0, 13.0), TERMS)) == 1
    assert len(judge(ticking("three-c", 3, 12.0, 13.0), TERMS)) == 1


def test_two_workers_at_one_time_are_a_breach() -> None:
    """Also of one owner, who replaces its worker."""
    terms = [term(1, "one-a", 10.0, 13.0), term(2, "one-a", 11.0, None)]
    found = judge([*ticking("one-a", 1, 10.1, 11.5), *ticking("one-a", 2, 11.4, 12.0)], terms)
    assert ["at one time" in str(objection) for objection in found] == [True]
