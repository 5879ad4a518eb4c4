"""Ingest and dispatcher of one worker on a real Postgres: what comes to it when it is idle, a little busy, or in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest

from shared.database import Link
from tests.integration.worker.inbox_world import BOT_ID, PostgresWorld
from tests.integration.worker.test_dispatch_postgres import (
    Bot,
    LossyLink,
    assert_done,
    connected,
    dispatching,
    make_dispatcher,
    noted_world,
    until_quiet,
)
from tests.waiting import until
from webhook_worker.inbox import Session
from webhook_worker.inbox_writer import InboxWriter
from webhook_worker.ingest import Ingest, NotStored, Row

MANY = 300


@asynccontextmanager
async def worker(
    database_url: str, world: PostgresWorld, bot: Bot, session: Session
) -> AsyncIterator[tuple[Ingest, list[asyncio.Future[bool]]]]:
    """Its ingest has a session of its own, as by default; beside it, what became of each batch that its dispatcher took."""
    took: list[asyncio.Future[bool]] = []
    dispatcher = make_dispatcher(session, bot, world.term)

    def store_along(
        rows: Sequence[Row], on_stored: Callable[[list[int]], None]
    ) -> asyncio.Future[bool] | None:
        along = dispatcher.store_along(rows, on_stored)
        if along is not None:
            took.append(along)
        return along

    async with Link(database_url, name="ingest") as own, dispatching(dispatcher):
        await own.wait_connected()
        ingest = Ingest(
            InboxWriter(own, BOT_ID),
            dispatches_here=lambda: True,
            wake=dispatcher.wake,
            store_along=store_along,
        )
        flusher = asyncio.create_task(ingest.run())
        await until(lambda: ingest.fault, "updates can be stored", lambda fault: fault is None)
        try:
            yield ingest, took
        finally:
            flusher.cancel()
            await asyncio.wait({flusher})


@pytest.mark.parametrize("is_lossy", [False, True])
async def test_a25_once_and_in_order_whichever_way_it_is_stored(database_url: str, is_lossy: bool) -> None:
    """By twos and threes, with pauses and without: some go along, some do not; some answers are lost."""
    random = Random(7)
    lane_of = {update_id: random.choice([*range(12), None]) for update_id in range(MANY)}
    bot = Bot()
    async with noted_world(database_url) as world, connected(database_url) as link:
        session = LossyLink(link, 3) if is_lossy else link
        async with worker(database_url, world, bot, session) as (ingest, took):
            for update_id, lane in lane_of.items():
                storing = ingest.store(update_id, lane, str(update_id).encode())
                if random.random() < 0.3:
                    await storing
                    assert await world.execute(
                        "SELECT count(*) FROM webhook_supervisor.inbox WHERE update_id = %s", update_id
                    ) == [(1,)]
                    if random.random() < 0.3:
                        await bot.until_ended(update_id + 1)
                    await asyncio.sleep(random.choice([0.0, 0.002, 0.02]))
            await storing
            await until_quiet(world)
        await assert_done(world, MANY)
        # Some went along, or this tests nothing; a lost answer takes nothing back, since it is told at the commit.
        assert True in [along.result() for along in took]
    assert sorted(bot.begun) == list(range(MANY))
    for lane in range(12):
        of_lane = [update_id for update_id in bot.begun if lane_of[update_id] == lane]
        assert of_lane == sorted(of_lane)


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE webhook_supervisor.inbox ADD CONSTRAINT c CHECK (body IS NULL OR body <> 'bad'::bytea)",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.body = 'bad'::bytea THEN "
        "RAISE EXCEPTION 'an operator does not want it'; END IF; RETURN NEW; END $$; "
        "CREATE TRIGGER refuse BEFORE INSERT ON webhook_supervisor.inbox FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
    ids=["constraint", "trigger"],
)
async def test_b14_a_row_that_the_database_refuses_is_refused_alone(database_url: str, damage: str) -> None:
    """The exchange that took it along did nothing, and nothing else suffers: no pause, no lost session, no dead worker."""
    bot = Bot()
    async with noted_world(database_url) as world, connected(database_url) as link:
        for statement in damage.split("; CREATE TRIGGER"):
            await world.execute(
                statement if statement.startswith(("ALTER", "CREATE")) else f"CREATE TRIGGER{statement}"
            )
        async with worker(database_url, world, bot, link) as (ingest, took):
            for update_id in range(5):
                await asyncio.sleep(0.05)
                with pytest.raises(NotStored):
                    await ingest.store(100 + update_id, 7, b"bad")
                await ingest.store(update_id, 7, str(update_id).encode())
                await bot.until_ended(update_id + 1)
            await until_quiet(world)
        await assert_done(world, 5)
        assert link.connected
        stored = [along.result() for along in took]
        assert True in stored
        assert False in stored  # a bad one was taken along, and left to its sender


async def test_b10_a_session_that_breaks_under_it_costs_no_update(database_url: str) -> None:
    """The flusher stores what the dispatcher could not."""
    bot = Bot()
    async with noted_world(database_url) as world, connected(database_url) as link:
        async with worker(database_url, world, bot, link) as (ingest, took):
            for update_id in range(10):
                await asyncio.sleep(0.05)
                if update_id % 3 == 1:
                    await world.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name = 'webhook-supervisor dispatch' AND datname = current_database()"
                    )
                await ingest.store(update_id, update_id, str(update_id).encode())
                await bot.until_ended(update_id + 1)
            await until_quiet(world)
        await assert_done(world, 10)
        assert True in [along.result() for along in took]
