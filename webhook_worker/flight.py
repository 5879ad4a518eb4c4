"""What is in flight: for each claimed update the task that runs its handler, why we told it to stop, and how it landed.

    begin ─► running ─► landed: a verdict, in memory ─► settled: committed, forgotten here
                 └ timed out, and goes on all the same: stubborn

A handler takes no step past the deadline. Cancelling it in time is the dispatcher's part, but its timer can be late: the loop
was blocked, the process stopped, the machine suspended. So every time the loop would let a handler go on, `may_go_on` is asked
first; when it says no, a cancellation is all that the handler gets to see.

Handlers that compute, or wait without the loop, hold up all else for as long as a step takes. One step nobody can shorten, but
many of them must not add up: once steps have taken TURN_SECONDS, the next waits until the loop has had a turn in which timers,
beats and requests had theirs.

Not promised: the same for tasks and threads that a handler has started; for those there is the lifeline (control.py). Nor for
the step in which the process is stopped: it is ended when the process goes on.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Protocol, cast

from shared import log
from shared.errors import SupervisorError
from webhook_worker import lanes
from webhook_worker.failures import MAX_REASON_CHARACTERS
from webhook_worker.lanes import Claimed, Interruption, Settlement, State, Verdict
from webhook_worker.outcomes import Outcome

STUBBORN_SECONDS = 10.0
"""How long after its time-out a handler may go on before it counts as one that ignores its cancellation."""

TURN_SECONDS = 0.02
"""What steps of handlers may take together, since the loop was last given a turn for it. Putting off what is left of a turn
costs some microseconds for each handler that waits, which is nothing once in 20 ms; and 20 ms more are nothing to those who are
held up, the next of whom looks at the clock after 0.1 s. With the longest step it bounds what a batch of updates can hold up:
32 that block 0.3 s each were 9.6 s in one turn, and the worker was killed as hung."""

_log = log.get_logger("DISPATCH")


class HandlersStuck(SupervisorError):
    """Handlers ignore their cancellation, and nothing can go on beside them: the process has to be replaced."""

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__(
            f"handlers go on after their cancellation (HANDLER_TIMEOUT_SECONDS={timeout_seconds:g}): a worker without them is "
            "needed; let no handler swallow CancelledError"
        )


class Handler(Protocol):
    """What runs the updates: `bot.Bot`."""

    async def handle(self, body: bytes, attempt: int) -> Outcome:
        """Runs one update, waits for every task of it, and says what became of it. `attempt` is 1 the first time."""
        ...


class Flight:
    """One claimed update, from its claim to the commit of what became of it."""

    __slots__ = (
        "begun_at",
        "claimed",
        "interrupted_at",
        "interruption",
        "is_condemned",
        "stepped_at",
        "task",
        "verdict",
    )

    def __init__(self, claimed: Claimed, now: float) -> None:
        """Of a row that was claimed `now`, on the dispatcher's clock."""
        self.claimed = claimed
        self.begun_at = now
        self.stepped_at: float | None = (
            None  # when its handler began, which may have had to wait for its turn
        )
        self.interruption: Interruption | None = None
        self.interrupted_at = 0.0
        self.verdict: Verdict | None = None
        self.is_condemned = False
        self.task: asyncio.Task[Outcome] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the handler was started and has not ended."""
        return self.task is not None and not self.task.done()

    @property
    def settlement(self) -> Settlement:
        """For the inbox, once there is a verdict."""
        assert self.verdict is not None
        return Settlement(self.claimed.seq, self.claimed.starts, self.verdict)

    @property
    def is_overdue(self) -> bool:
        """Whether the handler goes on although its time is over."""
        return self.interruption is Interruption.TIMEOUT and self.is_running

    def is_stubborn(self, now: float) -> bool:
        """Whether the handler ignores that its time is over."""
        return self.is_overdue and now >= self.interrupted_at + STUBBORN_SECONDS

    def mark(self, why: Interruption, now: float) -> None:
        """It is we who end the handler; the first reason stays."""
        if self.interruption is None:
            self.interruption = why
            self.interrupted_at = now


class Flights:
    """All that is in flight. `running` and `update_ids` may be read from any thread; the rest belongs to the event loop."""

    def __init__(
        self,
        handler: Handler,
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        timeout_seconds: float,
        may_go_on: Callable[[], bool],
        on_landing: Callable[[], None],
        suspect_running: Callable[[bool], None],
    ) -> None:
        """Nothing is in flight yet.

        Args:
            handler: runs the updates.
            clock: the dispatcher's.
            jitter: random, 0 to 1.
            timeout_seconds: HANDLER_TIMEOUT_SECONDS.
            may_go_on: asked before every step of a handler; once it has said no, it must not say yes again.
            on_landing: called when a handler has ended.
            suspect_running: told True before a suspect starts, False when its end is committed.
        """
        self._handler = handler
        self._clock = clock
        self._jitter = jitter
        self._timeout_seconds = timeout_seconds
        self._may_go_on = may_go_on
        self._on_landing = on_landing
        self._suspect_running = suspect_running
        self._flights: dict[int, Flight] = {}
        self._lanes: set[int] = set()
        self._landed: list[Flight] = []
        self._suspect: Flight | None = None
        self._bug: BaseException | None = None
        self._stepped_seconds = 0.0
        self.owes_turn = False  # the loop is to have one before the next step
        self.running = 0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def seqs(self) -> Sequence[int]:
        """Of all rows whose claim is known here."""
        return list(self._flights)

    @property
    def landed(self) -> int:
        """How many wait to be settled."""
        return len(self._landed)

    def landed_verdicts(self) -> list[Verdict]:
        """Theirs, in the order in which they landed."""
        return [flight.verdict for flight in self._landed if flight.verdict is not None]

    @property
    def has_suspect(self) -> bool:
        """Whether a suspect is in flight."""
        return self._suspect is not None

    @property
    def slots(self) -> int:
        """How many slots are taken, once what has landed is settled; a suspect has one of its own."""
        suspect = self._suspect is not None and self._suspect.verdict is None
        return len(self._flights) - len(self._landed) - suspect

    def update_ids(self, task: asyncio.Task[Any] | None) -> list[int]:
        """Of the update whose handler runs in this task; where it is nobody's, of all whose handlers run. For any thread.

        The list of the values is made in one operation of the interpreter's; what is read of a flight is read once, or never
        changes.
        """
        running = {
            each.claimed.update_id: its
            for each in list(self._flights.values())
            if (its := each.task) is not None
        }
        return [update_id for update_id, its in running.items() if its is task] or list(running)

    def stubborn(self) -> list[Flight]:
        """Those whose handlers ignore their cancellation."""
        now = self._clock()
        return [flight for flight in self._flights.values() if flight.is_stubborn(now)]

    def overdue(self) -> list[Flight]:
        """Those that were told that their time is over, and may yet obey."""
        return [flight for flight in self._flights.values() if flight.is_overdue]

    def is_held_up(self, slots: int) -> bool:
        """Whether nothing can go on: stubborn handlers in all `slots`, or in the place of the suspect."""
        stubborn = self.stubborn()
        return self._suspect in stubborn or len(stubborn) >= slots

    def raise_bug(self) -> None:
        """Raises what a handler raised in place of reporting it."""
        if self._bug is not None:
            raise self._bug

    def can_begin(self, claimed: Claimed) -> bool:
        """False for what a claim in doubt has committed late: its lane, or another suspect, is in flight by now."""
        return claimed.lane_key not in self._lanes and not (claimed.is_suspect and self.has_suspect)

    def begin(self, claimed: Claimed) -> None:
        """Starts the handler; the claim is committed, and the deadline has not passed."""
        flight = self._add(claimed)
        if claimed.is_suspect:
            self._suspect = flight
            self._suspect_running(True)
            _log.info(
                "running what was in flight at a crash",
                update_id=claimed.update_id,
                attempts=claimed.attempts,
            )
        steps = _Steps(self._handler.handle(claimed.body, claimed.starts), self, flight, self._clock)
        flight.task = asyncio.create_task(steps, name=f"flight of update {claimed.update_id}")
        flight.task.add_done_callback(functools.partial(self._land, flight))
        self.running += 1

    def give_back(self, claimed: Claimed) -> None:
        """Lands a claimed update without having started it."""
        self._decide(self._add(claimed), lanes.GIVE_BACK)

    def may_step(self, flight: Flight) -> bool:
        """Whether the handler may go on; if not, it is interrupted."""
        if self._may_go_on():
            return True
        flight.mark(Interruption.TERM_OVER, self._clock())
        return False

    def note_step(self, seconds: float) -> None:
        """A step has taken so long."""
        self._stepped_seconds += seconds
        if self._stepped_seconds >= TURN_SECONDS and not self.owes_turn:
            self.owes_turn = True
            asyncio.get_running_loop().call_soon(self._pay_turn)

    def _pay_turn(self) -> None:
        self._stepped_seconds, self.owes_turn = 0.0, False

    def interrupt_all(self) -> None:
        """The term is over for all that runs."""
        for flight in self._flights.values():
            self._interrupt(flight, Interruption.TERM_OVER)

    def check_times(self) -> float:
        """Cancels what takes too long; when to look again."""
        now = self._clock()
        due = now + self._timeout_seconds
        for flight in self._flights.values():
            if flight.is_running and flight.stepped_at is not None:
                time_out = flight.stepped_at + self._timeout_seconds
                if now >= time_out:
                    self._interrupt(flight, Interruption.TIMEOUT)
                    time_out = flight.interrupted_at + STUBBORN_SECONDS
                due = min(due, time_out) if time_out > now else due
        return due

    def take_landed(self) -> list[Flight]:
        """What is to be settled now."""
        landed, self._landed = self._landed, []
        return landed

    def put_back(self, landed: list[Flight]) -> None:
        """It could not be settled, or nobody knows."""
        self._landed = landed + self._landed

    def settled(self, flight: Flight) -> None:
        """What became of it is committed."""
        claimed, verdict = flight.claimed, flight.verdict
        assert verdict is not None
        if verdict.state is State.DEAD:
            _log.error(
                "update is a dead letter",
                update_id=claimed.update_id,
                starts=claimed.starts,
                reason=_reason(flight, verdict),
            )
        elif verdict.retry_seconds is not None:
            seconds = round(verdict.retry_seconds, 1)
            _log.info("update waits", update_id=claimed.update_id, seconds=seconds, reason=verdict.error)
        self._forget(flight)

    def _add(self, claimed: Claimed) -> Flight:
        flight = self._flights[claimed.seq] = Flight(claimed, self._clock())
        self._lanes.add(claimed.lane_key)
        return flight

    def _forget(self, flight: Flight) -> None:
        del self._flights[flight.claimed.seq]
        self._lanes.discard(flight.claimed.lane_key)
        if self._suspect is flight:
            self._suspect = None
            self._suspect_running(False)

    def _interrupt(self, flight: Flight, why: Interruption) -> None:
        if flight.task is not None and flight.is_running and flight.interruption is None:
            flight.mark(why, self._clock())
            flight.task.cancel()

    def _land(self, flight: Flight, task: asyncio.Task[Outcome]) -> None:
        """The handler has ended."""
        self.running -= 1
        self._on_landing()
        try:
            outcome = None if task.cancelled() else task.result()
        except BaseException as bug:  # noqa: BLE001 - `raise_bug` raises it, which ends the process
            self._bug = bug
            return
        # The two hold each other: update and body would wait for the garbage collector.
        flight.task = None
        self._judge(flight, outcome)

    def _judge(self, flight: Flight, outcome: Outcome | None) -> None:
        verdict = lanes.judge(
            outcome,
            flight.interruption,
            retries=flight.claimed.retries,
            age_seconds=flight.claimed.age_seconds + self._clock() - flight.begun_at,
            timeout_seconds=self._timeout_seconds,
            jitter=self._jitter(),
        )
        self._decide(flight, verdict)

    def _decide(self, flight: Flight, verdict: Verdict) -> None:
        flight.verdict = verdict
        self._landed.append(flight)


def _reason(flight: Flight, verdict: Verdict) -> str:
    """The last line of the error, which of a traceback names the exception, as `inbox list` shows it.

    Secrets are out of it (`Bot.handle`). That the handler took too long comes first, whatever it then ended with.
    """
    lines = (verdict.error or "").strip().splitlines() or [""]
    told = lines[-1].strip()
    if flight.interruption is Interruption.TIMEOUT and len(lines) > 1:
        told = f"{lines[0]} {told}"
    return told[:MAX_REASON_CHARACTERS]


class _Steps(Coroutine[Any, Any, Outcome]):
    """A handler's coroutine, with two questions before each of its steps: whether it may be taken, and whether now.

    A task runs it, or a coroutine that awaits it: instrumentations of asyncio (sentry_sdk's, OpenTelemetry's) put one of their
    own into each task. They, and whoever asks the task for its coroutine, see the handler's name, code and frame.
    """

    __slots__ = ("_clock", "_coroutine", "_flight", "_flights", "_put_off")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Outcome],
        flights: Flights,
        flight: Flight,
        clock: Callable[[], float],
    ) -> None:
        self._coroutine = coroutine
        self._flights = flights
        self._flight = flight
        self._clock = clock
        self._put_off: BaseException | None = None

    def send(self, value: Any) -> Any:
        return self._step(None)  # a task sends nothing but None

    def throw(self, error: Any, *_: Any) -> Any:
        # What the handler waited for has failed, or was cancelled.
        return self._step(error)

    def _step(self, error: BaseException | None) -> Any:
        flights, flight, clock = self._flights, self._flight, self._clock
        error, self._put_off = self._put_off if error is None else error, None
        if not flights.may_step(flight):
            error = error if isinstance(error, asyncio.CancelledError) else asyncio.CancelledError()
        elif flights.owes_turn and flight.interruption is not Interruption.TERM_OVER:
            self._put_off = error
            # What `asyncio.sleep(0)` yields: the task asks again in the loop's next turn.
            return None
        began_at = clock()
        if flight.stepped_at is None:
            flight.stepped_at = began_at
        try:
            return self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        finally:
            flights.note_step(clock() - began_at)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Outcome]:
        # Not a generator around this: what is yielded and thrown passes through whoever awaits, to and from the task.
        return cast("Generator[Any, Any, Outcome]", self)

    __iter__ = __await__

    def __next__(self) -> Any:
        return self._step(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)
