"""Databases on which leadership cannot be held are refused when first reached, with the reason and the remedy."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from shared.database import Link
from supervisor import messages as m
from tests.campaign.faults import Unavailable
from tests.campaign.faults.pooler import POOL_SIZE, pgbouncer
from tests.integration.supervisor.lease_driver import HANG_SECONDS, leases, rows

if TYPE_CHECKING:
    from deploy.local.postgres import PostgresServer


async def test_b13_a_pooler_in_transaction_mode_is_refused_with_the_remedy(
    database_url: str,
) -> None:
    """PgBouncer gives a session's lock to others, so it is found out before anything is locked or written."""
    try:
        async with pgbouncer(database_url) as pooled, leases(pooled, 1) as (one,):
            event = await one.open()
    except Unavailable as missing:
        pytest.skip(str(missing))
    assert isinstance(event, m.SessionFailed)
    assert event.refused
    assert "pooler in transaction mode" in event.reason
    assert "direct address" in event.reason
    found = await rows(database_url, "SELECT 1 FROM pg_namespace WHERE nspname = 'webhook_supervisor'")
    assert found == []


_LIMITS = (
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "tcp_user_timeout",
)


async def test_b13_what_a_pooler_lends_is_left_as_it_was_for_its_other_clients(database_url: str) -> None:
    """Neither the lease nor a worker's session leaves its limits behind: they would end another application's statements."""
    try:
        async with pgbouncer(database_url) as pooled, AsyncExitStack() as stack:
            async with leases(pooled, 1) as (one,), Link(pooled, name="worker") as link:
                assert isinstance(await one.open(), m.SessionFailed)
                await link.wait_tried(HANG_SECONDS)
                reason = link.reason
            found: dict[int, list[str | None]] = {}
            for _ in range(POOL_SIZE):  # all that it has: each is kept by an open transaction
                other = await stack.enter_async_context(await psycopg.AsyncConnection.connect(pooled))
                cursor = await other.execute(
                    "SELECT pg_backend_pid(), array(SELECT current_setting(name, true) FROM unnest(%s::text[]) AS name)",
                    (list(_LIMITS),),
                )
                row = await cursor.fetchone()
                assert row is not None
                found[row[0]] = row[1]
    except Unavailable as missing:
        pytest.skip(str(missing))
    assert len(found) == POOL_SIZE
    assert {value for values in found.values() for value in values} <= {"0", None}, found
    assert reason is not None
    assert "pooler in transaction mode" in reason


async def test_b12_a_standby_server_is_refused(own_postgres_server: PostgresServer) -> None:
    """A hot standby grants advisory locks that exclude nobody on the primary."""
    dsn = own_postgres_server.create_database("bot")
    (data_folder,) = (await rows(dsn, "SELECT current_setting('data_directory')"))[0]
    await asyncio.to_thread(own_postgres_server.stop)
    (Path(str(data_folder)) / "standby.signal").touch()
    await asyncio.to_thread(own_postgres_server.start)
    async with leases(own_postgres_server.dsn("bot"), 1) as (one,):
        event = await one.open()
    assert isinstance(event, m.SessionFailed)
    assert event.refused
    assert "standby" in event.reason
    assert "primary" in event.reason


async def test_a_refusal_leaves_no_session_behind(own_postgres_server: PostgresServer) -> None:
    """What was opened to find out is closed."""
    dsn = own_postgres_server.create_database("bot")
    await asyncio.to_thread(own_postgres_server.stop)
    async with leases(dsn, 1) as (one,):
        assert isinstance(await one.open(), m.SessionFailed)
    await asyncio.to_thread(own_postgres_server.start)
    async with await psycopg.AsyncConnection.connect(own_postgres_server.dsn("bot"), autocommit=True) as conn:
        cursor = await conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'webhook-supervisor%'"
        )
        assert await cursor.fetchone() == (0,)
