"""What the commands read of the inbox, and what they leave there, in a real database."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, dict_row

from shared import config as configuration
from shared import database
from shared.config import Config
from shared.wire import InboxDepth
from supervisor.commands import inbox
from supervisor.commands.standing import read_standing
from supervisor.commands.status import as_document, as_lines
from tests.integration.worker import inbox_world
from tests.unit.worker.inbox_contract import DEAD, RETRY, exchange, insert, settle

BOT_ID = 123456
HOUR = 3600.0
NOW = datetime.datetime(2026, 1, 12, 14, 40, tzinfo=datetime.UTC)


def config_of(database_url: str, bot_id: int = BOT_ID) -> Config:
    """Of an instance on that database."""
    return configuration.load(
        {
            "TELEGRAM_BOT_TOKEN": f"{bot_id}:the-secret-part-of-the-token-here-x",
            "DATABASE_URL": database_url,
            "WEBHOOK_BASE_URL": "https://bot.example.com",
        },
        stdin_is_terminal=False,
        stdout_is_terminal=False,
    )


async def test_the_oldest_that_waits_is_not_a_dead_letter_that_was_just_retried(database_url: str) -> None:
    """That waits since the retry, and has the lower number still."""
    config = config_of(database_url)
    connection = await database.connect(database_url, application_name="test")
    async with connection:
        await database.apply_schema(connection)
        await connection.execute(
            "INSERT INTO webhook_supervisor.inbox (bot_id, update_id, lane, body, state, received_at, finished_at, error)"
            " VALUES (%(bot)s, 1, 5, '{}', 'dead', now() - interval '9 hours', now() - interval '9 hours', 'ValueError'),"
            " (%(bot)s, 2, 6, '{}', 'pending', now() - interval '1 hour', NULL, NULL)",
            {"bot": BOT_ID},
        )
        before = (await read_standing(connection, config)).inbox
        assert (before.pending, before.dead) == (1, 1)
        assert HOUR <= before.oldest_pending_seconds < 2 * HOUR
        assert await inbox.retry(config, [1], every_dead=False) == 0
        after = (await read_standing(connection, config)).inbox
        assert (after.pending, after.dead) == (2, 0)
        assert HOUR <= after.oldest_pending_seconds < 2 * HOUR


async def test_where_nothing_waits_the_oldest_is_0_as_in_status(database_url: str) -> None:
    """Before the first start, and after; people are told of none."""
    config = config_of(database_url)
    connection = await database.connect(database_url, application_name="test")
    async with connection:
        for _ in range(2):
            standing = await read_standing(connection, config)
            assert standing.inbox == InboxDepth(pending=0, in_flight=0, dead=0, oldest_pending_seconds=0.0)
            assert as_document(standing, config)["inbox"]["oldest_pending_seconds"] == 0
            [line] = [line for line in as_lines(standing, config, NOW) if line.startswith("inbox")]
            assert "oldest" not in line
            await database.apply_schema(connection)


async def fill(connection: AsyncConnection[TupleRow], rows: str) -> None:
    """Rows of the inbox: what follows VALUES or is selected, of update_id, state, keyed."""
    await connection.execute(
        "INSERT INTO webhook_supervisor.inbox (bot_id, update_id, state, keyed, received_at, finished_at)"
        f" SELECT {BOT_ID}, update_id, state, keyed, now(), now() FROM ({rows}) AS given (update_id, state, keyed)".encode()
    )


@pytest.mark.parametrize("states", [inbox.STATES, *((state,) for state in inbox.STATES)])
async def test_what_is_done_is_not_looked_through(database_url: str, states: tuple[str, ...]) -> None:
    """It is most of the table: millions in a busy bot's three days. Here the others came last, behind all of it."""
    connection = await database.connect(database_url, application_name="test")
    async with connection:
        await database.apply_schema(connection)
        await fill(connection, "SELECT g, 'done', true FROM generate_series(1, 100000) AS g")
        for index, state in enumerate(inbox.STATES, 1):
            first = index * 1_000_000
            await fill(
                connection, f"SELECT {first} + g, '{state}', g > 500 FROM generate_series(1, 1000) AS g"
            )
        await connection.execute("VACUUM ANALYZE webhook_supervisor.inbox")
        for statement in (inbox._list(states), inbox._SHOW, inbox._RETRY, inbox._DROP):
            values = {"bot": BOT_ID, "limit": 50, "id": 7, "ids": [7, 1_000_007], "all": False}
            plan = await connection.execute(f"EXPLAIN {statement}".encode(), values)
            said = "\n".join(str(line) for (line,) in await plan.fetchall())
            assert "Index" in said
            assert "Seq Scan" not in said, said
            assert "inbox_pkey" not in said, said


async def test_the_list_is_in_the_order_in_which_updates_came(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever became of them; the oldest of all, however many there are of one state."""
    config = config_of(database_url)
    connection = await database.connect(database_url, application_name="test")
    async with connection:
        await database.apply_schema(connection)
        await fill(
            connection,
            "VALUES (1, 'dead', true), (2, 'pending', true), (3, 'done', true), (4, 'claimed', true), (5, 'dead', true),"
            " (6, 'pending', true)",
        )
    for limit, expected in ((9, [1, 2, 4, 5, 6]), (3, [1, 2, 4])):
        assert await inbox.list_inbox(config, states=inbox.STATES, limit=limit, as_json=True) == 0
        assert [row["update_id"] for row in json.loads(capsys.readouterr().out)] == expected


@pytest.mark.parametrize("state", inbox.STATES)
async def test_an_old_dead_letter_is_shown_beside_the_update_that_has_its_id_now(
    database_url: str, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    """Its key has gone after three days; that of the other may be done, and is shown for as long as it is there."""
    config = config_of(database_url)
    connection = await database.connect(database_url, application_name="test")
    async with connection:
        await database.apply_schema(connection)
        await fill(connection, f"VALUES (1, '{state}', false), (1, 'done', true), (2, 'done', true)")
    assert await inbox.show(config, 1, with_body=False, as_json=True) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == [state, "done"]
    assert await inbox.show(config, 2, with_body=False, as_json=True) == 0
    assert [row["update_id"] for row in json.loads(capsys.readouterr().out)] == [2]


async def test_what_was_dropped_is_what_was_completed(database_url: str) -> None:
    """Its key, kept as long, and nothing else; whatever had come of it before."""
    async with inbox_world.postgres_world(database_url) as world:
        for update_id, verdict in ((1, RETRY), (2, RETRY), (3, DEAD), (4, None), (5, None)):
            seq = await insert(world, update_id, update_id)
            if verdict is not None:
                await settle(world, (await exchange(world)).claimed, verdict)
            if update_id == 1:
                await world.age(seq, 100.0)  # its next try is due
                await settle(world, (await exchange(world)).claimed)
            if update_id == 4:
                await settle(world, (await exchange(world)).claimed)
        assert await inbox.drop(config_of(database_url, inbox_world.BOT_ID), [2, 3, 5], every_dead=False) == 0
        async with world.others.cursor(row_factory=dict_row) as cursor:
            rows = await (await cursor.execute("SELECT * FROM webhook_supervisor.inbox")).fetchall()
        assert {row["update_id"] for row in rows} == {1, 2, 3, 4, 5}
        assert all(row["finished_at"] is not None for row in rows)
        its_own = ("seq", "update_id", "finished_at")
        left: list[dict[str, Any]] = [
            {name: value for name, value in row.items() if value is not None and name not in its_own}
            for row in rows
        ]
        assert left == [{"bot_id": inbox_world.BOT_ID, "keyed": True, "state": "done"}] * 5
