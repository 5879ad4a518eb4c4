"""`make run` with TELEGRAM_BOT_TOKEN set: that bot, with its own Bot API server, in polling mode."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import httpx

from deploy.local.emulator.faults import Fault, FaultKind
from deploy.local.emulator_process import PROJECT_FOLDER, RunningEmulator
from deploy.local.guarded import inherited_environment
from tests.integration.local.local_run import LIMIT_SECONDS, Terminal, running


async def wait_for(terminal: Terminal, *texts: str) -> str:
    """See Terminal.wait_for; the emulator's client goes on meanwhile."""
    return await asyncio.to_thread(terminal.wait_for, *texts)


def environment(emulator: RunningEmulator) -> dict[str, str]:
    """The shell's of somebody who has a bot, and a database that is not meant."""
    return {
        "TELEGRAM_BOT_TOKEN": emulator.token,
        "TELEGRAM_API_BASE_URL": emulator.base_url,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/production",
        "PGSERVICE": "production",
        "PORT": "1",
        "DRAIN_SECONDS": "0",
    }


async def test_the_own_bot_answers_and_what_it_left_undone_is_done_the_next_time(
    running_emulator: RunningEmulator, tmp_path: Path
) -> None:
    """No webhook, no public address, no database to bring along; the token is not printed."""
    telegram = running_emulator.client
    variables = environment(running_emulator)
    with running(
        tmp_path, variables={**variables, "BOT_APP": "tests.integration.local.own_bots:held_up"}
    ) as (
        process,
        terminal,
    ):
        text = await wait_for(terminal, "[POLLING] polling for updates", "Ctrl-C ends it")
        [status_url] = re.findall(r"http://127\.0\.0\.1:\d+/status", text)
        async with httpx.AsyncClient(trust_env=False) as client:
            status = (await client.get(status_url)).json()
        assert (status["role"], status["webhook"]["url"]) == ("ACTIVE", None)
        sent = await telegram.send_text(7, "anything")
        text += await wait_for(terminal, f"received update_id={sent.update_id}", "held up")
        process.send_signal(signal.SIGINT)
        text += await wait_for(terminal, "stopping", "exit code=0")
        assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 0
    assert running_emulator.token not in text
    after = await telegram.last_event_seq()
    with running(tmp_path, variables=variables) as (process, terminal):
        answer = await telegram.wait_for_message(7, after=after, timeout_seconds=LIMIT_SECONDS)
        assert answer.text
        await wait_for(terminal, "Ctrl-C ends it")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 0
    methods = {call.method for call in await telegram.calls()}
    assert "setWebhook" not in methods


async def test_it_ends_with_its_terminal(running_emulator: RunningEmulator, tmp_path: Path) -> None:
    """In order, where SIGHUP comes to a `make` alone."""
    with running(tmp_path, with_terminal=True, variables=environment(running_emulator)) as (
        process,
        terminal,
    ):
        # Both: a supervisor whose interpreter has only begun is ended by the signal as any program is.
        await wait_for(terminal, "[POLLING] polling for updates", "Ctrl-C ends it")
        terminal.leave()
        assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 0


async def test_a_bot_that_is_served_somewhere_is_not_taken_away_from_there(
    running_emulator: RunningEmulator, tmp_path: Path
) -> None:
    """Its token lies in the shell of a developer, and its webhook is set: nothing is touched, and a remedy said that works."""
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"{running_emulator.base_url}/bot{running_emulator.token}/setWebhook"
        answer = await client.post(url, data={"url": "http://127.0.0.1:9/webhook/a-path"})
        assert answer.status_code == 200
    with running(tmp_path, variables=environment(running_emulator)) as (process, terminal):
        text = await wait_for(terminal, "webhook delete --force")
        assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 1
    assert "the webhook of this bot is set, to 127.0.0.1" in text
    assert "a-path" not in text
    assert (await running_emulator.client.webhook()).url.endswith("/a-path")

    [command] = re.findall(r"delete the webhook: (.*)", text)
    shell = await asyncio.create_subprocess_shell(
        command.strip(), cwd=PROJECT_FOLDER, env=inherited_environment() | environment(running_emulator)
    )
    assert await shell.wait() == 0
    assert (await running_emulator.client.webhook()).url == ""


async def test_where_telegram_does_not_tell_of_a_webhook_nothing_is_started(
    running_emulator: RunningEmulator, tmp_path: Path
) -> None:
    """It may be set, and would be deleted as soon as Telegram is back."""
    await running_emulator.client.add_fault(Fault(FaultKind.SERVER_ERROR, method="getWebhookInfo"))
    with running(tmp_path, variables=environment(running_emulator)) as (process, terminal):
        await wait_for(terminal, "does not say whether a webhook of this bot is set")
        assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 1
    assert {call.method for call in await running_emulator.client.calls()} == {"getWebhookInfo"}


async def test_a_database_of_another_postgres_is_named(
    running_emulator: RunningEmulator, tmp_path: Path
) -> None:
    """It is kept over changes of the program; Postgres itself only says that it does not start."""
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    (tmp_path / "postgres" / "data" / "PG_VERSION").write_text("9\n")
    with running(tmp_path, variables=environment(running_emulator)) as (process, terminal):
        text = await wait_for(terminal, "delete the folder")
        assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 1
    assert "was made by Postgres 9" in text


async def test_a_token_that_telegram_does_not_know_ends_with_the_supervisors_status(
    running_emulator: RunningEmulator, tmp_path: Path
) -> None:
    """3, and what to do."""
    variables = environment(running_emulator) | {"TELEGRAM_BOT_TOKEN": "123456:not-a-token-that-anybody-has"}
    with running(tmp_path, variables=variables) as (process, terminal):
        text = await wait_for(terminal, "@BotFather")
        assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 3
    assert "not-a-token" not in text


async def test_what_is_wrong_with_the_environment_is_said_before_anything_starts(tmp_path: Path) -> None:
    """All of it, and status 2."""
    with running(tmp_path, variables={"TELEGRAM_BOT_TOKEN": "x", "MAX_ATTEMPTS": "none"}) as (
        process,
        terminal,
    ):
        await wait_for(terminal, "TELEGRAM_BOT_TOKEN must be", "MAX_ATTEMPTS must be")
        assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 2
    assert not (tmp_path / "postgres").exists()
