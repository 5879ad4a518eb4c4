"""The bot of a simulation: what the handler of each update does is part of the plan, and every run of it is in the history.

It stands in for webhook_worker/bot.py, whose own tests hold it to the outcomes that are simply reported here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random

from telegram.error import TimedOut

from shared.wire import LEAD_SECONDS
from tests.simulation.history import History, Run, Timers
from tests.simulation.process import Process
from webhook_worker.outcomes import Done, Failed, Outcome, Transient

WAKING_SECONDS = 0.5
"""How long after SIGCONT the end of a term may take: its lifeline and its watches look several times a second."""

STEP_SECONDS = 0.25
"""How often a handler comes to a step, at which its history is written."""


class Work(Enum):
    """What the handler of an update does; the value stands in the update's text."""

    PLAIN = "plain"  # takes its time, and is done
    CALLING = "calling"  # calls Telegram, and is transient while that is away
    FLAKY = "flaky"  # is transient the first time or two
    FAILING = "failing"  # raises
    STUBBORN = "stubborn"  # ignores its cancellation for some seconds
    HANGING = "hanging"  # never returns
    BLOCKING = "blocking"  # does not give the loop back for some seconds
    POISON = "poison"  # takes its process along, each time


INNOCENT = frozenset({Work.PLAIN, Work.CALLING, Work.FLAKY})
"""Nothing of these may ever be a dead letter."""


@dataclass(frozen=True, slots=True)
class Order:
    """What an update says is to be done."""

    work: Work
    seconds: float


def text_of(order: Order) -> str:
    """For a message."""
    return f"{order.work.value} {order.seconds:.3f}"


class Bot:
    """Of one worker."""

    def __init__(
        self,
        process: Process,
        history: History,
        random: Random,
        *,
        term: Callable[[], str],
        crash: Callable[[], None],
        is_telegram_away: Callable[[], bool],
        has_persistence: bool,
        fails_to_lead: bool,
    ) -> None:
        """Not initialised.

        Args:
            process: the worker's.
            history: where runs are written.
            random: of the simulation.
            term: under which updates are run at the moment.
            crash: ends the process.
            is_telegram_away: whether it would fail.
            has_persistence: loads state in `initialize`.
            fails_to_lead: a bot that is broken from when it begins to own.
        """
        self._process = process
        self._history = history
        self._random = random
        self._term = term
        self._crash = crash
        self._is_telegram_away = is_telegram_away
        self._fails_to_lead = fails_to_lead
        self._timers: Timers | None = None
        self.open_runs: list[Run] = []
        self.has_persistence = has_persistence

    @property
    def is_identified(self) -> bool:
        """Nothing is told to wait, here."""
        return True

    async def initialize(self) -> None:
        """getMe, and post_init."""
        if self._fails_to_lead:
            raise RuntimeError("post_init raises")
        await asyncio.sleep(0.1)
        for _ in range(round(LEAD_SECONDS)):
            if not self._is_telegram_away():
                return
            await asyncio.sleep(1.0)
        raise TimedOut

    async def ask_telegram(self) -> Outcome:
        """getMe."""
        await asyncio.sleep(0.05)
        return Transient("TimedOut") if self._is_telegram_away() else Done()

    async def start(self, *, may_begin_job: Callable[[], bool]) -> None:
        """Timers and jobs run from now on; one that stands still is not taken to run any (see `end_timers`)."""
        self._timers = Timers(self._term(), self._process.name, self._process.agenda.now)
        self._history.timers.append(self._timers)

    async def save(self) -> None:
        """There is nothing to save."""

    async def stop(self, *, tasks_seconds: float, flush_in_seconds: float) -> None:
        """Timers and jobs have ended."""
        await asyncio.sleep(self._random.choice([0.0, 0.01, 0.2]))
        self.end_timers()

    def end_timers(self) -> None:
        """Also what the death of the process does."""
        if self._timers is None:
            return
        process = self._process
        self._timers.ended_at = process.stopped_at if self._stood_still() else process.agenda.now
        self._timers = None

    def _stood_still(self) -> bool:
        """One that stands still, or is ended as soon as it goes on, has run nothing meanwhile."""
        process = self._process
        return process.stopped or process.agenda.now - process.continued_at < WAKING_SECONDS

    def die(self) -> None:
        """The process is dead: what ran does not any more, and ran until now unless it stood still."""
        now = self._process.agenda.now
        for run in self.open_runs:
            run.ended = "died"
            run.seen_at = run.seen_at if self._stood_still() else now
        self.open_runs.clear()
        self.end_timers()

    async def handle(self, body: bytes, attempt: int) -> Outcome:
        """Runs one update."""
        update = json.loads(body)
        content = update.get("message") or update["callback_query"]
        work, seconds = content["text"].split()
        order = Order(Work(work), float(seconds))
        lane = content["chat"]["id"] if "chat" in content else content["from"]["id"]
        now = self._process.agenda.now
        run = Run(update["update_id"], lane, self._term(), self._process.name, attempt, now, now)
        self._history.runs.append(run)
        self.open_runs.append(run)
        try:
            outcome = await self._work(run, order, attempt)
            self._see(run)
            run.ended = type(outcome).__name__.lower()
            return outcome
        except asyncio.CancelledError:
            run.ended = "cancelled"
            raise
        finally:
            if not self._process.dead:
                self.open_runs.remove(run)

    async def _work(self, run: Run, order: Order, attempt: int) -> Outcome:
        match order.work:
            case Work.POISON:
                await self._take(run, order.seconds)
                self._crash()
                await asyncio.sleep(1000.0)
            case Work.HANGING:
                await self._take(run, 100_000.0)
            case Work.BLOCKING:
                self._process.block(order.seconds)
                await asyncio.sleep(0)
            case Work.STUBBORN:
                await self._ignore_cancellation(run, order.seconds)
            case Work.FLAKY if attempt <= 2 and self._random.random() < 0.7:
                await self._take(run, order.seconds)
                return Transient("NetworkError", self._random.choice([None, None, 2.5]))
            case _:
                await self._take(run, order.seconds)
        if order.work is Work.FAILING:
            return Failed("Traceback")
        if order.work is Work.CALLING and self._is_telegram_away():
            return Transient("TimedOut")
        return Done()

    async def _take(self, run: Run, seconds: float) -> None:
        end = self._process.agenda.now + seconds
        while (left := end - self._process.agenda.now) > 0:
            await asyncio.sleep(min(left, STEP_SECONDS) if seconds < 60 else min(left, 5.0))
            self._see(run)

    async def _ignore_cancellation(self, run: Run, seconds: float) -> None:
        end = self._process.agenda.now + seconds
        while (left := end - self._process.agenda.now) > 0:
            try:
                await asyncio.sleep(min(left, STEP_SECONDS))
            except asyncio.CancelledError:
                if self._process.agenda.now >= end:
                    raise
                continue  # to be cancelled is no step of its own
            self._see(run)

    def _see(self, run: Run) -> None:
        run.seen_at = self._process.agenda.now
