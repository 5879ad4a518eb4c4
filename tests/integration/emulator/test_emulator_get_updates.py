"""TELEGRAM.md, "getUpdates", and the form of its conflicts."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.integration.emulator.harness import Harness
from tests.integration.emulator.receiver import Receiver

OTHER = "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
ACTIVE = "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"


def _poll(bot: Harness, **parameters: Any) -> asyncio.Task[dict[str, Any]]:
    return asyncio.create_task(bot.call("getUpdates", **parameters))


async def _until_called(bot: Harness, count: int) -> None:
    """Until the server has seen that many getUpdates."""
    calls = bot.emulator.control.calls

    def seen() -> int:
        return len(calls.after(0, limit=99, matching=lambda call: call.method == "getUpdates"))

    assert await calls.wait(lambda: seen() >= count and bot.emulator.bot().is_polling, 20)


async def test_get_updates_acknowledges_every_update_below_offset(bot: Harness) -> None:
    """Without an offset everything stays; offset n forgets what is below n."""
    first, second, third = bot.send("1"), bot.send("2"), bot.send("3")

    async def poll(**parameters: Any) -> list[int]:
        bot.clock.advance(4)
        return [update["update_id"] for update in (await bot.call("getUpdates", **parameters))["result"]]

    assert await poll() == [first, second, third]
    assert await poll(limit=2) == [first, second]
    assert await poll(offset=second) == [second, third]
    assert await poll(offset=0) == [second, third]
    assert await poll(offset=-1) == [third]
    assert await poll(offset=third + 1) == []
    assert (await bot.info())["pending_update_count"] == 0


async def test_get_updates_waits_for_the_first_update(bot: Harness) -> None:
    """Long polling: the answer comes with the update, or empty after `timeout`."""
    poll = _poll(bot, timeout=30)
    await _until_called(bot, 1)
    update_id = bot.send("hello")
    assert [update["update_id"] for update in (await poll)["result"]] == [update_id]
    poll = _poll(bot, offset=update_id + 1, timeout=30)
    await _until_called(bot, 2)
    bot.clock.advance(29.9)
    assert not poll.done()
    bot.clock.advance(0.1)
    assert (await poll)["result"] == []


async def test_get_updates_with_a_webhook_is_409(bot: Harness, webhook: Receiver) -> None:
    """A webhook that is set answers 409, and works again once it is deleted."""
    await bot.set_webhook(webhook.url)
    answer = await bot.call("getUpdates")
    assert (answer["error_code"], answer["description"]) == (409, ACTIVE)
    await bot.call("deleteWebhook")
    assert (await bot.call("getUpdates"))["ok"]


async def test_get_updates_with_a_webhook_being_set_is_409() -> None:
    """The same while setWebhook is still under way."""

    class Never:
        async def resolve(self, host: str, port: int) -> str:
            never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            return await never

    async with Harness(resolver=Never()) as bot:
        setting = asyncio.create_task(bot.call("setWebhook", url="http://bot.example/"))
        calls = bot.emulator.control.calls
        assert await calls.wait(lambda: bool(bot.emulator.bot().registration.url), 20)
        assert (await bot.call("getUpdates"))["description"] == ACTIVE
        await bot.call("deleteWebhook")
        bot.clock.advance(3)
        assert (await setting)["error_code"] == 409


async def test_second_get_updates_ends_the_first_with_409(bot: Harness) -> None:
    """The first hears that it was ended; the second gets the updates."""
    first = _poll(bot, timeout=30)
    await _until_called(bot, 1)
    second = _poll(bot, timeout=30)
    answer = await first
    assert (answer["error_code"], answer["description"]) == (409, OTHER)
    await _until_called(bot, 2)
    update_id = bot.send("hello")
    assert [update["update_id"] for update in (await second)["result"]] == [update_id]


async def test_the_same_409_is_delayed_by_3_s_when_it_repeats(bot: Harness, webhook: Receiver) -> None:
    """The second within 3 s is held back for 3 s; one that comes later is prompt again."""
    await bot.set_webhook(webhook.url)
    assert (await bot.call("getUpdates"))["error_code"] == 409
    calls = bot.emulator.control.calls
    before = calls.last_seq
    repeated = _poll(bot)
    assert await calls.wait(lambda: calls.last_seq > before and bot.clock.next_timer_in() == 3.0, 20)
    bot.clock.advance(2.99)
    assert calls.after(before, limit=1)[0].status is None
    bot.clock.advance(0.01)
    assert (await repeated)["error_code"] == 409
    bot.clock.advance(3)
    assert (await bot.call("getUpdates"))["error_code"] == 409


async def test_set_webhook_ends_a_waiting_get_updates_with_409(bot: Harness, webhook: Receiver) -> None:
    """A poll that waits when a webhook is set is ended."""
    poll = _poll(bot, timeout=30)
    await _until_called(bot, 1)
    await bot.set_webhook(webhook.url)
    answer = await poll
    assert (answer["error_code"], answer["description"]) == (
        409,
        "Conflict: terminated by setWebhook request",
    )


async def test_a_poll_that_does_not_acknowledge_cannot_spin(bot: Harness) -> None:
    """The same offset again within 3 s, with nothing there, waits 3 s although its timeout is 0."""
    assert (await bot.call("getUpdates"))["result"] == []
    again = _poll(bot)
    await _until_called(bot, 2)
    bot.clock.advance(3)
    assert (await again)["result"] == []


async def test_get_updates_after_a_webhook_brings_what_it_left(bot: Harness, webhook: Receiver) -> None:
    """Updates that were never answered with a 2xx are there for getUpdates, under their numbers."""
    webhook.answer = lambda request: None
    await bot.set_webhook(webhook.url)
    update_id = bot.send("hello")
    await webhook.until_count(1)
    await bot.call("deleteWebhook")
    assert [update["update_id"] for update in (await bot.call("getUpdates"))["result"]] == [update_id]
