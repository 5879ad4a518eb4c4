"""The checker objects to every breach, and to nothing that is promised."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploy.local.history import Death, Delivery, Ending, Row, Run, Verdict, judge

# A chat with two updates, the second sent when the first was answered; all as it should be.
DELIVERIES = (Delivery(1, 7, 0.0, 0.1), Delivery(2, 7, 0.2, 0.3))
RUNS = (
    Run(1, 7, "a", 11, 0.5, 1.0, Ending.WELL),
    Run(2, 7, "a", 11, 1.1, 1.6, Ending.WELL),
)
ROWS = (Row(1, "done", 1.01), Row(2, "done", 1.61))


def killed(instance: str, at: float) -> Death:
    """A kill that took a moment."""
    return Death(instance, at, at + 0.05)


def whys(verdict: Verdict) -> list[str]:
    """The breaches' texts."""
    return [f"{breach.update_id}: {breach.why}" for breach in verdict.breaches]


def test_a_good_history_is_good() -> None:
    """Nothing to object to, and the sums are right."""
    verdict = judge(DELIVERIES, RUNS, ROWS)
    assert verdict == Verdict(2, 0, (), (), (), 0, 0)


def test_a_dead_letter_is_not_lost() -> None:
    """Kept is kept."""
    failed = replace(RUNS[1], ending=Ending.FAILED)
    assert judge(DELIVERIES, (RUNS[0], failed), (ROWS[0], Row(2, "dead", 1.61))).breaches == ()


@pytest.mark.parametrize("state", ["pending", "claimed"])
def test_an_answered_update_that_is_not_finished_is_lost(state: str) -> None:
    """L: an answer of 2xx is a promise."""
    verdict = judge(DELIVERIES, RUNS[:1], (ROWS[0], Row(2, state, None)))
    assert whys(verdict) == [f"2: answered 2xx and {state} at the end"]


def test_an_answered_update_without_a_row_is_lost() -> None:
    """L: however it went."""
    assert whys(judge(DELIVERIES, RUNS, ROWS[:1])) == ["2: answered 2xx and not in the inbox"]


def test_a_completion_without_a_run_is_lost() -> None:
    """L: marked done, and nobody did it."""
    verdict = judge(DELIVERIES, RUNS[:1], ROWS)
    assert whys(verdict) == ["2: done at the end, and no handler ever ran"]


def test_an_update_that_was_never_answered_may_be_missing() -> None:
    """It is still with the Bot API server, who tries again."""
    verdict = judge((DELIVERIES[0], Delivery(2, 7, 0.2, None, failures=3)), RUNS[:1], ROWS[:1])
    assert verdict.breaches == ()
    assert verdict.not_200 == 3


def test_two_runs_at_one_time_are_doubled() -> None:
    """X: the second began before the last sign of life of the first, whoever was killed."""
    first = Run(1, 7, "a", 11, 0.5, 1.0, Ending.INTERRUPTED)
    second = Run(1, 7, "b", 12, 0.9, 1.0, Ending.WELL)
    verdict = judge(DELIVERIES[:1], (first, second), ROWS[:1], [killed("a", 0.8)])
    assert whys(verdict) == ["1: ran twice at one time, on a/11 and b/12"]
    assert verdict.rerun == 0


def test_a_run_after_the_completion_is_doubled() -> None:
    """O: done is done, even if the instance that did it was killed a moment later."""
    late = Run(1, 7, "b", 12, 1.1, 1.2, Ending.WELL)
    verdict = judge(DELIVERIES[:1], (RUNS[0], late), ROWS[:1], [killed("a", 1.05)])
    assert whys(verdict) == ["1: ran after its completion, on a/11 and b/12"]


def test_a_second_good_run_without_a_death_is_doubled() -> None:
    """O: the completion of the first was dropped, or both were committed."""
    again = Run(1, 7, "a", 11, 1.1, 1.2, Ending.WELL)
    verdict = judge(DELIVERIES[:1], (RUNS[0], again), (Row(1, "done", 1.21),), [killed("b", 1.05)])
    assert whys(verdict) == ["1: ran again after it had ended well, on a/11 and a/11"]


def test_an_interrupted_run_may_be_repeated() -> None:
    """In flight when its process was killed: counted, not blamed."""
    first = Run(1, 7, "a", 11, 0.5, 0.8, Ending.INTERRUPTED)
    second = Run(1, 7, "b", 12, 0.9, 1.0, Ending.WELL)
    verdict = judge(DELIVERIES[:1], (second, first), ROWS[:1], [killed("a", 0.8)])
    assert verdict.breaches == ()
    assert (verdict.rerun, verdict.in_flight_at_deaths) == (1, 1)


def test_a_run_that_ended_well_and_was_not_committed_may_be_repeated_after_a_kill() -> None:
    """Between the end of the handler and the commit there is a moment; work is promised at least once."""
    second = Run(1, 7, "b", 12, 1.1, 1.2, Ending.WELL)
    verdict = judge(DELIVERIES[:1], (RUNS[0], second), (Row(1, "done", 1.21),), [killed("a", 1.005)])
    assert verdict.breaches == ()
    assert (verdict.rerun, verdict.in_flight_at_deaths) == (1, 1)


def test_a_failed_run_may_be_repeated() -> None:
    """A transient failure is tried again."""
    first = Run(1, 7, "a", 11, 0.5, 0.6, Ending.FAILED)
    second = Run(1, 7, "a", 11, 0.9, 1.0, Ending.WELL)
    verdict = judge(DELIVERIES[:1], (first, second), ROWS[:1])
    assert verdict.breaches == ()
    assert verdict.rerun == 1


def test_what_was_committed_before_the_kill_was_not_in_flight() -> None:
    """Only what had begun and was not committed counts, and only on the instance that was killed."""
    other = (Run(3, 8, "b", 12, 0.5, 3.0, Ending.WELL), Row(3, "done", 3.0), Delivery(3, 8, 0.0, 0.1))
    verdict = judge((*DELIVERIES, other[2]), (*RUNS, other[0]), (*ROWS, other[1]), [killed("a", 1.2)])
    assert verdict.in_flight_at_deaths == 1


def test_what_begins_between_the_signal_and_the_end_was_in_flight() -> None:
    """A busy machine takes its time to kill; what takes the dead one's place has nothing in flight."""
    first = Run(1, 7, "a", 11, 0.5, 0.8, Ending.INTERRUPTED)
    second = Run(3, 8, "a", 11, 0.83, 0.84, Ending.INTERRUPTED)
    runs = (
        first,
        second,
        Run(1, 7, "b", 12, 0.9, 1.0, Ending.WELL),
        Run(3, 8, "b", 12, 1.1, 1.2, Ending.WELL),
        Run(4, 9, "a", 13, 0.84, 1.2, Ending.WELL),
    )
    deliveries = (DELIVERIES[0], Delivery(3, 8, 0.0, 0.1), Delivery(4, 9, 0.0, 0.1))
    rows = (ROWS[0], Row(3, "done", 1.21), Row(4, "done", 1.21))
    verdict = judge(deliveries, runs, rows, [killed("a", 0.8)])
    assert verdict.breaches == ()
    assert (verdict.rerun, verdict.in_flight_at_deaths) == (2, 2)


def test_a_later_update_that_runs_first_is_out_of_order() -> None:
    """S: answered before the other was sent, and yet it waited for it."""
    swapped = (
        Run(2, 7, "a", 11, 0.5, 1.0, Ending.WELL),
        Run(1, 7, "a", 11, 1.1, 1.6, Ending.WELL),
    )
    verdict = judge(DELIVERIES, swapped, (Row(1, "done", 1.61), Row(2, "done", 1.01)))
    assert whys(verdict) == ["2: began before 1 was over, which was answered before it was sent"]


def test_a_later_update_that_does_not_wait_is_out_of_order() -> None:
    """S: beside the first is not after the first."""
    hasty = replace(RUNS[1], started_at=0.9)
    assert len(judge(DELIVERIES, (RUNS[0], hasty), ROWS).out_of_order) == 1


def test_a_later_update_between_the_two_runs_of_an_earlier_is_out_of_order() -> None:
    """S: the first was interrupted, and its chat did not wait for its second run."""
    interrupted = Run(1, 7, "a", 11, 0.5, 0.8, Ending.INTERRUPTED)
    between = Run(2, 7, "b", 12, 0.9, 1.0, Ending.WELL)
    second = Run(1, 7, "b", 12, 1.1, 1.2, Ending.WELL)
    verdict = judge(
        DELIVERIES,
        (interrupted, between, second),
        (Row(1, "done", 1.21), Row(2, "done", 1.01)),
        [killed("a", 0.8)],
    )
    assert len(verdict.out_of_order) == 1


def test_updates_sent_together_have_no_order() -> None:
    """Neither was answered before the other was sent; nor do two chats wait for each other."""
    together = (DELIVERIES[0], Delivery(2, 7, 0.05, 0.3), Delivery(3, 8, 0.2, 0.3))
    runs = (
        Run(2, 7, "a", 11, 0.5, 1.0, Ending.WELL),
        Run(1, 7, "a", 11, 1.1, 1.6, Ending.WELL),
        Run(3, 8, "a", 11, 0.6, 1.2, Ending.WELL),
    )
    rows = (Row(1, "done", 1.61), Row(2, "done", 1.01), Row(3, "done", 1.21))
    assert judge(together, runs, rows).breaches == ()
