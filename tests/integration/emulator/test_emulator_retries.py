"""TELEGRAM.md, "Delivery": retry, ramp-up, expiry, 410, re-registration, update_id. Hours pass on a manual clock."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from deploy.local.emulator.journal import Outcome
from tests.integration.emulator.harness import Harness
from tests.integration.emulator.receiver import Receiver, Reply


async def test_retry_first_at_once_then_doubling_from_2_s_up_to_a_cap(
    bot: Harness, webhook: Receiver
) -> None:
    """0, 2, 4, 8, 16, 32, then a random number of 60 to 120 s, or 64 where the cap is higher; never sooner."""
    webhook.answer = lambda request: Reply(500)
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    delays: list[float] = []
    for count in range(1, 12):
        attempt = await bot.until_finished(count)
        assert attempt.retry_in_seconds is not None
        delays.append(attempt.retry_in_seconds)
        if attempt.retry_in_seconds:
            bot.clock.advance(attempt.retry_in_seconds - 0.01)
            assert len(bot.attempts) == count
            bot.clock.advance(0.02)
        # The connection idles out between long delays, and the next may be opened 2 s later.
        if len(bot.attempts) == count:
            bot.clock.advance(2)
    assert delays[:6] == [0, 2, 4, 8, 16, 32]
    assert all(60 <= delay <= 120 for delay in delays[6:])
    assert len(set(delays[6:])) > 2


async def test_retry_after_replaces_the_delay_and_does_not_grow_it(bot: Harness, webhook: Receiver) -> None:
    """`503` with `Retry-After: 2`, again and again: 2 s each time, however often."""
    webhook.answer = lambda request: Reply(503, {"Retry-After": "2"})
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    for count in range(1, 30):
        attempt = await bot.until_finished(count)
        assert attempt.retry_in_seconds == 2
        bot.clock.advance(1.99)
        assert len(bot.attempts) == count
        bot.clock.advance(0.01)
        assert len(bot.attempts) == count + 1


async def test_retry_after_serves_a_receiver_within_2_s_of_its_recovery(
    bot: Harness, webhook: Receiver
) -> None:
    """Down for ten minutes with `Retry-After: 2`, then well: every chat's update is there 2 s later."""
    await bot.set_webhook(webhook.url)
    webhook.answer = lambda request: Reply(503, {"Retry-After": "2"})
    for chat in range(1, 6):
        bot.send("hello", chat)
    for _ in range(300):
        attempts = len(bot.attempts)
        await bot.until(lambda: len(bot.finished) == len(bot.attempts))
        bot.clock.advance(2)
        assert len(bot.attempts) > attempts
    await bot.until(lambda: len(bot.finished) == len(bot.attempts))
    webhook.answer = lambda request: Reply()
    bot.clock.advance(2)
    await bot.until(lambda: bot.emulator.control.counts(None).delivered == 5)


async def test_retry_after_is_clamped_to_3600_s(bot: Harness, webhook: Receiver) -> None:
    """A day in `Retry-After` counts as an hour."""
    webhook.answer = lambda request: Reply(503, {"Retry-After": "86400"})
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    assert (await bot.until_finished(1)).retry_in_seconds == 3600


async def test_ramp_up_without_success_one_connection_at_most_every_2_s(
    bot: Harness, webhook: Receiver
) -> None:
    """A webhook that refuses everything is tried once in 2 s, though twenty chats wait."""
    await webhook.refuse()
    await bot.set_webhook(webhook.url)
    for chat in range(20):
        bot.send("hello", chat + 1)
    bot.clock.advance(2)
    await bot.until_finished(1)
    opened: list[float] = []
    for _ in range(100):
        before = len(bot.attempts)
        bot.clock.advance(0.1)
        await bot.until(lambda: len(bot.finished) == len(bot.attempts))
        if len(bot.attempts) > before:
            opened.append(bot.clock.monotonic())
    assert len(opened) >= 4
    assert all(second - first >= 1.99 for first, second in pairwise(opened))


async def test_ramp_up_with_success_at_most_10_connections_in_half_a_second(
    bot: Harness, webhook: Receiver
) -> None:
    """A receiver that succeeds gets ten more connections at once, and ten more after 0.5 s."""
    await bot.set_webhook(webhook.url, max_connections=50)
    bot.send("first", 99)
    await bot.until_finished(1)
    webhook.answer = lambda request: None
    for chat in range(40):
        bot.send("hello", chat + 1)
    await webhook.until(lambda: webhook.unanswered == 11)
    assert bot.emulator.bot().connection_count == 11
    bot.clock.advance(0.49)
    assert bot.emulator.bot().connection_count == 11
    bot.clock.advance(0.01)
    assert bot.emulator.bot().connection_count == 21


def _kinds(now: float) -> list[tuple[dict[str, object], int]]:
    user = {"id": 7, "is_bot": False, "first_name": "U"}
    return [
        (
            {"message": {"message_id": 9, "date": int(now) - 400, "chat": {"id": 7}, "text": "x"}},
            86_400 - 400,
        ),
        ({"callback_query": {"id": "1", "from": user, "data": "x"}}, 150),
        ({"shipping_query": {"id": "1", "from": user}}, 150),
        ({"pre_checkout_query": {"id": "1", "from": user}}, 150),
        ({"chosen_inline_result": {"result_id": "1", "from": user, "query": ""}}, 600),
        ({"inline_query": {"id": "1", "from": user, "query": "", "offset": ""}}, 30),
    ]


@pytest.mark.parametrize("index", range(6))
async def test_expiry_drops_an_update_whose_next_try_would_fall_after_it(
    bot: Harness, webhook: Receiver, index: int
) -> None:
    """A message 24 h from its date, queries 150 s, a chosen result 600 s, an inline query 30 s: then never again."""
    update, lifetime = _kinds(bot.clock.now())[index]
    webhook.answer = lambda request: Reply(500)
    await bot.set_webhook(webhook.url)
    sent_at = bot.clock.now()
    bot.inject(**update)
    while (attempt := await bot.until_settled()).outcome is not Outcome.DROPPED:
        assert attempt.retry_in_seconds is not None
        assert bot.clock.now() + attempt.retry_in_seconds <= sent_at + lifetime
        await bot.pass_delay(attempt)
    assert attempt.retry_in_seconds is not None
    assert bot.clock.now() + attempt.retry_in_seconds > sent_at + lifetime
    assert bot.clock.now() <= sent_at + lifetime + 2
    counts = bot.emulator.control.counts(None)
    assert (counts.pending, counts.dropped) == (0, 1)


async def test_expiry_a_short_outage_with_long_backoff_loses_button_presses(
    bot: Harness, webhook: Receiver
) -> None:
    """An outage shorter than 150 s drops a callback query, and the next of its queue is sent at once."""
    webhook.answer = lambda request: Reply(500)
    await bot.set_webhook(webhook.url)
    user = {"id": 7, "is_bot": False, "first_name": "U"}
    for number in (1, 2):
        bot.inject(callback_query={"id": str(number), "from": user, "data": "x"})
        bot.clock.advance(1)
    start = bot.clock.now()
    while (attempt := await bot.until_settled()).outcome is not Outcome.DROPPED:
        await bot.pass_delay(attempt)
        if len({attempt.update_id for attempt in bot.attempts}) == 2:
            break
    assert bot.clock.now() - start < 150
    await bot.until(lambda: len({attempt.update_id for attempt in bot.attempts}) == 2)


async def test_410_for_23_hours_deletes_the_webhook(bot: Harness, webhook: Receiver) -> None:
    """Nothing but 410 for more than 23 h: the webhook is gone, the updates stay for getUpdates."""
    webhook.answer = lambda request: Reply(410, {"Retry-After": "3600"})
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    for hour in range(23):
        await bot.until_finished(hour + 1)
        bot.clock.advance(3600)
        if len(bot.attempts) == hour + 1:
            bot.clock.advance(2)
        assert bot.emulator.bot().registration.url
    await bot.until_finished(24)
    if bot.emulator.bot().registration.url:  # exactly 23 h is not yet more
        bot.clock.advance(3600)
        bot.clock.advance(2)
        await bot.until_finished(25)
    assert (await bot.info())["url"] == ""
    bot.send("later")
    updates = (await bot.call("getUpdates"))["result"]
    assert [update["message"]["text"] for update in updates][-1] == "later"


@pytest.mark.parametrize("status", [500, 200])
async def test_410_with_another_answer_between_does_not_delete_the_webhook(
    bot: Harness, webhook: Receiver, status: int
) -> None:
    """One other answer among the 410s, a failure or a success, and the 23 h begin anew."""
    webhook.answer = lambda request: Reply(
        status if len(webhook.requests) == 12 else 410, {"Retry-After": "3600"}
    )
    await bot.set_webhook(webhook.url)
    start = bot.clock.monotonic()
    bot.send("hello")
    while True:
        attempt = await bot.until_settled()
        if bot.clock.monotonic() > start + 23 * 3600:
            break
        if attempt.outcome is Outcome.DELIVERED:
            bot.send("hello again")
        else:
            await bot.pass_delay(attempt)
    statuses = [attempt.status for attempt in bot.attempts]
    assert statuses == [410] * 11 + [status] + [410] * (len(statuses) - 12)
    assert (await bot.info())["url"] == webhook.url


async def test_re_registration_sends_what_was_in_flight_again(bot: Harness, webhook: Receiver) -> None:
    """A changed parameter closes running deliveries: whoever had taken the update gets a duplicate."""
    webhook.answer = lambda request: None
    await bot.set_webhook(webhook.url, secret_token="before")
    update_id = bot.send("hello")
    await webhook.until_count(1)
    await bot.set_webhook(webhook.url, secret_token="after")
    await webhook.until_count(2)
    assert [request.update["update_id"] for request in webhook.requests] == [update_id, update_id]
    assert [request.headers["x-telegram-bot-api-secret-token"] for request in webhook.requests] == [
        "before",
        "after",
    ]
    assert bot.attempts[0].outcome is Outcome.ABANDONED
    await webhook.until(lambda: len(webhook.open) == 1)
    webhook.requests[1].answer()
    await bot.until_finished(2)
    assert (await bot.info())["pending_update_count"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"max_connections": 41},
        {"secret_token": "x"},
        {"ip_address": "127.0.0.1"},
        {"allowed_updates": ["poll"]},
    ],
)
async def test_re_registration_with_any_parameter_changed_is_no_no_op(
    bot: Harness, webhook: Receiver, change: dict[str, object]
) -> None:
    """Each parameter counts: the answer is "Webhook was set", and deliveries begin anew."""
    webhook.answer = lambda request: None
    await bot.set_webhook(webhook.url)
    bot.send("hello")
    await webhook.until_count(1)
    await bot.set_webhook(webhook.url, **change)
    await webhook.until_count(2)


async def test_re_registration_with_nothing_changed_is_a_no_op(bot: Harness, webhook: Receiver) -> None:
    """ "Webhook is already set": deliveries go on undisturbed, and nothing is sent twice."""
    webhook.answer = lambda request: None
    parameters: dict[str, Any] = {
        "url": webhook.url,
        "secret_token": "s",
        "max_connections": 40,
        "allowed_updates": [],
    }
    await bot.call("setWebhook", **parameters)
    bot.send("hello")
    await webhook.until_count(1)
    bot.clock.advance(1)
    again = await bot.call("setWebhook", **parameters)
    assert again == {"ok": True, "result": True, "description": "Webhook is already set"}
    webhook.requests[0].answer()
    attempt = await bot.until_finished(1)
    assert attempt.outcome is Outcome.DELIVERED
    assert len(bot.attempts) == 1


async def test_update_id_grows_by_one_and_restarts_at_random_after_a_week(
    bot: Harness, webhook: Receiver
) -> None:
    """n, n + 1, n + 2; after a week without updates some other number."""
    await bot.set_webhook(webhook.url)
    first = bot.send("1")
    assert [bot.send("2"), bot.send("3")] == [first + 1, first + 2]
    await bot.until_finished(3)
    bot.clock.advance(7 * 86_400 + 1)
    assert bot.send("4") not in range(first, first + 1000)


async def test_dns_is_cached_for_30_minutes(webhook: Receiver) -> None:
    """A host's address is looked up when the webhook is set, and again after 30 minutes (at most 33)."""
    asked: list[tuple[str, int]] = []

    class Resolver:
        async def resolve(self, host: str, port: int) -> str:
            asked.append((host, port))
            return "127.0.0.1"

    async with Harness(resolver=Resolver()) as bot:
        await bot.set_webhook(f"http://bot.example:{webhook.port}/")
        bot.send("hello")
        await bot.until_finished(1)
        assert webhook.requests[0].headers["host"] == "bot.example"
        bot.clock.advance(29 * 60)
        bot.send("again")
        await bot.until_finished(2)
        assert asked == [("bot.example", webhook.port)]
        bot.clock.advance(4 * 60 + 1)
        bot.send("and again")
        await bot.until_finished(3)
        assert asked == [("bot.example", webhook.port)] * 2
