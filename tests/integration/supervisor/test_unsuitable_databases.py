"""Databases on which leadership cannot be held are refused when first reached, with the reason and the remedy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

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


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


@asynccontextmanager
async def _server_of_version(version: str) -> AsyncIterator[tuple[str, asyncio.Queue[bytes]]]:
    """A server that lets everybody in, and answers no statement; its DSN, and what a client sent after the start."""
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)
        writer.write(
            _message(b"R", bytes(4))
            + _message(b"S", b"server_version\0" + version.encode() + b"\0")
            + _message(b"S", b"client_encoding\0UTF8\0")
            + _message(b"K", bytes(8))
            + _message(b"Z", b"I")
        )
        received.put_nowait(await reader.read())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable&gssencmode=disable", received


@pytest.mark.parametrize("version", ["9.6.24", "11.22", "13.14"])
async def test_a_server_that_is_too_old_is_refused_before_anything_is_set(version: str) -> None:
    """Up to 11 it does not know our settings: their refusal would be repeated for ever as "cannot be reached"."""
    async with _server_of_version(version) as (dsn, received), leases(dsn, 1) as (one,):
        event = await one.open()
        sent = await asyncio.wait_for(received.get(), HANG_SECONDS)
    assert isinstance(event, m.SessionFailed)
    assert event.refused
    assert event.reason.startswith(f"leads to Postgres {version.partition('.')[0]}; 14 or newer is needed")
    assert sent == _message(b"X", b""), "a goodbye, and nothing before it"


_WITHOUT_CLIENT_CHECK = """
CREATE FUNCTION public.set_config(name text, value text, is_local boolean) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF name = 'client_connection_check_interval' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'client_connection_check_interval must be set to 0 on this platform.';
    END IF;
    RETURN pg_catalog.set_config(name, value, is_local);
END $$"""


async def test_a_server_whose_system_cannot_look_after_its_clients_is_good_enough(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Postgres 14 on macOS, any on Windows: all other limits hold, and what is missing is told once, not at every opening."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        await conn.execute(_WITHOUT_CLIENT_CHECK)
        name = sql.Identifier(conn.info.dbname)
        await conn.execute(sql.SQL("ALTER DATABASE {} SET search_path = public, pg_catalog").format(name))
    async with leases(database_url, 1) as (one,):
        for _ in range(2):
            assert isinstance(await one.open(), m.SessionOpened)
            cursor = await one.connection.execute(
                "SELECT current_setting('statement_timeout'), current_setting('idle_session_timeout')"
            )
            assert await cursor.fetchone() == ("5s", "15s")
            one.lease.close()
    assert capsys.readouterr().out.count("client_connection_check_interval") == 1


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
