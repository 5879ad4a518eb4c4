"""PgBouncer before a database: in transaction mode, what a DATABASE_URL must not lead through; in session mode, what it may.

It refuses to run as root, so it runs as "nobody" where we are root, from a folder that is nobody's. It ends with us.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL

from psycopg import conninfo

from deploy.local.guard import UNPRIVILEGED_ID
from deploy.local.ports import LOOPBACK, free_port, is_listening
from deploy.local.postgres_process import Privilege, finish, start_guarded
from tests.campaign.faults import find_program

POOL_SIZE = 4
"""Sessions of the server that it lends to whoever comes."""

_HANG_SECONDS = 30.0
_SERVER_WORDS = ("host", "port", "dbname", "user", "password")


def _configuration(database_url: str, port: int, pool_mode: str, pool_size: int) -> str:
    known = conninfo.conninfo_to_dict(database_url)
    server = " ".join(f"{name}={known[name]}" for name in _SERVER_WORDS)
    return (
        f"[databases]\nbot = {server}\n"
        f"[pgbouncer]\nlisten_addr = {LOOPBACK}\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {pool_mode}\ndefault_pool_size = {pool_size}\n"
    )


@asynccontextmanager
async def pgbouncer(
    database_url: str, *, pool_mode: str = "transaction", pool_size: int = POOL_SIZE
) -> AsyncIterator[str]:
    """PgBouncer before a database, for as long as the block runs; the DSN that leads through it.

    Raises:
        Unavailable: it is not installed.
    """
    program = find_program("pgbouncer", "pgbouncer")
    port = free_port()
    as_root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    try:
        configuration = folder / "pgbouncer.ini"
        configuration.touch(mode=0o600)
        configuration.write_text(_configuration(database_url, port, pool_mode, pool_size))
        if as_root:
            for path in (folder, configuration):
                os.chown(path, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        with (folder / "log").open("wb") as log:
            process = start_guarded(
                [program, str(configuration)],
                Privilege.DROP if as_root else Privilege.AS_IS,
                log.fileno(),
                orphan_signal=SIGKILL,
                remove=[folder],
            )
        assert process.stdin is not None
        try:
            async with asyncio.timeout(_HANG_SECONDS):
                while not is_listening(port):
                    assert process.poll() is None, (folder / "log").read_text()
                    await asyncio.sleep(0.05)
            yield f"postgresql://anybody@{LOOPBACK}:{port}/bot"
        finally:
            if process.poll() is None:
                process.stdin.write(f"signal {int(SIGKILL)}\n".encode())
            finish(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
