"""TELEGRAM.md, "setWebhook, deleteWebhook, getWebhookInfo"."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from deploy.local.emulator.emulator import StaticResolver
from tests.integration.emulator.harness import Harness
from tests.integration.emulator.receiver import Receiver, Reply


class SlowResolver:
    """Answers when it is told to, or not at all."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[str]] = []

    async def resolve(self, host: str, port: int) -> str:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]

    async def until(self, count: int, condition: Callable[[], bool] = lambda: True) -> None:
        async with asyncio.timeout(20):
            while len(self.waiting) < count or not condition():
                await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("url", "description"),
    [
        ("http://bot.example/x", "bad webhook: An HTTPS URL must be provided for webhook"),
        (
            "https://bot.example:8080/x",
            "bad webhook: Webhook can be set up only on ports 80, 88, 443 or 8443",
        ),
        ("ftp://bot.example/x", "invalid webhook URL specified"),
        ("https://bot.example:99999/x", "invalid webhook URL specified"),
    ],
)
async def test_url_must_be_https_on_one_of_four_ports(url: str, description: str) -> None:
    """Anything else is 400, except for a server in --local mode."""
    async with Harness(local_mode=False) as bot:
        answer = await bot.call("setWebhook", url=url)
        assert answer == {"ok": False, "error_code": 400, "description": f"Bad Request: {description}"}


@pytest.mark.parametrize("port", [443, 80, 88, 8443])
async def test_url_takes_the_four_ports(port: int) -> None:
    """443, 80, 88, 8443 with https."""
    async with Harness(local_mode=False, resolver=StaticResolver({"*": "127.0.0.1"})) as bot:
        assert (await bot.call("setWebhook", url=f"https://bot.example:{port}/x"))["ok"]


@pytest.mark.parametrize(
    ("secret", "description"),
    [
        ("a" * 257, "secret token is too long"),
        ("with space", "secret token contains unallowed characters"),
        ("dot.", "secret token contains unallowed characters"),
        ("ümlaut", "secret token contains unallowed characters"),
    ],
)
async def test_secret_token_of_other_characters_or_length_is_refused(
    bot: Harness, webhook: Receiver, secret: str, description: str
) -> None:
    """1 to 256 characters of A-Z a-z 0-9 _ -; a refused call leaves no webhook, as on the real server."""
    await bot.set_webhook(webhook.url)
    bot.clock.advance(1)
    answer = await bot.call("setWebhook", url=webhook.url, secret_token=secret)
    assert answer == {"ok": False, "error_code": 400, "description": f"Bad Request: {description}"}
    assert (await bot.info())["url"] == ""


async def test_secret_token_of_256_characters_is_taken_and_cannot_be_read_back(
    bot: Harness, webhook: Receiver
) -> None:
    """getWebhookInfo has no trace of it."""
    secret = "aZ0_-" * 51 + "a"
    await bot.set_webhook(webhook.url, secret_token=secret)
    assert secret not in str(await bot.info())


async def test_success_means_that_a_connection_could_be_tried(bot: Harness, webhook: Receiver) -> None:
    """setWebhook succeeds though nobody listens; getWebhookInfo tells after the first delivery."""
    await webhook.refuse()
    await bot.set_webhook(webhook.url)
    assert (await bot.info())["url"] == webhook.url
    bot.send("hello")
    bot.clock.advance(2)
    await bot.until_finished(1)
    assert (await bot.info())["last_error_message"] == "Connection refused"


async def test_address_that_does_not_resolve_is_refused() -> None:
    """400 "bad webhook: Failed to resolve host", and no webhook is left."""
    resolver = SlowResolver()
    async with Harness(resolver=resolver) as bot:
        setting = asyncio.create_task(bot.call("setWebhook", url="https://nowhere.example/"))
        await resolver.until(1)
        resolver.waiting[0].set_exception(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        answer = await setting
        assert (
            answer["description"]
            == "Bad Request: bad webhook: Failed to resolve host: Name or service not known"
        )
        assert (await bot.info())["url"] == ""


async def test_rate_of_more_than_one_a_second_is_429(bot: Harness, webhook: Receiver) -> None:
    """429 with retry_after 1, before the no-change test: an identical call is refused as well."""
    await bot.set_webhook(webhook.url)
    answer = await bot.call("setWebhook", url=webhook.url)
    assert answer == {
        "ok": False,
        "error_code": 429,
        "description": "Too Many Requests: retry after 1",
        "parameters": {"retry_after": 1},
    }
    bot.clock.advance(0.99)
    assert (await bot.call("setWebhook", url=webhook.url))["error_code"] == 429
    bot.clock.advance(0.01)
    assert (await bot.call("setWebhook", url=webhook.url))["description"] == "Webhook is already set"


async def test_rate_does_not_concern_delete_webhook(bot: Harness, webhook: Receiver) -> None:
    """Only calls with a URL are counted."""
    await bot.set_webhook(webhook.url)
    assert (await bot.call("deleteWebhook"))["description"] == "Webhook was deleted"
    assert (await bot.call("setWebhook", url=""))["description"] == "Webhook is already deleted"


async def test_two_at_once_the_first_gets_409(webhook: Receiver) -> None:
    """A setWebhook that still resolves is ended by a second: 409 "terminated by other setWebhook"."""
    resolver = SlowResolver()
    async with Harness(resolver=resolver) as bot:
        first = asyncio.create_task(bot.call("setWebhook", url=f"http://one.example:{webhook.port}/1"))
        await resolver.until(1)
        bot.clock.advance(1)
        second = asyncio.create_task(bot.call("setWebhook", url=f"http://two.example:{webhook.port}/2"))
        await resolver.until(2)
        resolver.waiting[1].set_result("127.0.0.1")
        answer = await first
        assert (answer["error_code"], answer["description"]) == (
            409,
            "Conflict: terminated by other setWebhook",
        )
        assert (await second)["description"] == "Webhook was set"
        assert (await bot.info())["url"].endswith("/2")


async def test_drop_pending_updates_deletes_the_backlog(bot: Harness, webhook: Receiver) -> None:
    """true: nothing of it ever arrives, even though nothing else changed; without it the backlog stays."""
    webhook.answer = lambda request: Reply(503, {"Retry-After": "5"})
    await bot.set_webhook(webhook.url)
    bot.send("old")
    await bot.until_finished(1)
    bot.clock.advance(1)
    await bot.call("setWebhook", url=webhook.url)
    assert (await bot.info())["pending_update_count"] == 1
    bot.clock.advance(1)
    webhook.answer = lambda request: Reply()
    assert (await bot.call("setWebhook", url=webhook.url, drop_pending_updates=True))[
        "description"
    ] == "Webhook was set"
    assert (await bot.info())["pending_update_count"] == 0
    bot.send("new")
    await bot.until_finished(2)
    assert webhook.texts == ["old", "new"]


async def test_delete_webhook_keeps_the_backlog_unless_told(bot: Harness, webhook: Receiver) -> None:
    """deleteWebhook alone keeps updates for getUpdates; with drop_pending_updates they are gone."""
    webhook.answer = lambda request: Reply(500)
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    await bot.until_finished(1)
    await bot.call("deleteWebhook")
    assert (await bot.info())["pending_update_count"] == 1
    await bot.call("deleteWebhook", drop_pending_updates=True)
    assert (await bot.info())["pending_update_count"] == 0


async def test_get_webhook_info_has_the_stated_fields(bot: Harness, webhook: Receiver) -> None:
    """url, has_custom_certificate, pending_update_count, ip_address, max_connections; allowed_updates if not default."""
    assert await bot.info() == {"url": "", "has_custom_certificate": False, "pending_update_count": 0}
    await bot.set_webhook(webhook.url)
    assert await bot.info() == {
        "url": webhook.url,
        "has_custom_certificate": False,
        "pending_update_count": 0,
        "ip_address": "127.0.0.1",
        "max_connections": 40,
    }
    await bot.set_webhook(
        webhook.url, allowed_updates=["callback_query", "message", "nonsense"], max_connections=7
    )
    info = await bot.info()
    assert (info["allowed_updates"], info["max_connections"]) == (["message", "callback_query"], 7)


async def test_max_connections_is_kept_inside_1_to_100() -> None:
    """100 at most (not in --local mode), 1 at least, 40 by default and for nonsense."""
    async with Harness(local_mode=False, resolver=StaticResolver({"*": "127.0.0.1"})) as bot:
        for given, kept in (("1000", 100), ("0", 1), ("many", 40)):
            await bot.set_webhook("https://bot.example/", max_connections=given)
            assert (await bot.info())["max_connections"] == kept


async def test_last_error_stays_after_recovery_until_the_webhook_is_set_anew(
    bot: Harness, webhook: Receiver
) -> None:
    """It is history, not state: a success does not clear it, an identical setWebhook does not, a changed one does."""
    webhook.answer = lambda request: Reply(500 if len(webhook.requests) == 1 else 200)
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    await bot.until_finished(2)
    assert "last_error_date" in await bot.info()
    bot.clock.advance(1)
    await bot.call("setWebhook", url=webhook.url)
    assert "last_error_date" in await bot.info()
    await bot.set_webhook(webhook.url, max_connections=39)
    assert "last_error_date" not in await bot.info()


async def test_allowed_updates_absent_keeps_and_empty_restores_the_default(
    bot: Harness, webhook: Receiver
) -> None:
    """Absent: that of the call before, even over a deleteWebhook; []: the default."""
    await bot.set_webhook(webhook.url, allowed_updates=["poll"])
    await bot.call("deleteWebhook")
    await bot.set_webhook(webhook.url)
    assert (await bot.info())["allowed_updates"] == ["poll"]
    await bot.set_webhook(webhook.url, allowed_updates=[])
    assert "allowed_updates" not in await bot.info()


async def test_allowed_updates_default_leaves_out_three_kinds(bot: Harness, webhook: Receiver) -> None:
    """chat_member, message_reaction and message_reaction_count come only if asked for."""
    now = int(bot.clock.now())
    three = ("chat_member", "message_reaction", "message_reaction_count")
    await bot.set_webhook(webhook.url)
    payload = {"chat": {"id": 7}, "date": now, "from": {"id": 8}}
    push = bot.emulator.bot().push
    assert [push({kind: payload}) for kind in three] == [None, None, None]
    assert push({"my_chat_member": payload}) is not None
    await bot.set_webhook(webhook.url, allowed_updates=list(three))
    assert all(push({kind: payload}) for kind in three)
    assert push({"message": payload}) is None
    assert bot.inject(message=payload) is None


async def test_certificate_makes_every_call_a_change(bot: Harness) -> None:
    """has_custom_certificate is told; with one, an identical call is no no-op, and a call without one takes it away."""
    for _ in range(2):
        answer = await bot.upload_certificate("http://127.0.0.1:1/", b"-----BEGIN CERTIFICATE-----")
        assert answer["description"] == "Webhook was set"
    assert (await bot.info())["has_custom_certificate"] is True
    await bot.set_webhook("http://127.0.0.1:1/")
    assert (await bot.info())["has_custom_certificate"] is False


@pytest.mark.parametrize("certificate", [b"-----BEGIN CERTIFICATE-----", b"\x30\x82\xff", b"nonsense"])
async def test_certificate_that_cannot_be_used_is_refused(bot: Harness, certificate: bytes) -> None:
    """400, and the bot goes on: without a webhook, as after any refused setWebhook, and with all methods."""
    answer = await bot.upload_certificate("https://127.0.0.1:1/", certificate)
    assert answer["error_code"] == 400
    assert answer["description"].startswith("Bad Request: bad webhook: ")
    assert (await bot.info())["url"] == ""
    assert (await bot.call("getUpdates"))["result"] == []
    await bot.set_webhook("http://127.0.0.1:1/")


async def test_last_synchronization_error_is_told(bot: Harness, webhook: Receiver) -> None:
    """When Telegram last failed to get at the updates is in getWebhookInfo, whatever becomes of the webhook."""
    bot.emulator.control.fail_synchronization(None)
    date = int(bot.clock.now())
    assert (await bot.info())["last_synchronization_error_date"] == date
    await bot.set_webhook(webhook.url)
    assert (await bot.info())["last_synchronization_error_date"] == date
    async with bot.emulator.client() as client:
        await client.fail_synchronization(date=5)
    assert (await bot.info())["last_synchronization_error_date"] == 5
