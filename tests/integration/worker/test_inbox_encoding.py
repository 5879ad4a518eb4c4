"""Databases that are not in UTF-8: an error may hold any character, and the row must be settled all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from deploy.local.postgres import PostgresServer
from tests.integration.worker.inbox_world import PostgresWorld, postgres_world
from webhook_worker.claim_plan import ClaimRequest, Sweep
from webhook_worker.lanes import Claimed, Settlement, State, Verdict
from webhook_worker.outcomes import storable

ERROR = storable('ValueError: "é", \\u0001\x01\t – \U0001f600, \x00 and \ud83d', 1000)
IN_ASCII = 'ValueError: "\\xe9", \\u0001\x01\t \\u2013 \\U0001f600, \\x00 and \\ud83d'


@pytest.fixture(params=["LATIN1", "SQL_ASCII", "UTF8"])
def encoding(request: pytest.FixtureRequest) -> str:
    """Of the database."""
    return str(request.param)


@pytest_asyncio.fixture
async def world(encoding: str, postgres_server: PostgresServer) -> AsyncIterator[PostgresWorld]:
    """An empty inbox under a term, in such a database."""
    name = f"encoded_{encoding.lower()}"
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0".encode())
    try:
        async with postgres_world(postgres_server.dsn(name)) as made:
            yield made
    finally:
        postgres_server.drop_database(name)


async def claim(world: PostgresWorld, *update_ids: int) -> tuple[Claimed, ...]:
    """New updates, each in a lane of its own, claimed."""
    for update_id in update_ids:
        await world.insert(update_id, update_id)
    batch = await world.inbox.exchange(world.term, [], ClaimRequest(5, Sweep(), []))
    assert batch is not None
    return batch.claimed


async def test_an_error_is_stored_as_the_database_can_hold_it(world: PostgresWorld, encoding: str) -> None:
    """One that could not be would end the worker, and the next, until the update has used up its attempts."""
    expected = IN_ASCII if encoding == "LATIN1" else ERROR
    retried, dead, condemned, poison = await claim(world, 1, 2, 3, 4)
    verdicts = {
        retried: Verdict(State.PENDING, refund=1, is_retry=True, retry_seconds=1000.0, error=ERROR),
        dead: Verdict(State.DEAD, error=ERROR),
        poison: Verdict(State.PENDING),
    }
    settlements = [Settlement(one.seq, one.starts, verdict) for one, verdict in verdicts.items()]
    await world.inbox.exchange(world.term, settlements, None)
    await world.inbox.condemn(world.term, condemned, 5, ERROR)
    assert await world.inbox.bury(world.term, [poison.seq], ERROR) == (4,)
    for claimed, state in (
        (retried, State.PENDING),
        (dead, State.DEAD),
        (condemned, State.CLAIMED),
        (poison, State.DEAD),
    ):
        row = await world.row(claimed.seq)
        assert row is not None
        assert (row.state, row.error) == (state, expected)
