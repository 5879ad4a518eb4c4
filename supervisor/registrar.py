"""The webhook's registration: the shell that carries out the core's `CallAction`s against the Bot API.

What is transient (429, 5xx, time-outs, 409) is repeated here, by tenacity, for as long as the term lives: a call that timed out
may have been applied, and setWebhook with nothing changed is a no-op, so repeating is always safe. `retry_after` is obeyed to
the letter. What is not transient goes back to the core, which knows about terms and time.

Before every single attempt the permit is asked: "is that term still ours, and this still to be done, now?". So nobody who is no
longer owner touches the registration (a17, a18), however long a call before it took. An attempt under way when the term ends
is cut off; Telegram may have applied it, which the next owner's assertion overwrites. Without a term only getMe passes.

Never deletes in order to set (a15), and never drops what is pending (a16): the client has no parameter for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, TypeVar, assert_never

import tenacity
from msgspec.structs import replace

from shared import clock
from shared.backoff import doubled_seconds, spread_seconds
from shared.config import BotMode, Config
from shared.errors import Conflict, RetryLater, TelegramError, TelegramUnavailable, TokenRefused
from shared.redaction import Redactor
from shared.telegram_api import RETRY_MARGIN_SECONDS, TelegramApi, WebhookInfo
from supervisor import drift
from supervisor import messages as m

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
"""An outage of Telegram's is asked about once a minute; its return is noticed within that."""

LONGEST_POLLING_PAUSE_SECONDS = 2.0
"""In BOT_MODE=polling nobody leads before the webhook is deleted, and the bot is to go on within 3 s of Telegram's return."""

T = TypeVar("T")


class TermOver(Exception):
    """The permit was refused: the term that the call is for has ended."""


def retry_pause_seconds(
    failures: int,
    error: BaseException | None,
    chance: float,
    longest_seconds: float = LONGEST_PAUSE_SECONDS,
) -> float:
    """How long to wait before the next attempt.

    Args:
        failures: how many attempts failed so far, 1 or more.
        error: the last one's.
        chance: a random number in [0, 1); spreads the pause by a fifth either way. retry_after is not shortened by it.
        longest_seconds: the limit of what grows, before it is spread.
    """
    if isinstance(error, RetryLater):
        return max(FIRST_PAUSE_SECONDS, error.retry_after_seconds + RETRY_MARGIN_SECONDS)
    pause = doubled_seconds(FIRST_PAUSE_SECONDS, failures - 1, longest_seconds)
    return spread_seconds(pause, chance)


async def register(api: TelegramApi, config: Config) -> str:
    """Register what this configuration wants (`wanted_of`), and return Telegram's words.

    Raises:
        TelegramError: as of `TelegramApi.set_webhook`.
    """
    return await api.set_webhook(
        config.webhook_url.reveal(),
        secret_token=config.webhook_secret.reveal(),
        max_connections=config.max_connections,
        allowed_updates=config.allowed_updates,
    )


def wanted_of(config: Config) -> drift.Wanted:
    """The registration that `register` makes; in polling mode none is wanted."""
    return drift.Wanted(
        url=None if config.mode is BotMode.POLLING else config.webhook_url,
        max_connections=config.max_connections,
        allowed_updates=frozenset(config.allowed_updates),
    )


class Registrar:
    """Carries out one call at a time; every call is answered by exactly one final event. `async with` owns its client."""

    def __init__(
        self,
        config: Config,
        post: Callable[[m.Event], None],
        may_call: Callable[[m.BotCall], bool],
        tasks: asyncio.TaskGroup,
        *,
        make_api: Callable[[Config], TelegramApi] = lambda config: TelegramApi(
            config.api_base_url, config.token
        ),
        chance: Callable[[], float] = random.random,
        now: Callable[[], float] = clock.now,
    ) -> None:
        """Does no I/O.

        Args:
            config: what to register, and where.
            post: takes every event.
            may_call: whether that call may be made at this moment.
            tasks: owns the tasks of the calls.
            make_api: the client, called at the first call.
            chance: random, 0 to 1; spreads the pauses.
            now: `shared.clock`.
        """
        self._make_api = make_api
        self._chance = chance
        self._now = now
        self._config = config
        self._post = post
        self._may_call = may_call
        self._tasks = tasks
        self._client_life = AsyncExitStack()
        self._api: TelegramApi | None = None
        self._opening = asyncio.Lock()
        self._running: tuple[m.BotCall, asyncio.Task[None]] | None = None
        self._memory = drift.Memory()  # of drift alone: handed to it, and taken back

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client_life.aclose()
        self._api = None

    def begin(self, action: m.BotCall) -> None:
        """Carry `action` out in a task of its own."""
        task = self._tasks.create_task(self._carry_out(action), name=f"registrar {type(action).__name__}")
        self._running = (action, task)
        task.add_done_callback(lambda done: self._was_cut_off(action) if done.cancelled() else None)

    def cut_off(self, action: m.BotCall) -> None:
        """Its term is over: cancel it, whatever it waits for. Answered by CallFailed(TERM_OVER)."""
        if self._running is not None and self._running[0].id == action.id:
            self._running[1].cancel()

    async def _carry_out(self, action: m.BotCall) -> None:
        try:
            event = await self._call(action)
        except TermOver:
            event = self._failed(action, m.CallFault.TERM_OVER, "the term is over")
        except TokenRefused as exc:
            event = self._failed(action, m.CallFault.TOKEN_REFUSED, str(exc))
        except TelegramError as exc:
            event = self._failed(action, m.CallFault.REJECTED, str(exc))
        self._running = None
        self._post(event)

    def _was_cut_off(self, action: m.BotCall) -> None:
        # Not in the task: one that is cancelled before its first step never gets to any of its own code.
        self._running = None
        self._post(self._failed(action, m.CallFault.TERM_OVER, "the term is over"))

    def _failed(self, action: m.BotCall, fault: m.CallFault, reason: str) -> m.Event:
        return m.CallFailed(at=self._now(), id=action.id, fault=fault, reason=reason)

    async def _call(self, action: m.BotCall) -> m.Event:
        match action:
            case m.SetWebhook():
                answer = await self._repeat(action, lambda api: register(api, self._config))
                changed = "already set" not in answer
                self._memory = self._memory.asserted(changed=changed)
                return m.WebhookAsserted(at=self._now(), id=action.id, changed=changed)
            case m.DeleteWebhook():
                answer = await self._repeat(action, lambda api: api.delete_webhook())
                changed = "already deleted" not in answer
                return m.WebhookAsserted(at=self._now(), id=action.id, changed=changed)
            case m.VerifyIdentity():
                me = await self._repeat(action, lambda api: api.get_me())
                return m.IdentityVerified(
                    at=self._now(), id=action.id, bot_id=me.id, username=me.username or me.name
                )
            case m.CompareWebhook():
                info = await self._repeat(action, lambda api: api.get_webhook_info())
                return m.WebhookCompared(at=self._now(), id=action.id, facts=self._look(info))
            case _:
                assert_never(action)

    def _look(self, info: WebhookInfo) -> m.WebhookFacts:
        facts, self._memory = drift.look(wanted_of(self._config), self._memory, info)
        if facts.last_error is None:
            return facts
        return replace(facts, last_error=Redactor(self._config.secrets)(facts.last_error))

    async def _client(self) -> TelegramApi:
        # Made at the first call: most standbys make none, and httpx costs a small instance 150 ms to import.
        async with self._opening:
            if self._api is None:
                self._api = await self._client_life.enter_async_context(self._make_api(self._config))
            return self._api

    async def _repeat(self, action: m.BotCall, call: Callable[[TelegramApi], Awaitable[T]]) -> T:
        polls = isinstance(action, m.DeleteWebhook) and self._config.mode is BotMode.POLLING
        conflicts = 0

        def pause(retry: tenacity.RetryCallState) -> float:
            nonlocal conflicts
            error = retry.outcome.exception() if retry.outcome is not None else None
            if polls and isinstance(error, Conflict):
                # An answer; how long there was none before does not matter.
                conflicts += 1
                return retry_pause_seconds(conflicts, error, self._chance())
            longest_seconds = LONGEST_POLLING_PAUSE_SECONDS if polls else LONGEST_PAUSE_SECONDS
            return retry_pause_seconds(retry.attempt_number, error, self._chance(), longest_seconds)

        def report(retry: tenacity.RetryCallState) -> None:
            error = retry.outcome.exception() if retry.outcome is not None else None
            seconds = retry.next_action.sleep if retry.next_action is not None else 0.0
            self._post(
                m.CallRetrying(
                    at=self._now(),
                    id=action.id,
                    reason=str(error),
                    retry_seconds=seconds,
                    is_told=isinstance(error, RetryLater),
                )
            )

        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((RetryLater, TelegramUnavailable, Conflict)),
            wait=pause,
            before_sleep=report,
        )
        async for attempt in attempts:
            with attempt:
                client = await self._client()
                # Not before: opening it takes a while, the first time.
                if not self._may_call(action):
                    raise TermOver
                return await call(client)
        raise AssertionError("tenacity ends only by a result or an error")
