"""What is in flight: for each claimed update the task that runs its handler, why we told it to stop, and how it landed.

    begin ─► running ─► landed: a verdict, in memory ─► settled: committed, forgotten here
                 └ timed out, and goes on all the same: stubborn

Each step of a handler is asked for (steps.py): none is taken past the deadline, and steps that block do not add up.

Not promised: that a handler ends when it is told to. One that does not is stubborn, and the dispatch decides what that means.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shared import log
from shared.errors import SupervisorError, naming_line
from webhook_worker import code_place, lanes
from webhook_worker.failures import MAX_REASON_CHARACTERS
from webhook_worker.lanes import Claimed, Interruption, Settlement, State, Verdict, Waited
from webhook_worker.outcomes import Outcome
from webhook_worker.steps import AnyCoroutine, Steps, Turns, beside

STUBBORN_SECONDS = 10.0
"""How long after its time-out a handler may go on before it counts as one that ignores its cancellation."""

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
        "__weakref__",
        "begun_at",
        "beside",
        "claimed",
        "interrupted_at",
        "interruption",
        "is_condemned",
        "stepped_at",
        "task",
        "verdict",
        "waited",
        "waiting",
        "waits_since",
    )

    def __init__(self, claimed: Claimed, now: float) -> None:
        """Of a row that was claimed `now`, on the dispatcher's clock."""
        self.claimed = claimed
        self.begun_at = now
        # When its handler began, which may have had to wait for its turn.
        self.stepped_at: float | None = None
        self.interruption: Interruption | None = None
        self.interrupted_at = 0.0
        self.verdict: Verdict | None = None
        self.is_condemned = False
        self.waiting = 0  # its handler, and tasks beside that: whose first step waits for its turn
        self.waits_since = 0.0
        self.task: asyncio.Task[Outcome] | None = None
        # What its other tasks run; those that ended may be missing.
        self.beside: list[weakref.ref[Steps]] | None = None
        self.waited: Waited | None = None

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

    @property
    def is_term_over(self) -> bool:
        """Whether it was told that the term is over: none of its steps is put off any more."""
        return self.interruption is Interruption.TERM_OVER

    def is_stubborn(self, now: float) -> bool:
        """Whether the handler ignores that its time is over."""
        return self.is_overdue and now >= self.interrupted_at + STUBBORN_SECONDS

    def note_wait(self, now: float) -> None:
        """One more waits for the turn in which it may begin."""
        if self.waiting == 0:
            self.waits_since = now
        self.waiting += 1

    def note_begin(self, now: float, *, has_waited: bool) -> None:
        """One begins; the time that was waited for it is none that the handler took."""
        if has_waited:
            self.waiting -= 1
            if self.waiting == 0 and self.stepped_at is not None:
                self.stepped_at += now - self.waits_since
        if self.stepped_at is None:
            self.stepped_at = now

    def note_beside(self, steps: Steps) -> None:
        """Another task of its is to run these."""
        self.beside = self.beside or []
        while self.beside and self.beside[-1]() is None:
            self.beside.pop()
        self.beside.append(weakref.ref(steps))

    def note_refusal(self, now: float) -> None:
        """A step of it was refused: the term is over for it."""
        self.mark(Interruption.TERM_OVER, now)

    def mark(self, why: Interruption, now: float) -> None:
        """It is we who end the handler; the first reason stays."""
        if self.interruption is None:
            self.interruption = why
            self.interrupted_at = now
            if why is Interruption.TIMEOUT:
                self.waited = self._find_place()

    def _find_place(self) -> Waited | None:
        """Of the handler, or, where that waits for tasks beside it, of the one that was started last."""
        assert self.task is not None
        for steps in (self.task.get_coro(), *(ref() for ref in reversed(self.beside or ()))):
            place, way = code_place.of_coroutine(steps)
            if place is not None:
                return Waited(place, way)
        return None


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
            may_go_on: see Turns.
            on_landing: called when a handler has ended.
            suspect_running: told True before a suspect starts, False when its end is committed.
        """
        self._handler = handler
        self._clock = clock
        self._jitter = jitter
        self._timeout_seconds = timeout_seconds
        self._on_landing = on_landing
        self._suspect_running = suspect_running
        self._flights: dict[int, Flight] = {}
        self._lanes: set[int] = set()
        self._landed: list[Flight] = []
        self._suspect: Flight | None = None
        self._bug: BaseException | None = None
        self._turns = Turns(clock, may_go_on)
        self.running = 0

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
    def underway(self) -> int:
        """How many have not landed."""
        return len(self._flights) - len(self._landed)

    @property
    def slots(self) -> int:
        """How many slots are taken, once what has landed is settled; a suspect has one of its own."""
        suspect = self._suspect is not None and self._suspect.verdict is None
        return self.underway - suspect

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
        handling = self._handler.handle(claimed.body, claimed.starts)
        steps = Steps(handling, self._turns, flight, on_refusal=lambda: None)
        # The task begins with a copy of the present context, and so does all that its handler leaves behind: held weakly.
        token = beside.set(functools.partial(self._beside, weakref.ref(flight)))
        flight.task = asyncio.create_task(steps, name=f"flight of update {claimed.update_id}")
        beside.reset(token)
        flight.task.add_done_callback(functools.partial(self._land, flight))
        self.running += 1

    def give_back(self, claimed: Claimed) -> None:
        """Lands a claimed update without having started it."""
        self._decide(self._add(claimed), lanes.GIVE_BACK)

    def interrupt_all(self) -> None:
        """The term is over for all that runs."""
        for flight in self._flights.values():
            self._interrupt(flight, Interruption.TERM_OVER)

    def check_times(self) -> float:
        """Cancels what takes too long; when to look again."""
        now = self._clock()
        due = now + self._timeout_seconds
        for flight in self._flights.values():
            if flight.is_running and flight.stepped_at is not None and not flight.waiting:
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

    def _beside(
        self, of: weakref.ref[Flight], coroutine: AnyCoroutine, on_refusal: Callable[[], None]
    ) -> AnyCoroutine:
        flight = of()
        if flight is None:
            return coroutine
        steps = Steps(coroutine, self._turns, flight, on_refusal)
        flight.note_beside(steps)
        return steps

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
            waited=flight.waited,
        )
        self._decide(flight, verdict)

    def _decide(self, flight: Flight, verdict: Verdict) -> None:
        flight.verdict = verdict
        self._landed.append(flight)


def _reason(flight: Flight, verdict: Verdict) -> str:
    """The line of the error that names it, as `inbox list` shows it.

    Secrets are out of it (`Bot.handle`). That the handler took too long comes first, whatever it then ended with.
    """
    error = (verdict.error or "").strip()
    told = naming_line(error)
    if flight.interruption is Interruption.TIMEOUT and "\n" in error and not error.startswith("Traceback"):
        told = f"{error.splitlines()[0]} {told}"
    return told[:MAX_REASON_CHARACTERS]
