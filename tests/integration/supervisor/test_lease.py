"""The lock's session against a real Postgres."""

from __future__ import annotations

import asyncio
import socket

import psycopg
import pytest
from psycopg import conninfo
from psycopg.pq import TransactionStatus

from shared import clock, database
from supervisor import messages as m
from tests.campaign.faults.proxy import Conditions, Flow, run_proxy
from tests.integration.supervisor.lease_driver import (
    HANG_SECONDS,
    backend_pid,
    claim_under_way,
    holders,
    leases,
    open_all,
    own,
    rows,
)


async def test_a06_the_heartbeat_runs_on_the_session_that_holds_the_lock(database_url: str) -> None:
    """The backend that announces is the backend that holds the lock: who sees one idle sees the other idle."""
    async with leases(database_url, 1) as (one,):
        await open_all(one)
        await one.try_lock()
        await one.announce()
        assert await holders(database_url, one.config.bot_id) == [await backend_pid(database_url, one)]


async def test_a06_a_terminated_session_is_noticed_between_statements(database_url: str) -> None:
    """Nothing has to be sent for it: the owner learns of the loss when the server closes the session."""
    async with leases(database_url, 1) as (one,):
        await open_all(one)
        await one.try_lock()
        await one.announce()
        await rows(database_url, "SELECT pg_terminate_backend(%s)", await backend_pid(database_url, one))
        event = await one.next_event()
        assert isinstance(event, m.SessionLost)
        assert event.session == one.session


async def test_a09_the_session_brings_its_own_time_outs_and_is_never_idle_in_transaction(
    database_url: str,
) -> None:
    """What the database is configured to does not end our session, and the server's lease is set."""
    async with leases(database_url, 1) as (one,):
        await open_all(one)
        await one.try_lock()
        await one.announce()
        await one.begin_term()
        pid = await backend_pid(database_url, one)
        found = await rows(database_url, "SELECT state FROM pg_stat_activity WHERE pid = %s", pid)
        assert found == [("idle",)]
        conn = one.connection
        for setting, expected in (
            ("idle_session_timeout", "15s"),
            ("idle_in_transaction_session_timeout", "15s"),
            ("statement_timeout", "5s"),
        ):
            row = await (await conn.execute("SELECT current_setting(%s)", (setting,))).fetchone()
            assert row == (expected,)


async def test_terms_grow_and_carry_a_fresh_uuid(database_url: str) -> None:
    """The number grows with every term, the UUID is another each time, a clean end lets the next recover at once."""
    async with leases(database_url, 1) as (one,):
        await open_all(one)
        await one.try_lock()
        first = await one.begin_term()
        assert isinstance(first, m.TermBegun)
        assert first.recover_after_seconds == 0.0
        await one.close_term(first.term)
        second = await one.begin_term()
        assert isinstance(second, m.TermBegun)
        assert second.number == first.number + 1
        assert second.term != first.term
        assert second.recover_after_seconds == 0.0


async def test_after_an_unclean_end_recovery_waits_for_the_old_deadline(database_url: str) -> None:
    """Another's term that nobody closed is waited out; one of our own, whose worker we reaped, is not."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        await own(one)
        one.lease.close()
        async with asyncio.timeout(HANG_SECONDS):
            while not isinstance(await two.wait_for_lock(), m.LockAcquired):
                pass
        taken = await two.begin_term()
        assert isinstance(taken, m.TermBegun)
        assert taken.recover_after_seconds == 8.0
        again = await two.begin_term(reaped_term=taken.term)
        assert isinstance(again, m.TermBegun)
        assert again.recover_after_seconds == 0.0


async def test_only_the_named_successor_begins_the_next_term(database_url: str) -> None:
    """Whoever else gets the lock is denied, and the successor is not."""
    async with leases(database_url, 3) as (old, bystander, successor):
        await open_all(old, bystander, successor)
        await successor.announce()
        begun = await own(old)
        await old.close_term(begun.term, successor=successor.instance_id)
        await old.release()
        assert isinstance(await bystander.try_lock(), m.LockAcquired)
        denied = await bystander.begin_term()
        assert isinstance(denied, m.TermDenied)
        assert denied.successor == successor.instance_id
        await bystander.release()
        assert isinstance(await successor.try_lock(), m.LockAcquired)
        assert isinstance(await successor.begin_term(), m.TermBegun)


async def test_b16_a_successor_named_before_the_clock_was_set_back_keeps_nobody_out(
    database_url: str,
) -> None:
    """Its five seconds would last as long as the clock was set back."""
    async with leases(database_url, 3) as (old, bystander, successor):
        await open_all(old, bystander, successor)
        await successor.announce()
        begun = await own(old)
        await old.close_term(begun.term, successor=successor.instance_id)
        await old.release()
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
            await other.execute(
                "UPDATE webhook_supervisor.terms SET successor_until = successor_until + interval '1 hour'"
            )
        assert isinstance(await bystander.try_lock(), m.LockAcquired)
        assert isinstance(await bystander.begin_term(), m.TermBegun)


async def test_a_new_term_waits_for_a_claim_under_way(database_url: str) -> None:
    """The term row read FOR SHARE by a claim is not overwritten until that claim is committed."""
    async with leases(database_url, 1) as (one,):
        await open_all(one)
        begun = await own(one)
        async with claim_under_way(database_url, begun.term) as claim:
            one.lease.begin(m.BeginTerm(id=one.take_id(), deadline_seconds=8.0, reaped_term=None))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await one.events.get()
            await claim.commit()
        assert isinstance(await one.next_event(), m.TermBegun)


async def test_no_term_begins_on_a_session_without_the_lock(database_url: str) -> None:
    """Whatever the core believes: the row stays as it is, and the session is given up."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        await one.try_lock()
        assert isinstance(await one.begin_term(), m.TermBegun)
        before = await rows(database_url, "SELECT * FROM webhook_supervisor.terms")
        assert isinstance(await two.begin_term(), m.SessionFailed)
        assert await rows(database_url, "SELECT * FROM webhook_supervisor.terms") == before


async def test_announcements_tell_age_waiting_and_the_holder(database_url: str) -> None:
    """Everybody sees who is there, who waits in the queue, who is ready, and who owns."""
    async with leases(database_url, 2, DEPLOY_ID="code-1") as (one, two):
        await open_all(one, two)
        await one.try_lock()
        assert isinstance(await one.begin_term(), m.TermBegun)
        await two.announce(ready=True)
        two.lease.begin(m.WaitForLock(id=two.take_id(), seconds=HANG_SECONDS / 3))
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                seen = await one.announce()
                other = next(p for p in seen.peers if p.instance_id == two.instance_id)
                if other.waiting:
                    break
        assert seen.holder == one.instance_id
        assert other.ready
        assert other.candidate
        assert other.handed_over_seconds is None
        assert other.deploy_id == two.config.identity.deploy_id
        assert other.age_seconds >= other.silent_seconds
        two.lease.close()


async def test_a_restart_in_place_makes_nobody_younger(database_url: str) -> None:
    """A later start under the platform's same instance id and deploy keeps the age of the first."""
    async with leases(database_url, 1, DEPLOY_ID="code-1") as (one,):
        await open_all(one)
        await one.announce()
    async with leases(database_url, 1, DEPLOY_ID="code-1") as (again,):
        await open_all(again)
        seen = await again.announce()
        ages = {p.instance_id: p.age_seconds for p in seen.peers}
        assert len(ages) == 2
        assert ages[again.instance_id] == ages[one.instance_id]
    async with leases(database_url, 1, DEPLOY_ID="code-2") as (newer,):
        await open_all(newer)
        seen = await newer.announce()
        by_id = {p.instance_id: p for p in seen.peers}
        assert by_id[newer.instance_id].age_seconds < by_id[one.instance_id].age_seconds


async def test_a_preview_makes_no_deploy_older(database_url: str) -> None:
    """It is often of the commit that is deployed next; allowed to own, it takes part like any other."""
    for allowed, expected in (("", None), ("1", "code-1+")):
        preview = {"IS_PULL_REQUEST": "true", "ALLOW_PREVIEW": allowed, "DEPLOY_ID": "code-1"}
        async with leases(database_url, 1, **preview) as (one,):
            await open_all(one)
            seen = await one.announce()
            (deploy,) = [p.deploy_id for p in seen.peers if p.instance_id == one.instance_id]
            assert deploy is None if expected is None else str(deploy).startswith(expected)


async def test_a12_a_database_that_is_not_there_is_a_failure_with_words(database_url: str) -> None:
    """'Cannot be reached' is told as such, never as 'held elsewhere'."""
    away = psycopg.conninfo.make_conninfo(database_url, host="127.0.0.1", port="1", hostaddr="127.0.0.1")
    async with leases(away, 1) as (one,):
        event = await one.open()
        assert isinstance(event, m.SessionFailed)
        assert not event.refused
        assert "refused" in event.reason


async def test_a_direct_database_is_not_taken_for_a_pooler(database_url: str) -> None:
    """The probe's lock is held against a second connection (a real pooler: test_unsuitable_databases.py)."""
    conn = await database.connect(database_url, application_name="probe test")
    async with conn:
        assert await database.is_ours_alone(conn, database_url)


async def test_registrations_are_recorded_before_and_superseded_after(database_url: str) -> None:
    """Both stand while the new one is not confirmed; afterwards the old one is superseded, not yet gone."""
    old = {"WEBHOOK_SECRET_PATH": "old-path-old-path-old", "WEBHOOK_SECRET_TOKEN": "old-secret-old-secret"}
    async with leases(database_url, 1, **old) as (one,):
        await open_all(one)
        await one.do(m.RecordRegistration(id=one.take_id()))
        await one.do(m.ConfirmRegistration(id=one.take_id()))
    async with leases(database_url, 1) as (two,):
        await open_all(two)
        await two.do(m.RecordRegistration(id=two.take_id()))
        statement = (
            "SELECT confirmed_at IS NOT NULL, superseded_at IS NOT NULL "
            "FROM webhook_supervisor.registrations ORDER BY recorded_at"
        )
        assert await rows(database_url, statement) == [(True, False), (False, False)]
        await two.do(m.ConfirmRegistration(id=two.take_id()))
        assert await rows(database_url, statement) == [(True, True), (True, False)]


async def test_schema_is_applied_by_many_instances_at_once(database_url: str) -> None:
    """Instances that start together on an empty database all come up."""
    async with leases(database_url, 8) as drivers:
        events = await asyncio.gather(*(driver.open() for driver in drivers))
        assert [event for event in events if not isinstance(event, m.SessionOpened)] == []


async def test_a30_a_schema_that_cannot_be_applied_is_an_error_that_says_so(database_url: str) -> None:
    """A failed migration leaves a PASSIVE instance that names the reason, never a silent owner."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        await conn.execute("CREATE SCHEMA webhook_supervisor")
        await conn.execute("CREATE TABLE webhook_supervisor.terms (nonsense int)")
    async with leases(database_url, 1) as (one,):
        event = await one.open()
        assert isinstance(event, m.SessionFailed)
        assert event.schema
        assert "terms" in event.reason


async def test_b07_a_session_closed_under_a_statement_keeps_its_descriptor_until_the_statement_ended(
    database_url: str,
) -> None:
    """Freed at once, its number could be the next worker's control socket's, which nobody would hear then."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        await one.try_lock()
        two.lease.begin(m.WaitForLock(id=two.take_id(), seconds=3.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        conn = two.connection
        descriptor = conn.fileno()
        two.lease.close()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert descriptor not in (ours.fileno(), theirs.fileno())
        async with asyncio.timeout(HANG_SECONDS):
            while not conn.closed:
                await asyncio.sleep(0.01)


async def test_b08_closing_under_a_statement_asks_nothing_of_a_silent_server(database_url: str) -> None:
    """psycopg would: a statement that is cancelled connects anew to cancel it there, and the exit waits 5 s for an answer."""
    port = int(str(conninfo.conninfo_to_dict(database_url)["port"]))
    async with run_proxy(port) as proxy, leases(proxy.dsn(database_url), 1) as (one,):
        await open_all(one)
        connected = proxy.counts.connections
        await proxy.set(Conditions(Flow.FREEZE))
        one.lease.begin(m.Announce(id=one.take_id(), ready=True, abstain_seconds=0.0))
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "lease Announce"]
        conn = one.connection
        while conn.info.transaction_status != TransactionStatus.ACTIVE:
            await asyncio.sleep(0)
        one.lease.close()
        async with asyncio.timeout(HANG_SECONDS):
            await asyncio.wait({task})
        assert not task.cancelled()
        assert proxy.counts.connections == connected


async def test_a_recovery_that_is_not_over_is_passed_on(database_url: str) -> None:
    """An owner that leaves before its predecessor's deadline has passed leaves the next one that wait."""
    async with leases(database_url, 2) as (one, two):
        await open_all(one, two)
        begun = await own(one)
        reason = m.EndReason.STOPPING
        close = m.CloseTerm(id=one.take_id(), term=begun.term, reason=reason, successor=None, recovered=False)
        assert isinstance(await one.do(close), m.TermClosed)
        await one.release()
        assert isinstance(await two.try_lock(), m.LockAcquired)
        taken = await two.begin_term()
        assert isinstance(taken, m.TermBegun)
        assert taken.recover_after_seconds == 8.0


async def test_b09_a_heartbeat_is_one_round_trip(database_url: str) -> None:
    """At a latency of seconds, a second one would use up the deadline that the next heartbeat needs."""
    port = int(str(conninfo.conninfo_to_dict(database_url)["port"]))
    async with run_proxy(port) as proxy, leases(proxy.dsn(database_url), 1) as (one,):
        await open_all(one)
        await one.announce()
        await proxy.set(Conditions(latency_seconds=0.25))
        trips = {"one statement": 0.0, "a heartbeat": 0.0}
        for _ in range(3):
            began = clock.now()
            await one.release()
            released = clock.now()
            await one.announce()
            announced = clock.now()
            trips["one statement"] = max(trips["one statement"], released - began)
            # The fastest: a busy machine makes any of them slower, and none faster than its round trips.
            trips["a heartbeat"] = min(trips["a heartbeat"] or HANG_SECONDS, announced - released)
    assert trips["a heartbeat"] < 1.7 * trips["one statement"]
