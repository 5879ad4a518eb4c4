"""When a crashed worker is started again, and when no more."""

from __future__ import annotations

from supervisor.restart import (
    CRASHES_BEFORE_EXIT,
    CRASHES_BEFORE_GIVING_UP,
    EXCUSED_CRASHES,
    LONGEST_PAUSE_SECONDS,
    WINDOW_SECONDS,
    Restarts,
    pause_seconds,
)


def test_b21_the_first_restart_is_immediate() -> None:
    """Most deaths are single."""
    assert Restarts().crashed(100.0, 0.99, suspect=False).next_spawn_at == 100.0


def test_b21_pauses_double_up_to_a_limit() -> None:
    """From the second crash within the window on."""
    assert [pause_seconds(n) for n in range(10)] == [0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert pause_seconds(10**6) == LONGEST_PAUSE_SECONDS


def test_b21_jitter_is_a_fifth_either_way() -> None:
    """Instances that fail together do not restart together."""
    before = Restarts((0.0, 1.0))
    pauses = [before.crashed(2.0, chance, suspect=False).next_spawn_at - 2.0 for chance in (0.0, 0.5, 1.0)]
    assert [round(p, 6) for p in pauses] == [0.8, 1.0, 1.2]


def test_b21_crashes_are_forgotten_after_the_window() -> None:
    """A crash a day never adds up."""
    restarts = Restarts()
    for day in range(30):
        restarts = restarts.crashed(day * 86400.0, 0.5, suspect=False)
        assert restarts.next_spawn_at == day * 86400.0
        assert restarts.count(day * 86400.0) == 1
    assert restarts.count(29 * 86400.0 + WINDOW_SECONDS) == 0


def test_b21_the_window_is_longer_than_all_pauses_up_to_the_exit() -> None:
    """Otherwise a crash loop would never reach the limit."""
    longest = sum(1.2 * pause_seconds(n) for n in range(CRASHES_BEFORE_EXIT))
    assert longest < WINDOW_SECONDS / 2


def test_b25_an_excused_crash_restarts_at_once_and_counts_for_nothing() -> None:
    """The suspect update's own limit ends these."""
    before = Restarts((1.0, 2.0, 3.0), 60.0)
    after = before.crashed(10.0, 0.5, suspect=True)
    assert after.crashes == before.crashes
    assert after.next_spawn_at == 10.0


def test_b21_only_so_many_crashes_are_excused() -> None:
    """A worker that dies whatever it runs has a suspect in flight nearly always: it must reach the limit all the same."""
    restarts = Restarts()
    for second in range(EXCUSED_CRASHES):
        restarts = restarts.crashed(float(second), 0.5, suspect=True)
    assert restarts.count(float(EXCUSED_CRASHES)) == 0
    for second in range(CRASHES_BEFORE_GIVING_UP):
        restarts = restarts.crashed(20.0 + second, 0.5, suspect=True)
    assert restarts.count(30.0) == CRASHES_BEFORE_GIVING_UP
    assert restarts.next_spawn_at > 23.0


def test_b25_excuses_come_back_after_the_window() -> None:
    """A poison update a day never adds up either."""
    restarts = Restarts()
    for second in range(EXCUSED_CRASHES + 1):
        restarts = restarts.crashed(float(second), 0.5, suspect=True)
    later = EXCUSED_CRASHES + WINDOW_SECONDS
    assert restarts.crashed(later, 0.5, suspect=True).count(later) == 0


def test_b21_crashes_between_which_nothing_is_completed_do_not_age() -> None:
    """Not where another instance waits; alone, a crash a day never adds up."""
    restarts, day = Restarts(), 86400.0
    for number in range(CRASHES_BEFORE_EXIT):
        restarts = restarts.crashed(number * day, 0.5, suspect=False, dispatching=True)
        assert restarts.count_all(number * day) == number + 1
        assert restarts.count(number * day) == 1
    restarts, later = restarts.completed(), CRASHES_BEFORE_EXIT * day
    assert restarts.count_all(later) == 0
    assert restarts.crashed(later, 0.5, suspect=False, dispatching=True).count_all(later) == 1


def test_b21_only_counted_crashes_of_workers_that_dispatched_do_not_age() -> None:
    """One poison update is one counted crash; and a standby, whose workers complete nothing, has no other updates to show."""
    restarts = Restarts().crashed(0.0, 0.5, suspect=False, dispatching=True)
    for second in range(4):
        restarts = restarts.crashed(1.0 + second, 0.5, suspect=True, dispatching=True)
    restarts = restarts.crashed(5.0, 0.5, suspect=False, dispatching=False)
    assert restarts.fruitless == 1
    assert restarts.count_all(6.0) == restarts.count(6.0) == 2


def test_b21_what_was_completed_does_not_excuse_a_crash_loop() -> None:
    """Crashes within the window count as ever."""
    restarts = Restarts()
    for second in range(CRASHES_BEFORE_GIVING_UP):
        restarts = restarts.crashed(float(second), 0.5, suspect=False, dispatching=True).completed()
    assert restarts.count_all(10.0) == CRASHES_BEFORE_GIVING_UP


def test_b31_a_start_that_is_put_off_has_the_pauses_and_does_not_count() -> None:
    """Only where another instance waits it counts, which may have better luck."""
    restarts, at, pauses = Restarts(), 0.0, []
    for _ in range(CRASHES_BEFORE_EXIT):
        restarts = restarts.put_off(at, 0.5)
        pauses.append(restarts.next_spawn_at - at)
        at = restarts.next_spawn_at
    assert pauses == [pause_seconds(n) for n in range(1, CRASHES_BEFORE_EXIT + 1)]
    assert restarts.count(at) == 0
    assert restarts.counted == 0
    assert restarts.count_all(at) == restarts.ever == CRASHES_BEFORE_EXIT
    assert restarts.crashed(at, 0.5, suspect=False).count_all(at) == CRASHES_BEFORE_EXIT + 1
    assert restarts.count_all(at + WINDOW_SECONDS) == 0
