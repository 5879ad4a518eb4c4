"""What bots send and what users see: the methods about messages, and the control API's other half."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deploy.local.emulator import EmulatorClient
from deploy.local.emulator.control_messages import SendText, UserProfile
from deploy.local.emulator.errors import ControlError
from tests.integration.emulator.harness import Harness
from tests.integration.emulator.receiver import Receiver, Reply

KEYBOARD = {
    "inline_keyboard": [[{"text": "One", "callback_data": "1"}, {"text": "Two", "callback_data": "2"}]]
}


@pytest.fixture
async def client(bot: Harness) -> AsyncIterator[EmulatorClient]:
    async with bot.emulator.client() as client:
        yield client


async def _refused(bot: Harness, method: str, **parameters: Any) -> str:
    answer = await bot.call(method, **parameters)
    assert answer["error_code"] == 400
    return str(answer["description"])


async def test_send_message_refuses_what_the_real_server_refuses(bot: Harness) -> None:
    """Empty text, unknown chat, too long, broken markup, bad buttons: 400 in the server's words."""
    bot.send("hi")
    button = {"inline_keyboard": [[{"text": "x", "callback_data": "é" * 33}]]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"chat_id": 7}, "Bad Request: message text is empty"),
        ({"chat_id": 7, "text": "  "}, "Bad Request: text must be non-empty"),
        ({"chat_id": 8, "text": "x"}, "Bad Request: chat not found"),
        ({"text": "x"}, "Bad Request: chat_id is empty"),
        ({"chat_id": 7, "text": "x" * 4097}, "Bad Request: message is too long"),
        ({"chat_id": 7, "text": "x", "reply_markup": button}, "Bad Request: BUTTON_DATA_INVALID"),
        (
            {"chat_id": 7, "text": "x", "reply_markup": "{"},
            "Bad Request: can't parse reply keyboard markup JSON object",
        ),
        (
            {"chat_id": 7, "text": "x", "reply_markup": {"inline_keyboard": [[{"text": "x"}]]}},
            "Bad Request: can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard",
        ),
        (
            {"chat_id": 7, "text": "x", "reply_parameters": {"message_id": 99}},
            "Bad Request: message to be replied not found",
        ),
        (
            {"chat_id": 7, "text": "<b>x", "parse_mode": "HTML"},
            "Bad Request: can't parse entities: Can't find end tag corresponding to start tag \"b\"",
        ),
    ]
    for parameters, description in cases:
        assert await _refused(bot, "sendMessage", **parameters) == description
    assert (await bot.call("sendMessage", chat_id=7, text="x" * 4096))["ok"]


async def test_edits_refuse_what_the_real_server_refuses(bot: Harness) -> None:
    """The same content, an unknown message, a user's message: 400 in the server's words."""
    message_id = bot.emulator.control.send_text(SendText(7, "hi")).message_id
    own = (await bot.call("sendMessage", chat_id=7, text="menu", reply_markup=KEYBOARD))["result"][
        "message_id"
    ]
    same: dict[str, Any] = {"chat_id": 7, "message_id": own, "text": "menu", "reply_markup": KEYBOARD}
    assert (await _refused(bot, "editMessageText", **same)).startswith("Bad Request: message is not modified")
    assert await _refused(bot, "editMessageText", **{**same, "message_id": 99}) == (
        "Bad Request: message to edit not found"
    )
    assert await _refused(bot, "editMessageText", **{**same, "message_id": message_id}) == (
        "Bad Request: message can't be edited"
    )
    assert (
        await _refused(bot, "editMessageText", **{**same, "text": ""}) == "Bad Request: message text is empty"
    )
    edited = (await bot.call("editMessageText", **{**same, "text": "other"}))["result"]
    assert (edited["text"], "edit_date" in edited) == ("other", True)
    without = (await bot.call("editMessageReplyMarkup", chat_id=7, message_id=own))["result"]
    assert "reply_markup" not in without
    assert (await bot.call("deleteMessage", chat_id=7, message_id=own))["result"] is True
    assert await _refused(bot, "deleteMessage", chat_id=7, message_id=own) == (
        "Bad Request: message to delete not found"
    )


async def test_a_user_talks_presses_and_sees(bot: Harness, client: EmulatorClient, webhook: Receiver) -> None:
    """Text and press become updates; the bot's message, edit and answer are seen, in order, by who waits for them."""
    await bot.set_webhook(webhook.url)
    sent = await client.send_text(7, "/start now", profile=UserProfile(first_name="Ada", username="ada"))
    await webhook.until_count(1)
    message = webhook.requests[0].update["message"]
    assert (message["message_id"], message["from"]["first_name"]) == (sent.message_id, "Ada")
    assert message["chat"] == {"id": 7, "type": "private", "first_name": "Ada", "username": "ada"}
    assert message["entities"] == [{"type": "bot_command", "offset": 0, "length": 6}]

    after = await client.last_event_seq()
    waiting = asyncio.create_task(client.wait_for_message(7, after=after))
    await bot.call("sendMessage", chat_id=7, text="<b>menu</b>", parse_mode="HTML", reply_markup=KEYBOARD)
    menu = await waiting
    assert (menu.text, menu.keyboard, menu.from_bot) == ("menu", [["One", "Two"]], True)
    assert menu.raw["entities"] == [{"type": "bold", "offset": 0, "length": 4}]

    pressed = await client.press(7, text="Two")
    await webhook.until_count(2)
    query = webhook.requests[1].update["callback_query"]
    assert (query["id"], query["data"], query["message"]["text"]) == (pressed.callback_query_id, "2", "menu")
    await bot.call("answerCallbackQuery", callback_query_id=query["id"], text="ok")
    await bot.call("editMessageText", chat_id=7, message_id=menu.message_id, text="two")
    events = await client.events(after=after)
    assert [(event.kind, event.chat_id) for event in events] == [
        ("sent", 7),
        ("callback_answered", 7),
        ("edited", 7),
    ]
    assert [(message.from_bot, message.text) for message in await client.messages(7)] == [
        (False, "/start now"),
        (True, "two"),
    ]
    with pytest.raises(ControlError, match="no button"):
        await client.press(7, text="Two")
    with pytest.raises(TimeoutError):
        await client.wait_for_message(7, after=events[-1].seq, timeout_seconds=0.05)


async def test_answer_callback_query_knows_its_queries(bot: Harness) -> None:
    """An unknown query, or one older than 150 s, is 400."""
    too_old = "Bad Request: query is too old and response timeout expired or query ID is invalid"
    assert await _refused(bot, "answerCallbackQuery", callback_query_id="1") == too_old
    user = {"id": 7, "is_bot": False, "first_name": "U"}
    bot.inject(callback_query={"id": "1", "from": user, "data": "x"})
    assert (await bot.call("answerCallbackQuery", callback_query_id="1"))["ok"]
    bot.clock.advance(151)
    assert await _refused(bot, "answerCallbackQuery", callback_query_id="1") == too_old


async def test_groups_have_their_own_queue_and_chat(
    bot: Harness, client: EmulatorClient, webhook: Receiver
) -> None:
    """A negative chat_id is a group: type, title, queue by chat."""
    await bot.set_webhook(webhook.url)
    await client.send_text(7, "hello all", chat_id=-100_5_000_000_000)
    await client.send_text(7, "hello few", chat_id=-5)
    await webhook.until_count(2)
    chats = [request.update["message"]["chat"] for request in webhook.requests]
    assert [(chat["id"], chat["type"]) for chat in chats] == [(-1005000000000, "supergroup"), (-5, "group")]
    assert [attempt.queue for attempt in bot.attempts] == ["messages:-1005000000000", "messages:-5"]
    assert (await bot.call("getChat", chat_id=-5))["result"]["title"] == "Group 5"


async def test_other_methods_of_a_usual_bot(bot: Harness) -> None:
    """Files, forwards, copies, actions, pins, reactions, commands."""
    bot.send("hi")
    photo = (await bot.call("sendPhoto", chat_id=7, photo="file-id", caption="look"))["result"]
    assert (photo["caption"], photo["photo"][0]["file_id"]) == ("look", "file-id")
    source = {"chat_id": 7, "from_chat_id": 7, "message_id": photo["message_id"]}
    assert (await bot.call("forwardMessage", **source))["result"]["caption"] == "look"
    assert (await bot.call("copyMessage", **source))["result"].keys() == {"message_id"}
    target = {"chat_id": 7, "message_id": photo["message_id"]}
    assert (await bot.call("editMessageCaption", **target, caption="new"))["result"]["caption"] == "new"
    assert (await bot.call("pinChatMessage", **target))["ok"]
    assert (await bot.call("setMessageReaction", **target, reaction=[{"type": "emoji", "emoji": "x"}]))["ok"]
    assert (await bot.call("sendChatAction", chat_id=7, action="typing"))["ok"]
    assert await _refused(bot, "sendChatAction", chat_id=7, action="dance") == (
        "Bad Request: wrong parameter action in request"
    )
    assert (
        await _refused(bot, "sendDocument", chat_id=7) == "Bad Request: there is no document in the request"
    )
    commands = [{"command": "start", "description": "Start"}]
    assert (await bot.call("setMyCommands", commands=commands, language_code="de"))["ok"]
    assert (await bot.call("getMyCommands"))["result"] == []
    assert (await bot.call("getMyCommands", language_code="de"))["result"] == commands
    assert (await bot.call("deleteMyCommands", language_code="de"))["ok"]
    assert await _refused(bot, "setMyCommands", commands=[{"command": "Up", "description": "x"}]) == (
        "Bad Request: BOT_COMMAND_INVALID"
    )


async def test_inject_unknown_kinds_duplicates_and_raw_bytes(
    bot: Harness, client: EmulatorClient, webhook: Receiver
) -> None:
    """A kind nobody knows, a number that was there, \\u0000, a lone surrogate, and bytes that are no JSON at all."""
    await bot.set_webhook(webhook.url)
    first = await client.inject({"brand_new_kind": {"x": "\u0000"}})
    assert first.update_id is not None
    await client.inject({"message": {"text": "again"}}, update_id=first.update_id)
    raw = rb'{"message":{"text":"\u0000 \ud800","chat":{"id":7},"date":1700000000}}'
    third = await client.inject(raw=raw)
    await client.inject(raw=b"\xff not json", verbatim=True, update_id=5)
    await client.inject({"update_id": 77, "message": {"text": "own number"}})
    await webhook.until_count(5)
    bodies = {request.body for request in webhook.requests}
    assert b'{"update_id":%d,\n"brand_new_kind": {"x": "\\u0000"}}' % first.update_id in bodies
    assert b'{"update_id":%d,\n"message": {"text": "again"}}' % first.update_id in bodies
    assert third.update_id == first.update_id + 1
    assert b'{"update_id":%d,\n%b' % (third.update_id, raw[1:]) in bodies
    assert b"\xff not json" in bodies
    assert await client.wait_idle(timeout_seconds=20)
    assert {attempt.update_id for attempt in bot.attempts} == {first.update_id, third.update_id, 5, 77}


async def test_wait_idle_counts_and_history(bot: Harness, client: EmulatorClient, webhook: Receiver) -> None:
    """Idle is when nothing is pending; the history has each attempt with its times, in both clocks."""
    webhook.answer = lambda request: Reply(503 if len(webhook.requests) == 2 else 200)
    await bot.set_webhook(webhook.url)
    await client.send_many([SendText(chat, "x") for chat in (7, 8, 9)])
    assert await client.wait_idle(timeout_seconds=20)
    counts = await client.counts()
    assert (counts.sent, counts.delivered, counts.attempts, counts.not_2xx) == (3, 3, 4, {"503": 1})
    history = [attempt async for attempt in client.all_deliveries()]
    assert [attempt.seq for attempt in history] == [1, 2, 3, 4]
    for attempt in history:
        assert attempt.finished_monotonic is not None
        assert attempt.finished_monotonic >= attempt.started_monotonic
        assert (attempt.answered_200_at is None) == (attempt.status == 503)
    webhook.answer = lambda request: None
    bot.send("stuck")
    assert not await client.wait_idle(timeout_seconds=0.05)


async def test_wrong_control_calls_say_what_is_wrong(client: EmulatorClient) -> None:
    """4xx with a sentence, never a 500."""
    with pytest.raises(ControlError, match="bot_id must be one of"):
        await client.send_text(7, "x", bot_id=5)
    with pytest.raises(ControlError, match="token"):
        await client.add_bot("nonsense")
    with pytest.raises(ControlError, match="either update or raw"):
        await client.inject()
    assert await client.add_bot("55:second", username="second_bot") == 55
    assert [bot.id for bot in (await client.state()).bots] == [123456789, 55]
