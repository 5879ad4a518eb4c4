"""Databases on which leadership cannot be held are refused when first reached, with the reason and the remedy."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import conninfo

from deploy.local.ports import LOOPBACK, free_port, is_listening
from supervisor import messages as m
from tests.integration.supervisor.lease_driver import HANG_SECONDS, leases, rows

if TYPE_CHECKING:
    from deploy.local.postgres import PostgresServer

UNPRIVILEGED_ID = 65534
"""PgBouncer refuses to run as root."""


@asynccontextmanager
async def pgbouncer(database_url: str, folder: Path) -> AsyncIterator[str]:
    """PgBouncer in transaction mode before a database; its DSN."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    port = free_port()
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\nbot = {database_url_as_words(database_url)}\n"
        f"[pgbouncer]\nlisten_addr = {LOOPBACK}\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 4\n"
    )
    as_root = os.geteuid() == 0
    process = subprocess.Popen(
        [program, "-q", "/dev/stdin"],
        stdin=configuration.open("rb"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        user=UNPRIVILEGED_ID if as_root else None,
        group=UNPRIVILEGED_ID if as_root else None,
        extra_groups=[] if as_root else None,
    )
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not is_listening(port):
                assert process.poll() is None, "pgbouncer ended"
                await asyncio.sleep(0.05)
        yield f"postgresql://anybody@{LOOPBACK}:{port}/bot"
    finally:
        process.kill()
        process.wait()


def database_url_as_words(database_url: str) -> str:
    """A DSN as pgbouncer.ini wants it."""
    known = conninfo.conninfo_to_dict(database_url)
    return " ".join(f"{name}={known[name]}" for name in ("host", "port", "dbname", "user", "password"))


async def test_b13_a_pooler_in_transaction_mode_is_refused_with_the_remedy(
    database_url: str, tmp_path: Path
) -> None:
    """PgBouncer gives a session's lock to others, so it is found out before anything is locked or written."""
    async with pgbouncer(database_url, tmp_path) as pooled, leases(pooled, 1) as (one,):
        event = await one.open()
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
