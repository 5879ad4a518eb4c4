"""The Bot API client against the emulator: the rules of TELEGRAM.md, not answers of our own making."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deploy.local.emulator_process import RunningEmulator
from shared.errors import BadRequest, RetryLater, TokenRefused
from shared.secret import Secret
from shared.telegram_api import TelegramApi, WebhookInfo

LIMIT_SECONDS = 30.0  # on a hang
URL = "http://127.0.0.1:9/webhook/some-secret-path"


@pytest.fixture
async def api(running_emulator: RunningEmulator) -> AsyncIterator[TelegramApi]:
    """A client of the emulator's one bot."""
    token = Secret(running_emulator.token)
    async with TelegramApi(running_emulator.base_url, token, timeout_seconds=LIMIT_SECONDS) as client:
        yield client


async def set_webhook(api: TelegramApi, url: str = URL) -> str:
    """Registers as the supervisor does."""
    return await api.set_webhook(
        url, secret_token="a-secret-token", max_connections=7, allowed_updates=("message",)
    )


async def test_a_registration_is_set_read_back_and_deleted(
    running_emulator: RunningEmulator, api: TelegramApi
) -> None:
    """All four methods, with the words by which the supervisor tells a change from none."""
    me = await api.get_me()
    assert (me.id, bool(me.username)) == (int(running_emulator.token.partition(":")[0]), True)
    assert await api.get_webhook_info() == WebhookInfo(url="")
    assert await set_webhook(api) == "Webhook was set"
    info = await api.get_webhook_info()
    assert (info.url, info.max_connections, info.allowed_updates) == (URL, 7, ("message",))
    assert await api.delete_webhook() == "Webhook was deleted"
    assert await api.delete_webhook() == "Webhook is already deleted"


async def refused_for_haste(api: TelegramApi) -> RetryLater:
    """What Telegram says to calls that follow each other at once; a slow machine may need several."""
    while True:
        try:
            await set_webhook(api)
        except RetryLater as exc:
            return exc


async def test_two_registrations_within_a_second_are_told_to_wait(api: TelegramApi) -> None:
    """The rate is checked before the no-change test, so this is met also where nothing would change."""
    await set_webhook(api)
    assert (await refused_for_haste(api)).retry_after_seconds == 1.0


async def test_what_telegram_refuses_is_told_apart(
    running_emulator: RunningEmulator, api: TelegramApi
) -> None:
    """A call that cannot succeed, and a token that was revoked."""
    with pytest.raises(BadRequest):
        await set_webhook(api, "nonsense")
    await running_emulator.client.revoke_token()
    with pytest.raises(TokenRefused):
        await api.get_me()
