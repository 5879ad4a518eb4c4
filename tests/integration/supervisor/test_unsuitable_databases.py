"""Databases on which leadership cannot be held are refused when first reached, with the reason and the remedy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from supervisor import messages as m
from tests.campaign.faults import Unavailable
from tests.campaign.faults.pooler import pgbouncer
from tests.integration.supervisor.lease_driver import leases, rows

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
