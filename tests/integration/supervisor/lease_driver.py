"""Drives a Lease by hand: gives it one action, waits for the event that answers; and what the server shows of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from shared import config as configuration
from shared import database
from shared.config import Config
from supervisor import messages as m
from supervisor.lease import Lease

HANG_SECONDS = 30.0
TOKEN = "4242:lease-test-token_lease-test-token"

_LOCK_HOLDERS = """
SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
   AND classid = %s::bigint::oid AND objid = %s::bigint::oid"""


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


async def holders(database_url: str, bot_id: int) -> list[int]:
    """The backends that hold the bot's lock."""
    first, second = database.lock_key(bot_id)
    found = await rows(database_url, _LOCK_HOLDERS, first & 0xFFFFFFFF, second & 0xFFFFFFFF)
    return [pid for (pid,) in found if isinstance(pid, int)]


async def is_waited_for(database_url: str) -> bool:
    """Whether anybody stands in a queue for an advisory lock of this database."""
    return bool(
        await rows(
            database_url,
            "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
    )


async def backend_pid(database_url: str, driver: LeaseDriver) -> int:
    """The backend of a lease, by what it announced."""
    found = await rows(
        database_url,
        "SELECT backend_pid FROM webhook_supervisor.instances WHERE instance_id = %s",
        driver.instance_id,
    )
    assert isinstance(found[0][0], int)
    return found[0][0]


async def open_all(*drivers: LeaseDriver) -> None:
    for driver in drivers:
        assert isinstance(await driver.open(), m.SessionOpened)


async def own(driver: LeaseDriver) -> m.TermBegun:
    """Take the lock, which is free, and begin a term."""
    await driver.try_lock()
    begun = await driver.begin_term()
    assert isinstance(begun, m.TermBegun)
    return begun


@asynccontextmanager
async def claim_under_way(database_url: str, term: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """The transaction of a claim, as far as it concerns a term that is to begin; at the end of the block it is over."""
    async with await psycopg.AsyncConnection.connect(database_url) as claim:
        await claim.execute("SELECT 1 FROM webhook_supervisor.terms WHERE uuid = %s FOR SHARE", (term,))
        yield claim
