"""TELEGRAM.md, "Delivery": transport, parallel connections, order, success, failure, size."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from deploy.local.emulator import DEFAULT_TOKEN
from deploy.local.emulator.journal import Outcome
from tests.integration.emulator.harness import Harness
from tests.integration.emulator.receiver import Received, Receiver, Reply


async def test_transport_is_one_post_per_update_with_the_stated_headers(
    bot: Harness, webhook: Receiver
) -> None:
    """HTTP/1.1 POST, JSON, keep-alive, gzip and deflate accepted, no secret header when none is set."""
    await bot.set_webhook(webhook.url)
    update_id = bot.send("hello")
    await webhook.until_count(1)
    request = webhook.requests[0]
    assert (request.method, request.version, request.target) == ("POST", "1.1", "/hook/path?x=1")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["connection"].lower() == "keep-alive"
    assert request.headers["accept-encoding"] == "gzip, deflate"
    assert "x-telegram-bot-api-secret-token" not in request.headers
    assert "authorization" not in request.headers
    assert request.update["update_id"] == update_id
    assert request.text == "hello"


async def test_transport_keeps_connections_alive(bot: Harness, webhook: Receiver) -> None:
    """Updates that follow each other in a queue use the connections that are open."""
    await bot.set_webhook(webhook.url, max_connections=1)
    for number in range(20):
        bot.send(str(number))
    await webhook.until_count(20)
    assert {request.connection for request in webhook.requests} == {1}


async def test_transport_sends_the_secret_and_basic_auth(bot: Harness, webhook: Receiver) -> None:
    """The secret goes into its header, the URL's userinfo into HTTP Basic."""
    await bot.set_webhook(webhook.url.replace("http://", "http://me:pa%20ss@"), secret_token="S-_1")
    bot.send("hello")
    await webhook.until_count(1)
    assert webhook.requests[0].headers["x-telegram-bot-api-secret-token"] == "S-_1"
    assert webhook.requests[0].headers["authorization"] == "Basic bWU6cGEgc3M="


async def test_parallel_connections_are_at_most_max_connections(bot: Harness, webhook: Receiver) -> None:
    """Never more than max_connections (3) requests at a time, and as many when there is work for them."""
    webhook.answer = lambda request: None if len(webhook.requests) > 1 else Reply()
    await bot.set_webhook(webhook.url, max_connections=3)
    bot.send("first", 99)
    await bot.until_finished(1)
    for chat in range(1, 11):
        bot.send("hello", chat)
    await webhook.until(lambda: webhook.unanswered == 3)
    for request in webhook.requests[1:]:
        request.answer()
    webhook.answer = lambda request: Reply()
    await webhook.until_count(11)
    assert webhook.most_unanswered == 3
    assert webhook.opened == 3


async def test_parallel_at_most_twice_max_connections_are_loaded_ahead(
    bot: Harness, webhook: Receiver
) -> None:
    """With max_connections 1, two updates of a chat that fails fill what is loaded: another chat has to wait."""
    webhook.answer = lambda request: Reply(503, {"Retry-After": "30"}) if request.text == "bad" else Reply()
    await bot.set_webhook(webhook.url, max_connections=1)
    for text, chat in (("bad", 1), ("after bad", 1), ("other", 2)):
        bot.send(text, chat)
    await bot.until_finished(1)
    bot.clock.advance(20)
    assert len(bot.attempts) == 1
    webhook.answer = lambda request: Reply()
    bot.clock.advance(10)
    await webhook.until_count(4)
    assert webhook.texts == ["bad", "bad", "after bad", "other"]


async def test_order_in_a_queue_the_next_waits_for_the_2xx_of_the_one_before(
    bot: Harness, webhook: Receiver
) -> None:
    """The second message of a chat is not sent while the first is unanswered, or has failed."""
    webhook.answer = lambda request: None
    await bot.set_webhook(webhook.url)
    for number in range(3):
        bot.send(str(number))
    await webhook.until_count(1)
    assert len(bot.attempts) == 1
    webhook.requests[0].answer(Reply(500))
    await webhook.until_count(2)
    webhook.requests[1].answer(Reply(200))
    await webhook.until_count(3)
    assert webhook.texts == ["0", "0", "1"]


async def test_order_queues_of_other_chats_do_not_wait(bot: Harness, webhook: Receiver) -> None:
    """A chat whose message is unanswered holds up no other chat."""
    webhook.answer = lambda request: None if request.text == "slow" else Reply()
    await bot.set_webhook(webhook.url)
    bot.send("quick", 2)
    await bot.until_finished(1)
    bot.send("slow", 1)
    for _ in range(5):
        bot.send("quick", 2)
    await bot.until_finished(6)
    assert webhook.texts.count("quick") == 6


async def test_order_across_kinds_is_not_promised(bot: Harness, webhook: Receiver) -> None:
    """A callback query of a user overtakes a message of the same user: they are in different queues."""
    await bot.set_webhook(webhook.url)
    bot.send("warm", 2)
    await bot.until_finished(1)
    webhook.answer = lambda request: None if "message" in request.update else Reply()
    bot.send("slow")
    bot.inject(callback_query={"id": "1", "from": {"id": 7, "is_bot": False, "first_name": "U"}, "data": "x"})
    await bot.until_finished(2)
    assert [attempt.queue for attempt in bot.finished] == ["messages:2", "callback_queries:7"]
    assert [attempt.queue for attempt in bot.attempts] == ["messages:2", "messages:7", "callback_queries:7"]


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_success_is_any_2xx(bot: Harness, webhook: Receiver, status: int) -> None:
    """200 to 299: the update is done."""
    webhook.answer = lambda request: Reply(status)
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    attempt = await bot.until_finished(1)
    assert (attempt.outcome, attempt.status) == (Outcome.DELIVERED, status)
    assert attempt.answered_200_at is not None
    assert (await bot.info())["pending_update_count"] == 0


def _answer_json(content: dict[str, Any]) -> Reply:
    return Reply(200, {"Content-Type": "application/json"}, json.dumps(content).encode())


async def test_success_runs_the_method_of_a_json_answer(bot: Harness, webhook: Receiver) -> None:
    """`{"method": "sendMessage", ...}` in the answer sends a message."""
    webhook.answer = lambda request: _answer_json({"method": "sendMessage", "chat_id": 7, "text": "direct"})
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    outbox = bot.emulator.control.outbox
    assert await outbox.wait(lambda: bool(outbox.after(0, limit=1)), 20)
    event = outbox.after(0, limit=1)[0]
    assert event.message is not None
    assert event.message["text"] == "direct"
    assert bot.emulator.control.calls.after(1, limit=1)[0].via == "webhook"


@pytest.mark.parametrize("method", ["getMe", "GetUpdates", "setWebhook", "deleteWebhook", "close", "logOut"])
async def test_success_never_runs_these_methods_from_an_answer(
    bot: Harness, webhook: Receiver, method: str
) -> None:
    """get*, setWebhook, deleteWebhook, close and logOut in an answer are ignored."""
    webhook.answer = lambda request: _answer_json({"method": method, "url": ""})
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    await bot.until_finished(1)
    calls = await bot.call("getWebhookInfo")
    assert calls["result"]["url"] == webhook.url
    assert [call.via for call in bot.emulator.control.calls.after(0, limit=9)] == ["http", "http"]


@pytest.mark.parametrize("status", [301, 400, 401, 404, 429, 500, 503])
async def test_failure_is_anything_but_2xx(bot: Harness, webhook: Receiver, status: int) -> None:
    """The update stays, and getWebhookInfo tells the answer's status."""
    webhook.answer = lambda request: None
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    await webhook.until_count(1)
    webhook.requests[0].answer(Reply(status))
    attempt = await bot.until_finished(1)
    assert (attempt.outcome, attempt.status, attempt.answered_200_at) == (Outcome.RETRY, status, None)
    info = await bot.info()
    assert info["pending_update_count"] == 1
    assert info["last_error_message"].startswith(f"Wrong response from the webhook: {status}")
    assert info["last_error_date"] == int(bot.clock.now())


async def test_failure_closed_connection(bot: Harness, webhook: Receiver) -> None:
    """A connection that closes without an answer: the update is sent again, over another connection."""
    webhook.answer = lambda request: None
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    await webhook.until_count(1)
    webhook.requests[0].hang_up()
    attempt = await bot.until_finished(1)
    assert (attempt.outcome, attempt.status) == (Outcome.RETRY, None)
    bot.clock.advance(2)
    await webhook.until_count(2)
    assert [request.connection for request in webhook.requests] == [1, 2]


async def test_failure_refused_connection(bot: Harness, webhook: Receiver) -> None:
    """A refused connection counts as a failed delivery, and getWebhookInfo names it."""
    await webhook.refuse()
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    for _ in range(3):
        bot.clock.advance(2)
    attempt = await bot.until_finished(1)
    assert attempt.error == "Connection refused"
    assert (await bot.info())["last_error_message"] == "Connection refused"


async def test_failure_no_answer_within_60_seconds(bot: Harness, webhook: Receiver) -> None:
    """After 60 s without a byte the attempt has failed; not a moment before."""
    webhook.answer = lambda request: None
    await bot.set_webhook(webhook.url)
    bot.clock.advance(30)
    bot.send("hello")
    await webhook.until_count(1)
    bot.clock.advance(59.9)
    assert bot.finished == []
    bot.clock.advance(0.2)
    attempt = await bot.until_finished(1)
    assert attempt.error == "Read timeout expired"


async def test_idle_connections_are_closed_after_60_seconds(bot: Harness, webhook: Receiver) -> None:
    """A connection that nothing goes over is closed after the same 60 s, and that is no error."""
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    await bot.until_finished(1)
    bot.clock.advance(61)
    await webhook.until(lambda: not webhook.open)
    assert "last_error_message" not in await bot.info()


async def test_size_over_64_kib_is_not_taken(bot: Harness, webhook: Receiver) -> None:
    """An update's JSON is at most 64 KiB."""
    await bot.set_webhook(webhook.url)
    assert bot.inject(message={"date": int(bot.clock.now()), "chat": {"id": 7}, "text": "x" * 66_000}) is None
    assert (
        bot.inject(message={"date": int(bot.clock.now()), "chat": {"id": 7}, "text": "x" * 60_000})
        is not None
    )
    counts = bot.emulator.control.counts(None)
    assert (counts.sent, counts.refused) == (1, {"too_large": 1})


async def test_answer_with_connection_close_ends_the_connection(bot: Harness, webhook: Receiver) -> None:
    """`Connection: close` in an answer is obeyed, and the next update opens another connection."""
    webhook.answer = lambda request: Reply(close=True)
    await bot.set_webhook(webhook.url, max_connections=1)
    bot.send("one")
    await bot.until_finished(1)
    bot.send("two")
    await bot.until_finished(2)
    assert [request.connection for request in webhook.requests] == [1, 2]


async def test_several_bots_have_queues_of_their_own(webhook: Receiver) -> None:
    """Two tokens, one URL: both are served, each with its own history and counts."""
    other = "987:other"
    async with Harness(tokens=[DEFAULT_TOKEN, other]) as bot:
        for token, secret in ((DEFAULT_TOKEN, "one"), (other, "two")):
            await bot.call("setWebhook", token=token, url=webhook.url, secret_token=secret)
        bot.send("to one", bot_id=123456789)
        bot.send("to two", bot_id=987)
        await webhook.until_count(2)

        def secret_of(request: Received) -> str:
            return request.headers["x-telegram-bot-api-secret-token"]

        assert {(secret_of(request), request.text) for request in webhook.requests} == {
            ("one", "to one"),
            ("two", "to two"),
        }
        await bot.until_finished(2)
        assert bot.emulator.control.counts(987).delivered == 1


SELF_SIGNED = Path(__file__).with_name("self_signed_certificate.pem")
"""Made for these tests, with the key beside it; good until 2120, and for nothing else."""


async def test_transport_over_https_with_a_self_signed_certificate_needs_its_upload(bot: Harness) -> None:
    """Without it the delivery fails, and getWebhookInfo says why; with it the same update arrives."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(SELF_SIGNED, SELF_SIGNED.with_name("self_signed_key.pem"))
    async with Receiver(tls=tls) as webhook:
        await bot.set_webhook(webhook.url)
        bot.send("hello")
        attempt = await bot.until_finished(1)
        assert attempt.outcome is Outcome.RETRY
        assert "CERTIFICATE_VERIFY_FAILED" in (await bot.info())["last_error_message"]
        assert webhook.requests == []
        answer = await bot.upload_certificate(webhook.url, SELF_SIGNED.read_bytes())
        assert answer["description"] == "Webhook was set"
        await webhook.until_count(1)
        assert webhook.texts == ["hello"]
        assert (await bot.until_settled()).outcome is Outcome.DELIVERED
        info = await bot.info()
        assert (info["has_custom_certificate"], info["pending_update_count"]) == (True, 0)
