"""Whether Telegram is away, and when it is back: asked by getMe, so that what waits for it need not find out.

    an update fails transiently ──► getMe ─┬─ answered ──► the trouble is of something else: its retries find out
                                           └─ away ──► getMe every 2 s ... ──► answered: two may go at once (claim_plan.py)

The retries find out as well, one of twenty chats within a second or two. With one chat it is up to half a minute (b31), and
to try its update every 2 s would run a handler, with whatever it does before it fails, 1,600 times in an hour.

Not promised: anything where getMe is answered and another call is not, or where another service is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import NoReturn

from shared import log
from shared.errors import RetryLater, TelegramError, TelegramUnavailable
from shared.telegram_api import TelegramApi
from webhook_worker.lanes import Verdict
from webhook_worker.outcomes import Done, Outcome, Transient

ASK_SECONDS = 2.0
"""From the begin of one question to that of the next, and how long an answer may take: 1,800 an hour, however many chats wait,
and Telegram's return is seen in time to resume within 3 s."""

_log = log.get_logger("DISPATCH")

Ask = Callable[[], Awaitable[Outcome]]
"""Done: somebody answers, if only that the token is refused. May be cancelled."""


class Question:
    """getMe, by a client of our own: the bot's may hold calls back, for a limit of Telegram's that ours would end.

    `async with Question(...) as ask`: the client is made for the first question, and closed at the end.
    """

    def __init__(self, make_api: Callable[[], TelegramApi]) -> None:
        """Does no I/O."""
        self._make_api = make_api
        self._api: TelegramApi | None = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Ask:
        return self._ask

    async def __aexit__(self, *_exc_info: object) -> None:
        self._api = None
        await self._opened.aclose()

    async def _ask(self) -> Outcome:
        try:
            if self._api is None:
                self._api = await self._opened.enter_async_context(self._make_api())
            await self._api.get_me()
        except RetryLater as told:
            return Transient(str(told), told.retry_after_seconds)
        except TelegramUnavailable as away:
            return Transient(str(away))
        except TelegramError:
            return Done()
        except RuntimeError as exc:
            # No thread is left, in which the client is made and a name looked up: the handlers' process must not end for a
            # question. Its text may hold the URL, with the token in it.
            return Transient(type(exc).__name__)
        return Done()


class Outage:
    """Watches Telegram for one dispatcher, when an update gives reason to."""

    def __init__(
        self,
        question: AbstractAsyncContextManager[Ask, None],
        *,
        clock: Callable[[], float],
        on_return: Callable[[], None],
    ) -> None:
        """Asks nothing yet.

        Args:
            question: a Question; open while it is watched.
            clock: the dispatcher's.
            on_return: called when Telegram is back.
        """
        self._question = question
        self._clock = clock
        self._on_return = on_return
        self._doubt = asyncio.Event()

    def note(self, verdict: Verdict) -> None:
        """Takes in what became of an update. A named time, or a refused token, is an answer of somebody who is there."""
        if verdict.is_retry and not verdict.is_told and not verdict.is_refused:
            self._doubt.set()

    async def watch(self) -> NoReturn:
        """Until it is cancelled."""
        async with self._question as ask:
            await self._watch(ask)

    async def _watch(self, ask: Ask) -> NoReturn:
        is_away = False
        while True:
            if not is_away:
                await self._doubt.wait()
            self._doubt.clear()
            next_at = self._clock() + ASK_SECONDS
            match await _answer(ask):
                case Transient(retry_after_seconds=float(told)):
                    # Somebody answers; whether it can be called again is seen when it may be asked again.
                    next_at = max(next_at, self._clock() + told)
                case Transient(reason=reason):
                    if not is_away:
                        is_away = True
                        _log.warning("Telegram is away, updates that call it wait", reason=reason)
                case _:
                    if is_away:
                        is_away = False
                        _log.info("Telegram is back")
                        self._on_return()
            await asyncio.sleep(max(0.0, next_at - self._clock()))


async def _answer(ask: Ask) -> Outcome:
    try:
        async with asyncio.timeout(ASK_SECONDS):
            return await ask()
    except TimeoutError:
        return Transient(f"getMe was not answered within {ASK_SECONDS:g} s")
