"""Links against a real Postgres: loss, limits, turns, notifications, and when a session is made again."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, conninfo
from psycopg.rows import TupleRow

from deploy.local.ports import LOOPBACK
from deploy.local.postgres import PostgresServer, StopMode
from shared import clock
from shared.database import After, DatabaseAway, Link, bounds_transactions, connect, describe
from tests.campaign.faults.proxy import run_proxy
from tests.campaign.faults.standby import a_standby
from tests.waiting import until

HANG_SECONDS = 60.0
Connection = AsyncConnection[TupleRow]


async def backend_pid(connection: Connection) -> int:
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None
    return int(row[0])


async def sleep_in_server(connection: Connection) -> None:
    await connection.execute("SELECT pg_sleep(1000)")


@pytest.fixture
async def link(database_url: str) -> AsyncIterator[Link]:
    async with Link(database_url, name="test") as link:
        await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
        yield link


async def until_lost(link: Link) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while link.connected:
            await asyncio.sleep(0.001)


async def end(other: Connection, name: str) -> None:
    await other.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s",
        [f"webhook-supervisor {name}"],
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("port=1", "connection refused"),
        ("host=no-such-host.invalid", "does not resolve"),
        ("password=wrong", "password authentication failed"),
        ("dbname=nowhere", "does not exist"),
    ],
)
async def test_a12_a_link_says_why_it_has_no_session(database_url: str, change: str, words: str) -> None:
    """And refuses statements at once instead of letting them wait."""
    name, _, value = change.partition("=")
    dsn = psycopg.conninfo.make_conninfo(database_url, **{name: value})
    async with Link(dsn, name="test") as link, asyncio.timeout(HANG_SECONDS):
        while words not in (link.reason or ""):
            await asyncio.sleep(0.01)
        with pytest.raises(DatabaseAway, match=words):
            await link.run(backend_pid, 1000)


async def test_b10_a_session_that_is_ended_is_noticed_and_made_again(link: Link, other: Connection) -> None:
    """Between statements, without asking."""
    pid = await link.run(backend_pid, HANG_SECONDS)
    await other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    await until_lost(link)
    await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
    assert await link.run(backend_pid, HANG_SECONDS) != pid


async def test_b10_a_session_that_is_ended_in_a_statement_fails_it(link: Link, other: Connection) -> None:
    """As DatabaseAway, since nobody knows what became of it."""
    pid = await link.run(backend_pid, HANG_SECONDS)
    running = asyncio.create_task(link.run(sleep_in_server, 1000))
    await _until_active(other, pid)
    await other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with pytest.raises(DatabaseAway):
        await asyncio.wait_for(running, HANG_SECONDS)
    await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)


async def _until_active(other: Connection, pid: int) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while (
            await (
                await other.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'", (pid,)
                )
            ).fetchone()
            is None
        ):
            await asyncio.sleep(0.01)


async def test_the_limit_of_a_statement_ends_the_session(link: Link, other: Connection) -> None:
    """A statement cannot outlive its limit, and the next one does not wait behind it."""
    pid = await link.run(backend_pid, HANG_SECONDS)
    with pytest.raises(DatabaseAway, match=r"no answer within 0.1 s"):
        await link.run(sleep_in_server, 0.1)
    await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
    assert await link.run(backend_pid, HANG_SECONDS) != pid


async def test_b06_an_answer_that_came_while_the_loop_was_blocked_is_read(link: Link) -> None:
    """A handler that blocks the event loop beyond the limit of a statement is no outage of the database."""

    async def answer_soon(connection: Connection) -> None:
        await connection.execute("SELECT pg_sleep(0.1)")

    pid = await link.run(backend_pid, HANG_SECONDS)
    asyncio.get_running_loop().call_later(0.05, time.sleep, 2.5)
    await link.run(answer_soon, 1.0)
    assert await link.run(backend_pid, HANG_SECONDS) == pid


async def test_the_limit_holds_for_what_does_not_ask_the_database(link: Link) -> None:
    """A bug of ours, and no reason to hang."""

    async def stuck(connection: Connection) -> None:
        await asyncio.Event().wait()

    with pytest.raises(DatabaseAway):
        await asyncio.wait_for(link.run(stuck, 0.1), HANG_SECONDS)


async def test_statements_take_turns(link: Link) -> None:
    """Their waiting is counted; a limit counts the wait too."""
    release = asyncio.Event()

    async def hold(connection: Connection) -> None:
        await release.wait()

    holder = asyncio.create_task(link.run(hold, HANG_SECONDS))
    while not link.busy:
        await asyncio.sleep(0)
    waiter = asyncio.create_task(link.run(backend_pid, HANG_SECONDS))
    while not link.waiting:
        await asyncio.sleep(0)
    with pytest.raises(DatabaseAway, match="in use"):
        await link.run(backend_pid, 0.05)
    assert link.connected
    release.set()
    await holder
    assert await waiter > 0
    assert (link.waiting, link.busy) == (0, False)


@pytest.mark.parametrize("blocks_the_loop", [False, True])
async def test_a_turn_that_comes_too_late_costs_nobody_the_session(link: Link, blocks_the_loop: bool) -> None:
    """A statement that begins just before its limit would be cut, and with it the session that others share."""
    loop = asyncio.get_running_loop()
    pid = await link.run(backend_pid, HANG_SECONDS)
    release = asyncio.Event()
    holder = asyncio.create_task(link.run(lambda _: release.wait(), HANG_SECONDS))
    while not link.busy:
        await asyncio.sleep(0)
    began = loop.time()
    late = asyncio.create_task(link.run(sleep_in_server, 1.0))
    while not link.waiting:
        await asyncio.sleep(0)

    def block_between_turns() -> None:
        if link.busy:
            loop.call_soon(block_between_turns)
        else:
            time.sleep(0.5)

    if blocks_the_loop:
        loop.call_at(began + 0.3, block_between_turns)
    loop.call_at(began + (0.3 if blocks_the_loop else 0.9), release.set)
    with pytest.raises(DatabaseAway, match="in use"):
        await late
    await holder
    assert link.connected
    assert await link.run(backend_pid, HANG_SECONDS) == pid


async def test_a_failed_statement_is_no_loss_of_the_session(link: Link) -> None:
    """Its own error comes out, and the session stays."""

    async def fail(connection: Connection) -> None:
        await connection.execute("SELECT 1/0")

    pid = await link.run(backend_pid, HANG_SECONDS)
    with pytest.raises(psycopg.errors.DivisionByZero) as caught:
        await link.run(fail, HANG_SECONDS)
    assert describe(caught.value) == "division by zero (SQLSTATE 22012)"
    assert await link.run(backend_pid, HANG_SECONDS) == pid


async def test_b14_a_session_of_which_nothing_but_failures_comes_is_made_anew(link: Link) -> None:
    """psycopg prepares a statement that failed again under another name, and never frees it: on a disk that is full for hours
    the server would have thousands of each. One success between, and the session stays."""

    async def fail(connection: Connection) -> None:
        await connection.execute("SELECT 1 / %s::int", [0], prepare=True)

    first = await link.run(backend_pid, 10)
    for _ in range(2):
        for _ in range(49):
            with pytest.raises(psycopg.errors.DivisionByZero):
                await link.run(fail, 10)
        assert await link.run(backend_pid, 10) == first
    for _ in range(49):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await link.run(fail, 10)
    with pytest.raises(DatabaseAway, match="50 statements failed in a row, the last one: division by zero"):
        await link.run(fail, 10)
    await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
    assert await link.run(backend_pid, 10) != first


async def test_a09_a_transaction_that_is_left_open_ends_the_session(link: Link) -> None:
    """It would be idle in transaction, hold its locks, and be ended by the server at a bad moment."""

    async def begin(connection: Connection) -> int:
        await connection.execute("BEGIN")
        return await backend_pid(connection)

    pid = await link.run(begin, HANG_SECONDS)
    await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
    assert await link.run(backend_pid, HANG_SECONDS) != pid


async def test_a_cancelled_caller_waits_for_what_it_sent(link: Link) -> None:
    """It is never unknown whether a statement of ours is still under way."""
    events: list[str] = []
    release = asyncio.Event()

    async def write(connection: Connection) -> None:
        events.append("begun")
        await release.wait()
        await connection.execute("SELECT 1")
        events.append("done")

    caller = asyncio.create_task(link.run(write, HANG_SECONDS))
    while not events:
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(caller, HANG_SECONDS)
    assert events == ["begun", "done"]
    assert await link.run(backend_pid, HANG_SECONDS) > 0


async def test_notifications_are_heard_between_and_in_statements(
    database_url: str, other: Connection
) -> None:
    """And a new session counts as one, since what was notified in between is lost."""
    heard = asyncio.Event()

    async def expect() -> None:
        await asyncio.wait_for(heard.wait(), HANG_SECONDS)
        heard.clear()

    async with Link(database_url, name="test", listen="a_channel", on_notify=heard.set) as link:
        await expect()  # the first session
        await other.execute("NOTIFY a_channel")
        await expect()

        async def notify_then_ask(connection: Connection) -> None:
            await other.execute("NOTIFY a_channel")
            await connection.execute("SELECT 1")

        await link.run(notify_then_ask, HANG_SECONDS)
        await expect()
        pid = await link.run(backend_pid, HANG_SECONDS)
        await other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        await expect()
        await other.execute("NOTIFY a_channel")
        await expect()


@pytest.mark.parametrize("mode", [StopMode.FAST, StopMode.IMMEDIATE, StopMode.KILL])
async def test_b10_a_restart_of_the_server_is_survived(
    own_postgres_server: PostgresServer, mode: StopMode
) -> None:
    """Lost at once, back within about a second of its return, without growing pauses."""
    own_postgres_server.start()
    async with Link(own_postgres_server.dsn(), name="test") as link:
        await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
        await asyncio.to_thread(own_postgres_server.stop, mode)
        await until_lost(link)
        with pytest.raises(DatabaseAway):
            await link.run(backend_pid, HANG_SECONDS)
        await asyncio.to_thread(own_postgres_server.start)
        await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
        assert await link.run(backend_pid, HANG_SECONDS) > 0


async def test_b12_of_several_hosts_the_primary_is_found_wherever_it_is(
    own_postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """The first one named is a standby; then it is promoted, and the other is gone."""
    own_postgres_server.start()
    with a_standby(own_postgres_server, tmp_path / "standby") as standby:
        first, second = (
            conninfo.conninfo_to_dict(server.dsn()) for server in (standby.server, own_postgres_server)
        )
        hosts = {name: f"{first[name]},{second[name]}" for name in ("host", "port")}
        async with Link(conninfo.make_conninfo(standby.server.dsn(), **hosts), name="test") as link:

            async def port(connection: Connection) -> int:
                await connection.execute("CREATE TEMPORARY TABLE written (it int)")
                return connection.info.port

            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            assert await link.run(port, HANG_SECONDS) == int(str(second["port"]))
            await asyncio.to_thread(own_postgres_server.stop, StopMode.IMMEDIATE)
            await until_lost(link)
            await until(
                lambda: link.reason or "",
                "it tells of no writable server",
                lambda reason: "can be written to" in reason,
            )
            await asyncio.to_thread(standby.promote)
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            assert await link.run(port, HANG_SECONDS) == int(str(first["port"]))


async def test_no_session_is_left_behind(database_url: str, other: Connection) -> None:
    """Leaving the link closes its session, also after reconnections."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'webhook-supervisor leaver'"
    async with Link(database_url, name="leaver") as link:
        for _ in range(3):
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            with pytest.raises(DatabaseAway):
                await link.run(sleep_in_server, 0.01)
        await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
    async with asyncio.timeout(HANG_SECONDS):
        # What was cut in a statement goes when the server notices, by pg_sleep's end at the latest.
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            " AND application_name = 'webhook-supervisor leaver'"
        )
        while await (await other.execute(count)).fetchone() != (0,):
            await asyncio.sleep(0.01)


async def test_leaving_waits_for_the_statement_under_way(database_url: str) -> None:
    """A batch that is being written is written."""
    done: list[Any] = []

    async def write(connection: Connection) -> None:
        await connection.execute("SELECT pg_sleep(0.05)")
        done.append(True)

    async with Link(database_url, name="test") as link:
        await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
        writer = asyncio.create_task(link.run(write, HANG_SECONDS))
        while not link.busy:
            await asyncio.sleep(0)
    await writer
    assert done == [True]


async def test_a_link_bounds_its_transactions(link: Link) -> None:
    """Where the server can; elsewhere the inbox sends nothing by halves."""

    async def read(connection: Connection) -> tuple[bool, str]:
        cursor = await connection.execute("SELECT coalesce(current_setting('transaction_timeout', true), '')")
        row = await cursor.fetchone()
        assert row is not None
        return bounds_transactions(connection), row[0]

    assert await link.run(read, HANG_SECONDS) in ((True, "10s"), (False, ""))


async def test_b14_a_descriptor_that_another_has_taken_is_left_alone(link: Link, database_url: str) -> None:
    """The server ends the session in a statement, libpq closes the socket, and a request that comes in gets its number."""
    server = await asyncio.start_server(lambda *_: None, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    taken: list[tuple[int, asyncio.StreamWriter]] = []

    async def break_and_take(connection: Connection) -> None:
        descriptor = connection.fileno()
        try:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        finally:
            while not taken or taken[-1][0] < descriptor:
                _, writer = await asyncio.open_connection(LOOPBACK, port)
                taken.append((writer.get_extra_info("socket").fileno(), writer))
            assert taken[-1][0] == descriptor

    try:
        with pytest.raises(DatabaseAway):
            await link.run(break_and_take, HANG_SECONDS)
        taken[-1][1].write(b"still there")
        await taken[-1][1].drain()
        await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
    finally:
        for _, writer in taken:
            writer.transport.abort()
        server.close()


async def test_b14_a_session_that_is_read_only_is_made_again(database_url: str) -> None:
    """A database that was read-only for a while: whoever connected meanwhile would never be able to write again."""
    name = str(conninfo.conninfo_to_dict(database_url)["dbname"])
    async with await connect(database_url, application_name="other") as other:
        await other.execute("CREATE TABLE written (it int)")
        await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        async with Link(database_url, name="test") as link:
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            await other.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())

            async def write(connection: Connection) -> None:
                await connection.execute("INSERT INTO written VALUES (1)")

            with pytest.raises(DatabaseAway, match="read-only"):
                await link.run(write, HANG_SECONDS)
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            await link.run(write, HANG_SECONDS)


async def test_b14_a_server_that_takes_sessions_and_no_writes_is_told_of_once(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not twice a second, "connected" and then not: the log tells of the end of it when a statement has succeeded."""
    name = str(conninfo.conninfo_to_dict(database_url)["dbname"])

    async def write(connection: Connection) -> None:
        await connection.execute("INSERT INTO written VALUES (1)")

    async with await connect(database_url, application_name="other") as other:
        await other.execute("CREATE TABLE written (it int)")
        async with Link(database_url, name="test") as link:
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            await link.run(write, HANG_SECONDS)
            await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%test'"
            )
            await until_lost(link)
            for _ in range(3):
                await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
                with pytest.raises(DatabaseAway, match="read-only"):
                    await link.run(write, HANG_SECONDS)
            await other.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            with contextlib.suppress(DatabaseAway):  # the session was made before
                await link.run(write, HANG_SECONDS)
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            await link.run(write, HANG_SECONDS)
    log = capsys.readouterr().out
    # The first session, the one after the loss, and the end of it.
    assert log.count("connected") == 3
    assert log.count("read-only transaction") == 1


async def test_sessions_that_are_lost_at_once_are_made_every_second(database_url: str) -> None:
    """Not in a loop without a pause, each turn of which is a line in two logs."""
    port = int(str(conninfo.conninfo_to_dict(database_url)["port"]))
    async with run_proxy(port) as proxy, Link(proxy.dsn(database_url), name="test") as link:
        began = clock.now()
        for _ in range(3):
            await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
            await proxy.reset_all()
            await until_lost(link)
        await asyncio.wait_for(link.wait_connected(), HANG_SECONDS)
        assert clock.now() - began >= 3 * 1.0


async def test_b14_a_session_that_is_wanted_again_is_told_of_again_where_it_cannot_be_had(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the same reason, too: until then it rested, and now it is tried every second. Asked for twice, it is told once."""
    link = Link(conninfo.make_conninfo(database_url, port="1"), name="test")
    link.rest_once_lost()
    async with link:
        await link.wait_tried(HANG_SECONDS)
        assert "refused" in str(link.reason)
        link.reopen()
        await link.wait_tried(HANG_SECONDS)
        assert "refused" in str(link.reason)
        link.reopen()
        assert "refused" in str(link.reason)
    log = capsys.readouterr().out
    assert log.count("no connection, trying again when it is needed") == 1
    assert log.count("no connection, trying again every second") == 1


async def test_b14_a_link_that_comes_after_others_is_tried_more_rarely_where_it_cannot_be_had(
    link: Link, database_url: str, other: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slot that becomes free is for the others first. Whoever needs it now has it tried now."""
    role = f"few_{await backend_pid(other)}"
    await other.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 0".encode())
    dsn = conninfo.make_conninfo(database_url, user=role, password="x")
    async with Link(dsn, name="late", after=After(link, 0.0)) as late:
        await late.wait_tried(HANG_SECONDS)
        assert "too many connections" in str(late.reason)
        await other.execute(f"ALTER ROLE {role} CONNECTION LIMIT 1".encode())
        began = clock.now()
        late.hurry()
        await asyncio.wait_for(late.wait_connected(), HANG_SECONDS)
        hurried_seconds = clock.now() - began
    assert "trying again every 10 s" in capsys.readouterr().out
    async with Link(dsn, name="late", after=After(link, 0.0)) as late:
        await asyncio.wait_for(late.wait_connected(), HANG_SECONDS)
        await other.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0".encode())
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role]
        )
        await until_lost(late)
        async with asyncio.timeout(HANG_SECONDS):
            while "too many connections" not in str(late.reason):
                await asyncio.sleep(0.01)
        await other.execute(f"ALTER ROLE {role} CONNECTION LIMIT 1".encode())
        began = clock.now()
        await asyncio.wait_for(late.wait_connected(), HANG_SECONDS)
        assert clock.now() - began > hurried_seconds


async def test_b14_one_in_a_hurry_does_not_take_the_slot_of_the_one_that_it_rests_on(
    database_url: str, other: Connection
) -> None:
    """With one slot left the ingest's session has to get it, since that does the work of all."""
    role = f"few_{await backend_pid(other)}"
    await other.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 0".encode())
    dsn = conninfo.make_conninfo(database_url, user=role, password="x")
    async with (
        Link(dsn, name="first") as first,
        Link(database_url, name="late", after=After(first, 60.0)) as late,
    ):
        await first.wait_tried(HANG_SECONDS)
        late.hurry()
        with pytest.raises(TimeoutError):  # some 20 ms, if it did not wait
            await asyncio.wait_for(late.wait_connected(), 0.5)
        await other.execute(f"ALTER ROLE {role} CONNECTION LIMIT 1".encode())
        await asyncio.wait_for(late.wait_connected(), HANG_SECONDS)
        assert first.connected


async def test_b14_a_hurry_is_over_when_the_session_is_there(
    link: Link, database_url: str, other: Connection
) -> None:
    """One that comes while the session is made, too: lost together with the other, it comes after that again."""
    lasting_seconds = 1.0
    async with asyncio.timeout(HANG_SECONDS):
        while link.lasts_seconds <= lasting_seconds:
            await asyncio.sleep(0.01)
    async with Link(database_url, name="late", after=After(link, lasting_seconds)) as late:
        await asyncio.sleep(0)  # it begins to connect
        late.hurry()
        await asyncio.wait_for(late.wait_connected(), HANG_SECONDS)
        await end(other, "test")
        async with asyncio.timeout(HANG_SECONDS):
            while link.lasts_seconds > lasting_seconds:
                await asyncio.sleep(0.001)
        await end(other, "late")
        await until_lost(late)
        await asyncio.wait_for(late.wait_connected(), HANG_SECONDS)
        assert link.lasts_seconds > lasting_seconds
