"""What a claim costs and takes when there is a great deal to claim from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.database import DatabaseAway, Link
from tests.integration.worker.inbox_world import BOT_ID, PostgresWorld, postgres_world
from tests.unit.worker.inbox_contract import RETRY, exchange, insert, settle, settlements
from webhook_worker import inbox_statements as sql
from webhook_worker.claim_plan import Sweep
from webhook_worker.inbox import Inbox
from webhook_worker.lanes import Claimed

ROWS = 20_000
HANG_SECONDS = 60.0


@pytest_asyncio.fixture
async def world(database_url: str) -> AsyncIterator[PostgresWorld]:
    """An empty inbox under a term."""
    async with postgres_world(database_url) as made:
        yield made


async def median_seconds_of_claims(world: PostgresWorld, claims: int = 15) -> float:
    """Claims 8, settles them, again and again; how long half of the exchanges take at most."""
    sweep, seconds = Sweep(), list[float]()
    ended: tuple[Claimed, ...] = ()
    for _ in range(claims):
        begin = time.perf_counter()
        batch = await exchange(world, settlements(ended), free=8, sweep=sweep)
        seconds.append(time.perf_counter() - begin)
        sweep, ended = batch.sweep, batch.claimed
    return sorted(seconds)[claims // 2]


@pytest.mark.parametrize("lanes", [1, 50, ROWS])
async def test_b26_a_claim_costs_the_same_with_a_backlog(world: PostgresWorld, lanes: int) -> None:
    """Whether its rows are of one chat or of as many; also by a plan that was made while the table was empty.

    Nobody analyses the table in between: that is how a bot's first backlog finds it.
    """
    await world.execute("ALTER TABLE webhook_supervisor.inbox SET (autovacuum_enabled = off)")
    for update_id in range(8):
        await insert(world, -1 - update_id, update_id)
    await world.execute("VACUUM ANALYZE webhook_supervisor.inbox")
    small = await median_seconds_of_claims(world)
    await world.fill(ROWS, lanes)
    large = await median_seconds_of_claims(world)
    # A plan that looks at all rows costs a hundred times as much and more.
    assert large < 20 * small + 0.02


async def test_b26_a_claim_past_thousands_of_waiting_lanes_is_bounded(world: PostgresWorld) -> None:
    """Lanes that wait are passed by, some in each claim, and the next goes on behind them: all are reached."""
    await world.fill(2000, 2000)
    await world.execute(
        "UPDATE webhook_supervisor.inbox SET retry_at = now() + interval '1 hour', retries = 1"
    )
    await world.fill_lane(5000, rows=2 * sql.FRESH_ROWS, first_update_id=10_000)
    sweep, found, claims = Sweep(after_lane=0), 0, 0
    while not found:
        batch = await exchange(world, free=4, sweep=sweep)
        sweep, found, claims = batch.sweep, len(batch.claimed), claims + 1
        assert found or not batch.is_complete
    assert 2000 // sql.WALK_LANES <= claims <= 2000 // sql.WALK_LANES + 2


async def test_b26_only_what_is_claimed_leaves_the_database(world: PostgresWorld) -> None:
    """Bodies of what waits are not read: memory is bounded by the slots."""
    await world.fill(ROWS, 100)
    batch = await exchange(world, free=32)
    assert len(batch.claimed) == 32
    assert sum(len(one.body) for one in batch.claimed) < 32 * 1000


async def test_b14_a_count_that_takes_too_long_costs_nobody_the_session(
    world: PostgresWorld, database_url: str
) -> None:
    """Where sessions are few it is that of the ingest. The server ends the count, and what comes next has the usual limit."""

    async def look(connection: AsyncConnection[TupleRow]) -> object:
        cursor = await connection.execute("SELECT pg_backend_pid(), current_setting('statement_timeout')")
        return await cursor.fetchone()

    async with Link(database_url, name="ingest") as link:
        await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
        before = await link.run(look, HANG_SECONDS)
        inbox = Inbox(link, BOT_ID)
        assert (await inbox.depth()).pending == 0
        async with world.others.transaction():
            await world.others.execute("LOCK TABLE webhook_supervisor.inbox IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(DatabaseAway, match="statement timeout"):
                await inbox.depth()
        assert await link.run(look, HANG_SECONDS) == before


async def test_other_bots_in_the_same_database_are_nobodys_business(world: PostgresWorld) -> None:
    """Every statement is of one bot."""
    await world.insert(1, 7, bot_id=BOT_ID + 1)
    await world.insert(2, None, bot_id=BOT_ID + 1)
    batch = await exchange(world)
    assert (batch.claimed, batch.has_suspects) == ((), False)
    assert not await world.inbox.peek(world.term, [])
    assert (await world.inbox.depth()).pending == 0
    await world.execute("UPDATE webhook_supervisor.inbox SET state = 'claimed', attempts = 1")
    assert await world.inbox.suspects(world.term) == ()
    await world.execute(
        "UPDATE webhook_supervisor.inbox SET state = 'done', finished_at = now() - interval '9 days'"
    )
    await world.inbox.purge(30)
    assert await world.row(1) is not None


async def test_counts_beyond_the_limit_are_estimates(world: PostgresWorld) -> None:
    """Exact to the limit; beyond it as good as the rows are dense."""
    await world.fill(sql.COUNT_LIMIT - 1, 10)
    assert (await world.inbox.depth()).pending == sql.COUNT_LIMIT - 1
    await world.fill_lane(7, rows=sql.COUNT_LIMIT, first_update_id=1_000_000)
    assert abs((await world.inbox.depth()).pending - 2 * sql.COUNT_LIMIT) < 0.1 * sql.COUNT_LIMIT


async def test_forgetting_is_done_in_small_deletes(world: PostgresWorld) -> None:
    """A million finished rows are no long statement; there is more until there is not."""
    rows = 2 * sql.PURGE_ROWS + 10
    await world.fill(rows, 10)
    await world.execute(
        "UPDATE webhook_supervisor.inbox SET state = 'done', body = NULL, finished_at = now() - interval '4 days'"
    )
    more = [await world.inbox.purge(30) for _ in range(4)]
    assert more == [True, True, False, False]
    assert await world.execute("SELECT count(*) FROM webhook_supervisor.inbox") == [(0,)]


async def test_what_is_done_takes_no_more_than_its_key_and_when_it_went(world: PostgresWorld) -> None:
    """It is kept for days, so it is most of the table: at most 150 bytes with its indexes, retried or not."""
    await world.fill(ROWS, ROWS)
    batch = await exchange(world, free=100)
    await settle(world, batch.claimed, RETRY)
    for one in batch.claimed:
        await world.age(one.seq, 31.0)
    done = 0
    while batch.claimed:
        batch = await exchange(world, free=1000)
        await settle(world, batch.claimed)
        done += len(batch.claimed)
    assert done == ROWS
    kept = await world.execute(
        "SELECT DISTINCT array(SELECT jsonb_object_keys(jsonb_strip_nulls(to_jsonb(i))) ORDER BY 1)"
        " FROM webhook_supervisor.inbox i"
    )
    assert kept == [(["bot_id", "finished_at", "keyed", "seq", "state", "update_id"],)]
    await world.execute("VACUUM (FULL) webhook_supervisor.inbox")
    ((size, empty),) = await world.execute(
        "SELECT pg_total_relation_size('webhook_supervisor.inbox')::bigint,"
        " (SELECT sum(pg_relation_size(indexrelid))::bigint FROM pg_index"
        "   WHERE indrelid = 'webhook_supervisor.inbox'::regclass AND pg_relation_size(indexrelid) <= 8192)"
    )
    assert (size - empty) / ROWS <= 150
