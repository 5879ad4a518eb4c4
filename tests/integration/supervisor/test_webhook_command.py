"""`webhook set`, `delete` and `info` against the Bot API emulator, which does not always answer."""

from __future__ import annotations

import pytest

from deploy.local.emulator.faults import Fault, FaultKind
from deploy.local.emulator_process import RunningEmulator
from shared.errors import CommandFailed
from shared.telegram_api import WebhookInfo
from supervisor.commands import webhook
from tests.integration.supervisor.test_registrar import config_for


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
    assert "last_synchronization_error_date 1700000000\n" in capsys.readouterr().out
