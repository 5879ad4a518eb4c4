"""What a bot's start tells of a flood limit that getMe met. In virtual time."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import telegram.error as te
from telegram.ext import ApplicationBuilder
from telegram.request import BaseRequest

from tests.unit.worker import virtual_time
from webhook_worker.bot import Bot, StartTimedOut
from webhook_worker.outcomes import Failed, Transient, classify

ME = {"id": 7, "is_bot": True, "first_name": "menu", "username": "menu_bot"}


class ScriptedTelegram(BaseRequest):
    """Answers getMe as it is told to, one answer after the other: seconds to wait, or the bot; then never again."""

    def __init__(self, *answers: int | dict[str, Any]) -> None:
        self._answers: Iterator[int | dict[str, Any]] = iter(answers)
        self.asked_at: list[float] = []

    @property
    def read_timeout(self) -> float | None:
        """None: the bot waits for as long as it may."""
        return None

    async def initialize(self) -> None:
        """Nothing to open."""

    async def shutdown(self) -> None:
        """Nothing to close."""

    async def do_request(self, *args: Any, **options: Any) -> tuple[int, bytes]:
        """getMe; nothing else is called."""
        self.asked_at.append(virtual_time.now())
        match next(self._answers, None):
            case int(seconds):
                told = {"retry_after": seconds}
                refusal = {"ok": False, "error_code": 429, "description": "Too Many", "parameters": told}
                return 429, json.dumps(refusal).encode()
            case dict(me):
                return 200, json.dumps({"ok": True, "result": me}).encode()
            case _:
                await asyncio.Event().wait()
                raise AssertionError


async def start(telegram: ScriptedTelegram, *, hangs: bool = False) -> tuple[Exception, Bot, float]:
    """What `initialize` raises, the bot, and how long it took."""

    async def post_init(app: Any) -> None:
        if hangs:
            await asyncio.Event().wait()

    builder = ApplicationBuilder().token("7:t").request(telegram).get_updates_request(ScriptedTelegram())
    bot = Bot(builder.updater(None).post_init(post_init).build(), redact=str, limit_seconds=45.0)
    began_at = virtual_time.now()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # python-telegram-bot's own, about retry_after
        with pytest.raises(Exception) as caught:
            await bot.initialize()
        taken = virtual_time.now() - began_at
        await bot.stop()
    return caught.value, bot, taken


def test_b23_a_limit_that_was_waited_out_is_not_told_again() -> None:
    """The next getMe hangs until the start is over: what is told is that, or the next worker waits as long once more."""

    async def main() -> None:
        telegram = ScriptedTelegram(40)
        error, bot, taken = await start(telegram)
        assert [at - telegram.asked_at[0] for at in telegram.asked_at] == [0.0, 40.0]
        assert taken == 45.0
        assert isinstance(error, te.TimedOut)
        verdict = classify(error)
        assert isinstance(verdict, Transient)
        assert verdict.retry_after_seconds is None
        assert not bot.is_identified

    virtual_time.run(main)


def test_b23_nor_is_it_where_post_init_hangs_after_it() -> None:
    """Nothing outside is known to be away."""

    async def main() -> None:
        error, bot, _ = await start(ScriptedTelegram(40, ME), hangs=True)
        assert isinstance(error, StartTimedOut)
        assert isinstance(classify(error), Failed)
        assert bot.is_identified, "getMe was answered, and stays so after the stop"

    virtual_time.run(main)


def test_b23_of_two_limits_the_one_that_the_start_has_no_time_for_is_told() -> None:
    """At once, and as it was told; until getMe is answered it is getMe's."""

    async def main() -> None:
        error, bot, taken = await start(ScriptedTelegram(40, 6))
        assert taken == 40.0
        assert isinstance(error, te.RetryAfter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict = classify(error)
        assert isinstance(verdict, Transient)
        assert verdict.retry_after_seconds == 6.0
        assert not bot.is_identified

    virtual_time.run(main)
