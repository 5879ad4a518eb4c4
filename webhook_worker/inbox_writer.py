"""Writes updates into the inbox: the shell of ingest.py. One statement for a whole batch, in its order.

Not promised: that a batch which failed with DatabaseAway is not stored. Inserting it again does no harm.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.database import Link, work_channel
from webhook_worker import inbox_statements as sql
from webhook_worker.execution import execute, store_values
from webhook_worker.ingest import Row


class InboxWriter:
    """Inserts into the inbox of one bot."""

    def __init__(self, link: Link, bot_id: int) -> None:
        """Of the bot, by this session."""
        self._link = link
        self._bot_id = bot_id

    @property
    def connected(self) -> bool:
        """See Link.connected."""
        return self._link.connected

    @property
    def reason(self) -> str | None:
        """See Link.reason."""
        return self._link.reason

    async def wait_connected(self) -> None:
        """See Link.wait_connected."""
        await self._link.wait_connected()

    async def insert(self, rows: Sequence[Row], *, notify: bool, limit_seconds: float) -> list[int]:
        """Commits rows; all are there when this returns.

        Args:
            rows: in the order that `seq` is to have.
            notify: tell the owner through the database that there is new work.
            limit_seconds: for all of it.

        Returns:
            The update_ids of those that were not there before.

        Raises:
            DatabaseAway: it may have happened or not.
            psycopg.Error: nothing is stored. DataError and IntegrityError: because of what is in a row.
        """
        return await self._link.run(functools.partial(self._insert, rows=rows, notify=notify), limit_seconds)

    async def _insert(
        self, connection: AsyncConnection[TupleRow], *, rows: Sequence[Row], notify: bool
    ) -> list[int]:
        named = store_values(self._bot_id, rows)
        if notify:
            named["channel"] = work_channel(self._bot_id)
        cursor = await execute(connection, sql.STORE_AND_NOTIFY if notify else sql.STORE, named, prepare=True)
        row = await cursor.fetchone()
        return row[0] or [] if row is not None else []
