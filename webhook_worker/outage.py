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


class Question:
    """getMe, by a client of our own: the bot's may hold calls back, for a limit of Telegram's that ours would end."""

    def __init__(self, make_api: Callable[[], TelegramApi]) -> None:
        """Does no I/O; the client is opened at the first question, and stays open."""
        self._make_api = make_api
        self._api: TelegramApi | None = None

    async def __call__(self) -> Outcome:
        """Done: somebody answers, if only that the token is refused. May be cancelled; raises nothing else."""
        try:
            if self._api is None:
                self._api = await self._make_api().__aenter__()
            await self._api.get_me()
        except RetryLater as told:
            return Transient(str(told), told.retry_after_seconds)
        except TelegramUnavailable as away:
            return Transient(str(away))
        except TelegramError:
            return Done()
        except Exception as exc:  # noqa: BLE001 - as no threads left: the handlers' process must not end for a question
            return Transient(type(exc).__name__)  # its text may hold the URL, with the token in it
        return Done()


class Outage:
    """Watches Telegram for one dispatcher, when an update gives reason to."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[Outcome]],
        *,
        clock: Callable[[], float],
        on_return: Callable[[], None],
    ) -> None:
        """Asks nothing yet.

        Args:
            ask: a Question; may be cancelled.
            clock: the dispatcher's.
            on_return: called when Telegram is back.
        """
        self._ask = ask
        self._clock = clock
        self._on_return = on_return
        self._doubt = asyncio.Event()

    def note(self, verdict: Verdict) -> None:
        """Takes in what became of an update. A named time, or a refused token, is an answer of somebody who is there."""
        if verdict.is_retry and not verdict.is_told and not verdict.is_refused:
            self._doubt.set()

    async def watch(self) -> NoReturn:
        """Until it is cancelled."""
        is_away = False
        while True:
            if not is_away:
                await self._doubt.wait()
            self._doubt.clear()
            next_at = self._clock() + ASK_SECONDS
            match await self._answer():
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

    async def _answer(self) -> Outcome:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._ask()
        except TimeoutError:
            return Transient(f"getMe was not answered within {ASK_SECONDS:g} s")
