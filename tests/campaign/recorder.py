"""The database's own history: the triggers of history.sql, and what they wrote, as evidence.

The session is opened anew whenever it is needed and gone, since servers are restarted under it.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import psycopg

from shared.database import apply_schema, connect
from tests.campaign.evidence import InboxChange, Sign, TermChange

_SQL = Path(__file__).with_name("history.sql")
_PREFIX = "webhook-supervisor "
_RETRY_SECONDS = 0.2


class Recorder:
    """Reads one database."""

    def __init__(self, dsn: str) -> None:
        """Does no I/O."""
        self._dsn = dsn
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._lock = asyncio.Lock()

    async def install(self) -> None:
        """Applies the product's schema, and the triggers on it."""
        connection = await connect(self._dsn, application_name="campaign")
        async with connection:
            await apply_schema(connection)
            await connection.execute(_SQL.read_bytes())

    async def close(self) -> None:
        """Disconnects."""
        if self._connection is not None:
            await self._connection.close()

    async def fetch(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a query.

        Raises:
            psycopg.OperationalError: the database is away.
        """
        async with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True, application_name="campaign", connect_timeout=5
                )
            try:
                return await (await self._connection.execute(statement.encode(), values)).fetchall()
            except psycopg.OperationalError:
                await self._connection.close()
                raise

    async def fetch_when_back(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a query, as soon as the database is there; whoever calls has a limit on a hang."""
        while True:
            try:
                return await self.fetch(statement, *values)
            except psycopg.OperationalError:
                await asyncio.sleep(_RETRY_SECONDS)

    async def has_commit_times(self) -> bool:
        """Whether the server keeps them (track_commit_timestamp)."""
        return bool((await self.fetch("SHOW track_commit_timestamp"))[0][0] == "on")

    async def inbox_changes(self) -> list[InboxChange]:
        """Every committed change of the inbox."""
        rows = await self.fetch(
            f"SELECT {await self._times()}, backend, seq, update_id, old_state, new_state, old_term::text, new_term::text, "
            "starts, attempts FROM campaign.inbox_changes ORDER BY id"
        )
        return [InboxChange(*row) for row in rows]

    async def term_changes(self) -> list[TermChange]:
        """Every committed change of the term's row."""
        rows = await self.fetch(
            f"SELECT {await self._times()}, backend, number, uuid::text, instance_id, ended, closed "
            "FROM campaign.term_changes ORDER BY id"
        )
        return [TermChange(*row) for row in rows]

    async def signs(self) -> list[Sign]:
        """Every committed statement on a lock's session that leaves a trace."""
        rows = await self.fetch(
            f"SELECT {_at('at')}, backend, substr(session, {len(_PREFIX) + 1}) FROM campaign.signs "
            "UNION ALL SELECT {0}, backend, instance_id FROM campaign.term_changes".format(_at("at"))
        )
        return [Sign(*row) for row in rows]

    async def _times(self) -> str:
        committed = "coalesce(pg_xact_commit_timestamp(xid), at)" if await self.has_commit_times() else "at"
        return f"{_at('at')}, {_at(committed)}"


def _at(expression: str) -> str:
    """SQL for a point in time, in seconds of the machine's monotonic clock."""
    # Interrupted between the two, a look tells less.
    since_boot = max(time.time() - time.monotonic() for _ in range(5))
    return f"extract(epoch FROM {expression})::float8 - {since_boot!r}::float8"
