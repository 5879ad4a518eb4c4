"""A hot standby of a Postgres server, by streaming replication: it can lag, lose touch, and be promoted.

    primary ──► standby        `pg_basebackup`, then WAL as it is written, asynchronously

What happens to the primary is the scenario's business: it may be killed first, or live on beside the promoted one.

Everything here blocks, as PostgresServer does: from asyncio, use `asyncio.to_thread`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import conninfo

from deploy.local.guard import UNPRIVILEGED_ID
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_process import Privilege, run

_POLL_SECONDS = 0.02
_HANG_SECONDS = 60.0
Row = tuple[object, ...]


class Standby:
    """A standby that follows its primary until told otherwise.

    Attributes:
        server: a PostgresServer like any other.
    """

    def __init__(self, server: PostgresServer) -> None:
        """Use `a_standby`."""
        self.server = server

    def wait_until_caught_up(self, primary: PostgresServer) -> None:
        """Returns when everything that the primary has written by now is replayed here.

        Raises:
            TimeoutError: it does not follow.
        """
        (written,) = _ask(primary, "SELECT pg_current_wal_lsn()::text")
        deadline = time.monotonic() + _HANG_SECONDS
        while _ask(self.server, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written) != (True,):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the standby has not replayed {written} after {_HANG_SECONDS} s")
            time.sleep(_POLL_SECONDS)

    def pause_replay(self) -> None:
        """What arrives is kept and not shown. A promotion replays it all the same."""
        _ask(self.server, "SELECT pg_wal_replay_pause()::text")
        while _ask(self.server, "SELECT pg_get_wal_replay_pause_state()") != ("paused",):
            time.sleep(_POLL_SECONDS)

    def resume_replay(self) -> None:
        """It catches up."""
        _ask(self.server, "SELECT pg_wal_replay_resume()::text")

    def stop_receiving(self) -> None:
        """Nothing arrives any more: what the primary commits from now on, a promotion loses."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
            deadline = time.monotonic() + _HANG_SECONDS
            while connection.execute("SELECT count(*) FROM pg_stat_wal_receiver").fetchone() != (0,):
                if time.monotonic() >= deadline:
                    raise TimeoutError("the standby goes on receiving")
                time.sleep(_POLL_SECONDS)

    def promote(self) -> None:
        """Returns when it is a primary, on a timeline of its own."""
        assert _ask(self.server, "SELECT pg_promote(true, 60)") == (True,), "it was not promoted in time"


@contextmanager
def a_standby(
    primary: PostgresServer,
    folder: Path,
    *,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Standby]:
    """A running standby with everything that the primary has now; it ends with the block.

    Args:
        primary: runs.
        folder: for the standby's data.
        settings: of the standby's server.
    """
    with PostgresServer(
        _copy(primary, folder),
        binaries=primary.binaries,
        durable=False,
        keep_data=False,
        privilege=primary.privilege,
        # It refuses to start with less than the primary has.
        settings={"max_connections": str(_ask(primary, "SHOW max_connections")[0]), **(settings or {})},
    ) as server:
        standby = Standby(server)
        standby.wait_until_caught_up(primary)
        yield standby


def _copy(primary: PostgresServer, folder: Path) -> Path:
    """The primary's data, to follow it; the folder for a PostgresServer."""
    folder.mkdir(parents=True, exist_ok=True)
    known = conninfo.conninfo_to_dict(primary.dsn())
    passwords = folder / "passwords"
    passwords.touch(mode=0o600)
    passwords.write_text(f"*:*:*:*:{known['password']}\n")
    if primary.privilege is Privilege.DROP:
        for path in (folder, passwords):
            os.chown(path, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    source = conninfo.make_conninfo(
        host=known["host"], port=known["port"], user=known["user"], passfile=str(passwords)
    )
    run(
        [
            str(primary.binaries / "pg_basebackup"),
            *("-D", str(folder / "data"), "-d", source, "--write-recovery-conf", "--wal-method=stream"),
            *("--checkpoint=fast", "--no-sync"),
        ],
        primary.privilege,
        limit_seconds=120,
    )
    return folder


def _ask(server: PostgresServer, query: str, *values: object) -> Row:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        row = connection.execute(query.encode(), values).fetchone()
        assert row is not None
        return tuple(row)
