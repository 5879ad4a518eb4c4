"""The fence, in both directions, with real sessions: nobody commits under a term that is over."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest
import pytest_asyncio

from shared import database
from tests.integration.worker.inbox_world import BEGIN_TERM, BOT_ID, PostgresWorld, postgres_world
from tests.unit.worker.inbox_contract import exchange, insert, settlements
from webhook_worker.claim_plan import ClaimRequest, Sweep
from webhook_worker.inbox import Superseded
from webhook_worker.lanes import Claimed, State

LIMIT_SECONDS = 30.0


@pytest_asyncio.fixture
async def world(database_url: str) -> AsyncIterator[PostgresWorld]:
    """An empty inbox under a term."""
    async with postgres_world(database_url) as made:
        yield made


@pytest_asyncio.fixture
async def observer(world: PostgresWorld, database_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A third session, which sees who waits for whom."""
    async with await database.connect(database_url, application_name="observer") as connection:
        yield connection


async def until_blocked(
    observer: psycopg.AsyncConnection, waiting: psycopg.AsyncConnection, by: psycopg.AsyncConnection
) -> None:
    """Returns when one session waits for a lock that the other holds."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            cursor = await observer.execute("SELECT pg_blocking_pids(%s)", (waiting.info.backend_pid,))
            row = await cursor.fetchone()
            assert row is not None
            if by.info.backend_pid in row[0]:
                return


CLAIMED, WAITING, SUSPECT = 1, 2, 3

Act = Callable[[PostgresWorld, Claimed], Awaitable[object]]

ACTS: dict[str, Act] = {
    "claim": lambda world, _: world.inbox.exchange(world.term, [], ClaimRequest(5, Sweep(), [])),
    "settle": lambda world, one: world.inbox.exchange(world.term, settlements([one]), None),
    "both": lambda world, one: world.inbox.exchange(
        world.term, settlements([one]), ClaimRequest(5, Sweep(), [])
    ),
    "claim_suspect": lambda world, _: world.inbox.claim_suspect(world.term, SUSPECT),
    "bury": lambda world, _: world.inbox.bury(world.term, [SUSPECT], "text"),
    "condemn": lambda world, one: world.inbox.condemn(world.term, one, 5, "text"),
}


async def arrange(world: PostgresWorld) -> Claimed:
    """A row that is ours, one that waits, and one that another term left behind."""
    for seq in (CLAIMED, WAITING, SUSPECT):
        assert await insert(world, seq, seq) == seq
    (claimed,) = (await exchange(world, free=1)).claimed
    await world.execute(
        "UPDATE webhook_supervisor.inbox SET state = 'claimed', term = %s, attempts = 1, starts = 1 WHERE seq = %s",
        *(str(uuid.uuid4()), SUSPECT),
    )
    return claimed


async def rows(world: PostgresWorld) -> list[object]:
    return [await world.row(seq) for seq in (CLAIMED, WAITING, SUSPECT)]


@pytest.mark.parametrize("name", ACTS)
async def test_f_a_new_term_waits_for_what_is_under_way(
    world: PostgresWorld, observer: psycopg.AsyncConnection, name: str
) -> None:
    """A statement that has read the term holds it until its commit; the new term comes after, and sees what it did."""
    claimed = await arrange(world)
    before = await rows(world)
    async with world.mine.transaction():
        await ACTS[name](world, claimed)
        begins = asyncio.create_task(world.begin_term(str(uuid.uuid4())))
        await until_blocked(observer, world.others, by=world.mine)
        assert not begins.done()
    await begins
    assert await rows(world) != before


@pytest.mark.parametrize("name", ACTS)
async def test_f_what_had_to_wait_for_a_new_term_does_nothing(
    world: PostgresWorld, observer: psycopg.AsyncConnection, name: str
) -> None:
    """It began with a snapshot in which the old term was good; it must not go by that."""
    claimed = await arrange(world)
    before = await rows(world)
    async with world.others.transaction():
        await world.others.execute(BEGIN_TERM, (BOT_ID, str(uuid.uuid4())))
        act = asyncio.ensure_future(ACTS[name](world, claimed))
        await until_blocked(observer, world.mine, by=world.others)
    with pytest.raises(Superseded):
        await act
    assert await rows(world) == before


@pytest.mark.parametrize("name", ACTS)
async def test_f_what_had_to_wait_for_the_end_of_its_term_does_nothing(
    world: PostgresWorld, observer: psycopg.AsyncConnection, name: str
) -> None:
    """A cleanly ended term says that nothing is in flight; so nothing may be claimed after."""
    claimed = await arrange(world)
    before = await rows(world)
    async with world.others.transaction():
        await world.end_term()
        act = asyncio.ensure_future(ACTS[name](world, claimed))
        await until_blocked(observer, world.mine, by=world.others)
    with pytest.raises(Superseded):
        await act
    assert await rows(world) == before


async def test_a_change_of_the_term_that_leaves_it_ours_only_delays(
    world: PostgresWorld, observer: psycopg.AsyncConnection
) -> None:
    """Naming a successor writes the same row: a claim waits for it, and goes on."""
    await insert(world, 1, 7)
    async with world.others.transaction():
        await world.others.execute("UPDATE webhook_supervisor.terms SET successor_id = 'younger'")
        act = asyncio.create_task(exchange(world))
        await until_blocked(observer, world.mine, by=world.others)
    assert [one.update_id for one in (await act).claimed] == [1]


async def test_two_claims_at_once_never_take_the_same_row(
    world: PostgresWorld, observer: psycopg.AsyncConnection
) -> None:
    """One in doubt can still be under way on a dead session when the next is sent."""
    await insert(world, 1, 7)
    async with world.others.transaction():
        ghost = PostgresWorld(world.others, world.mine)
        ghost.term = world.term
        assert [one.update_id for one in (await exchange(ghost)).claimed] == [1]
        act = asyncio.create_task(exchange(world))
        await until_blocked(observer, world.mine, by=world.others)
    assert (await act).claimed == ()
    row = await world.row(1)
    assert row is not None
    assert (row.state, row.attempts, row.starts) == (State.CLAIMED, 1, 1)
    (found,) = (await exchange(world)).claimed
    assert found.seq == 1


_NO_CLAIMS = """
CREATE FUNCTION no_claims() RETURNS trigger LANGUAGE plpgsql AS
   $$ BEGIN RAISE disk_full USING MESSAGE = 'no claims today'; END $$;
CREATE TRIGGER no_claims BEFORE UPDATE ON webhook_supervisor.inbox
   FOR EACH ROW WHEN (NEW.state = 'claimed' AND OLD.state = 'pending') EXECUTE FUNCTION no_claims();
"""


async def test_a_claim_that_fails_takes_the_settlement_before_it_along(world: PostgresWorld) -> None:
    """Settling and claiming are one transaction, whichever way they are sent; the session is good for the next try."""
    claimed = await arrange(world)
    before = await rows(world)
    await world.execute(_NO_CLAIMS)
    with pytest.raises(database.DatabaseAway, match="no claims today"):
        await world.inbox.exchange(
            world.term, settlements([claimed]), ClaimRequest(5, Sweep(), [claimed.seq])
        )
    assert await rows(world) == before
    assert world.mine.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
    await world.execute("DROP TRIGGER no_claims ON webhook_supervisor.inbox")
    batch = await world.inbox.exchange(
        world.term, settlements([claimed]), ClaimRequest(5, Sweep(), [claimed.seq])
    )
    assert batch is not None
    assert [one.seq for one in batch.claimed] == [WAITING]
    assert next(row.state for row in await rows(world)) is State.DONE  # type: ignore[attr-defined]


@pytest.mark.parametrize("days_old", [4, 31])
async def test_l_what_is_revived_while_the_purge_waits_for_its_row_stays(
    world: PostgresWorld, observer: psycopg.AsyncConnection, days_old: int
) -> None:
    """`inbox retry` has said that it runs again; after 4 days it is the key that would go, after 31 the row."""
    claimed = await arrange(world)
    await world.execute(
        "UPDATE webhook_supervisor.inbox SET state = 'dead', finished_at = now() - %s * interval '1 day' WHERE seq = %s",
        *(days_old, claimed.seq),
    )
    await world.execute("BEGIN")
    await world.execute(
        "UPDATE webhook_supervisor.inbox SET state = 'pending', term = NULL, finished_at = NULL WHERE seq = %s",
        claimed.seq,
    )
    purging = asyncio.create_task(world.inbox.purge(30))
    await until_blocked(observer, world.mine, world.others)
    await world.execute("COMMIT")
    await asyncio.wait_for(purging, LIMIT_SECONDS)
    row = await world.row(claimed.seq)
    assert row is not None
    assert row.state is State.PENDING
    assert row.keyed
