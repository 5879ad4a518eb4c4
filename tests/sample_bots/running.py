"""Runs a bot as the worker does, without one."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from telegram.ext import Application, ApplicationBuilder
from telegram.request import HTTPXRequest

from tests.sample_bots.settings import TOKEN
from webhook_worker.bot import Bot

AnyBuilder = ApplicationBuilder[Any, Any, Any, Any, Any, Any]
AnyApplication = Application[Any, Any, Any, Any, Any, Any]

ResultT = TypeVar("ResultT")

LIMIT_SECONDS = 20.0
"""On a hang; nothing here takes a second."""

_update_ids = itertools.count(1)


def builder_for(api_url: str) -> AnyBuilder:
    """Like what `bot_app` gives to a callable; without certificates, which take a fifth of a second to load."""
    requests = [HTTPXRequest(httpx_kwargs={"verify": False}) for _ in range(2)]
    builder = ApplicationBuilder().token(TOKEN).base_url(f"{api_url}/bot").updater(None)
    return builder.request(requests[0]).get_updates_request(requests[1])


@asynccontextmanager
async def running(
    app: AnyApplication, *, started: bool = True, redact: Callable[[str], str] = str
) -> AsyncIterator[Bot]:
    """The application as an initialised, and usually started, bot; stopped afterwards."""
    bot = Bot(app, redact=redact)
    try:
        await bot.initialize()
        if started:
            await bot.start()
        yield bot
    finally:
        await bot.stop()


def body(kind: str = "message", **fields: Any) -> bytes:
    """An update as Telegram sends it: a private message of user 7, unless the fields say otherwise."""
    content = {
        "message_id": 1,
        "date": 1,
        "chat": {"id": 7, "type": "private"},
        "from": {"id": 7, "is_bot": False, "first_name": "U"},
        **({"text": "hello"} if kind == "message" else {}),
        **fields,
    }
    return json.dumps({"update_id": next(_update_ids), kind: content}).encode()


def command(text: str) -> bytes:
    """A message that begins with a command."""
    length = len(text.split(" ")[0])
    return body(text=text, entities=[{"type": "bot_command", "offset": 0, "length": length}])


async def until(condition: Callable[[], object]) -> None:
    """Waits for a condition that other tasks bring about."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


async def within_limit(awaitable: Awaitable[ResultT]) -> ResultT:
    """The result, unless it hangs."""
    async with asyncio.timeout(LIMIT_SECONDS) as limit:
        result = await awaitable
    assert not limit.expired(), "it hung, and ended when it was cancelled"
    return result
