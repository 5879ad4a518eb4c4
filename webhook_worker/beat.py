"""The beat: once a second the event loop tells the supervisor that it runs, and how it is.

A loop that is blocked misses its beats, and the supervisor replaces the worker; so they must never come from a thread. How late
the loop is, is measured ten times a second, and the worst of a second told: a block between two beats is seen too. A beat is
due when the second is over, however few looks there were: a loop that turns, but each time late, is not hung.

The first beat waits, a second at most, until it is known whether an update would be stored. Told before, it would say no of a
worker that has not looked yet, and HEALTH_PORT's /readyz with it, until the second one.

Not promised: fresh counts of the inbox. They cost the database some milliseconds, so they are up to 5 s old, and not known
(None) while it is away, has no tables yet, or refuses to count; the log says which of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

import psycopg

from shared import log, wire
from shared.database import DatabaseAway, Link, describe
from webhook_worker.inbox import Inbox
from webhook_worker.links import pool_use

_LOOK_SECONDS = 0.1
_COUNT_SECONDS = 5.0

_log = log.get_logger("WORKER")


class Beats:
    """Sends the beats of a worker; `run()` and `count()` are tasks of its owner."""

    def __init__(
        self,
        *,
        tell: Callable[[wire.ToSupervisor], None],
        fault: Callable[[], str | None],
        wait_tried: Callable[[float], Awaitable[None]],
        polling_fault: Callable[[], str | None],
        unstored: Callable[[], int],
        token_refused: Callable[[], bool],
        completed: Callable[[], int],
        dispatch_fault: Callable[[], str | None],
        links: Sequence[Link],
        inbox: Inbox,
        has_session: Callable[[], bool],
    ) -> None:
        """Does nothing yet.

        Args:
            tell: `Control.send`.
            fault: why an update sent now would not be stored.
            wait_tried: see Ingest.wait_tried.
            polling_fault: why updates cannot be fetched.
            unstored: how many updates wait to be stored.
            token_refused: `Bot.take_token_refused`, of which this is the one reader.
            completed: how many updates were handled without a fault so far.
            dispatch_fault: why the database is away for the dispatcher.
            links: each of the worker's, once.
            inbox: to count.
            has_session: whether there is a session for that.
        """
        self._tell = tell
        self._fault = fault
        self._wait_tried = wait_tried
        self._polling_fault = polling_fault
        self._unstored = unstored
        self._token_refused = token_refused
        self._completed = completed
        self._dispatch_fault = dispatch_fault
        self._links = links
        self._inbox = inbox
        self._has_session = has_session
        self._depth: wire.InboxDepth | None = None
        self._why_uncounted: str | None = None

    async def run(self) -> NoReturn:
        """Beats, until it is cancelled."""
        await self._wait_tried(wire.BEAT_SECONDS)
        loop = asyncio.get_running_loop()
        lag_seconds = 0.0
        while True:
            self._beat(lag_seconds)
            lag_seconds = 0.0
            # Half a look early rather than a whole one late: timers come a little after their time, or before it.
            due = loop.time() + wire.BEAT_SECONDS - _LOOK_SECONDS / 2
            while loop.time() < due:
                lag_seconds = max(lag_seconds, await _look())

    def _beat(self, lag_seconds: float) -> None:
        if self._token_refused():
            self._tell(wire.TokenRefused())
        fault = self._fault()
        self._tell(
            wire.Beat(
                loop_lag_ms=round(lag_seconds * 1000, 1),
                storing=fault is None,
                storing_reason=fault,
                inbox=self._depth,
                polling_reason=self._polling_fault(),
                completed=self._completed(),
                dispatch_fault=self._dispatch_fault(),
                pool=pool_use(self._links, self._unstored()),
            )
        )

    async def count(self) -> NoReturn:
        """Counts the inbox, until it is cancelled."""
        while True:
            try:
                self._depth = await self._inbox.depth()
                self._why_uncounted = None
            except (DatabaseAway, psycopg.Error) as exc:
                self._depth = None
                self._note_uncounted(exc)
            await asyncio.sleep(_COUNT_SECONDS)

    def _note_uncounted(self, error: DatabaseAway | psycopg.Error) -> None:
        # Lost sessions are told by their links, tables that are missing by the ingest.
        if not self._has_session() or isinstance(error, psycopg.errors.UndefinedTable):
            return
        reason = error.reason if isinstance(error, DatabaseAway) else describe(error)
        if reason != self._why_uncounted:
            _log.warning("the inbox is not counted", reason=reason)
        self._why_uncounted = reason


async def _look() -> float:
    """How much later than it should the loop comes back, in seconds."""
    loop = asyncio.get_running_loop()
    due = loop.time() + _LOOK_SECONDS
    await asyncio.sleep(_LOOK_SECONDS)
    return max(0.0, loop.time() - due)
