"""An event loop whose time passes only when nobody has anything to do: hours in milliseconds, the same every time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Skip(selectors.SelectSelector):
    """Does not wait for the time that the loop would sleep, but lets it have passed."""

    passed_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            assert timeout is not None, "everybody waits for something that nobody will do"
            self.passed_seconds += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time begins at 1000."""

    def __init__(self) -> None:
        self._skip = _Skip()
        super().__init__(self._skip)

    def block(self, seconds: float) -> None:
        """The running callback takes so long."""
        self._skip.passed_seconds += seconds

    def time(self) -> float:
        return 1000.0 + self._skip.passed_seconds


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine function in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def block(seconds: float) -> None:
    """Blocks the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.block(seconds)


def now() -> float:
    """The time of the running loop."""
    return asyncio.get_running_loop().time()
