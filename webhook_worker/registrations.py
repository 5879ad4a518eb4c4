"""The registrations that this worker knows: its own, and those in the database, looked up when a request matches none.

While a secret is rotated, instances with the old and the new one run side by side, and Telegram's requests, with either, reach
any of them. The owner records what it is about to register *before* it does; so whoever gets a request that matches nothing
looks there before it refuses. One look-up serves all who wait, began after each of them came, and there is at most one a
second, whatever is thrown at us.

Not promised: an answer. Where the database is away, or too many wait already, the request gets 503 and not 401: Telegram will
repeat it, and by then it may be known.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared import log
from shared.clock import now
from shared.database import SUPERSEDED_KEPT, DatabaseAway, Link, describe
from shared.errors import SupervisorError
from webhook_worker.links import Covered
from webhook_worker.verify import Registration, Standing

# Telegram opens at most 100 connections (TELEGRAM.md, "parallel connections"), so more than this is an attack.
MAX_WAITING = 200
_INTERVAL_SECONDS = 1.0
_LIMIT_SECONDS = 3.0
_FRESH_SECONDS = 5.0
"""What was looked up longer ago does not vouch for a secret that is not ours: its time may have been over for hours, and the
first to use it again would be a forger. While such requests come, there is a look-up a second anyway."""

_log = log.get_logger("WEBHOOK")


class LookupFailed(SupervisorError):
    """What is registered cannot be found out at the moment: answer 503."""


class Registrations:
    """What a request is compared with."""

    def __init__(
        self,
        own: Registration,
        fetch: Callable[[], Awaitable[Sequence[Registration]]],
        *,
        clock: Callable[[], float] = now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """Knows `own` alone until the first refresh.

        Args:
            own: from the configuration; accepted whatever the database says.
            fetch: reads what is recorded; raises DatabaseAway or psycopg.Error.
            clock: `shared.clock`.
            sleep: until the next look-up may begin.
            max_waiting: requests beyond these are told at once that it is not known.
        """
        self._own = own
        self._fetch = fetch
        self._clock = clock
        self._sleep = sleep
        self._max_waiting = max_waiting
        self._waiting = 0
        self._began_at = -_INTERVAL_SECONDS
        self._known_at = -math.inf
        self._next: asyncio.Task[str | None] | None = None
        # Held, since the loop does not. Nobody ends them: each has its limit, and as the worker exits nobody is left to hear.
        self._tasks: set[asyncio.Task[str | None]] = set()
        self.known: tuple[Registration, ...] = (own,)

    @property
    def is_fresh(self) -> bool:
        """Whether what is known of others' registrations was looked up lately."""
        return self._clock() - self._known_at <= _FRESH_SECONDS

    async def refresh(self) -> None:
        """Returns after a look-up that began after this call.

        Raises:
            LookupFailed: it did not succeed, or too many wait for one.
        """
        if self._waiting >= self._max_waiting:
            raise LookupFailed(f"{self._waiting} requests wait for a look-up already")
        self._waiting += 1
        try:
            reason = await asyncio.shield(self._start())
        finally:
            self._waiting -= 1
        if reason is not None:
            raise LookupFailed(reason)

    def refresh_soon(self) -> None:
        """Looks up what is recorded without waiting for it: what we go by may be out of date."""
        self._start()

    def _start(self) -> asyncio.Task[str | None]:
        # The look-up that has not begun yet serves everybody who comes until it does.
        if self._next is None:
            self._next = asyncio.create_task(self._look_up(), name="look-up of registrations")
            self._tasks.add(self._next)
            self._next.add_done_callback(self._tasks.discard)
        return self._next

    async def _look_up(self) -> str | None:
        """None, or why it failed; it does not raise what nobody might be there to hear."""
        await self._sleep(max(0.0, self._began_at + _INTERVAL_SECONDS - self._clock()))
        self._next = None
        began_at = self._began_at = self._clock()
        try:
            recorded = await self._fetch()
        except DatabaseAway as exc:
            return exc.reason
        except psycopg.Error as exc:
            return describe(exc)
        known = (self._own, *(each for each in recorded if not _same(each, self._own)))
        if known != self.known:
            _log.info("registrations looked up", known=len(known))
        self.known = known
        self._known_at = began_at
        return None


def _same(one: Registration, other: Registration) -> bool:
    return (one.path_hash, one.secret_hash) == (other.path_hash, other.secret_hash)


def fetch_from(link: Link | Covered, bot_id: int) -> Callable[[], Awaitable[Sequence[Registration]]]:
    """What `Registrations` calls: reads the table `registrations`."""

    async def select(connection: AsyncConnection[TupleRow]) -> Sequence[Registration]:
        cursor = await connection.execute(
            # Rotations are rare and old rows are deleted; the limit bounds the work for each request.
            "SELECT path_hash, secret_hash, superseded_at IS NOT NULL FROM webhook_supervisor.registrations"
            # One that is superseded in the future was so before the database's clock was set back: its time is over.
            " WHERE bot_id = %s AND (superseded_at IS NULL"
            " OR superseded_at BETWEEN clock_timestamp() - %s::interval AND clock_timestamp() + interval '1 minute')"
            " ORDER BY recorded_at DESC LIMIT 16",
            (bot_id, SUPERSEDED_KEPT),
        )
        return [
            Registration(path, secret, Standing.SUPERSEDED if superseded else Standing.RECORDED)
            for path, secret, superseded in await cursor.fetchall()
        ]

    async def fetch() -> Sequence[Registration]:
        return await link.run(select, _LIMIT_SECONDS)

    return fetch
