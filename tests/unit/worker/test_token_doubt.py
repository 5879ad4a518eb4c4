"""When Telegram is asked whose token it refused, and what its answers mean. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
import telegram.error as te

from tests.unit.worker import virtual_time
from webhook_worker.token_doubt import TokenDoubt

OWN = te.InvalidToken("Unauthorized")


class Telegram:
    """Answers getMe each time as it was told to the last time: with the bot, by an exception, or never."""

    def __init__(self) -> None:
        self.answer: Exception | None = None
        self.is_silent = False
        self.asked = 0

    async def get_me(self) -> None:
        self.asked += 1
        await asyncio.sleep(100.0 if self.is_silent else 0.1)
        if self.answer is not None:
            raise self.answer


def in_doubt(main: Callable[[Telegram, TokenDoubt], Coroutine[Any, Any, None]]) -> None:
    """Runs it in virtual time."""

    async def run() -> None:
        telegram = Telegram()
        await main(telegram, TokenDoubt(cast(Any, SimpleNamespace(bot=telegram))))

    virtual_time.run(run)


@pytest.mark.parametrize(
    ("answer", "is_own"),
    [
        (OWN, True),
        (None, False),
        (te.InvalidToken("Unauthorized (401). Parsing the server response b'<html>' failed"), False),
        (te.NetworkError("Bad Gateway"), False),
        (te.TimedOut(), False),
    ],
)
def test_b24_only_a_refusal_of_getme_says_that_it_is_the_bots_own(
    answer: Exception | None, is_own: bool
) -> None:
    """What a proxy says, or nobody, is no word of Telegram."""

    async def main(telegram: Telegram, doubt: TokenDoubt) -> None:
        telegram.answer = answer
        assert await doubt.is_own() is is_own

    in_doubt(main)


def test_b24_many_that_are_refused_at_once_ask_once_and_again_only_when_the_answer_is_old() -> None:
    """A token that is refused is refused to every handler; Telegram is not hammered for it, and may change its word."""

    async def main(telegram: Telegram, doubt: TokenDoubt) -> None:
        telegram.answer = OWN
        assert await asyncio.gather(*(doubt.is_own() for _ in range(5))) == [True] * 5
        telegram.answer = None
        await asyncio.sleep(19.0)
        assert await doubt.is_own()
        assert telegram.asked == 1
        await asyncio.sleep(1.0)
        assert not await doubt.is_own()
        assert telegram.asked == 2

    in_doubt(main)


def test_b24_an_answer_that_does_not_come_holds_nobody_for_long() -> None:
    """The update that was refused is tried again anyway."""

    async def main(telegram: Telegram, doubt: TokenDoubt) -> None:
        telegram.is_silent = True
        began_at = virtual_time.now()
        assert not await doubt.is_own()
        assert virtual_time.now() - began_at == 10.0

    in_doubt(main)
