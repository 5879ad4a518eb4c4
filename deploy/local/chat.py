"""A chat with the bot at the terminal: a line is a message, a number presses a button.

The chat itself (`Chat`) is text in, text out; `read_lines` is the terminal. Buttons are numbered from 1
through the latest message that has any, row by row.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator.control_messages import ChatMessage, UserProfile, describe_message
from deploy.local.emulator.errors import ControlError
from deploy.local.emulator.journal import BotEvent

USER_ID = 1001
PROFILE = UserProfile(first_name="You", username="you", language_code="en")
# How long one question to the emulator for news waits before it is asked again.
_POLL_SECONDS = 25.0
_CLOSED_LOOK_SECONDS = 0.5


class Chat:
    """One user's side of a private chat.

    Attributes:
        show: gets what is to be printed, a line or several.
    """

    def __init__(self, emulator: EmulatorClient, show: Callable[[str], None]) -> None:
        """Does nothing yet."""
        self._emulator = emulator
        self._buttons: list[dict[str, Any]] = []
        self._buttons_message_id = 0
        self.show = show

    async def say(self, line: str) -> None:
        """Does what a typed line means: a message, or the press of a button."""
        text = line.strip()
        if not text:
            return
        try:
            if text.isdecimal() and 1 <= int(text) <= len(self._buttons):
                await self._press(self._buttons[int(text) - 1])
            else:
                await self._emulator.send_text(USER_ID, text, profile=PROFILE)
        except ControlError as error:
            self.show(f"   ! {error}")

    async def follow(self, after: int) -> None:
        """Shows what the bot does from now on; runs until it is cancelled.

        Args:
            after: the number of the last event that is not news.
        """
        while True:
            events = await self._emulator.events(after=after, chat_id=USER_ID, timeout_seconds=_POLL_SECONDS)
            for event in events:
                after = event.seq
                self._show_event(event)

    async def _press(self, button: dict[str, Any]) -> None:
        if "callback_data" not in button:
            self.show(f"   (opens {button.get('url', 'something outside the chat')})")
            return
        await self._emulator.press(USER_ID, data=button["callback_data"], message_id=self._buttons_message_id)

    def _show_event(self, event: BotEvent) -> None:
        if event.kind in ("sent", "edited") and event.message is not None:
            message = describe_message(event.message, event.bot_id)
            self.show(self._format(message, "bot, edited" if event.kind == "edited" else "bot"))
        elif event.kind == "callback_answered" and event.details.get("text"):
            self.show(f"   ({event.details['text']})")

    def _format(self, message: ChatMessage, who: str) -> str:
        lines = [f"{who}: {message.text}".replace("\n", "\n     ")]
        rows = message.raw.get("reply_markup", {}).get("inline_keyboard", [])
        if rows:
            self._buttons = [button for row in rows for button in row]
            self._buttons_message_id = message.message_id
            number = 0
            for row in rows:
                words = []
                for button in row:
                    number += 1
                    words.append(f"[{number}] {button['text']}")
                lines.append("     " + "   ".join(words))
        return "\n".join(lines)


async def wait_closed(terminal: int) -> None:
    """Returns when a terminal is gone: its window was closed, or its connection lost.

    SIGHUP does not always tell. It goes to the leader of the session, and that may be a `make` which only waits for us. A read
    does not tell either: it ends as at Ctrl-D, and one that fails may be of a terminal that is not ours to read.
    """
    while os.isatty(terminal):  # noqa: ASYNC110 - nobody can tell us
        await asyncio.sleep(_CLOSED_LOOK_SECONDS)


async def read_lines(descriptor: int) -> AsyncIterator[str]:
    """The lines that are typed, until the end of the file (Ctrl-D), or of the terminal."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()

    def read() -> None:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:
            chunk = b""  # a terminal whose other side is gone, or that is not ours to read
        if not chunk:
            loop.remove_reader(descriptor)
        chunks.put_nowait(chunk)

    # Not `connect_read_pipe`, which would make the terminal non-blocking for everybody who has it open.
    loop.add_reader(descriptor, read)
    try:
        pending = b""
        while chunk := await chunks.get():
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
    finally:
        loop.remove_reader(descriptor)
