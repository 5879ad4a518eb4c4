"""A kept session of a simulated worker, and what it is used for: the inbox, and the registrations.

It stands in for shared/database/link.py: one statement at a time, a limit on each, a new session every second. What a statement
does is in tests/models/inbox.py. As there, one that failed may have happened, and one that was given up may happen later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg

from shared.database import DatabaseAway
from shared.database.link import OWN_SHARE
from shared.wire import InboxDepth
from tests.models.inbox import tell
from tests.simulation.network import CONNECT_SECONDS, Connection
from tests.simulation.postgres import SUPERSEDED_KEPT_SECONDS, Postgres, Session
from tests.simulation.process import Process
from webhook_worker.claim_plan import Batch, ClaimRequest
from webhook_worker.inbox import STATEMENT_SECONDS, Arrivals, Inbox
from webhook_worker.ingest import Row
from webhook_worker.lanes import Claimed, Settlement, Suspect
from webhook_worker.verify import Registration, Standing

T = TypeVar("T")

_RECONNECT_SECONDS = 1.0
_LOOKUP_SECONDS = 3.0
_LOOKED_UP = 16


class Link:
    """One kept session."""

    def __init__(
        self,
        process: Process,
        host: str,
        postgres: Postgres,
        name: str,
        on_notify: Callable[[], None] | None = None,
    ) -> None:
        """Not connected; `keep` is a task of its owner."""
        self._process = process
        self._host = host
        self.postgres = postgres
        self._name = name
        self._on_notify = on_notify
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._lost = asyncio.Event()
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._waiter: asyncio.Future[Any] | None = None
        self.tried = False
        self.reason: str | None = "not connected yet"

    @property
    def connected(self) -> bool:
        """Whether there is a session, as far as is known."""
        return self._session is not None

    async def wait_connected(self) -> None:
        """Returns when there is a session."""
        while not self.connected:
            self._changed.clear()
            await self._changed.wait()

    async def wait_tried(self, limit_seconds: float) -> None:
        """Returns when the first attempt has come to something."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                while not self.tried:
                    self._changed.clear()
                    await self._changed.wait()

    async def keep(self) -> None:
        """Makes the session, and again whenever it is lost."""
        while True:
            await self._connect()
            self.tried = True
            self._changed.set()
            if self.connected:
                await self._lost.wait()
            else:
                await asyncio.sleep(_RECONNECT_SECONDS)

    def close(self) -> None:
        """What the kernel does when the process dies."""
        if self._connection is not None:
            self._connection.close_by_client()

    async def run(self, act: Callable[[], T], limit_seconds: float, *, writes: bool) -> T:
        """Executes `act` at the server.

        Raises:
            DatabaseAway: it may have happened, or happen yet.
            psycopg.Error: it did not.
        """
        if self._session is None:
            raise DatabaseAway(self.reason or "not connected")
        end = self._process.agenda.now + limit_seconds
        try:
            async with asyncio.timeout_at(end - OWN_SHARE * limit_seconds):
                await self._turn.acquire()
        except TimeoutError:
            raise DatabaseAway(f"the session was in use for {limit_seconds:g} s") from None
        try:
            return await self._run_alone(act, end, writes)
        finally:
            self._turn.release()

    async def _run_alone(self, act: Callable[[], T], end: float, writes: bool) -> T:
        session, connection = self._session, self._connection
        if session is None or connection is None:
            raise DatabaseAway(self.reason or "not connected")
        waiter: asyncio.Future[Any] = self._process.create_future()
        self._waiter = waiter

        def reply(answer: Any) -> None:
            self._process.post(_resolve, waiter, answer)

        connection.to_server(lambda: session.execute(act, reply, writes=writes))
        timer = self._process.call_at(end, self._cut, connection)
        interruption: asyncio.CancelledError | None = None
        while not waiter.done():
            # A cancelled caller waits for the end of what it sent, as with the real link.
            try:
                await asyncio.wait({waiter})
            except asyncio.CancelledError as exc:
                interruption = exc
        timer.cancel()
        self._waiter = None
        if interruption is not None:
            raise interruption
        answer = waiter.result()
        if isinstance(answer, Exception):
            raise answer
        found: T = answer
        return found

    def _cut(self, connection: Connection) -> None:
        if self._connection is connection:
            connection.close_by_client()
            self._lose(connection, "no answer in time")

    def _lose(self, connection: Connection, reason: str) -> None:
        if self._connection is not connection:
            return
        self._connection = self._session = None
        self.reason = reason
        self._changed.set()
        self._lost.set()
        if self._waiter is not None:
            _resolve(self._waiter, DatabaseAway(reason))

    async def _connect(self) -> None:
        postgres = self.postgres
        if postgres.network.route(self._host).is_cut:
            await asyncio.sleep(CONNECT_SECONDS)
            self.reason = "timeout expired"
            return
        await asyncio.sleep(0.01 + 6 * postgres.network.route(self._host).latency_seconds)
        if not postgres.is_up:
            self.reason = "connection refused"
            return
        if self._host in postgres.hosts_without_sessions:
            self.reason = "too many connections"
            return
        connection = Connection(
            postgres.network,
            self._host,
            on_lost=lambda reason: self._process.post(self._lose, connection, reason),
            server_gives_up_seconds=None,
        )
        self._connection = connection
        self._session = postgres.open(connection, f"{self._process.name} {self._name}", idle_limit=False)
        self._lost.clear()
        self.reason = None
        if self._on_notify is not None:
            notify = self._on_notify
            self._session.on_notify = lambda: self._process.post(notify)
            notify()


def _resolve(waiter: asyncio.Future[Any], answer: Any) -> None:
    if not waiter.done():
        waiter.set_result(answer)


class LinkedInbox(Inbox):
    """webhook_worker.inbox.Inbox on a simulated session: each statement at the server, at one moment."""

    def __init__(self, link: Link, limit: Callable[[], float] = lambda: STATEMENT_SECONDS) -> None:
        """By this session."""
        self._simulated = link
        self._limit = limit
        self.is_one_round_trip = True

    def limited(self, limit: Callable[[], float]) -> Inbox:
        return LinkedInbox(self._simulated, limit)

    async def exchange(
        self,
        term: str,
        settlements: Sequence[Settlement],
        request: ClaimRequest | None,
        arrivals: Arrivals | None = None,
    ) -> Batch | None:
        store = self._simulated.postgres.store
        return tell(
            await self._do(lambda: store.exchange_all(term, settlements, request, arrivals)), arrivals
        )

    async def peek(self, term: str, known: Sequence[int]) -> bool:
        return await self._do(lambda: self._simulated.postgres.store.peek(term, known), writes=False)

    async def suspects(self, term: str) -> tuple[Suspect, ...]:
        return await self._do(lambda: self._simulated.postgres.store.suspects(term), writes=False)

    async def claim_suspect(self, term: str, seq: int) -> Claimed | None:
        return await self._do(lambda: self._simulated.postgres.store.claim_suspect(term, seq))

    async def bury(self, term: str, seqs: Sequence[int], error: str) -> tuple[int, ...]:
        return await self._do(lambda: self._simulated.postgres.store.bury(term, seqs, error))

    async def condemn(self, term: str, claimed: Claimed, max_attempts: int, error: str) -> None:
        await self._do(lambda: self._simulated.postgres.store.condemn(term, claimed, max_attempts, error))

    async def depth(self) -> InboxDepth:
        return await self._do(self._simulated.postgres.store.depth, writes=False)

    async def purge(self, dead_letter_days: int) -> bool:
        return await self._do(lambda: self._simulated.postgres.store.purge(dead_letter_days))

    async def _do(self, act: Callable[[], T], *, writes: bool = True) -> T:
        try:
            return await self._simulated.run(act, self._limit(), writes=writes)
        except (psycopg.OperationalError, psycopg.InternalError) as exc:
            raise DatabaseAway(str(exc)) from exc


class LinkedWriter:
    """webhook_worker.inbox_writer.InboxWriter on a simulated session."""

    def __init__(self, link: Link) -> None:
        """By this session."""
        self._link = link

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def reason(self) -> str | None:
        return self._link.reason

    async def wait_connected(self) -> None:
        await self._link.wait_connected()

    async def insert(self, rows: Sequence[Row], *, notify: bool, limit_seconds: float) -> list[int]:
        postgres = self._link.postgres

        def act() -> list[int]:
            new = [
                row.update_id
                for row in rows
                if postgres.store.insert(row.update_id, row.lane, row.body) is not None
            ]
            if new and notify:
                postgres.notify()
            return new

        return await self._link.run(act, limit_seconds, writes=True)


async def fetch_registrations(link: Link) -> Sequence[Registration]:
    """What registrations.fetch_from reads."""
    postgres = link.postgres

    def act() -> Sequence[Registration]:
        now = postgres.wall()
        found = [
            (recorded_at, path, secret, Standing.RECORDED if superseded_at is None else Standing.SUPERSEDED)
            for (path, secret), (recorded_at, superseded_at) in postgres.registrations.items()
            if superseded_at is None or superseded_at > now - SUPERSEDED_KEPT_SECONDS
        ]
        found.sort(key=lambda each: each[0], reverse=True)
        return [Registration(path, secret, standing) for _, path, secret, standing in found[:_LOOKED_UP]]

    return await link.run(act, _LOOKUP_SECONDS, writes=False)
