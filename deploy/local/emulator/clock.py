"""Time, as something that is handed in.

The rules of TELEGRAM.md speak of seconds and of hours (23 h of 410, a week without updates). `ManualClock` lets tests
pass hours in microseconds; nothing in this package reads the time in any other way.

Does not promise that callbacks run exactly at their time: never before it, and as soon after as the loop allows.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A callback that was asked for and can still be called off."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the emulator needs to know of time; see `SystemClock` for the real one."""

    def now(self) -> float:
        """Unix time in seconds, for dates and expiry."""

    def monotonic(self) -> float:
        """Seconds that never go back, for delays."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Calls back once `monotonic()` has reached `when`."""


async def sleep(clock: Clock, seconds: float) -> None:
    """Sleeps by `clock`; 0 and less only let others run."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    timer = clock.call_at(clock.monotonic() + seconds, wake)
    try:
        await future
    finally:
        timer.cancel()


class SystemClock:
    """The machine's clocks. `monotonic()` is `time.monotonic()`, which other processes can compare with theirs."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)


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
