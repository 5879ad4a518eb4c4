"""Everything around a term, as fakes that end when they are told to."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from shared import wire
from tests.waiting import until
from webhook_worker.deadline import Deadline
from webhook_worker.ingest import Row
from webhook_worker.term import Term, TermBot

HANG_SECONDS = 30.0

LOOKED_SECONDS = 0.6
"""In virtual time: a term has looked at its clock twice by then, and what follows from that has happened."""

LEAD = wire.Lead(term="a", deadline=1000.0, recover_at=100.0)


class Bot:
    """Writes down what is done to it."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.has_persistence = False
        self.is_identified = True
        self.tasks_seconds = self.flush_in_seconds = -1.0
        self.initialize_waits_for: asyncio.Event | None = None
        self.failures: dict[str, Exception] = {}
        self.saves = asyncio.Event()
        self.saves.set()

    async def _step(self, name: str) -> None:
        self.world.events.append(name)
        if name in self.failures:
            raise self.failures[name]

    async def initialize(self) -> None:
        if self.initialize_waits_for is not None:
            await self.initialize_waits_for.wait()
        await self._step("initialize")

    async def start(self, *, may_begin_job: Callable[[], bool]) -> None:
        self.may_begin_job = may_begin_job
        await self._step("start")

    async def save(self) -> None:
        await self._step("save")
        await self.saves.wait()

    async def stop(self, *, tasks_seconds: float, flush_in_seconds: float) -> None:
        self.tasks_seconds, self.flush_in_seconds = tasks_seconds, flush_in_seconds
        await self._step("stop")


class FakeDispatcher:
    """Runs until it is ended; its bookkeeping can be made to take for ever."""

    def __init__(self, world: "World", deadline: Callable[[], float], recover_at: float) -> None:
        self.world = world
        self.deadline = deadline
        self.recover_at = recover_at
        self.running = 1
        self.completed = 0
        self.fault: str | None = None
        self.failure: Exception | None = None
        self.drain_failure: Exception | None = None
        self.bookkeeping = asyncio.Event()
        self.bookkeeping.set()
        self._ending = asyncio.Event()
        self._finished = asyncio.Event()

    def wake(self) -> None:
        self.world.events.append("wake")

    def store_along(
        self, rows: Sequence[Row], on_stored: Callable[[list[int]], None]
    ) -> asyncio.Future[bool] | None:
        self.world.events.append("store along")
        return asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        self.world.events.append("dispatch")
        await self._ending.wait()
        self.running = 0
        await self.bookkeeping.wait()
        if self.failure is not None:
            raise self.failure
        self.world.events.append("dispatched")
        self._finished.set()

    def shorten_drain(self, drain_seconds: float) -> None:
        self.world.events.append(f"shorten {drain_seconds:g}")

    async def end(self, drain_seconds: float) -> None:
        if not self._ending.is_set():
            self.world.events.append(f"drain {drain_seconds:g}")
        if self.drain_failure is not None:
            raise self.drain_failure
        self._ending.set()
        await self._finished.wait()


class FakeLinks:
    """The dispatcher's session, which takes as long to come and to go as it is told."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.is_tried = asyncio.Event()
        self.is_tried.set()
        self.may_close = asyncio.Event()
        self.may_close.set()

    def open_dispatch(self) -> None:
        self.world.events.append("open")

    async def wait_dispatch_tried(self) -> None:
        await self.is_tried.wait()

    async def close_dispatch(self) -> None:
        await self.may_close.wait()
        self.world.events.append(f"close, told {len(self.world.told)}")


class World:
    """A term with everything around it."""

    def __init__(self) -> None:
        self.time = 100.0
        self.poll_fails = False
        self.events: list[str] = []
        self.told: list[wire.ToSupervisor] = []
        self.bot = Bot(self)
        self.links = FakeLinks(self)
        self.dispatcher: FakeDispatcher | None = None
        self.deadline = Deadline(lambda: self.time)
        self.deadline.begin(LEAD.deadline)
        self.term = self.term_of(self.bot)

    def term_of(self, bot: TermBot) -> Term:
        """The same, with another bot."""
        return Term(
            bot=bot,
            links=self.links,
            deadline=self.deadline,
            make_dispatcher=self.make_dispatcher,
            poll=self.poll,
            tell=self.told.append,
            settle_threads=self.settle_threads,
            over=lambda: self.events.append("over"),
            redact=lambda text: text.replace("secret", "***"),
            now=lambda: self.time,
        )

    def make_dispatcher(self, term: str, deadline: Callable[[], float], recover_at: float) -> FakeDispatcher:
        assert term == "a"
        self.dispatcher = FakeDispatcher(self, deadline, recover_at)
        return self.dispatcher

    async def poll(self) -> NoReturn:
        self.events.append("poll")
        try:
            if self.poll_fails:
                raise ZeroDivisionError
            await asyncio.Event().wait()
        finally:
            self.events.append("poll ended")
        raise AssertionError

    async def settle_threads(self) -> None:
        self.events.append("threads")

    async def until(self, event: str) -> None:
        await until(lambda: self.events, f"the event {event!r}", lambda events: event in events)

    async def until_told(self, message: wire.ToSupervisor) -> None:
        await until(lambda: self.told, f"the supervisor is told {message}", lambda told: message in told)

    async def finished(self, task: "asyncio.Task[Any]") -> None:
        await asyncio.wait_for(task, HANG_SECONDS)
