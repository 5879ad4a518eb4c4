"""A clock for the emulator on which hours pass in microseconds.

Does not promise that what a callback starts has happened when `advance` returns: let the event loop have its turns.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from deploy.local.emulator.clock import Timer


class _ManualTimer:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1_700_000_000.0, monotonic: float = 10_000.0) -> None:
        self._now = now
        self._monotonic = monotonic
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def next_timer_in(self) -> float | None:
        """Seconds until the earliest callback that is still wanted, None without one."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self._monotonic) if self._timers else None

    def advance(self, seconds: float) -> None:
        """Moves both clocks on; callbacks that fall due run in order, each at its own time."""
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is None:
                continue
            self._step_to(max(when, self._monotonic))
            callback()
        self._step_to(end)

    def _step_to(self, when: float) -> None:
        self._now += when - self._monotonic
        self._monotonic = when
