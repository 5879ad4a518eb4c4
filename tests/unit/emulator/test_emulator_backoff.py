"""Retry, ramp-up and 410 of TELEGRAM.md "Delivery", as pure rules."""

from __future__ import annotations

import pytest

from deploy.local.emulator.backoff import Allowance, Backoff, GoneWatch, Ramp, is_expired, parse_retry_after


def test_the_first_retry_is_immediate_then_the_delay_doubles_from_2_s_to_the_cap() -> None:
    """0, 2, 4, 8, 16, 32, 64, and the cap of 100 from then on."""
    state, delays = Backoff(), []
    for _ in range(9):
        state, delay = state.after_failure(0, 100)
        delays.append(delay)
    assert delays == [0, 2, 4, 8, 16, 32, 64, 100, 100]


def test_a_lower_cap_drawn_later_lowers_the_delay() -> None:
    """The cap is drawn anew for each failure, so a delay can also shrink."""
    state = Backoff(delay_seconds=110, failures=9)
    assert state.after_failure(0, 65)[1] == 65


def test_retry_after_replaces_the_delay_and_does_not_grow_it() -> None:
    """After any number of `Retry-After: 2` a bare failure waits 2 s, as if it were the second."""
    state = Backoff()
    for _ in range(10):
        state, delay = state.after_failure(2, 60)
        assert delay == 2
    assert state.after_failure(0, 60)[1] == 2


@pytest.mark.parametrize(("given", "waited"), [(1, 1), (3600, 3600), (3601, 3600), (0, 0), (-5, 0)])
def test_retry_after_is_clamped_to_0_and_3600(given: int, waited: int) -> None:
    """0 and less count as no Retry-After at all."""
    assert Backoff().after_failure(given, 60)[1] == waited


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("2", 2),
        (" 7 ", 7),
        ("1.5", 0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0),
        ("9" * 12, 0),
    ],
)
def test_retry_after_takes_seconds_only(text: str | None, seconds: int) -> None:
    """A date, or anything but digits, counts as none."""
    assert parse_retry_after(text) == seconds


def test_an_update_is_dropped_only_if_its_next_try_falls_after_its_end() -> None:
    """At the very end is still in time."""
    assert not is_expired(100, 50, 150)
    assert is_expired(100, 51, 150)


def test_an_allowance_lets_no_window_have_more() -> None:
    """10 in 0.5 s: whichever half second one looks at."""
    allowance, now, times = Allowance(10, 0.5), 0.0, []
    for _ in range(35):
        now = allowance.next_at(now)
        allowance.add(now)
        times.append(now)
    assert all(times[index + 10] - times[index] >= 0.5 for index in range(25))
    assert times[9] == 0.0


def test_ramp_without_success_for_10_s_wants_one_connection_every_2_s() -> None:
    """Twenty queues, but one connection, and the next may be opened 2 s after it."""
    ramp = Ramp(40, 0.0)
    assert ramp.wanted(20, 0.0, verified=True) == 1
    ramp.note_opening(0.0)
    assert ramp.next_opening_at(0.5) == 2.0
    assert ramp.wanted(0, 0.0, verified=True) == 0
    assert ramp.wanted(0, 0.0, verified=False) == 1


def test_ramp_with_success_wants_as_many_as_queues_up_to_max_connections() -> None:
    """Until 10 s after the last success."""
    ramp = Ramp(40, 0.0)
    ramp.note_success(5.0)
    assert [ramp.wanted(queues, 15.0, verified=True) for queues in (0, 20, 99)] == [1, 20, 40]
    assert ramp.wanted(20, 15.1, verified=True) == 1


def test_410_counts_from_the_first_to_more_than_23_hours_without_another_answer() -> None:
    """Exactly 23 h is not more; any other status begins anew."""
    watch, hours = GoneWatch(), 3600.0
    assert not watch.note_answer(410, 0)
    assert not watch.note_answer(410, 23 * hours)
    assert watch.note_answer(410, 23 * hours + 1)
    assert not watch.note_answer(503, 23 * hours + 2)
    assert not watch.note_answer(410, 24 * hours)
    assert not watch.note_answer(410, 46 * hours)
