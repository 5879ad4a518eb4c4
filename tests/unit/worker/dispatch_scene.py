"""A dispatcher over the model of the inbox, in virtual time, with a bot that does what the test says."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random

from tests.models.inbox import ModelInbox, Row, Store
from tests.unit.worker.virtual_time import now
from webhook_worker.deadline import Deadline
from webhook_worker.dispatch import Dispatcher, DispatchSettings
from webhook_worker.lanes import Ending, State
from webhook_worker.outcomes import Done, Outcome

Script = Callable[[int], Awaitable[Outcome]]
"""What the handler of an update does; is given the number of its start."""

FAR_SECONDS = 1_000_000.0


def ignores_cancellation_for(seconds: float, outcome: Outcome | None = None) -> Script:
    """What a handler should not do."""

    async def script(attempt: int) -> Outcome:
        end = now() + seconds
        while now() < end:
            try:
                await asyncio.sleep(end - now())
            except asyncio.CancelledError:
                continue
        return outcome or Done()

    return script


@dataclass
class Run:
    """One run of a handler."""

    update_id: int
    attempt: int
    began_at: float
    ended_at: float | None = None
    outcome: Outcome | None = None  # None: cancelled, or still running


def takes(seconds: float, outcome: Outcome | None = None) -> Script:
    """A handler that takes so long, and then is done or what the test says."""

    async def script(attempt: int) -> Outcome:
        await asyncio.sleep(seconds)
        return outcome or Done()

    return script


class ScriptedBot:
    """Runs scripts by update_id and writes down what ran when."""

    def __init__(self, lane_of: Callable[[int], int]) -> None:
        self.scripts: dict[int, Script] = {}
        self.default: Script = takes(0.01)
        self.runs: list[Run] = []
        self.most_at_once = 0
        self._lane_of = lane_of
        self._running: dict[int, int] = {}

    @property
    def running(self) -> int:
        return len(self._running)

    async def handle(self, body: bytes, attempt: int) -> Outcome:
        update_id = int(body)
        lane = self._lane_of(update_id)
        assert update_id not in self._running, "the update runs twice at one time"
        assert lane not in self._running.values(), "two of one lane run at one time"
        self._running[update_id] = lane
        self.most_at_once = max(self.most_at_once, len(self._running))
        run = Run(update_id, attempt, now())
        self.runs.append(run)
        try:
            run.outcome = await self.scripts.get(update_id, self.default)(attempt)
            return run.outcome
        finally:
            run.ended_at = now()
            del self._running[update_id]

    def runs_of(self, update_id: int) -> list[Run]:
        return [run for run in self.runs if run.update_id == update_id]


class Scene:
    """Make it inside the virtual loop."""

    def __init__(self, *, store: Store | None = None, **settings: float) -> None:
        self.clock_offset = 0.0
        self.store = store or Store(now)
        if store is None:
            self.store.term = str(uuid.uuid4())
        self.inbox = ModelInbox(self.store)
        self.bot = ScriptedBot(self._lane_of)
        self.suspects: list[bool] = []
        self.telegram: Script = takes(0.05)  # what getMe gets; is given the number of the question
        self.asked_at: list[float] = []
        self.settings = DispatchSettings(
            concurrency=int(settings.get("concurrency", 4)),
            handler_timeout_seconds=settings.get("handler_timeout_seconds", 300.0),
            max_attempts=int(settings.get("max_attempts", 5)),
            dead_letter_days=30,
        )
        self.confirmed = Deadline(self.clock)
        self.confirmed.begin(settings.get("deadline", now() + FAR_SECONDS))
        self.recover_at = settings.get("recover_at", now())
        self.dispatcher = self._make_dispatcher()
        self.task: asyncio.Task[Ending] | None = None

    def clock(self) -> float:
        """The clock of the deadline, which runs on while the loop's is suspended."""
        return now() + self.clock_offset

    @property
    def deadline(self) -> float:
        """As it is confirmed by now."""
        return self.confirmed.at

    def start(self) -> None:
        self.task = asyncio.create_task(self.dispatcher.run())

    async def ending(self) -> Ending:
        assert self.task is not None
        return await self.task

    async def end(self, drain_seconds: float = 0.0) -> int:
        returned = await self.dispatcher.end(drain_seconds)
        await self.ending()
        return returned

    def send(self, update_id: int, lane: int | None = None, script: Script | None = None) -> None:
        """An update comes in, as ingest stores it and says so."""
        assert self.store.insert(update_id, lane, str(update_id).encode()) is not None
        if script is not None:
            self.bot.scripts[update_id] = script
        self.dispatcher.wake()

    def row(self, update_id: int) -> Row:
        (found,) = [row for row in self.store.rows.values() if row.update_id == update_id]
        return found

    async def until(self, condition: Callable[[], bool], limit_seconds: float = 3600.0) -> float:
        """The virtual seconds until the condition held."""
        begin = now()
        while not condition():
            assert now() - begin < limit_seconds, "waited in vain"
            # Finely at first, then to a part in a thousand.
            await asyncio.sleep(max(0.001, (now() - begin) / 1000))
        return now() - begin

    async def until_quiet(self, limit_seconds: float = 3600.0) -> float:
        """Until nothing is left to do."""
        finished = (State.DONE, State.DEAD)
        return await self.until(
            lambda: all(row.state in finished for row in self.store.rows.values()), limit_seconds
        )

    def crash(self, recover_at: float | None = None, **settings: float) -> Scene:
        """The process is killed, and another owner begins over the same rows."""
        assert self.task is not None
        self.inbox.cut = True
        for run in self.bot.runs:
            run.ended_at = run.ended_at or now()
        self.task.cancel()
        self.store.term = str(uuid.uuid4())
        successor = Scene(store=self.store, recover_at=recover_at or now(), **settings)
        successor.bot.scripts = self.bot.scripts
        successor.bot.default = self.bot.default
        successor.telegram = self.telegram
        return successor

    def _lane_of(self, update_id: int) -> int:
        return self.row(update_id).lane_key

    async def _ask_telegram(self) -> Outcome:
        self.asked_at.append(now())
        return await self.telegram(len(self.asked_at))

    def _make_dispatcher(self) -> Dispatcher:
        return Dispatcher(
            inbox=self.inbox,
            handler=self.bot,
            term=str(self.store.term),
            deadline=lambda: self.confirmed.at,
            recover_at=self.recover_at,
            settings=self.settings,
            suspect_running=self.suspects.append,
            ask_telegram=nullcontext(self._ask_telegram),
            clock=self.clock,
            jitter=Random(1).random,
        )
