"""Which sessions a worker has, and when: against a real Postgres, by their names there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from psycopg import AsyncConnection, conninfo
from psycopg.rows import TupleRow

from shared import config, wire
from shared.database import DatabaseAway, Link
from shared.inherited import RECEIVE_VARIABLE
from tests.integration.worker.worker_process import (
    HANG_SECONDS,
    TOKEN,
    client,
    database_of,
    post,
    until_state,
    update,
    worker,
)
from tests.waiting import until
from webhook_worker.links import Covered, Links

NOT_TRIED = "not connected yet"
ALL, INGEST, DISPATCH, LOOKUPS = "worker", "worker ingest", "worker dispatch", "worker look-ups"


async def names(database: AsyncConnection[TupleRow]) -> set[str]:
    cursor = await database.execute(
        "SELECT application_name FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'webhook-supervisor worker%'"
    )
    return {name.removeprefix("webhook-supervisor ") for (name,) in await cursor.fetchall()}


async def until_names(database: AsyncConnection[TupleRow], expected: set[str]) -> None:
    """Returns when those and no others are there."""
    await until(lambda: names(database), f"the sessions are {expected}", lambda found: found == expected)


@asynccontextmanager
async def opened(
    dsn: str,
    size: int,
    *,
    starts_alone: bool,
    predecessor_seconds: float = 1e6,
    others_first_seconds: float = 0.0,
) -> AsyncIterator[Links]:
    """The links of a worker, from its start; closed afterwards."""
    variables = {
        "TELEGRAM_BOT_TOKEN": TOKEN,
        "DATABASE_URL": dsn,
        "WEBHOOK_BASE_URL": "https://bot.example.com",
        "DB_POOL_SIZE": str(size),
        "DRAIN_SECONDS": "0",
    }
    links = Links(
        config.load(variables, stdin_is_terminal=False, stdout_is_terminal=False),
        starts_alone=starts_alone,
        on_notify=lambda: None,
        predecessor_seconds=predecessor_seconds,
        others_first_seconds=others_first_seconds,
    )

    async def live() -> None:
        async with asyncio.TaskGroup() as group:
            links.open(group)
            await links.open_late()
            await asyncio.get_running_loop().create_future()

    living = asyncio.create_task(live())
    try:
        yield links
    finally:
        living.cancel()
        await asyncio.wait({living})


@pytest.mark.parametrize(
    ("size", "starts_alone", "lasting", "dispatch"),
    [
        (1, True, {ALL}, set()),
        (1, False, {ALL}, set()),
        (2, True, {INGEST}, {DISPATCH}),
        (2, False, {INGEST}, {DISPATCH}),
        (3, True, {INGEST, LOOKUPS}, {DISPATCH}),
        (3, False, {INGEST}, {DISPATCH}),
        (4, True, {INGEST, LOOKUPS}, {DISPATCH}),
        (4, False, {INGEST, LOOKUPS}, {DISPATCH}),
        (100, True, {INGEST, LOOKUPS}, {DISPATCH}),
    ],
)
async def test_a32_the_session_of_the_dispatch_is_there_while_it_is_needed(
    database_url: str, size: int, starts_alone: bool, lasting: set[str], dispatch: set[str]
) -> None:
    """At once, or from when it is asked for; gone when that returns, and never there again."""
    async with (
        database_of(database_url) as database,
        opened(database_url, size, starts_alone=starts_alone) as links,
    ):
        await until_names(database, lasting | dispatch if starts_alone else lasting)
        links.open_dispatch()
        await links.wait_dispatch_tried()
        assert links.dispatch.connected
        await until_names(database, lasting | dispatch)
        for link in links.distinct:
            await link.wait_connected()
        await links.close_dispatch()
        assert links.dispatch.connected == (size == 1)
        links.open_dispatch()
        await until_names(database, lasting)
        await links.close_dispatch()


async def test_a_worker_that_is_not_told_to_lead_opens_it_when_its_predecessor_is_gone(
    database_url: str,
) -> None:
    """So that a take-over finds it there."""
    async with (
        database_of(database_url) as database,
        opened(database_url, 4, starts_alone=False, predecessor_seconds=0.0),
    ):
        await until_names(database, {INGEST, LOOKUPS, DISPATCH})


async def end(database: AsyncConnection[TupleRow], *ended: str) -> None:
    """The server ends these; returns when they are gone."""
    found = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = ANY(%s) AND datname = current_database()"
    )
    pids = await (
        await database.execute(found, [[f"webhook-supervisor {name}" for name in ended]])
    ).fetchall()
    assert len(pids) == len(ended)
    for (pid,) in pids:
        await database.execute("SELECT pg_terminate_backend(%s, %s)", [pid, int(HANG_SECONDS * 1000)])


async def test_b14_a_session_that_is_lost_before_lead_is_left_to_others_until_then(database_url: str) -> None:
    """Where few can be had, the owner needs them; from Lead on it is made again whenever it is lost."""
    async with (
        database_of(database_url) as database,
        opened(database_url, 4, starts_alone=True) as links,
    ):
        await until_names(database, {INGEST, LOOKUPS, DISPATCH})
        await end(database, DISPATCH)
        # Twice: the second time it lasted no second, and its return takes one. By then the other would be back, too.
        for _ in range(2):
            await end(database, INGEST)
            async with asyncio.timeout(HANG_SECONDS):
                while INGEST not in await names(database):
                    await asyncio.sleep(0.01)
        assert await names(database) == {INGEST, LOOKUPS}
        assert not links.dispatch.connected
        await links.ingest.wait_connected()  # the server has its name before it is of use
        links.open_dispatch()
        await links.wait_dispatch_tried()
        assert links.dispatch.connected
        await end(database, DISPATCH)
        await until_names(database, {INGEST, LOOKUPS, DISPATCH})


async def name_of(session: Link | Covered) -> str:
    """Of the session that it runs on."""

    async def ask(connection: AsyncConnection[TupleRow]) -> str:
        row = await (await connection.execute("SELECT current_setting('application_name')")).fetchone()
        assert row is not None
        return str(row[0]).removeprefix("webhook-supervisor ")

    return await session.run(ask, HANG_SECONDS)


async def until_runs_on(session: Link | Covered, name: str) -> None:
    """What the server shows already, or no longer, our side notices a moment later."""
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            with contextlib.suppress(DatabaseAway):
                if await name_of(session) == name:
                    return
            await asyncio.sleep(0.01)


async def test_b14_the_sessions_beside_the_ingests_leave_others_time_and_come_at_lead(
    database_url: str,
) -> None:
    """Until then the ingest's does their work. Lost together with that they have to wait again, but not where lost alone."""
    async with (
        database_of(database_url) as database,
        opened(database_url, 4, starts_alone=True, others_first_seconds=1e6) as links,
    ):
        await until_names(database, {INGEST})
        await until_runs_on(links.for_lookups, INGEST)
        await until_runs_on(links.for_dispatch, INGEST)
        links.open_dispatch()
        await until_names(database, {INGEST, DISPATCH, LOOKUPS})
        await links.lookups.wait_connected()
        await until_runs_on(links.for_lookups, LOOKUPS)
        await links.dispatch.wait_connected()
        await until_runs_on(links.for_dispatch, DISPATCH)
        await end(database, INGEST, LOOKUPS, DISPATCH)
        await until_names(database, {INGEST})
        await links.ingest.wait_connected()
        await until_runs_on(links.for_lookups, INGEST)
        await until_runs_on(links.for_dispatch, INGEST)
    async with (
        database_of(database_url) as database,
        opened(database_url, 4, starts_alone=True, others_first_seconds=1.5) as links,
    ):
        await until_names(database, {INGEST, DISPATCH, LOOKUPS})
        assert links.ingest.lasts_seconds > 1.5
        await end(database, LOOKUPS)
        await until_names(database, {INGEST, DISPATCH, LOOKUPS})


async def test_b14_while_the_session_of_the_dispatch_is_missing_the_ingests_does_its_work(
    database_url: str,
) -> None:
    """And no longer."""
    async with (
        database_of(database_url) as database,
        opened(database_url, 4, starts_alone=True) as links,
    ):
        await until_names(database, {INGEST, LOOKUPS, DISPATCH})
        await until_runs_on(links.for_dispatch, DISPATCH)
        await end(database, DISPATCH)
        await until_names(database, {INGEST, LOOKUPS})
        await until_runs_on(links.for_dispatch, INGEST)
        links.open_dispatch()
        await links.wait_dispatch_tried()
        await until_runs_on(links.for_dispatch, DISPATCH)
    with pytest.raises(DatabaseAway):
        await name_of(links.for_dispatch)


async def test_b14_the_last_slot_is_the_ingests(database_url: str) -> None:
    """Not the dispatch's, whose work it can do, also at Lead; and the dispatcher does not wait for a second slot."""
    async with database_of(database_url) as database:
        role = f"few_{database.info.backend_pid}"
        await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 0".encode())
        few = conninfo.make_conninfo(database_url, user=role, password="x")
        async with opened(few, 2, starts_alone=True, others_first_seconds=1e6) as links:
            await links.ingest.wait_tried(HANG_SECONDS)
            assert "too many connections" in str(links.ingest.reason)
            await links.dispatch.wait_tried(0.5)  # some 20 ms, if it did not wait
            assert links.dispatch.reason == NOT_TRIED
            links.open_dispatch()
            tried = asyncio.create_task(links.wait_dispatch_tried())
            await asyncio.sleep(0)
            assert tried.done()
            assert links.dispatch.reason == NOT_TRIED
            await database.execute(f"ALTER ROLE {role} CONNECTION LIMIT 1".encode())
            await asyncio.wait_for(links.ingest.wait_connected(), HANG_SECONDS)
            await links.wait_dispatch_tried()
            assert "too many connections" in str(links.dispatch.reason)
            await until_runs_on(links.for_dispatch, INGEST)


async def test_b14_where_there_is_no_session_at_all_it_is_said_why(database_url: str) -> None:
    """Its own has not been tried yet, as it waits for the ingest's: that is nothing that anybody could mend."""
    nobody = conninfo.make_conninfo(database_url, port="1")
    async with opened(nobody, 4, starts_alone=True, others_first_seconds=1e6) as links:
        await links.ingest.wait_tried(HANG_SECONDS)
        for session in (links.for_lookups, links.for_dispatch):
            with pytest.raises(DatabaseAway, match="connection refused"):
                await name_of(session)


async def test_a32_a_worker_beside_another_has_it_from_its_lead_to_the_end_of_its_term(
    database_url: str, tmp_path: Path
) -> None:
    """Not before, and not when it is said that the term is over; updates are taken all the time."""
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        await until_names(database, {INGEST, LOOKUPS})
        await process.lead(database)
        async with client(process.url) as http:
            assert (await post(http, update(1))).status_code == 200
            await until_state(database, 1, "done")
            assert await names(database) == {INGEST, LOOKUPS, DISPATCH}
            process.send(wire.EndTerm(drain_seconds=5))
            await process.expect(wire.TermEnded)
            await until_names(database, {INGEST, LOOKUPS})
            assert (await post(http, update(2))).status_code == 200
        assert "database away" not in process.log


async def test_a32_a_worker_that_leaves_without_having_led_gives_it_up(
    database_url: str, tmp_path: Path
) -> None:
    """Its replacement may be told to lead while its last connections are served."""
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, environ={RECEIVE_VARIABLE: "1"}) as process,
        client(process.url) as http,
    ):
        await process.expect(wire.Accepting)
        await until_names(database, {INGEST, LOOKUPS, DISPATCH})
        assert (await post(http, update(1))).status_code == 200
        process.send(wire.StopAccepting(linger_seconds=HANG_SECONDS))
        await until_names(database, {INGEST, LOOKUPS})
