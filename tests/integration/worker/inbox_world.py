"""An inbox in Postgres, and hands to arrange it with."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared import database
from tests.models.inbox import Row
from webhook_worker.inbox import Inbox
from webhook_worker.lanes import State

T = TypeVar("T")

BOT_ID = 4242


class OneSession:
    """In place of a Link: one connection, nothing else."""

    def __init__(self, connection: AsyncConnection[TupleRow]) -> None:
        self.connection = connection

    async def run(
        self, fn: Callable[[AsyncConnection[TupleRow]], Coroutine[Any, Any, T]], limit_seconds: float
    ) -> T:
        return await fn(self.connection)


class PostgresWorld:
    """See inbox_contract.World; with a second session for what others do."""

    def __init__(self, mine: AsyncConnection[TupleRow], others: AsyncConnection[TupleRow]) -> None:
        self.mine = mine
        self.others = others
        self.term = str(uuid.uuid4())
        self.inbox = Inbox(OneSession(mine), BOT_ID)

    async def execute(self, statement: str, *parameters: object) -> list[TupleRow]:
        """By the second session."""
        cursor = await self.others.execute(statement.encode(), parameters, prepare=False)
        return await cursor.fetchall() if cursor.description is not None else []

    async def insert(
        self,
        update_id: int,
        lane: int | None,
        body: bytes = b"{}",
        *,
        seq: int | None = None,
        bot_id: int = BOT_ID,
    ) -> int | None:
        rows = await self.execute(
            "INSERT INTO webhook_supervisor.inbox (seq, bot_id, update_id, lane, body) OVERRIDING SYSTEM VALUE"
            " VALUES (coalesce(%s, nextval(pg_get_serial_sequence('webhook_supervisor.inbox', 'seq'))), %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING RETURNING seq",
            *(seq, bot_id, update_id, lane, body),
        )
        return int(rows[0][0]) if rows else None

    async def fill(self, rows: int, lanes: int) -> None:
        """A backlog of so many rows in so many lanes."""
        await self.execute(
            "INSERT INTO webhook_supervisor.inbox (bot_id, update_id, lane, body)"
            " SELECT %s, g, g %% %s, convert_to('{\"update_id\":' || g || ',\"text\":\"' || repeat('x', 600) || '\"}', 'UTF8')"
            "   FROM generate_series(1, %s) AS g",
            *(BOT_ID, lanes, rows),
        )

    async def fill_lane(self, lane: int, *, rows: int, first_update_id: int) -> None:
        """So many rows in one lane."""
        await self.execute(
            "INSERT INTO webhook_supervisor.inbox (bot_id, update_id, lane, body)"
            " SELECT %s, %s + g, %s, '{}' FROM generate_series(0, %s - 1) AS g",
            *(BOT_ID, first_update_id, lane, rows),
        )

    async def row(self, seq: int) -> Row | None:
        rows = await self.execute(
            "SELECT seq, update_id, lane, body, 0::float8, keyed, state, attempts, starts, term::text, NULL, NULL, retry_told,"
            " retries, NULL, error FROM webhook_supervisor.inbox WHERE seq = %s",
            seq,
        )
        if not rows:
            return None
        row = Row(*rows[0])
        row.state = State(row.state)
        return row

    async def begin_term(self, term: str) -> None:
        await self.execute(BEGIN_TERM, BOT_ID, term)

    async def end_term(self) -> None:
        await self.execute("UPDATE webhook_supervisor.terms SET ended_at = now() WHERE bot_id = %s", BOT_ID)

    async def age(self, seq: int, seconds: float) -> None:
        await self.execute(
            "UPDATE webhook_supervisor.inbox SET received_at = received_at - %s * interval '1 s',"
            " retry_at = retry_at - %s * interval '1 s', finished_at = finished_at - %s * interval '1 s',"
            " claimed_at = claimed_at - %s * interval '1 s' WHERE seq = %s",
            *(seconds, seconds, seconds, seconds, seq),
        )


BEGIN_TERM = """
INSERT INTO webhook_supervisor.terms AS t (bot_id, number, uuid, instance_id, deadline_seconds, began_at)
VALUES (%s, 1, %s, 'test', 8, now())
ON CONFLICT (bot_id) DO UPDATE SET number = t.number + 1, uuid = excluded.uuid, began_at = now(), ended_at = NULL
"""


@asynccontextmanager
async def postgres_world(database_url: str) -> AsyncIterator[PostgresWorld]:
    """A world with a term and an empty inbox in that database."""
    mine = await database.connect(database_url, application_name="inbox test")
    others = await database.connect(database_url, application_name="inbox test, others")
    async with mine, others:
        await database.apply_schema(others)
        world = PostgresWorld(mine, others)
        await world.begin_term(world.term)
        yield world
