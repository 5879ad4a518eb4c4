"""What the commands read of the inbox, from a real database."""

from __future__ import annotations

import datetime

from shared import config as configuration
from shared import database
from shared.config import Config
from supervisor.commands import inbox
from supervisor.commands.standing import Depth, read_standing
from supervisor.commands.status import as_document, as_lines

BOT_ID = 123456
HOUR = 3600.0
NOW = datetime.datetime(2026, 1, 12, 14, 40, tzinfo=datetime.UTC)


def config_of(database_url: str) -> Config:
    """Of an instance on that database."""
    return configuration.load(
        {
            "TELEGRAM_BOT_TOKEN": f"{BOT_ID}:the-secret-part-of-the-token-here-x",
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
            assert standing.inbox == Depth()
            assert as_document(standing, config)["inbox"]["oldest_pending_seconds"] == 0
            [line] = [line for line in as_lines(standing, config, NOW) if line.startswith("inbox")]
            assert "oldest" not in line
            await database.apply_schema(connection)
