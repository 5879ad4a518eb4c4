"""The decisions of the dispatch, one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook_worker import lanes
from webhook_worker.lanes import (
    DONE,
    GIVE_BACK,
    Bury,
    Interruption,
    Rerun,
    State,
    Suspect,
    Verdict,
)
from webhook_worker.outcomes import Done, Failed, Outcome, Transient


def judge(
    outcome: Outcome | None,
    interruption: Interruption | None = None,
    *,
    age_seconds: float = 0.0,
    retries: int = 3,
) -> Verdict:
    return lanes.judge(
        outcome, interruption, retries=retries, age_seconds=age_seconds, timeout_seconds=300, jitter=0.5
    )


@pytest.mark.parametrize("interruption", [None, *Interruption])
def test_work_that_was_done_is_done(interruption: Interruption | None) -> None:
    """Also when its cancellation came too late to stop it."""
    assert judge(Done(), interruption) == DONE


@pytest.mark.parametrize("outcome", [None, Failed("Traceback"), Transient("TimedOut")])
def test_an_orderly_interruption_is_nothing_against_the_update(outcome: Outcome | None) -> None:
    """Whatever the handler made of its cancellation: back to the inbox, the attempt given back."""
    assert judge(outcome, Interruption.TERM_OVER) == GIVE_BACK
    assert (GIVE_BACK.state, GIVE_BACK.refund, GIVE_BACK.retry_seconds) == (State.PENDING, 1, None)


@pytest.mark.parametrize("outcome", [None, Failed("Traceback: late"), Transient("TimedOut")])
def test_a_time_out_is_a_dead_letter_that_names_the_setting(outcome: Outcome | None) -> None:
    """And keeps the handler's last words."""
    verdict = judge(outcome, Interruption.TIMEOUT)
    assert verdict.state is State.DEAD
    assert "longer than 300 s (HANDLER_TIMEOUT_SECONDS)" in str(verdict.error)
    if isinstance(outcome, Failed):
        assert "Traceback: late" in str(verdict.error)


def test_a_failure_is_a_dead_letter_with_its_traceback() -> None:
    """Nothing is given back."""
    assert judge(Failed("Traceback: x")) == Verdict(State.DEAD, error="Traceback: x")
    assert judge(None).state is State.DEAD


@pytest.mark.parametrize("interruption", [None, Interruption.TIMEOUT])
def test_a_dead_letter_has_a_text_that_the_database_takes(interruption: Interruption | None) -> None:
    """Whoever made the outcome."""
    error = judge(Failed("\0" * 100_000 + "ValueError"), interruption).error
    assert error is not None
    assert "\0" not in error
    assert error.endswith("ValueError")
    assert len(error) <= lanes.MAX_ERROR_CHARACTERS


def test_a_transient_failure_waits_and_gives_its_attempt_back() -> None:
    """By our backoff, or by the time that was told."""
    verdict = judge(Transient("TimedOut"))
    assert verdict == Verdict(
        State.PENDING, refund=1, is_retry=True, retry_seconds=6.0, is_told=False, error="TimedOut"
    )
    told = judge(Transient("RetryAfter", 17.0))
    assert (told.is_told, told.retry_seconds) == (True, 17.5)


def test_a_transient_failure_is_given_up_by_age_and_by_nothing_else() -> None:
    """24 h after it was received; a day of its pauses is thousands of retries."""
    assert judge(Transient("TimedOut"), age_seconds=24 * 3600 - 1, retries=10_000).state is State.PENDING
    verdict = judge(Transient("TimedOut"), age_seconds=24 * 3600, retries=3_800)
    assert verdict.state is State.DEAD
    assert "transient failures: 3801, the last: TimedOut" in str(verdict.error)


@pytest.mark.parametrize(
    ("told", "enough"), [(None, 320), (0.0, 14_400), (35.0, 203), (3600.0, 2), (100_000.0, 1)]
)
def test_what_was_old_before_it_was_tried_is_tried_for_an_hour(told: float | None, enough: int) -> None:
    """The backlog of a weekend, and one flood limit, or an outage; whatever the pauses are, they come to an end."""
    days = 3 * 24 * 3600.0
    for retries in (0, enough - 1):
        assert judge(Transient("away", told), age_seconds=days, retries=retries).state is State.PENDING
    assert judge(Transient("away", told), age_seconds=days, retries=enough).state is State.DEAD


@given(retries=st.integers(0, 10_000), jitter=st.floats(0, 1))
def test_backoff_doubles_with_jitter_up_to_its_limit(retries: int, jitter: float) -> None:
    """Never less than half of 1, 2, 4 ... s, never more than the limit."""
    seconds = lanes.backoff_seconds(retries, None, jitter=jitter)
    longest = min(lanes.RETRY_MAX_SECONDS, 2.0 ** min(retries, 100))
    assert longest / 2 <= seconds <= longest


@given(told=st.floats(-10, 1e9), retries=st.integers(0, 100), jitter=st.floats(0, 1))
def test_a_told_time_is_never_shortened(told: float, retries: int, jitter: float) -> None:
    """And hardly lengthened."""
    seconds = lanes.backoff_seconds(retries, told, jitter=jitter)
    assert max(0.0, told) <= seconds <= max(0.0, told) + 1.0


def test_recovery_takes_the_fewest_attempts_first_then_the_oldest() -> None:
    """So that a poison update comes after those that were merely beside it."""
    suspects = [Suspect(4, 2), Suspect(9, 1), Suspect(3, 1), Suspect(1, 3)]
    assert lanes.next_recovery(suspects, max_attempts=5) == Rerun(3)
    assert lanes.next_recovery([], max_attempts=5) is None


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_b25_what_was_started_often_enough_is_buried_before_anything_is_started(max_attempts: int) -> None:
    """MAX_ATTEMPTS counts starts, the first included."""
    suspects = [Suspect(1, max_attempts), Suspect(2, max_attempts + 1), Suspect(3, max_attempts - 1)]
    step = lanes.next_recovery(suspects, max_attempts=max_attempts)
    assert isinstance(step, Bury)
    assert sorted(step.seqs) == [1, 2]
    assert f"MAX_ATTEMPTS={max_attempts} starts" in step.error
