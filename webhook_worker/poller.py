"""BOT_MODE=polling: the owner's worker fetches the updates, into the same inbox as a webhook would.

    getUpdates(offset) ─► every update stored and committed ─► getUpdates(the last one's number + 1) ─► ...

An update is acknowledged by the next call, when it is committed, and not before: whatever dies in between, Telegram has it
still, and the unique key tells whoever gets it once more. After an answer without updates nothing is left to acknowledge,
and the next call has no offset: after a week without updates Telegram numbers anew at random (TELEGRAM.md, "update_id"),
perhaps below ours.

Two who poll end each other's calls (409), so there is one, the owner: term.py begins when no earlier owner's poller can be
there any more, and ends it before the term. What fails is tried again for as long as the term lives; the log tells of it when
the reason changes, and every ten minutes, and /status as long as it lasts.

Not promised: that nobody else polls with our token. What somebody else acknowledges never comes to us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

from shared import clock, log
from shared.backoff import doubled_seconds
from shared.errors import (
    Conflict,
    RetryLater,
    SupervisorError,
    TelegramError,
    TelegramUnavailable,
    TokenRefused,
)
from shared.telegram_api import RETRY_MARGIN_SECONDS, TelegramApi
from webhook_worker.ingest import NotStored
from webhook_worker.updates import MalformedUpdate, read_key, split

WAIT_SECONDS = 30
"""How long Telegram keeps a call that finds nothing; what lies between often forgets a silent connection after a minute."""

CALL_SECONDS = WAIT_SECONDS + 10.0
"""Limit of a call, its connection and a full answer included."""

FIRST_PAUSE_SECONDS = 1.0
"""Also the only one while the inbox cannot store: a growing one would keep the bot silent after the database's return."""

AWAY_PAUSE_SECONDS = 2.0
"""The longest while Telegram is away, as of outage.py: its return is seen in time to resume within 3 s."""

LONGEST_PAUSE_SECONDS = 30.0
"""The longest where Telegram answers and refuses."""

REFUSED_PAUSE_SECONDS = 300.0
"""The longest pause while Telegram does not know the token: only another token helps, and that comes with another process."""

_EMPTY_SECONDS = 1.0
"""An answer without updates takes WAIT_SECONDS. Where it comes sooner than this, a proxy or a server does not wait as told."""

_LOOK_SECONDS = 0.25  # between two questions whether the term is still ours, once it was not
_REMINDER_SECONDS = 600.0

_OTHER_POLLER = "something else polls with this bot token and takes updates away: find it and stop it"

_log = log.get_logger("POLLING")


class Storage(Protocol):
    """What the poller needs of an inbox: `ingest.Ingest`."""

    def store(self, update_id: int, lane: int | None, body: bytes) -> asyncio.Future[None]:
        """See Ingest.store."""
        ...


class _Stuck(SupervisorError):
    """Telegram gave updates, and none of them could be acknowledged."""


class Poller:
    """Fetches until it is cancelled; one call at a time."""

    def __init__(
        self,
        make_api: Callable[[], TelegramApi],
        storage: Storage,
        *,
        allowed_updates: tuple[str, ...],
        webhook_active: Callable[[], None],
        token_refused: Callable[[], None],
        may_fetch: Callable[[], bool],
        now: Callable[[], float] = clock.now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Does nothing yet.

        Args:
            make_api: a client whose calls may take CALL_SECONDS.
            storage: where updates go.
            allowed_updates: kinds to ask for; empty: Telegram's default.
            webhook_active: called each time Telegram does not let us poll because a webhook is set.
            token_refused: called each time Telegram says that it does not know the token.
            may_fetch: whether the term is still ours; asked before every call.
            now: `shared.clock`.
            sleep: between two tries.
        """
        self._make_api = make_api
        self._storage = storage
        self._allowed_updates = allowed_updates
        self._webhook_active = webhook_active
        self._token_refused = token_refused
        self._may_fetch = may_fetch
        self._now = now
        self._sleep = sleep
        self._offset: int | None = None
        self._refusals = 0
        self._reason: str | None = None
        self._told_at = 0.0

    @property
    def fault(self) -> str | None:
        """Why nothing is fetched at present; None while all is well."""
        return self._reason

    async def run(self) -> NoReturn:
        """Fetches and stores, until it is cancelled; then nothing of it is under way, but what is being committed."""
        _log.info("polling for updates")
        while True:
            try:
                # One for all calls: making it reads certificates, which takes some 30 ms of CPU, too much for every second.
                async with self._make_api() as api:
                    while True:
                        await self._try(api)
            except TelegramUnavailable as exc:  # there is no client
                await self._sleep(self._note_failure(exc))

    async def _try(self, api: TelegramApi) -> None:
        try:
            await self._fetch(api)
        except (TelegramError, NotStored, MalformedUpdate, _Stuck) as exc:
            await self._sleep(self._note_failure(exc))

    async def _fetch(self, api: TelegramApi) -> None:
        """One call, and what came of it in the inbox."""
        while not self._may_fetch():
            # Until we are cancelled, or the owner is confirmed after all: in a term that lives on somebody has to poll.
            await self._sleep(_LOOK_SECONDS)
        began_at = self._now()
        answer = await api.get_updates(
            self._offset, wait_seconds=WAIT_SECONDS, allowed_updates=self._allowed_updates
        )
        bodies = split(answer)
        self._offset = None
        under_way = []
        for body in bodies:
            try:
                key = read_key(body)
            except MalformedUpdate as exc:
                # Acknowledged with whatever comes after it: who would send it in another form?
                _log.error("Telegram gave an update that is none", reason=str(exc), bytes=len(body))
                continue
            under_way.append((key.update_id, self._storage.store(key.update_id, key.lane, body)))
        for update_id, stored in under_way:
            await stored
            self._offset = update_id + 1
        if bodies and not under_way:
            raise _Stuck("nothing in Telegram's answer has a number")
        self._note_success()
        if not bodies and self._now() - began_at < _EMPTY_SECONDS:
            await self._sleep(_EMPTY_SECONDS)

    def _note_success(self) -> None:
        if self._reason is not None:
            _log.info("polling again")
        self._refusals, self._reason = 0, None

    def _note_failure(self, error: SupervisorError) -> float:
        """How long to wait before the next try."""
        if not self._may_fetch():
            return 0.0  # by whoever owns now
        reason, longest_seconds = str(error), LONGEST_PAUSE_SECONDS
        if isinstance(error, TokenRefused):
            self._token_refused()
            longest_seconds = REFUSED_PAUSE_SECONDS
        elif isinstance(error, Conflict) and "webhook" in reason.lower():
            self._webhook_active()
        elif isinstance(error, Conflict):
            reason = f"{_OTHER_POLLER} ({reason})"
        if isinstance(error, NotStored):
            pause_seconds = FIRST_PAUSE_SECONDS
        elif isinstance(error, TelegramUnavailable):
            pause_seconds = FIRST_PAUSE_SECONDS if self._reason is None else AWAY_PAUSE_SECONDS
        else:
            pause_seconds = doubled_seconds(FIRST_PAUSE_SECONDS, self._refusals, longest_seconds)
            self._refusals += 1
        if isinstance(error, RetryLater):
            pause_seconds = max(FIRST_PAUSE_SECONDS, error.retry_after_seconds + RETRY_MARGIN_SECONDS)
        if reason != self._reason or self._now() - self._told_at >= _REMINDER_SECONDS:
            self._told_at = self._now()
            _log.warning("updates cannot be fetched", reason=reason, retry_in=f"{pause_seconds:.1f}s")
        self._reason = reason
        return pause_seconds
