"""`webhook set`, `delete` and `info` against the Bot API emulator, which does not always answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from deploy.local.emulator.faults import Fault, FaultKind
from deploy.local.emulator_process import RunningEmulator
from shared import config as configuration
from shared import database
from shared.errors import CommandFailed
from shared.telegram_api import WebhookInfo
from supervisor.commands import webhook
from tests.integration.supervisor.test_registrar import config_for

TOKEN = "123456:the-secret-part-of-the-token-here-x"
BOT_ID = 123456

CUT = b""
SOON = (
    b'{"ok": false, "error_code": 429, "description": "Too Many Requests", "parameters": {"retry_after": 1}}'
)


@asynccontextmanager
async def telegram_that_ends(with_: bytes, meanwhile: Callable[[], Awaitable[None]]) -> AsyncIterator[str]:
    """Every call ends with that body, or is cut where there is none; before, something else happens. Its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"}")  # of the body: what is unread when it closes may cost the answer
            await meanwhile()
            if with_:
                head = b"HTTP/1.1 429 Status\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                writer.write(head % len(with_) + with_)
                await writer.drain()
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def calls_of(emulator: RunningEmulator, method: str) -> int:
    """How often it was called."""
    return [call.method for call in await emulator.client.calls()].count(method)


async def test_a_call_that_is_not_answered_is_made_again(
    running_emulator: RunningEmulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it was done or not: a second one does no harm, and its answer is the truth."""
    config = config_for(running_emulator)
    for kind in (FaultKind.APPLIED_BUT_DROPPED, FaultKind.SERVER_ERROR):
        await running_emulator.client.add_fault(Fault(kind, method="setWebhook", count=1))
    # The database, which is not there, is asked who owns unless it is forced.
    assert await webhook.set_webhook(config, force=True) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Webhook is already set: ")
    assert await calls_of(running_emulator, "setWebhook") == 3
    await running_emulator.client.add_fault(Fault(FaultKind.DROP_CONNECTION, method="deleteWebhook", count=1))
    assert await webhook.delete_webhook(config, force=True) == 0
    assert capsys.readouterr().out == "Webhook was deleted\n"


async def test_what_may_have_been_done_is_not_denied(running_emulator: RunningEmulator) -> None:
    """Not by the last answer either, which is that of another call; and `webhook info` is named, which tells."""
    config = config_for(running_emulator)
    await running_emulator.client.add_fault(Fault(FaultKind.APPLIED_BUT_DROPPED, method="setWebhook"))
    with pytest.raises(CommandFailed, match=r"may have done it.*`webhook info`"):
        await webhook.set_webhook(config, force=True)
    assert await calls_of(running_emulator, "setWebhook") == webhook.TRIES
    assert (await webhook.read_webhook(config)).url == config.webhook_url.reveal()
    await running_emulator.client.clear_faults()
    for fault in (
        Fault(FaultKind.APPLIED_BUT_DROPPED, method="deleteWebhook", count=1),
        Fault(FaultKind.TOO_MANY_REQUESTS, method="deleteWebhook", retry_after=3600),
    ):
        await running_emulator.client.add_fault(fault)
    with pytest.raises(CommandFailed, match="may have done it"):
        await webhook.delete_webhook(config, force=True)


@pytest.mark.parametrize(
    ("command", "ending", "words"),
    [
        (webhook.set_webhook, CUT, "may have been applied: `webhook info` tells, .* RECONCILE_SECONDS"),
        (webhook.delete_webhook, CUT, "may have been applied: `webhook info` tells, .* RECONCILE_SECONDS"),
        (webhook.delete_webhook, SOON, "No earlier try was applied"),
    ],
    ids=["set", "delete", "put-off"],
)
async def test_a17_who_begins_to_own_between_two_tries_is_left_alone(
    database_url: str, command: Callable[..., Awaitable[int]], ending: bytes, words: str
) -> None:
    """Nobody owned when the command began; and what it had called by then is not denied."""
    calls = 0
    async with await database.connect(database_url, application_name="test") as owner:
        await database.apply_schema(owner)

        async def begin_to_own() -> None:
            nonlocal calls
            calls += 1
            await owner.execute("SELECT pg_advisory_lock(%s, %s)", database.lock_key(BOT_ID))

        async with telegram_that_ends(ending, begin_to_own) as url:
            config = configuration.load(
                {
                    "TELEGRAM_BOT_TOKEN": TOKEN,
                    "TELEGRAM_API_BASE_URL": url,
                    "DATABASE_URL": database_url,
                    "WEBHOOK_BASE_URL": "http://127.0.0.1:1",
                },
                stdin_is_terminal=False,
                stdout_is_terminal=False,
            )
            with pytest.raises(CommandFailed, match=rf"by now server process \d+ owns the bot.*{words}"):
                await command(config, force=False)
    assert calls == 1


async def test_what_never_reached_telegram_was_not_done(running_emulator: RunningEmulator) -> None:
    """Nobody listens there: no doubt about what was done."""
    nowhere = config_for(running_emulator, TELEGRAM_API_BASE_URL="http://127.0.0.1:1")
    with pytest.raises(CommandFailed, match="did not do it: deleteWebhook: ConnectError"):
        await webhook.delete_webhook(nowhere, force=True)


async def test_what_telegram_refuses_is_said_to_be_refused_and_not_repeated(
    running_emulator: RunningEmulator,
) -> None:
    """An hour's wait is not for somebody at a terminal."""
    await running_emulator.client.add_fault(
        Fault(FaultKind.TOO_MANY_REQUESTS, method="deleteWebhook", retry_after=3600)
    )
    with pytest.raises(CommandFailed, match="did not do it"):
        await webhook.delete_webhook(config_for(running_emulator), force=True)
    assert await calls_of(running_emulator, "deleteWebhook") == 1


async def test_a21_what_telegram_quotes_is_shown_without_secrets(
    running_emulator: RunningEmulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody knows what is in an error's words; and the other kind of error is shown where there is one."""
    config = config_for(running_emulator)
    path, secret = config.webhook_path.reveal(), config.webhook_secret.reveal()
    found = WebhookInfo(
        url=config.webhook_url.reveal(),
        last_error_message=f"no /webhook/{path} for {secret}",
        last_synchronization_error_date=1700000000,
    )
    document = webhook.as_document(config, found)
    assert document["last_error_message"] == "no /webhook/*** for ***"
    assert path not in str(document)
    await running_emulator.client.fail_synchronization(date=1700000000)
    assert await webhook.info(config, as_json=False) == 0
    assert "last_synchronization_error_date 2023-11-14 22:13:20 UTC (" in capsys.readouterr().out
    assert await webhook.info(config, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["last_synchronization_error_date"] == 1700000000
