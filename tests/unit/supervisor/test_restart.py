"""When a crashed worker is started again, and when no more."""

from __future__ import annotations

from supervisor.restart import (
    CRASHES_BEFORE_EXIT,
    LONGEST_PAUSE_SECONDS,
    WINDOW_SECONDS,
    Restarts,
    pause_seconds,
)


def test_b21_the_first_restart_is_immediate() -> None:
    """Most deaths are single."""
    assert Restarts().crashed(100.0, 0.99, counted=True).next_spawn_at == 100.0


def test_b21_pauses_double_up_to_a_limit() -> None:
    """From the second crash within the window on."""
    assert [pause_seconds(n) for n in range(10)] == [0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert pause_seconds(10**6) == LONGEST_PAUSE_SECONDS


def test_b21_jitter_is_a_fifth_either_way() -> None:
    """Instances that fail together do not restart together."""
    before = Restarts((0.0, 1.0))
    pauses = [before.crashed(2.0, chance, counted=True).next_spawn_at - 2.0 for chance in (0.0, 0.5, 1.0)]
    assert [round(p, 6) for p in pauses] == [0.8, 1.0, 1.2]


def test_b21_crashes_are_forgotten_after_the_window() -> None:
    """A crash a day never adds up."""
    restarts = Restarts()
    for day in range(30):
        restarts = restarts.crashed(day * 86400.0, 0.5, counted=True)
        assert restarts.next_spawn_at == day * 86400.0
        assert restarts.count(day * 86400.0) == 1
    assert restarts.count(29 * 86400.0 + WINDOW_SECONDS) == 0


def test_b21_the_window_is_longer_than_all_pauses_up_to_the_exit() -> None:
    """Otherwise a crash loop would never reach the limit."""
    longest = sum(1.2 * pause_seconds(n) for n in range(CRASHES_BEFORE_EXIT))
    assert longest < WINDOW_SECONDS / 2


def test_b25_a_crash_that_is_not_counted_restarts_at_once_and_leaves_no_trace() -> None:
    """The suspect update's own limit ends these."""
    before = Restarts((1.0, 2.0, 3.0), 60.0)
    after = before.crashed(10.0, 0.5, counted=False)
    assert after.crashes == before.crashes
    assert after.next_spawn_at == 10.0
