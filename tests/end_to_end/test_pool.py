"""The few database sessions of an instance: how they are used is told, and when there are not enough, that is told, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from signal import SIGHUP
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from deploy.local.emulator.control_messages import SendText
from tests.campaign.faults import Unavailable
from tests.campaign.faults.pooler import pgbouncer
from tests.end_to_end.instance import HANG_SECONDS, Instance, World, eventually, is_alive
from tests.end_to_end.test_standby import KNOWN, post_update, text_update, wait_until_done
from tests.integration.supervisor.lease_driver import rows
from tests.unit.supervisor.test_metrics import samples

SESSIONS = (
    "SELECT pid, application_name FROM pg_stat_activity"
    " WHERE datname = current_database() AND starts_with(application_name, 'webhook-supervisor')"
)
UNSTORED = ("webhook_supervisor_unstored_updates", ())
EARLY = "webhook-supervisor early reception"


async def eight_that_wait(
    one: Instance, connection: psycopg.AsyncConnection[tuple[Any, ...]]
) -> list[asyncio.Task[httpx.Response]]:
    """Eight updates that are sent to it, and cannot be stored as long as the connection's transaction lasts."""
    await connection.execute("LOCK TABLE webhook_supervisor.inbox IN ACCESS EXCLUSIVE MODE")
    return [
        asyncio.create_task(post_update(one, text_update(number, number, "work 0"))) for number in range(1, 9)
    ]


async def test_a32_sessions_in_use_are_told_and_exhaustion_is_503_and_no_silence(world: World) -> None:
    """All sessions are held up by somebody's lock: /status shows it, updates get 503 with Retry-After, and the log says why."""
    one = await world.start_public("one", **KNOWN, DB_POOL_SIZE="2")
    await one.wait_until_owner()

    async def pool() -> dict[str, int]:
        found: dict[str, int] = (await one.status())["pool"]
        return found

    async def is_at_rest() -> bool:
        return await pool() == {"size": 2, "in_use": 0, "waiting": 0, "unstored": 0}

    async def is_exhausted() -> bool:
        return (await pool())["waiting"] > 0

    await eventually(is_at_rest, "two sessions, none in use")
    async with await psycopg.AsyncConnection.connect(world.database_url) as connection:
        posts = await eight_that_wait(one, connection)
        await eventually(is_exhausted, "somebody who waits for a session")
        # Not one of them is kept waiting until Telegram gives it up, and none is told what is not so.
        for answer in await asyncio.gather(*posts):
            assert (answer.status_code, answer.headers["retry-after"], answer.content) == (503, "2", b"")
        await one.wait_for("[WEBHOOK] updates are answered 503")
        await one.wait_for("[WORKER] updates cannot be stored")
        line = next(line for line in one.lines if line.event == "updates are answered 503")
        assert "no answer within" in str(line.fields)
        ready = await one.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "failing")
    await eventually(is_at_rest, "the sessions are free again")

    async def is_stored() -> bool:
        return (await post_update(one, text_update(1, 1, "work 0"))).status_code == 200

    await eventually(is_stored, "an update is stored again")


async def test_a32_updates_that_wait_to_be_stored_are_a_metric_with_the_default_pool(world: World) -> None:
    """There one caller, who has a session of his own, stores all that come: nobody waits for a session, all for him."""
    one = await world.start_public("one", **KNOWN)
    await one.wait_until_owner()

    async def unstored() -> float:
        return samples((await one.get("/metrics", own_port=True)).content)[UNSTORED]

    async def are_none() -> bool:
        return await unstored() == 0

    async def are_eight() -> bool:
        return await unstored() == 8

    await eventually(are_none, "an empty buffer")
    async with await psycopg.AsyncConnection.connect(world.database_url) as connection:
        posts = await eight_that_wait(one, connection)
        await eventually(are_eight, "all eight are told of")
    for answer in await asyncio.gather(*posts):
        assert answer.status_code in (200, 503)  # by how long that took
    await eventually(are_none, "an empty buffer again")


async def most_sessions(database_url: str, stop: asyncio.Event) -> list[str]:
    """The names of the most that were there at a time, until then.

    Those are counted that two looks in a row have seen: a backend is seen for a moment after its client has closed.
    """
    most: list[str] = []
    before: set[int] = set()
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        while not stop.is_set():
            cursor = await connection.execute(SESSIONS.encode())
            found: dict[int, str] = dict(await cursor.fetchall())
            most = max(most, sorted(name for pid, name in found.items() if pid in before), key=len)
            before = set(found)
            await asyncio.sleep(0.01)
    return most


@pytest.mark.parametrize("size", [1, 2, 3, 4])
async def test_a32_workers_that_replace_each_other_have_no_more_sessions_than_is_said(
    world: World, size: int
) -> None:
    """DB_POOL_SIZE and 2 more, also while two are there, under traffic; and each new one has what it needs to dispatch.

    The first worker was started alone, the second beside it, and that makes a difference when it is replaced itself.
    """
    one = await world.start_public("one", DB_POOL_SIZE=str(size))
    await one.wait_until_owner()

    async def has_started() -> bool:
        return EARLY not in {name for _, name in await rows(world.database_url, SESSIONS)}

    async def is_whole() -> bool:
        open_now: int = (await one.status())["pool"]["size"]
        return open_now >= (1, 2, 2, 3)[size - 1]

    await eventually(has_started, "the end of the early reception")
    stop = asyncio.Event()

    async def traffic() -> None:
        while not stop.is_set():
            await world.telegram.send_many([SendText(user, "work 0.2") for user in range(1, 11)])
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        sessions = group.create_task(most_sessions(world.database_url, stop))
        group.create_task(traffic())
        for replacement in (1, 2):
            old = await one.worker_pid()
            one.signal(SIGHUP)
            await one.wait_for("[WORKER] worker dispatches updates", count=replacement + 1)

            async def is_gone(pid: int = old) -> bool:
                return not is_alive(pid)

            await eventually(is_gone, "the end of the replaced worker")
            await eventually(is_whole, "all sessions of the new worker")
        stop.set()
    most = sessions.result()
    assert len(most) <= size + 2, most
    assert most.count("webhook-supervisor worker" if size == 1 else "webhook-supervisor worker ingest") == 2
    assert await world.telegram.wait_idle(timeout_seconds=HANG_SECONDS)
    counts = await world.telegram.counts()
    assert counts.not_2xx == {}
    await world.say(77, "work 0")


async def test_b13_an_instance_owns_through_a_pooler_in_session_mode(world: World) -> None:
    """And its next worker dispatches: what matters is that its sessions are nobody else's, not who tells their pids."""
    try:
        async with pgbouncer(world.database_url, pool_mode="session", pool_size=20) as pooled:
            one = await world.start_public("one", DATABASE_URL=pooled)
            await one.wait_until_owner()
            assert await world.say(7, "/start")
            one.signal(SIGHUP)
            await one.wait_for("[WORKER] worker dispatches updates", count=2)
            assert await world.say(7, "/start")
            assert await one.stop() == 0
    except Unavailable as missing:
        pytest.skip(str(missing))
    assert not any("pooler" in line for line in one.output)


@asynccontextmanager
async def limited_role(world: World) -> AsyncIterator[tuple[psycopg.AsyncConnection[TupleRow], str]]:
    """A connection that no limit holds for, and a role's name. Its limit is 12 sessions, which both instances fit into."""
    async with await psycopg.AsyncConnection.connect(world.database_url, autocommit=True) as connection:
        role = f"few_{connection.info.backend_pid}"
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 12".encode())
        await connection.execute(f"GRANT ALL ON DATABASE {connection.info.dbname} TO {role}".encode())
        yield connection, role


async def limit(connection: psycopg.AsyncConnection[TupleRow], role: str, most: int) -> None:
    """Sessions that are there stay."""
    await connection.execute(f"ALTER ROLE {role} CONNECTION LIMIT {most}".encode())


async def sessions_of(connection: psycopg.AsyncConnection[TupleRow], role: str) -> list[tuple[int, str]]:
    """Pid and name, the oldest first."""
    found = "SELECT pid, application_name FROM pg_stat_activity WHERE usename = %s ORDER BY backend_start"
    return [(pid, name) for pid, name in await (await connection.execute(found, [role])).fetchall()]


async def owner_and_standby(
    world: World, connection: psycopg.AsyncConnection[TupleRow], role: str
) -> tuple[Instance, Instance]:
    """Both under the role, with all their sessions; those of the owner are the older ones."""
    few = {**KNOWN, "DATABASE_URL": make_conninfo(world.database_url, user=role, password="x")}
    one = await world.start_public("one", **few)
    await one.wait_until_owner()
    await world.say(7, "work 0")  # the emulator, like Telegram, knows only chats that were begun by a user
    two = await world.start("two", **few)
    await two.wait_until_healthy()

    async def are_all_there() -> bool:
        return len(await sessions_of(connection, role)) == 8

    await eventually(are_all_there, "four sessions of each")
    return one, two


async def test_b14_an_owner_that_cannot_dispatch_gives_up_to_one_that_can(world: World) -> None:
    """Somebody else has taken the slots of its worker's sessions. The lock's lives, and the other instance has all its own."""
    async with limited_role(world) as (connection, role):
        one, two = await owner_and_standby(world, connection, role)
        names = {f"webhook-supervisor worker {name}" for name in ("ingest", "look-ups", "dispatch")}
        # The standby's own four come after them.
        pids = [pid for pid, name in (await sessions_of(connection, role))[:4] if name in names]
        assert len(pids) == 3
        await limit(connection, role, 5)
        for pid in pids:
            await connection.execute("SELECT pg_terminate_backend(%s)", [pid])

        async def is_told() -> bool:
            return (await one.status())["worker"]["dispatch_fault"] is not None

        await eventually(is_told, "the fault of the dispatcher in /status")
        assert (await post_update(two, text_update(900_001, 7, "work 0"))).status_code == 200
        await two.wait_until_owner()
        await wait_until_done(world, 900_001)
        await one.wait_for("[LOCK] giving up the lock: the worker does not reach the database here")
        assert (await one.get("/healthz")).status_code == 200


async def test_b14_two_sessions_for_each_instance_are_enough_after_a_restart_of_the_database(
    world: World,
) -> None:
    """All come back at once, and want four each. One instance owns, and its worker stores and dispatches."""
    async with limited_role(world) as (connection, role):
        one, two = await owner_and_standby(world, connection, role)
        for update_id in range(900_001, 900_004):
            await limit(connection, role, 0)
            for pid, _ in await sessions_of(connection, role):
                await connection.execute("SELECT pg_terminate_backend(%s)", [pid])

            async def are_gone() -> bool:
                return not await sessions_of(connection, role)

            await eventually(are_gone, "the end of all sessions")
            await limit(connection, role, 4)

            async def is_stored(update_id: int = update_id) -> bool:
                answers = [
                    await post_update(each, text_update(update_id, 7, "work 0")) for each in (one, two)
                ]
                return any(answer.status_code == 200 for answer in answers)

            await eventually(is_stored, "an update is stored")
            await wait_until_done(world, update_id)
            await limit(connection, role, 12)
