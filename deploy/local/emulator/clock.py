"""Time, as something that is handed in.

The rules of TELEGRAM.md speak of seconds and of hours (23 h of 410, a week without updates). Tests hand in a `Clock` on which
hours pass in microseconds (tests/manual_clock.py); nothing in this package reads the time in any other way.

Does not promise that callbacks run exactly at their time: never before it, and as soon after as the loop allows.
"""

from __future__ import annotations

import asyncio
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
