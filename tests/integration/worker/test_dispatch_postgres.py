"""The dispatcher over a real Link and a real Postgres, which is restarted, cut off and taken over under its feet."""

from __future__ import annotations

import asyncio
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from random import Random
from typing import Any, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from deploy.local.postgres import PostgresServer
from shared import clock
from shared.database import DatabaseAway, Link
from tests.integration.worker.inbox_world import BOT_ID, PostgresWorld, postgres_world
from tests.waiting import until
from webhook_worker.dispatch import Dispatcher, DispatchSettings
from webhook_worker.inbox import Inbox, Session
from webhook_worker.lanes import Ending
from webhook_worker.outcomes import Done, Outcome, Transient

T = TypeVar("T")


class Bot:
    """Takes a random time, and writes down what it ran."""

    def __init__(self, seed: int = 0, *, most_seconds: float = 0.005) -> None:
        self.random = Random(seed)
        self.most_seconds = most_seconds
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.attempts: dict[int, int] = {}
        self.running: set[int] = set()
        self.hold = asyncio.Event()
        self.hold.set()
        self.transient: set[int] = set()

    async def handle(self, body: bytes, attempt: int) -> Outcome:
        update_id = int(body)
        assert update_id not in self.running
        self.running.add(update_id)
        self.begun.append(update_id)
        self.attempts[update_id] = attempt
        try:
            await asyncio.sleep(self.random.random() * self.most_seconds)
            await self.hold.wait()
            if update_id in self.transient and attempt == 1:
                return Transient("NetworkError")
            self.ended.append(update_id)
            return Done()
        finally:
            self.running.discard(update_id)

    async def ask_telegram(self) -> Outcome:
        return Done()

    async def until_ended(self, count: int) -> None:
        await until(lambda: len(self.ended), f"{count} runs have ended", lambda number: number == count)


class LossyLink:
    """Executes what it is given, and then, at random, claims that the connection broke before the answer."""

    def __init__(self, link: Link, seed: int) -> None:
        self.link = link
        self.random = Random(seed)
        self.losses = 0

    async def run(
        self, fn: Callable[[AsyncConnection[TupleRow]], Coroutine[Any, Any, T]], limit_seconds: float
    ) -> T:
        result = await self.link.run(fn, limit_seconds)
        if self.losses < 6 and self.random.random() < 0.4:
            self.losses += 1
            raise DatabaseAway("the answer was lost")
        return result


def make_dispatcher(link: Session, bot: Bot, term: str, **settings: int) -> Dispatcher:
    deadline = clock.now() + 3600
    return Dispatcher(
        inbox=Inbox(link, BOT_ID),
        handler=bot,
        term=term,
        deadline=lambda: deadline,
        recover_at=clock.now(),
        settings=DispatchSettings(
            concurrency=settings.get("concurrency", 8),
            handler_timeout_seconds=300,
            max_attempts=5,
            dead_letter_days=30,
        ),
        suspect_running=lambda running: None,
        ask_telegram=nullcontext(bot.ask_telegram),
    )


@asynccontextmanager
async def dispatching(dispatcher: Dispatcher) -> AsyncIterator[None]:
    """Runs it for the block, then ends it in order."""
    async with asyncio.TaskGroup() as group:
        group.create_task(dispatcher.run())
        yield
        await dispatcher.end(30)


@asynccontextmanager
async def connected(database_url: str) -> AsyncIterator[Link]:
    async with Link(database_url, name="dispatch") as link:
        await link.wait_connected()
        yield link


async def send(world: PostgresWorld, update_id: int, lane: int | None) -> None:
    assert await world.insert(update_id, lane, str(update_id).encode()) is not None


async def until_quiet(world: PostgresWorld) -> None:
    unfinished = "SELECT state, count(*) FROM webhook_supervisor.inbox WHERE state IN ('pending', 'claimed') GROUP BY state"
    await until(lambda: world.execute(unfinished), "all updates are handled", lambda counts: counts == [])


# A done row tells nothing of its attempts any more: what it said until then is noted.
NOTE_COMPLETIONS = """
CREATE TABLE completions (seq bigint PRIMARY KEY, attempts int NOT NULL, starts int NOT NULL, retries int NOT NULL);
CREATE FUNCTION note_completion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO completions VALUES (OLD.seq, OLD.attempts, OLD.starts, OLD.retries);
    RETURN NULL;
END $$;
CREATE TRIGGER note_completion AFTER UPDATE ON webhook_supervisor.inbox
   FOR EACH ROW WHEN (NEW.state = 'done' AND OLD.state <> 'done') EXECUTE FUNCTION note_completion();
"""


@asynccontextmanager
async def noted_world(database_url: str) -> AsyncIterator[PostgresWorld]:
    async with postgres_world(database_url) as world:
        if await world.execute("SELECT to_regclass('completions')") == [(None,)]:
            await world.execute(NOTE_COMPLETIONS)
        yield world


async def assert_done(world: PostgresWorld, updates: int, *, attempts: int = 1) -> None:
    found = await world.execute(
        "SELECT count(*), count(body) FROM webhook_supervisor.inbox WHERE state = 'done'"
    )
    assert found == [(updates, 0)]
    assert await world.execute("SELECT count(*), max(attempts) FROM completions") == [(updates, attempts)]


async def test_a25_once_and_in_order_under_traffic(database_url: str) -> None:
    """Inserts from another session while handlers of random length run: each once, each chat in its order."""
    random = Random(5)
    lane_of = {update_id: random.choice([*range(12), None]) for update_id in range(400)}
    bot = Bot()
    async with noted_world(database_url) as world, connected(database_url) as link:
        dispatcher = make_dispatcher(link, bot, world.term)
        async with dispatching(dispatcher):
            for update_id, lane in lane_of.items():
                await send(world, update_id, lane)
                dispatcher.wake()
            await until_quiet(world)
        await assert_done(world, 400)
    assert sorted(bot.begun) == list(range(400))
    for lane in range(12):
        of_lane = [update_id for update_id in bot.begun if lane_of[update_id] == lane]
        assert of_lane == sorted(of_lane)


async def test_a22_a_killed_owner_had_not_written_done(database_url: str) -> None:
    """What its handlers were doing is claimed, and runs again under the next term, counted."""
    async with noted_world(database_url) as world, connected(database_url) as link:
        bot = Bot()
        bot.hold.clear()
        for update_id in range(3):
            await send(world, update_id, update_id)
        running = asyncio.create_task(make_dispatcher(link, bot, world.term).run())
        await until(lambda: bot.running, "three run", lambda running: len(running) == 3)
        assert await world.execute("SELECT DISTINCT state FROM webhook_supervisor.inbox") == [("claimed",)]
        # Dead for everybody else: what it still runs cannot be committed.
        world.term = str(uuid.uuid4())
        await world.begin_term(world.term)
        next_bot = Bot()
        async with (
            connected(database_url) as next_link,
            dispatching(make_dispatcher(next_link, next_bot, world.term)),
        ):
            await until_quiet(world)
        assert next_bot.begun == [0, 1, 2]
        assert set(next_bot.attempts.values()) == {2}
        await assert_done(world, 3, attempts=2)
        bot.hold.set()
        assert await running is Ending.SUPERSEDED
        await assert_done(world, 3, attempts=2)


async def test_b10_a_database_restarted_under_running_handlers(own_postgres_server: PostgresServer) -> None:
    """They end, their ends are committed when it is back, nothing runs twice, and work goes on."""
    database_url = own_postgres_server.create_database("dispatch")
    bot = Bot()
    async with connected(database_url) as link:
        async with noted_world(database_url) as world:
            term = world.term
            for update_id in range(40):
                await send(world, update_id, update_id % 20)
        async with dispatching(make_dispatcher(link, bot, term)):
            bot.hold.clear()
            await until(lambda: bot.running, "eight run", lambda running: len(running) == 8)
            await asyncio.to_thread(own_postgres_server.restart)
            bot.hold.set()
            await bot.until_ended(40)
        async with noted_world(database_url) as world:
            await assert_done(world, 40)
    assert sorted(bot.begun) == list(range(40))


async def test_b10_the_session_is_terminated_again_and_again(database_url: str) -> None:
    """At any moment of an exchange: nothing is lost, doubled, or counted twice."""
    bot = Bot(most_seconds=0.05)
    async with noted_world(database_url) as world, connected(database_url) as link:
        for update_id in range(150):
            await send(world, update_id, update_id % 15)
        async with dispatching(make_dispatcher(link, bot, world.term, concurrency=4)):
            for _ in range(8):
                await asyncio.sleep(bot.random.random() * 0.2)
                await world.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s",
                    "%dispatch",
                )
            await until_quiet(world)
        await assert_done(world, 150)
    assert sorted(bot.begun) == list(range(150))
    assert set(bot.attempts.values()) == {1}


async def test_answers_lost_after_the_commit_double_nothing(database_url: str) -> None:
    """Claims are found again, settlements of all kinds are repeated without effect."""
    bot = Bot()
    bot.transient = set(range(0, 60, 7))
    async with noted_world(database_url) as world, connected(database_url) as link:
        for update_id in range(60):
            await send(world, update_id, update_id % 15)
        lossy = LossyLink(link, seed=3)
        async with dispatching(make_dispatcher(lossy, bot, world.term, concurrency=4)):
            await until_quiet(world)
        await assert_done(world, 60)
        retried = await world.execute("SELECT count(*) FROM completions WHERE retries = 1 AND starts = 2")
    assert lossy.losses == 6
    assert retried == [(len(bot.transient),)]
    assert len(bot.begun) == 60 + len(bot.transient)
    assert sorted(bot.ended) == list(range(60))


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """What the block allocates is counted; the most of it that lived at one time so far."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_b26_a_backlog_is_worked_off_in_bounded_memory_beside_fresh_chats(database_url: str) -> None:
    """Twenty thousand rows in ten chats, 40 MB: slots are the limit from the first claim on; a new chat is served at once."""
    bot = Bot(most_seconds=0.001)
    async with noted_world(database_url) as world, connected(database_url) as link:
        await world.execute(
            "INSERT INTO webhook_supervisor.inbox (bot_id, update_id, lane, body)"
            " SELECT %s, g, g %% 10, convert_to(lpad(g::text, 2000), 'UTF8') FROM generate_series(1, 20000) AS g",
            BOT_ID,
        )
        dispatcher = make_dispatcher(link, bot, world.term, concurrency=4)
        with traced_memory() as peak_bytes:  # from before the first claim, which could take the whole backlog
            async with dispatching(dispatcher):
                await until(lambda: len(bot.ended), "more than 100 have ended", lambda number: number > 100)
                await send(world, 99_999, 77)
                before = len(bot.begun)
                await until(lambda: 99_999 in bot.ended, "the update of another chat has ended")
                assert bot.begun.index(99_999) - before < 40
                while len(bot.ended) < 1500:
                    [[claimed]] = await world.execute(
                        "SELECT count(*) FROM webhook_supervisor.inbox WHERE state = 'claimed'"
                    )
                    assert claimed <= 4
                peak = peak_bytes()
        assert peak < 4 * 1024 * 1024
    assert len(set(bot.begun)) == len(bot.begun)


async def test_a_drained_owner_leaves_nothing_claimed(database_url: str) -> None:
    """Cancelled handlers' rows go back without a lost attempt; the next owner has no suspects."""
    bot = Bot()
    bot.hold.clear()
    async with noted_world(database_url) as world, connected(database_url) as link:
        for update_id in range(6):
            await send(world, update_id, update_id % 3)
        dispatcher = make_dispatcher(link, bot, world.term)
        running = asyncio.create_task(dispatcher.run())
        await until(lambda: bot.running, "three run", lambda running: len(running) == 3)
        assert await dispatcher.end(0.1) == 3
        assert await running is Ending.ENDED
        found = await world.execute(
            "SELECT DISTINCT state, attempts, term::text FROM webhook_supervisor.inbox"
        )
        assert found == [("pending", 0, None)]
