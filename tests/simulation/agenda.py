"""Simulated time: what will happen, in order. Nothing in a simulation reads another clock.

Two things at one moment happen in the order in which they were put down, so a simulation is a function of its seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Entry:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("_arguments", "_do")

    def __init__(self, do: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._do: Callable[..., object] | None = do
        self._arguments = arguments

    def cancel(self) -> None:
        """It will not happen."""
        self._do = None
        self._arguments = ()

    def happen(self) -> None:
        """Now."""
        if self._do is not None:
            self._do(*self._arguments)


class Agenda:
    """The clock, and everything that waits for it; `now` is in seconds.

    Attributes:
        kept: what must not be collected before the end: a coroutine that is, runs its `finally`, and a dead process has none.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.kept: list[object] = []
        self._heap: list[tuple[float, int, Entry]] = []
        self._count = 0

    def after(self, seconds: float, do: Callable[..., object], *arguments: Any) -> Entry:
        """Lets `do(*arguments)` happen in so many seconds."""
        return self.at(self.now + seconds, do, *arguments)

    def at(self, moment: float, do: Callable[..., object], *arguments: Any) -> Entry:
        """Lets `do(*arguments)` happen at a moment; one that has passed is now."""
        entry = Entry(do, arguments)
        self._count += 1
        heapq.heappush(self._heap, (max(moment, self.now), self._count, entry))
        return entry

    def run_until(self, end: float) -> None:
        """Lets everything happen that happens until then."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, entry = heapq.heappop(heap)
            entry.happen()
        self.now = end
