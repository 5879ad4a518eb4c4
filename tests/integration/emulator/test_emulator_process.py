"""The emulator as a process, and python-telegram-bot as its client."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from telegram import Bot, InlineKeyboardButton, InlineKeyboardMarkup, InputFile, Update
from telegram.error import BadRequest, Conflict, InvalidToken
from telegram.ext import Application, CallbackQueryHandler, CommandHandler, ContextTypes

from deploy.local.emulator import DEFAULT_TOKEN, Emulator, EmulatorClient

ROOT = Path(__file__).parents[3]


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-m", "deploy.local.emulator", "--port", "0", "--token", DEFAULT_TOKEN]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as started:
        try:
            assert started.stdout is not None
            yield started, json.loads(started.stdout.readline())
        finally:
            started.kill()


async def test_process_says_its_address_and_ends_on_sigterm(
    process: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    """One JSON line, then silence: no token, nothing else; SIGTERM ends it with 0."""
    started, address = process
    async with EmulatorClient(address["base_url"]) as client:
        assert (await client.state()).control_url == address["control_url"]
    bot = Bot(DEFAULT_TOKEN, base_url=f"{address['base_url']}/bot")
    async with bot:
        assert (await bot.get_me()).id == address["bot_ids"][0]
    started.send_signal(signal.SIGTERM)
    rest, _ = await asyncio.to_thread(started.communicate, timeout=30)
    assert (rest, started.returncode) == ("", 0)


async def test_python_telegram_bot_as_a_client() -> None:
    """getMe, messages with keyboards, edits, uploads, commands, webhooks, and errors under their classes."""
    async with Emulator(seed=1) as emulator, emulator.client() as client:
        async with Bot(DEFAULT_TOKEN, base_url=f"{emulator.base_url}/bot") as bot:
            assert bot.username == "emulated_123456789_bot"
            await client.send_text(7, "hi")
            markup = InlineKeyboardMarkup([[InlineKeyboardButton("Go", callback_data="go")]])
            message = await bot.send_message(7, "menu", reply_markup=markup)
            assert message.reply_markup == markup
            with pytest.raises(BadRequest, match="Message is not modified"):
                await message.edit_text("menu", reply_markup=markup)
            await message.edit_text("other")
            document = await bot.send_document(7, InputFile(b"content", filename="a.txt"), caption="file")
            assert document.document is not None
            assert document.document.file_size == 7
            await bot.set_my_commands([("start", "Start")])
            assert [command.command for command in await bot.get_my_commands()] == ["start"]
            assert (await bot.get_chat(7)).type == "private"
            assert (await bot.get_webhook_info()).url == ""
            with pytest.raises(BadRequest, match="Chat not found"):
                await bot.send_message(8, "x")
            await bot.set_webhook("http://127.0.0.1:9/x", secret_token="s", allowed_updates=["message"])
            assert list((await bot.get_webhook_info()).allowed_updates) == ["message"]
            with pytest.raises(Conflict, match="webhook is active"):
                await bot.get_updates()
        wrong = Bot("123456789:wrong", base_url=f"{emulator.base_url}/bot")
        with pytest.raises(InvalidToken):
            await wrong.initialize()
        await wrong.request.shutdown()


async def test_python_telegram_bot_application_polls() -> None:
    """An Application on getUpdates: a command is answered with a keyboard, a press with an edit."""

    async def start(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        assert update.message is not None
        markup = InlineKeyboardMarkup([[InlineKeyboardButton("Go", callback_data="go")]])
        await update.message.reply_text("menu", reply_markup=markup)

    async def press(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        assert update.callback_query is not None
        await update.callback_query.answer("done")
        await update.callback_query.edit_message_text(f"you pressed {update.callback_query.data}")

    async with Emulator(seed=1) as emulator, emulator.client() as client:
        application = Application.builder().token(DEFAULT_TOKEN).base_url(f"{emulator.base_url}/bot").build()
        application.add_handler(CommandHandler("start", start))
        application.add_handler(CallbackQueryHandler(press))
        async with application:
            await application.start()
            assert application.updater is not None
            await application.updater.start_polling(poll_interval=0.0, timeout=5)
            await client.send_text(7, "/start")
            menu = await client.wait_for_message(7, after=0, timeout_seconds=20)
            assert menu.keyboard == [["Go"]]
            after = await client.last_event_seq()
            await client.press(7, text="Go")
            edited = await client.wait_for_message(7, after=after, timeout_seconds=20)
            assert edited.text == "you pressed go"
            assert await client.wait_idle(timeout_seconds=20)
            await application.updater.stop()
            await application.stop()
