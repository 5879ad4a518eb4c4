"""Drives a Lease by hand: gives it one action, waits for the event that answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from shared import config as configuration
from shared.config import Config
from supervisor import messages as m
from supervisor.lease import Lease

HANG_SECONDS = 30.0
TOKEN = "4242:lease-test-token_lease-test-token"


def config_for(database_url: str, **variables: str) -> Config:
    """A configuration on that database, with more variables of INTERFACE.md if wanted."""
    environ = {
        "TELEGRAM_BOT_TOKEN": TOKEN,
        "DATABASE_URL": database_url,
        "WEBHOOK_BASE_URL": "https://bot.example.com",
        "PORT": "8080",
        **variables,
    }
    return configuration.load(environ, stdin_is_terminal=False, stdout_is_terminal=False)


class LeaseDriver:
    """One lease, with its events in a queue."""

    def __init__(self, config: Config, tasks: asyncio.TaskGroup) -> None:
        self.config = config
        self.events: asyncio.Queue[m.Event] = asyncio.Queue()
        self.lease = Lease(config, self.events.put_nowait, tasks)
        self._ids = itertools.count(1)
        self.session = 0

    @property
    def instance_id(self) -> str:
        return self.config.identity.instance_id

    @property
    def connection(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        """The lease's own, to look at or to disturb; only while a session is open."""
        connection = self.lease._conn
        assert connection is not None, "no session is open"
        return connection

    def take_id(self) -> int:
        return next(self._ids)

    async def do(self, action: m.OpenSession | m.SessionStatement) -> m.Event:
        """Carry one action out, and return the next event."""
        self.lease.begin(action)
        return await self.next_event()

    async def next_event(self) -> m.Event:
        async with asyncio.timeout(HANG_SECONDS):
            return await self.events.get()

    async def open(self) -> m.Event:
        self.session = self.take_id()
        return await self.do(m.OpenSession(id=self.session))

    async def announce(self, *, ready: bool = True, abstain_seconds: float = 0.0) -> m.Announced:
        event = await self.do(m.Announce(id=self.take_id(), ready=ready, abstain_seconds=abstain_seconds))
        assert isinstance(event, m.Announced)
        return event

    async def try_lock(self) -> m.Event:
        return await self.do(m.TryLock(id=self.take_id()))

    async def wait_for_lock(self, seconds: float = 0.9) -> m.Event:
        return await self.do(m.WaitForLock(id=self.take_id(), seconds=seconds))

    async def begin_term(self, reaped_term: str | None = None) -> m.Event:
        return await self.do(m.BeginTerm(id=self.take_id(), deadline_seconds=8.0, reaped_term=reaped_term))

    async def close_term(self, term: str, successor: str | None = None) -> m.Event:
        reason = m.EndReason.HANDED_OVER
        return await self.do(m.CloseTerm(id=self.take_id(), term=term, reason=reason, successor=successor))

    async def release(self) -> m.Event:
        return await self.do(m.ReleaseLock(id=self.take_id()))


@asynccontextmanager
async def leases(database_url: str, count: int, **variables: str) -> AsyncIterator[list[LeaseDriver]]:
    """So many leases of one bot, as of so many instances; closed at the end."""
    async with asyncio.TaskGroup() as tasks:
        drivers = [
            LeaseDriver(config_for(database_url, INSTANCE_ID=f"instance-{n}", **variables), tasks)
            for n in range(count)
        ]
        try:
            yield drivers
        finally:
            for driver in drivers:
                driver.lease.close()


async def rows(database_url: str, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    """What a statement on a connection of its own gives."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        cursor = await conn.execute(statement.encode(), parameters)
        return await cursor.fetchall()
