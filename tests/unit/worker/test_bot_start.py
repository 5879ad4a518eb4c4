"""What a bot's start tells of a flood limit or of a refusal that getMe met. In virtual time."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import telegram.error as te
from structlog.testing import capture_logs
from telegram.ext import ApplicationBuilder
from telegram.request import BaseRequest

from shared import wire
from tests.unit.worker import virtual_time
from tests.unit.worker.term_world import LEAD, World
from webhook_worker.bot import Bot
from webhook_worker.bot_start import StartTimedOut
from webhook_worker.failures import classify
from webhook_worker.outcomes import Failed, Transient

ME = {"id": 7, "is_bot": True, "first_name": "menu", "username": "menu_bot"}


class ScriptedTelegram(BaseRequest):
    """Answers getMe as it is told to, one answer after the other: seconds to wait, a refusal, or the bot; then never again."""

    def __init__(self, *answers: int | str | dict[str, Any]) -> None:
        self._answers: Iterator[int | str | dict[str, Any]] = iter(answers)
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
            case str(description):
                return 401, json.dumps({"ok": False, "error_code": 401, "description": description}).encode()
            case dict(me):
                return 200, json.dumps({"ok": True, "result": me}).encode()
            case _:
                await asyncio.Event().wait()
                raise AssertionError


def builder_for(telegram: ScriptedTelegram) -> Any:
    """A bot that knows nobody else."""
    builder = ApplicationBuilder().token("7:t").request(telegram).get_updates_request(ScriptedTelegram())
    return builder.updater(None)


async def start(telegram: ScriptedTelegram, *, hangs: bool = False) -> tuple[Exception, Bot, float]:
    """What `initialize` raises, the bot, and how long it took."""

    async def post_init(app: Any) -> None:
        if hangs:
            await asyncio.Event().wait()

    bot = Bot(builder_for(telegram).post_init(post_init).build(), redact=str, limit_seconds=45.0)
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


@pytest.mark.parametrize("beats", [False, True])
def test_b24_a_refused_token_is_told_by_the_term_whatever_a_beat_takes_meanwhile(beats: bool) -> None:
    """Between the refusal and the word of it the bot is stopped, which takes as long as its hooks like: beats come, and ask
    for the refusals of handlers. It is told once, before the failure, and logged as what it is, without a traceback."""

    async def main() -> None:
        world = World()
        taken: list[bool] = []

        async def post_shutdown(app: Any) -> None:
            if beats:
                taken.append(bot.take_token_refused())

        bot = Bot(
            builder_for(ScriptedTelegram("Unauthorized")).post_shutdown(post_shutdown).build(), redact=str
        )
        with capture_logs() as lines:
            await world.term_of(bot).lead(LEAD)
        reason = (
            "InvalidToken: Telegram does not know the token in TELEGRAM_BOT_TOKEN; "
            "set the current one from @BotFather"
        )
        assert world.told == [wire.TokenRefused(), wire.LeadFailed(reason)]
        (line,) = [line for line in lines if line["event"] == "the bot does not start"]
        assert line["reason"] == reason
        assert "exc_info" not in line
        assert taken == [False] * beats

    virtual_time.run(main)
