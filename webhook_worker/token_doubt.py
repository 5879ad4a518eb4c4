"""Whose token a 401 was about: a handler may call Telegram as another bot as well, and that stops nobody else.

Only Telegram knows, so it is asked, by getMe with the bot's own token; seldom, and for all that wait for the answer at once.

Not promised: an answer where Telegram is away. The bot's own token counts as good then, until it is asked again.
"""

from __future__ import annotations

import asyncio

from telegram.error import TelegramError

from webhook_worker.failures import is_token_refused
from webhook_worker.update_run import AnyApplication

_ASK_SECONDS = 20.0
"""Where handlers are refused again and again, Telegram is asked no more often which token it means; sooner than the dispatch
lets another update try (pace.py, REFUSED_SECONDS)."""

_ASK_LIMIT_SECONDS = 10.0


class TokenDoubt:
    """Of one Application."""

    def __init__(self, app: AnyApplication) -> None:
        """Asks nobody yet; the application is to be initialised by then."""
        self._app = app
        self._asking = asyncio.Lock()
        self._ask_at = float("-inf")
        self._own_is_refused = False

    async def is_own(self) -> bool:
        """Whether a 401 that a handler met was about the bot's own token, by what Telegram has said in the last 20 s."""
        async with self._asking:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._ask_at:
                self._own_is_refused = False
                try:
                    async with asyncio.timeout(_ASK_LIMIT_SECONDS):
                        await self._app.bot.get_me()
                except (TelegramError, TimeoutError) as exc:
                    self._own_is_refused = is_token_refused(exc)
                self._ask_at = loop.time() + _ASK_SECONDS
            return self._own_is_refused
