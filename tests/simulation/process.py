"""A simulated process: an event loop of asyncio that lives on the agenda, and can be stopped, blocked and killed.

The product's own coroutines run in it, unchanged. There are no descriptors, no threads and no signals; time passes only
between callbacks.

    stopped   SIGSTOP: nothing of it runs; timers that came due run at SIGCONT
    blocked   a handler does not give the loop back: the same, until that is over; but other threads would go on
    dead      SIGKILL or exit: nothing of it ever runs again, no `finally` either

Order within a process is that of asyncio. Tasks are hashed by number and not by address, so that sets of tasks, which asyncio
and TaskGroup go through, have the same order each time.
"""

from __future__ import annotations

import asyncio
import itertools
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from tests.simulation.agenda import Agenda, Entry

T = TypeVar("T")

_numbers = itertools.count()


class _Task(asyncio.Task[Any]):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._number = next(_numbers)
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self._number


class ProcessFailed(Exception):
    """Something in a process raised where nobody takes care of it: a bug, of the product or of the simulation."""


class Process(asyncio.AbstractEventLoop):
    """The event loop of one process."""

    def __init__(self, agenda: Agenda, name: str) -> None:
        """Runs from now on.

        Args:
            agenda: of the simulation.
            name: for messages.
        """
        agenda.kept.append(self)
        self.agenda = agenda
        self.name = name
        self.stopped = False
        self.dead = False
        self.stopped_at = self.continued_at = -1000.0
        self._blocked_until = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._pumping: Entry | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    # ---------------------------------------------------------------------------------------------------------- fate

    def stop_signal(self) -> None:
        """SIGSTOP."""
        if not self.stopped:
            self.stopped, self.stopped_at = True, self.agenda.now

    def continue_signal(self) -> None:
        """SIGCONT."""
        self.stopped, self.continued_at = False, self.agenda.now
        if self._ready:
            self._pump_soon()

    def block(self, seconds: float) -> None:
        """The running callback takes so long."""
        self._blocked_until = self.agenda.now + seconds

    def kill(self) -> None:
        """Ends it, at whatever it is."""
        self.dead = True
        self._ready.clear()

    @property
    def is_blocked(self) -> bool:
        """Whether the loop stands still because a callback does not end."""
        return self.agenda.now < self._blocked_until

    def post(self, do: Callable[..., object], *arguments: Any) -> None:
        """From outside: something that the loop does next, as if a descriptor had become readable."""
        if not self.dead:
            self.call_soon(do, *arguments)

    # ----------------------------------------------------------------------------------------- what asyncio asks of a loop

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if self._pumping is None:
            self._pump_soon()
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.agenda.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.agenda.at(when, self._come_due, handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def time(self) -> float:
        return self.agenda.now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        task = _Task(coro, loop=self, name=str(name) if name is not None else None, context=context)
        # Kept, see Agenda.kept.
        self._tasks.append(task)
        if len(self._tasks) > 1000:
            self._tasks = [one for one in self._tasks if not one.done()]
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.dead:
            return
        raise ProcessFailed(f"{self.name}: {context.get('message')}") from context.get("exception")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        return

    # ------------------------------------------------------------------------------------------------------- the loop

    def _come_due(self, handle: asyncio.TimerHandle) -> None:
        if self.dead or handle.cancelled():
            return
        self._ready.append(handle)
        if self._pumping is None:
            self._pump_soon()

    def _pump_soon(self) -> None:
        self._pumping = self.agenda.at(max(self.agenda.now, self._blocked_until), self._pump)

    def _pump(self) -> None:
        self._pumping = None
        if self.dead or self.stopped:
            return
        if self.is_blocked:
            self._pump_soon()
            return
        ready = self._ready
        events._set_running_loop(self)
        try:
            while ready and not self.is_blocked and not self.stopped:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(None)
        if ready and self._pumping is None:
            self._pump_soon()
