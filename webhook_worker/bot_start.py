"""How a bot begins: getMe, its persistence, its post_init; until that is done, or its time is over.

    Application.initialize ── away for now ──► a pause, and again
             └──► post_init ──► done

While Telegram (or the database of the persistence) is away, it tries again: an outage is no fault of the worker, and a new one
would find the same. An owner that does not dispatch is none, though, and another instance may fare better: so all has a limit.

Not promised: that what was begun is undone where this fails. `Bot.stop` does that.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import tenacity
from telegram.error import InvalidToken, TimedOut

from shared.errors import SupervisorError
from shared.log import get_logger
from webhook_worker.failures import classify
from webhook_worker.outcomes import Transient
from webhook_worker.update_run import AnyApplication

MAX_BACKOFF_SECONDS = 15.0
"""Between two tries to reach Telegram at the begin of a term."""

_REMEDIES = {
    "initialize": "let the persistence load in less time",
    "post_init": "let it return, and start what goes on with asyncio.create_task",
}
"""By the phase that took too long."""

_log = get_logger("BOT")


class StopAsked(SupervisorError):
    """The bot called Application.stop_running() while it was coming up: it does not want to run."""

    def __init__(self) -> None:
        super().__init__(
            "post_init called Application.stop_running(): the bot does not want to start; what it misses is in its own log"
        )


class TokenUnknown(InvalidToken):
    """getMe was refused for the bot's own token; without python-telegram-bot's text, which quotes it."""

    def __init__(self) -> None:
        super().__init__(
            "Telegram does not know the token in TELEGRAM_BOT_TOKEN; set the current one from @BotFather"
        )


class StartTimedOut(SupervisorError):
    """The bot was still about to start when its time was over."""


class BotStart:
    """Of one Application, once."""

    def __init__(
        self,
        app: AnyApplication,
        *,
        sleep: Callable[[float], Awaitable[None]],
        limit_seconds: float,
        is_stop_asked: Callable[[], bool],
    ) -> None:
        """Calls nobody yet.

        Args:
            app: adopted, not initialised.
            sleep: between two tries to reach Telegram.
            limit_seconds: how long `run` may take.
            is_stop_asked: whether the bot has called Application.stop_running().
        """
        self._app = app
        self._sleep = sleep
        self._limit_seconds = limit_seconds
        self._is_stop_asked = is_stop_asked
        self._phase = "initialize"
        self._put_off_by: BaseException | None = None  # what was away at the last try

    @property
    def is_identified(self) -> bool:
        """Whether getMe was ever answered: the first call of all, so until then no other was told anything."""
        try:
            self._app.bot.bot  # noqa: B018 - raises until then, whatever time-outs the bot gave that
        except RuntimeError:
            return False
        return True

    async def run(self) -> None:
        """Initialises the application, which calls getMe and loads persistence, and runs its post_init.

        post_init is run once; whatever it raises is raised. A flood limit beyond the time that is left is raised at once.

        Raises:
            TokenUnknown: Telegram does not know the token.
            StopAsked: see there.
            StartTimedOut: the time is over, and nothing outside is known to be away.
            Exception: of the persistence, of post_init; what was away when the time was over.
        """
        try:
            async with asyncio.timeout(self._limit_seconds) as limit:
                await self._run(limit.when() or math.inf)
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._why_timed_out() from None

    def _why_timed_out(self) -> BaseException:
        limit = f"within {self._limit_seconds:g} s"
        if self._put_off_by is not None:
            return self._put_off_by
        if not self.is_identified:
            return TimedOut(f"getMe was not answered {limit}")
        return StartTimedOut(f"{self._phase} did not end {limit}; {_REMEDIES[self._phase]}")

    async def _run(self, ends_at: float) -> None:
        def is_told_beyond(state: tenacity.RetryCallState) -> bool:
            left_seconds = ends_at - asyncio.get_running_loop().time()
            return (_told_seconds(state) or 0.0) > left_seconds

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda exc: isinstance(classify(exc), Transient)),
            wait=_wait,
            stop=is_told_beyond,
            before_sleep=self._log_retry,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            await retrying(self._app.initialize)
        except InvalidToken:
            raise TokenUnknown from None
        if self._app.post_init is not None:
            self._phase = "post_init"
            await self._app.post_init(self._app)
        if self._is_stop_asked():
            raise StopAsked

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        if state.outcome is None or (exc := state.outcome.exception()) is None:
            return
        # A time that was told ends within ours (`is_told_beyond`): it will be over, and is not to be told once more.
        self._put_off_by = None if _told_seconds(state) is not None else exc
        # An InvalidToken that is tried again is none: its text quotes the token, its cause says what was answered.
        reason = (isinstance(exc, InvalidToken) and exc.__cause__) or exc
        _log.warning(
            "cannot initialize the bot yet", reason=str(reason), retry_in_seconds=state.upcoming_sleep
        )


_backoff = tenacity.wait_exponential(multiplier=0.5, max=MAX_BACKOFF_SECONDS) + tenacity.wait_random(0, 0.5)


def _told_seconds(state: tenacity.RetryCallState) -> float | None:
    exc = state.outcome.exception() if state.outcome is not None else None
    outcome = classify(exc) if exc is not None else None
    return outcome.retry_after_seconds if isinstance(outcome, Transient) else None


def _wait(state: tenacity.RetryCallState) -> float:
    told_seconds = _told_seconds(state)
    return _backoff(state) if told_seconds is None else told_seconds
