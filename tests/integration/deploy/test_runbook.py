"""The runbook's SQL runs on the schema as it is, its commands are there, and its one-liners say what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psycopg

from shared import config, database
from shared.database import lock_key
from supervisor.commands.entry import make_parser

ROOT = Path(__file__).parents[3]
TOKEN = "123456:AAAbbbCCCdddEEEfffGGG"


def blocks(language: str) -> list[str]:
    """The runbook's code blocks of one language."""
    text = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def environment() -> dict[str, str]:
    """What an instance has, as far as the runbook's commands need it."""
    return {
        "PATH": "/usr/bin:/bin",
        "TELEGRAM_BOT_TOKEN": TOKEN,
        "DATABASE_URL": "postgresql://user:password@database.internal/bot",
        "WEBHOOK_BASE_URL": "https://bot.example",
        "MAX_CONNECTIONS": "7",
        "ALLOWED_UPDATES": "message,callback_query",
    }


async def prepare(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
    """An update that waits for its next try, and an instance that holds the bot's lock."""
    await database.apply_schema(connection)
    await connection.execute(
        "INSERT INTO webhook_supervisor.inbox"
        " (bot_id, update_id, lane, body, attempts, starts, retries, retry_at, error)"
        " VALUES (123456, 1, 5, '{}', 3, 9, 6, now() + interval '1 minute', 'TimedOut')"
    )
    await connection.execute(
        "INSERT INTO webhook_supervisor.instances (bot_id, instance_id, platform_instance_id, token_fingerprint, ready,"
        " candidate_after, backend_pid, first_announced_at, announced_at)"
        " VALUES (123456, 'one', 'one', 'f', true, now(), pg_backend_pid(), now(), now())"
    )
    await connection.execute("SELECT pg_advisory_lock(%s::int4, %s::int4)", lock_key(123456))


async def test_sql_of_the_runbook_runs(database_url: str) -> None:
    """Every statement is good SQL, and sees what is there."""
    statements = blocks("sql")
    assert len(statements) == 3
    async with await database.connect(database_url, application_name="test") as connection:
        await prepare(connection)
        waiting, terms, instances = [
            await (await connection.execute(statement.encode())).fetchall() for statement in statements
        ]
        assert [row[1:5] for row in waiting] == [(1, "pending", 3, 6)]
        assert terms == []
        assert [(row[0], row[4], row[5]) for row in instances] == [("one", True, False)]


def test_commands_of_the_documents_are_there() -> None:
    """What README and runbook tell an operator to type is taken as it stands."""
    typed = []
    for name in ("README.md", "deploy/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for found in re.findall(
            r"python -m supervisor ((?:check|status|webhook|handover|inbox)\b[^`#\n]*)", text
        ):
            typed.append(found.split())
    assert {words[0] for words in typed} >= {"check", "status", "webhook", "handover", "inbox"}
    for words in typed:
        assert make_parser().parse_args(words).command == words[0]


def test_secret_is_told_alone() -> None:
    """What prints the derived secret prints nothing else."""
    command = next(
        block for block in blocks("bash") if "webhook_secret.reveal" in block and "python -c" in block
    )
    program = re.fullmatch(r'python -c "(.*)"\n', command)
    assert program is not None
    loaded = config.load(environment(), stdin_is_terminal=False, stdout_is_terminal=False)
    assert run("-c", program[1]) == loaded.webhook_secret.reveal() + "\n"


def run(*arguments: str) -> str:
    """What Python prints in the checkout, with an instance's environment."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout
