"""The runbook's SQL runs on the schema as it is, and its one-liners say what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psycopg

from shared import config, database
from shared.database import lock_key

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
    """A dead letter with every trace that a life leaves, and an instance that holds the bot's lock."""
    await database.apply_schema(connection)
    await connection.execute(
        "INSERT INTO webhook_supervisor.inbox"
        " (bot_id, update_id, lane, body, state, attempts, starts, retries, finished_at, error)"
        " VALUES (123456, 1, 5, '{}', 'dead', 3, 9, 6, now(), 'Traceback ...')"
    )
    await connection.execute(
        "INSERT INTO webhook_supervisor.instances (bot_id, instance_id, platform_instance_id, token_fingerprint, ready,"
        " candidate_after, backend_pid, first_announced_at, announced_at)"
        " VALUES (123456, 'one', 'one', 'f', true, now(), pg_backend_pid(), now(), now())"
    )
    await connection.execute("SELECT pg_advisory_lock(%s::int4, %s::int4)", lock_key(123456))


async def test_sql_of_the_runbook_runs(database_url: str) -> None:
    """Every statement is good SQL, sees what is there, and the one that repeats a dead letter makes it pending."""
    statements = blocks("sql")
    assert len(statements) == 6
    async with await database.connect(database_url, application_name="test") as connection:
        await prepare(connection)
        found: list[list[tuple[object, ...]]] = []
        for statement in statements:
            cursor = await connection.execute(statement.replace("4711", "1").encode())
            found.append(await cursor.fetchall() if cursor.description is not None else [])
        depth, waiting, dead, repeated, terms, instances = found
        assert [row[:3] for row in depth] == [(123456, "dead", 1)]
        assert waiting == []
        assert [row[1] for row in dead] == [1]
        assert repeated == []
        assert terms == []
        assert [(row[0], row[4], row[5]) for row in instances] == [("one", True, False)]
        cursor = await connection.execute(
            "SELECT state, attempts, retries, retry_at, finished_at, body FROM webhook_supervisor.inbox"
        )
        assert await cursor.fetchall() == [("pending", 0, 0, None, None, b"{}")]


def test_registration_by_hand_sends_what_the_owner_would() -> None:
    """The runbook's script gives curl the URL, the secret and the parameters of this environment, fit for its syntax."""
    script = next(block for block in blocks("bash") if "setWebhook" in block)
    program = re.search(r"<<'EOF'[^\n]*\n(.*)^EOF$", script, re.MULTILINE | re.DOTALL)
    assert program is not None
    said = run("-c", program[1])
    loaded = config.load(environment(), stdin_is_terminal=False, stdout_is_terminal=False)
    assert said.splitlines() == [
        f'url = "https://api.telegram.org/bot{TOKEN}/setWebhook"',
        f'data-urlencode = "url={loaded.webhook_url.reveal()}"',
        f'data-urlencode = "secret_token={loaded.webhook_secret.reveal()}"',
        'data-urlencode = "max_connections=7"',
        r'data-urlencode = "allowed_updates=[\"message\", \"callback_query\"]"',
    ]


def test_secret_is_told_alone() -> None:
    """What prints the derived secret prints nothing else."""
    command = next(
        block for block in blocks("bash") if "webhook_secret.reveal" in block and "python -c" in block
    )
    program = re.fullmatch(r'python -c "(.*)"\n', command)
    assert program is not None
    loaded = config.load(environment(), stdin_is_terminal=False, stdout_is_terminal=False)
    assert run("-c", program[1]) == loaded.webhook_secret.reveal() + "\n"


def test_masking_hides_the_secret_path_in_either_notation() -> None:
    """What the runbook shows of getWebhookInfo can be pasted into a ticket."""
    script = next(block for block in blocks("bash") if "getWebhookInfo" in block)
    sed = re.search(r"sed -E '([^']+)'", script)
    assert sed is not None
    for slash in ("/", r"\/"):
        answer = f'{{"url":"https:{slash}{slash}bot.example{slash}webhook{slash}SecretSecretSecret","pending":0}}\n'
        shown = subprocess.run(
            ["sed", "-E", sed[1]], input=answer, capture_output=True, text=True, check=True
        ).stdout
        assert shown == answer.replace("SecretSecretSecret", "***")


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
