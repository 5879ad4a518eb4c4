"""Waits for the lock in a real Postgres: what they give, what cuts them, what they leave in the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from deploy.local.postgres import PostgresServer
from supervisor import messages as m
from supervisor.session_plan import WAIT_SECONDS
from tests.integration.supervisor.lease_driver import (
    HANG_SECONDS,
    LeaseDriver,
    backend_pid,
    claim_under_way,
    holders,
    is_waited_for,
    leases,
    open_all,
    own,
    rows,
)
from tests.waiting import until

_WAITS = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND pid = %s"

_TRANSACTION = """
SELECT xact_start, extract(epoch FROM clock_timestamp() - xact_start)::float8 FROM pg_stat_activity
 WHERE pid = %s AND xact_start IS NOT NULL"""


async def test_the_lock_excludes_and_is_handed_over_to_a_blocked_waiter(database_url: str) -> None:
    """One holder; a waiter in the queue gets the lock when it is released, without polling."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        assert isinstance(await one.try_lock(), m.LockAcquired)
        assert isinstance(await two.try_lock(), m.LockBusy)
        assert isinstance(await two.wait_for_lock(0.1), m.LockBusy)
        waiting = m.WaitForLock(id=two.take_id(), seconds=HANG_SECONDS / 10)
        two.lease.begin(waiting)
        assert isinstance(await one.release(), m.LockReleased)
        assert isinstance(await two.next_event(), m.LockAcquired)
        assert len(await holders(database_url, one.config.bot_id)) == 1


async def test_a07_a_wait_that_is_cut_off_leaves_no_lock_behind(database_url: str) -> None:
    """A session closed in the middle of its wait holds nothing later, so nobody is locked out by itself."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        await one.try_lock()
        two.lease.begin(m.WaitForLock(id=two.take_id(), seconds=0.9))
        two.lease.close()
        await one.release()
        await until(
            lambda: holders(database_url, one.config.bot_id),
            "nobody holds the lock",
            lambda holding: not holding,
        )
        assert isinstance(await two.open(), m.SessionOpened)
        assert isinstance(await two.try_lock(), m.LockAcquired)


@pytest.mark.parametrize("begins", [False, True])
async def test_b17_a_wait_that_is_cut_is_over_at_once_and_gets_nothing(
    database_url: str, *, begins: bool
) -> None:
    """And the session goes on."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        await one.try_lock()
        # Else a wait that lasted would be ended by that, and be answered in the same way.
        await two.connection.execute("SET statement_timeout = 0")
        id_ = two.take_id()
        then = m.BeginTerm(id=id_, deadline_seconds=8.0, reaped_term=None) if begins else None
        two.lease.begin(m.WaitForLock(id=id_, seconds=10 * HANG_SECONDS, then=then))
        await until(lambda: is_waited_for(database_url), "it stands in the queue", lambda stands: stands)
        two.lease.cut_wait()
        assert isinstance(await two.next_event(), m.LockBusy)
        await one.release()
        assert await holders(database_url, one.config.bot_id) == []
        assert isinstance(await two.try_lock(), m.LockAcquired)


async def test_b17_a_cut_that_hits_the_begin_of_a_term_leaves_the_lock_and_no_term(
    database_url: str,
) -> None:
    """The session goes on, too: else it would end without saying that it is not ready any more."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        begun = await own(one)
        async with claim_under_way(database_url, begun.term):
            id_ = two.take_id()
            then = m.BeginTerm(id=id_, deadline_seconds=8.0, reaped_term=None)
            two.lease.begin(m.WaitForLock(id=id_, seconds=4.0, then=then))
            await until(lambda: is_waited_for(database_url), "it stands in the queue", lambda stands: stands)
            await one.release()
            await until(lambda: holders(database_url, one.config.bot_id), "it has the lock", bool)
            two.lease.cut_wait()
            assert isinstance(await two.next_event(), m.LockAcquired)
        assert (await two.announce()).holder == one.instance_id
        await two.release()
        assert await holders(database_url, one.config.bot_id) == []


async def test_b17_a_cut_that_comes_too_late_does_not_hit_the_next_statement(database_url: str) -> None:
    """It waits until the cut is over."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        await one.try_lock()
        assert isinstance(await two.wait_for_lock(0.1), m.LockBusy)
        two.lease.cut_wait()
        two.lease.begin(m.WaitForLock(id=two.take_id(), seconds=4.0))
        await until(lambda: is_waited_for(database_url), "it stands in the queue", lambda stands: stands)
        await one.release()
        assert isinstance(await two.next_event(), m.LockAcquired)


async def test_a07_a_wait_that_acquired_at_its_timeout_is_known_to_hold(database_url: str) -> None:
    """After every wait pg_locks is asked, so a lock that we hold is never taken for another instance's."""
    async with leases(database_url, 1) as (one,):
        await open_all(one)
        assert isinstance(await one.try_lock(), m.LockAcquired)
        # Nested: the second wait finds the lock ours, and one release frees it altogether.
        assert isinstance(await one.wait_for_lock(0.1), m.LockAcquired)
        await one.release()
        assert await holders(database_url, one.config.bot_id) == []


async def test_a_term_that_begins_with_the_lock_waits_for_a_claim_longer_than_for_the_lock(
    database_url: str,
) -> None:
    """The limit of the wait is the wait's alone; after it the session has the limit that it had."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        begun = await own(one)
        conn = two.connection
        await conn.execute("SELECT set_config('lock_timeout', '4s', false)")
        async with claim_under_way(database_url, begun.term) as claim:
            await one.release()
            id_ = two.take_id()
            then = m.BeginTerm(id=id_, deadline_seconds=8.0, reaped_term=None)
            two.lease.begin(m.WaitForLock(id=id_, seconds=0.1, then=then))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await two.events.get()
            await claim.commit()
        assert isinstance(await two.next_event(), m.TermBegun)
        assert await (await conn.execute("SHOW lock_timeout")).fetchone() == ("4s",)
        id_ = one.take_id()
        then = m.BeginTerm(id=id_, deadline_seconds=8.0, reaped_term=None)
        assert isinstance(await one.do(m.WaitForLock(id=id_, seconds=0.1, then=then)), m.LockBusy)


async def test_waiting_writes_no_error_into_the_database_log(
    database_url: str, postgres_server: PostgresServer
) -> None:
    """A standby that waits for hours must not fill its user's database log with an ERROR a second."""
    before = postgres_server.log_path.stat().st_size  # other tests' databases are in this server too
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        await one.try_lock()
        await two.wait_for_lock(0.05)
        await two.wait_for_lock(0.05)
    assert b"lock timeout" not in postgres_server.log_path.read_bytes()[before:]


@asynccontextmanager
async def standing_by(database_url: str, driver: LeaseDriver) -> AsyncIterator[int]:
    """Wait after wait for a lock that another holds, for as long as the block lasts; the pid of the backend that waits."""
    await driver.announce()
    pid = await backend_pid(database_url, driver)
    stop = asyncio.Event()

    async def wait() -> None:
        while not stop.is_set():
            assert isinstance(await driver.wait_for_lock(WAIT_SECONDS), m.LockBusy)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(wait(), name="standby")
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while await rows(database_url, _WAITS, pid) == []:
                    await asyncio.sleep(0.01)
                yield pid
        finally:
            stop.set()


async def test_b19_a_standby_holds_no_snapshot_for_longer_than_a_wait(database_url: str) -> None:
    """VACUUM and CREATE INDEX CONCURRENTLY wait for whoever has an old one: no transaction of its lasts for three waits."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        await one.try_lock()
        transactions: set[object] = set()
        async with standing_by(database_url, two) as pid:
            while len(transactions) < 4:
                for began_at, age_seconds in await rows(database_url, _TRANSACTION, pid):
                    transactions.add(began_at)
                    assert isinstance(age_seconds, float)
                    assert age_seconds < 3 * WAIT_SECONDS


async def test_b19_an_index_is_created_concurrently_while_a_standby_waits(database_url: str) -> None:
    """Within seconds, as soon as the wait is over that it found; behind one transaction for all waits it never would be."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        await one.try_lock()
        async with (
            standing_by(database_url, two),
            await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other,
        ):
            await other.execute("SET statement_timeout = '20s'")  # a limit on a hang
            await other.execute(
                "CREATE INDEX CONCURRENTLY test_extra ON webhook_supervisor.inbox (received_at)"
            )
