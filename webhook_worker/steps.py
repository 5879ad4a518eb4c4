"""The steps of handlers. Each time the loop would let one go on there are two questions: may it, and is it its turn?

    a task's step ─► may_go_on? ─ yes ─► owes_turn? ─ no ──► the handler goes on, as far as its next await
                         │                   └ yes ─► not now: asked again in the loop's next turn
                         └ no ──► a cancellation is all that the handler gets to see

**May it?** No step is taken past the deadline. Cancelling in time is the dispatcher's part, but its timer can be late: the loop
was blocked, the process stopped, the machine suspended.

**Is it its turn?** Handlers that compute, or wait without the loop, block all else for as long as a step takes. One step nobody
can shorten, but many of them must not add up: once steps have taken TURN_SECONDS, the next waits until the loop has had a turn
in which timers, beats and requests had theirs.

`beside` carries the same to the tasks that the Application runs for an update: handlers with `block=False`, and what they start
by `Application.create_task`.

Not promised: the same for threads, and for tasks that a handler has made by `asyncio.create_task`; for those there is the
lifeline (control.py). Nor for the step in which the process is stopped: it is ended when the process goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, Protocol, cast

TURN_SECONDS = 0.02
"""What steps of handlers may take together, since the loop was last given a turn for it. Putting off what is left of a turn
costs some microseconds for each handler that waits, which is nothing once in 20 ms; and 20 ms more are nothing to those who are
kept waiting, the next of whom looks at the clock after 0.1 s. With the longest step it bounds how long a batch of updates can
block: 32 that block 0.3 s each were 9.6 s in one turn, and the worker was killed as hung."""

AnyCoroutine = Coroutine[Any, Any, Any]

beside: ContextVar[Callable[[AnyCoroutine, Callable[[], None]], AnyCoroutine] | None] = ContextVar(
    "beside", default=None
)
"""Within a flight: wraps a coroutine that another task of the update is to run. Its steps are taken, put off and refused as the
handler's are; the second argument is called when one is refused."""


class Stepped(Protocol):
    """Whose steps they are: a `flight.Flight`. Each `now` is on the dispatcher's clock."""

    @property
    def is_term_over(self) -> bool:
        """Whether it was told that the term is over: none of its steps is put off any more."""
        ...

    def note_wait(self, now: float) -> None:
        """One more coroutine waits for the turn in which it may begin."""
        ...

    def note_begin(self, now: float, *, has_waited: bool) -> None:
        """A coroutine begins, and has waited for that or not."""
        ...

    def note_refusal(self, now: float) -> None:
        """A step was refused: the term is over for it."""
        ...


class Turns:
    """Answers the two questions, for all steps of one dispatch."""

    __slots__ = ("_stepped_seconds", "clock", "may_go_on", "owes_turn")

    def __init__(self, clock: Callable[[], float], may_go_on: Callable[[], bool]) -> None:
        """No step was taken yet.

        Args:
            clock: the dispatcher's.
            may_go_on: asked before every step; once it has said no, it must not say yes again.
        """
        self.clock = clock
        self.may_go_on = may_go_on
        self.owes_turn = False  # the loop is to have one before the next step
        self._stepped_seconds = 0.0

    def note_step(self, seconds: float) -> None:
        """A step has taken so long."""
        self._stepped_seconds += seconds
        if self._stepped_seconds >= TURN_SECONDS and not self.owes_turn:
            self.owes_turn = True
            asyncio.get_running_loop().call_soon(self._pay_turn)

    def _pay_turn(self) -> None:
        self._stepped_seconds, self.owes_turn = 0.0, False


class Steps(AnyCoroutine):
    """The coroutine of a handler, or of a task beside it, of which every step is asked for.

    A task runs it, or a coroutine that awaits it: instrumentations of asyncio (sentry_sdk's, OpenTelemetry's) put one of their
    own into each task. They, and whoever asks the task for its coroutine, see the name, code and frame of what is meant.
    """

    __slots__ = (
        "__weakref__",
        "_coroutine",
        "_has_begun",
        "_has_waited",
        "_on_refusal",
        "_put_off",
        "_stepped",
        "_turns",
    )

    def __init__(
        self, coroutine: AnyCoroutine, turns: Turns, stepped: Stepped, on_refusal: Callable[[], None]
    ) -> None:
        """No step of it was taken yet.

        Args:
            coroutine: takes the steps.
            turns: of the dispatch.
            stepped: whose they are.
            on_refusal: called for each step that is refused.
        """
        self._coroutine = coroutine
        self._turns = turns
        self._stepped = stepped
        self._on_refusal = on_refusal
        self._put_off: BaseException | None = None
        self._has_begun = self._has_waited = False

    def send(self, value: Any) -> Any:
        return self._step(None)  # a task sends nothing but None

    def throw(self, error: Any, *_: Any) -> Any:
        # What the handler waited for has failed, or was cancelled.
        return self._step(error)

    def _step(self, error: BaseException | None) -> Any:
        turns, stepped = self._turns, self._stepped
        clock = turns.clock
        error, self._put_off = self._put_off if error is None else error, None
        if not turns.may_go_on():
            stepped.note_refusal(clock())
            self._on_refusal()
            error = error if isinstance(error, asyncio.CancelledError) else asyncio.CancelledError()
        elif turns.owes_turn and not stepped.is_term_over:
            self._put_off = error
            if not self._has_begun and not self._has_waited:
                self._has_waited = True
                stepped.note_wait(clock())
            # What `asyncio.sleep(0)` yields: the task asks again in the loop's next turn.
            return None
        began_at = clock()
        if not self._has_begun:
            self._has_begun = True
            stepped.note_begin(began_at, has_waited=self._has_waited)
        try:
            return self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        finally:
            turns.note_step(clock() - began_at)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        # Not a generator around this: what is yielded and thrown passes through whoever awaits, to and from the task.
        return cast("Generator[Any, Any, Any]", self)

    __iter__ = __await__

    def __next__(self) -> Any:
        return self._step(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)
