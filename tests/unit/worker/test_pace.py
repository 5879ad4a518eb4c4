"""How soon the next exchange comes, and how many updates may begin."""

from __future__ import annotations

import math

from webhook_worker.lanes import DONE, State, Verdict
from webhook_worker.pace import GATHER_SECONDS, MANY_ROWS, REFUSED_SECONDS, Pace

REFUSED = Verdict(State.PENDING, refund=1, is_refused=True)


class Clock:
    """A time that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lone_update_never_waits_for_others() -> None:
    """Neither for its claim nor, at once after it, for its settlement."""
    pace = Pace(32, Clock())
    assert pace.gather_seconds(0) == 0
    pace.exchanged(100.0, MANY_ROWS - 1, has_more=False)
    assert pace.gather_seconds(1) == 0


def test_under_load_exchanges_come_at_a_distance() -> None:
    """From the begin of one to that of the next, however long it took."""
    clock = Clock()
    pace = Pace(32, clock)
    pace.exchanged(100.0, MANY_ROWS, has_more=False)
    clock.now += GATHER_SECONDS / 4
    assert math.isclose(pace.gather_seconds(3), GATHER_SECONDS * 3 / 4, rel_tol=1e-6)
    clock.now += GATHER_SECONDS
    assert pace.gather_seconds(3) == 0


def test_a_backlog_is_worked_off_at_full_speed() -> None:
    """Its exchanges have many rows anyway."""
    pace = Pace(32, Clock())
    pace.exchanged(100.0, 32, has_more=True)
    assert pace.gather_seconds(3) == 0


def test_what_has_landed_does_not_keep_others_from_their_slots() -> None:
    """Half of the slots are enough to go for."""
    pace = Pace(8, Clock())
    pace.exchanged(100.0, 8, has_more=False)
    assert pace.gather_seconds(3) > 0
    assert pace.gather_seconds(4) == 0


def test_b24_a_refused_token_is_tried_by_one_update_now_and_then() -> None:
    """By none before its time, by one then, and by all again once one was handled."""
    clock = Clock()
    pace = Pace(8, clock)
    assert (pace.free(3), pace.tries_at) == (5, math.inf)
    assert not pace.note(REFUSED)
    assert (pace.free(0), pace.tries_at) == (0, clock.now + REFUSED_SECONDS)
    clock.now += REFUSED_SECONDS
    assert (pace.free(0), pace.free(1), pace.tries_at) == (1, 0, math.inf)
    assert pace.note(DONE)
    assert (pace.free(3), pace.note(DONE)) == (5, False)
