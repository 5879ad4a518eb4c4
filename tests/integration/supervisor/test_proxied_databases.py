"""What stands before a database and makes up the pid of a session may all the same give it to us alone; or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from psycopg import AsyncConnection, conninfo
from psycopg.rows import TupleRow

from shared.database import DatabaseAway, Link, pooler
from shared.database.advisory import PROBE_CLASS
from supervisor import messages as m
from tests.campaign.faults import Unavailable
from tests.campaign.faults.pooler import POOL_SIZE, pgbouncer
from tests.integration.supervisor.lease_driver import HANG_SECONDS, LeaseDriver, leases, rows
from tests.waiting import until

MADE_UP_PID = 0x7EAF0000


@dataclass(slots=True)
class PidProxy:
    """What it did: how many sessions it has let in, and how many are open."""

    dsn: str
    opened: int = 0
    open: int = 0
    sessions: list[asyncio.Task[None]] = field(default_factory=list)

    async def wait_for_open(self, count: int) -> None:
        """Until so many are open."""
        await until(lambda: self.open, f"{count} sessions are open", lambda number: number == count)


@asynccontextmanager
async def pid_proxy(database_url: str, *, makes_up: bool, breaks_at: bytes = b"") -> AsyncIterator[PidProxy]:
    """A proxy that gives everybody a session of the server for himself; with `makes_up`, and another pid, as Neon's does.

    A connection on which the client says `breaks_at` is closed then.
    """
    known = conninfo.conninfo_to_dict(database_url)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if breaks_at and breaks_at in data:
                    return
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = b""
        while kind != b"K":
            try:
                kind = await reader.readexactly(1)
                length = await reader.readexactly(4)
                body = await reader.readexactly(int.from_bytes(length, "big") - 4)
            except asyncio.IncompleteReadError:  # of a cancellation, or refused
                writer.close()
                return
            if kind == b"K":
                proxy.opened += 1
                if makes_up:
                    body = (MADE_UP_PID + proxy.opened).to_bytes(4, "big") + body[4:]
            writer.write(kind + length + body)
        await pass_on(reader, writer)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection(str(known["host"]), str(known["port"]))
        proxy.open += 1
        await asyncio.gather(pass_on(reader, to_server[1]), answer(to_server[0], writer))
        proxy.open -= 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    direct = {"host": "127.0.0.1", "port": port, "sslmode": "disable", "gssencmode": "disable"}
    proxy = PidProxy(conninfo.make_conninfo(database_url, **direct))
    try:
        yield proxy
        await proxy.wait_for_open(0)
    finally:
        server.close()


async def own_and_work(dsn: str, one: LeaseDriver, two: LeaseDriver) -> None:
    """A lease excludes the other, as it must, and has its limits; a worker's session works beside it."""
    async with Link(dsn, name="worker") as link:
        for driver in (one, two):
            event = await driver.open()
            assert isinstance(event, m.SessionOpened), event
        assert isinstance(await one.try_lock(), m.LockAcquired)
        assert isinstance(await two.try_lock(), m.LockBusy)
        assert isinstance(await one.begin_term(), m.TermBegun)
        assert await limits(one.connection) == ("5s", "15s")
        await link.wait_tried(HANG_SECONDS)
        assert link.reason is None
        assert await link.run(limits, HANG_SECONDS) == ("15s", "0")
        assert isinstance(await one.release(), m.LockReleased)
        assert isinstance(await two.wait_for_lock(HANG_SECONDS / 10), m.LockAcquired)


async def limits(connection: AsyncConnection[TupleRow]) -> tuple[object, ...]:
    """Two of the settings that our sessions have."""
    cursor = await connection.execute(
        "SELECT current_setting('statement_timeout'), current_setting('idle_session_timeout')"
    )
    row = await cursor.fetchone()
    assert row is not None
    return row


async def test_b13_a_proxy_that_makes_up_pids_is_as_good_as_none(database_url: str) -> None:
    """Neon's direct address: what counts is that the session is nobody else's."""
    async with pid_proxy(database_url, makes_up=True) as proxy, leases(proxy.dsn, 2) as (one, two):
        await own_and_work(proxy.dsn, one, two)
        one.lease.close()
        two.lease.close()


async def test_b13_a_pooler_in_session_mode_is_as_good_as_none(database_url: str) -> None:
    """It makes up pids as well, and gives a session to a client until that leaves."""
    try:
        async with (
            pgbouncer(database_url, pool_mode="session", pool_size=20) as pooled,
            leases(pooled, 2) as (one, two),
        ):
            await own_and_work(pooled, one, two)
    except Unavailable as missing:
        pytest.skip(str(missing))


async def test_b13_a_busy_pooler_in_transaction_mode_is_found_out_too(database_url: str) -> None:
    """Where other clients use its sessions, ours changes from statement to statement, or is another's; they go on unharmed."""

    async def others(dsn: str) -> None:
        async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
            while True:
                await connection.execute("SELECT pg_sleep(0.001)", prepare=False)

    try:
        async with pgbouncer(database_url) as pooled, asyncio.TaskGroup() as tasks:
            busy = [tasks.create_task(others(pooled)) for _ in range(POOL_SIZE - 1)]
            refused = 0
            async with leases(pooled, 1) as (one,):
                for _ in range(10):
                    event = await one.open()
                    if isinstance(event, m.SessionFailed):
                        assert event.refused, event.reason
                        refused += 1
                    one.lease.close()
            # Not promised (shared/database/pooler.py): each of the two may be lent the same session again every time.
            assert refused >= 9
            for task in busy:
                task.cancel()
    except Unavailable as missing:
        pytest.skip(str(missing))


async def probes(database_url: str) -> list[tuple[object, ...]]:
    """The locks of probes that somebody holds."""
    held = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = %s::bigint::oid"
    return await rows(database_url, held, PROBE_CLASS)


@asynccontextmanager
async def lent_lock(
    database_url: str,
) -> AsyncIterator[tuple[AsyncConnection[TupleRow], AsyncConnection[TupleRow], AsyncConnection[TupleRow]]]:
    """Three clients of a pooler with two sessions, one of which has the lock of the first's probe and is lent to the third.

    Two, since a pooler lends first what came back last: of more, it might never lend the first two that one again.
    """
    try:
        async with pgbouncer(database_url, pool_size=2) as pooled:
            first, second, third = [
                await AsyncConnection.connect(pooled, autocommit=autocommit)
                for autocommit in (True, True, False)
            ]
            async with first, second, third:
                await first.execute("SELECT pg_advisory_lock(%s::int4, 7)", (PROBE_CLASS,))
                (holder,) = await probes(database_url)
                cursor = await third.execute("SELECT pg_backend_pid()")  # in a transaction, which stays open
                assert await cursor.fetchone() == holder
                yield first, second, third
                # What others see of a lock may be a moment old.
                await until(
                    lambda: probes(database_url), "no probe holds a lock", lambda holding: holding == []
                )
    except Unavailable as missing:
        pytest.skip(str(missing))


async def test_b13_the_lock_of_a_probe_is_waited_for_while_its_session_is_lent_to_another(
    database_url: str,
) -> None:
    """A pooler may have lent the session that took it to another client when it is to be freed."""
    async with lent_lock(database_url) as (first, second, stranger):
        releasing = asyncio.create_task(pooler.release(7, first, second, HANG_SECONDS))
        while not releasing.done() and await sessions_searched(database_url) == []:
            await asyncio.sleep(0.01)
        assert not releasing.done()
        await stranger.rollback()
        assert await releasing is False


async def test_b13_the_lock_of_a_probe_is_found_in_the_session_that_is_lent_last(database_url: str) -> None:
    """One connection alone would be lent the other session, which came back later, again and again."""
    async with lent_lock(database_url) as (first, second, stranger):
        async with first.transaction():
            await stranger.rollback()
        assert await pooler.release(7, first, second, HANG_SECONDS) is False


@pytest.mark.parametrize("makes_up", [False, True])
@pytest.mark.parametrize(
    "breaks_at", [b"pg_advisory_lock", b"pg_try_advisory_xact_lock", b"pg_advisory_unlock"]
)
async def test_a_network_that_breaks_in_the_probe_is_no_verdict(
    database_url: str, breaks_at: bytes, makes_up: bool
) -> None:
    """It is tried again: a refusal ends the process, with an exit code after which nobody starts it again."""
    async with (
        pid_proxy(database_url, makes_up=makes_up, breaks_at=breaks_at) as proxy,
        leases(proxy.dsn, 1) as (one,),
    ):
        event = await one.open()
    assert isinstance(event, m.SessionFailed)
    assert not event.refused, event.reason
    assert await probes(database_url) == []


async def sessions_searched(database_url: str) -> list[tuple[object, ...]]:
    """Those through which the probe's lock was looked for."""
    return await rows(
        database_url,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state LIKE %s"
        " AND (query LIKE %s OR query = 'COMMIT')",
        "idle%",
        "%pg_advisory_unlock%",
    )


async def test_only_the_first_opening_of_a_lease_takes_a_second_connection(database_url: str) -> None:
    """An instance is promised to have no more than DB_POOL_SIZE + 2, also when the network comes and goes."""
    async with pid_proxy(database_url, makes_up=False) as proxy, leases(proxy.dsn, 1) as (one,):
        opened = []
        for _ in range(3):
            before = proxy.opened
            assert isinstance(await one.open(), m.SessionOpened)
            opened.append(proxy.opened - before)
            one.lease.close()
            await proxy.wait_for_open(0)
    assert opened == [2, 1, 1]


async def test_only_the_first_session_of_a_link_takes_a_second_connection(database_url: str) -> None:
    """And that only where the pid is made up; the lease, which others' updates hang on, looks again each time."""
    async with pid_proxy(database_url, makes_up=True) as proxy:
        async with Link(proxy.dsn, name="worker") as link:
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            assert proxy.opened == 2
            with pytest.raises(DatabaseAway):
                await link.run(end_session, HANG_SECONDS)
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            assert await link.run(limits, HANG_SECONDS) == ("15s", "0")
            assert proxy.opened == 3
        async with leases(proxy.dsn, 1) as (one,):
            for _ in range(2):
                before = proxy.opened
                assert isinstance(await one.open(), m.SessionOpened)
                assert proxy.opened - before == 2
                one.lease.close()


async def end_session(connection: AsyncConnection[TupleRow]) -> None:
    """As a server that restarts does."""
    await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
