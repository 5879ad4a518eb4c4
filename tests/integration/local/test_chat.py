"""The chat at the terminal, against a real emulator and a bot that the test plays by hand."""

from __future__ import annotations

import asyncio
import json
import os
import pty

import httpx

from deploy.local.chat import USER_ID, Chat, read_lines, wait_closed
from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator_process import RunningEmulator


async def call(running: RunningEmulator, method: str, **parameters: object) -> None:
    """A call of the bot's."""
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{running.base_url}/bot{running.token}/{method}", json=parameters)
    assert answer.json()["ok"] is True, answer.text


async def updates(running: RunningEmulator) -> list[dict[str, object]]:
    """What the bot has been told."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{running.base_url}/bot{running.token}/getUpdates")
    return list(answer.json()["result"])


async def test_a_line_is_a_message_and_a_number_a_button(
    running_emulator: RunningEmulator, emulator: EmulatorClient
) -> None:
    """Numbers run through the rows; a number without a button, and everything else, is text."""
    shown: list[str] = []
    news = asyncio.Event()

    def show(text: str) -> None:
        shown.append(text)
        news.set()

    chat = Chat(emulator, show)
    following = asyncio.create_task(chat.follow(0))
    try:
        await chat.say("7\n")
        keyboard = [[{"text": "One", "callback_data": "a"}], [{"text": "Two", "callback_data": "b"}]]
        await call(
            running_emulator,
            "sendMessage",
            chat_id=USER_ID,
            text="Menu\nChoose",
            reply_markup=json.dumps({"inline_keyboard": keyboard}),
        )
        async with asyncio.timeout(30):
            await news.wait()
        assert shown == ["bot: Menu\n     Choose\n     [1] One\n     [2] Two"]
        await chat.say("  2 ")
        await chat.say("")
        first, second = await updates(running_emulator)
        assert first["message"]["text"] == "7"  # type: ignore[index]
        assert second["callback_query"]["data"] == "b"  # type: ignore[index]
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_lines_are_read_from_a_terminal_until_its_end() -> None:
    """Several in one piece, one in several pieces, and Ctrl-D."""
    controller, terminal = pty.openpty()
    try:
        os.write(controller, b"/start\n1\nhel")
        lines = read_lines(terminal)
        async with asyncio.timeout(30):
            assert [await anext(lines), await anext(lines)] == ["/start", "1"]
            os.write(controller, b"lo\n\x04")
            assert [line async for line in lines] == ["hello"]
    finally:
        os.close(controller)
        os.close(terminal)


async def test_a_terminal_that_answers_reads_with_an_error_has_no_more_lines() -> None:
    """As one does whose other side is gone, or that is another session's; it is asked once."""
    controller, terminal = pty.openpty()
    troubles: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    try:
        os.write(terminal, b"/start\n")
        lines = read_lines(controller)
        async with asyncio.timeout(30):
            assert (await anext(lines)).strip() == "/start"
            os.close(terminal)
            assert [line async for line in lines] == []
    finally:
        os.close(controller)
    assert troubles == []


async def test_a_terminal_is_gone_when_its_other_side_is_and_not_before() -> None:
    """Ctrl-D is no end of it."""
    controller, terminal = pty.openpty()
    waiting = asyncio.create_task(wait_closed(terminal))
    try:
        os.write(controller, b"\x04")
        assert os.read(terminal, 1) == b""
        done, _ = await asyncio.wait({waiting}, timeout=1.5)
        assert not done
        os.close(controller)
        async with asyncio.timeout(30):
            await waiting
    finally:
        waiting.cancel()
        os.close(terminal)
