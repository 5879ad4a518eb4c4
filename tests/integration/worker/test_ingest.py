"""Group commit against a real Postgres: what is stored when store() returns, in which order, and what refuses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, conninfo
from psycopg.rows import TupleRow

from deploy.local.postgres import PostgresServer
from shared.database import Link, apply_schema, connect, work_channel
from tests.campaign.faults.proxy import Conditions, Flow, run_proxy
from tests.waiting import until
from webhook_worker.inbox_writer import InboxWriter
from webhook_worker.ingest import BufferFull, Ingest, NotStored

HANG_SECONDS = 60.0
BOT = 123456789
Connection = AsyncConnection[TupleRow]
END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name LIKE '%ingest' AND datname = current_database()"
)


async def stored(ingest: Ingest, update_id: int, lane: int | None, body: bytes) -> None:
    """Returns when it is; raises when it was refused, at once or later."""
    await ingest.store(update_id, lane, body)


class Desk:
    """An Ingest at work, and another session to look at what it did."""

    def __init__(self, link: Link, other: Connection, **settings: Any) -> None:
        self.link = link
        self.other = other
        self.dispatches = False
        self.wakes = 0
        self.ingest = Ingest(
            InboxWriter(link, BOT), dispatches_here=lambda: self.dispatches, wake=self.wake, **settings
        )

    def wake(self) -> None:
        self.wakes += 1

    async def ready(self) -> None:
        await until(lambda: self.ingest.fault, "updates can be stored", lambda fault: fault is None)

    async def store(self, *updates: tuple[int, int | None, bytes]) -> list[BaseException | None]:
        stores = (stored(self.ingest, *update) for update in updates)
        return await asyncio.wait_for(asyncio.gather(*stores, return_exceptions=True), HANG_SECONDS)

    async def rows(self) -> list[TupleRow]:
        cursor = await self.other.execute(
            "SELECT update_id, lane, body, state FROM webhook_supervisor.inbox WHERE bot_id = %s ORDER BY seq",
            (BOT,),
        )
        return await cursor.fetchall()


@contextlib.asynccontextmanager
async def running(dsn: str, **settings: Any) -> AsyncIterator[Desk]:
    async with await connect(dsn, application_name="other") as other:
        await apply_schema(other)
        async with Link(dsn, name="ingest") as link:
            desk = Desk(link, other, **settings)
            flusher = asyncio.create_task(desk.ingest.run())
            try:
                await desk.ready()
                yield desk
            finally:
                flusher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await flusher


@pytest.fixture
async def desk(database_url: str) -> AsyncIterator[Desk]:
    async with running(database_url) as desk:
        yield desk


@pytest.fixture
def received(capsys: pytest.CaptureFixture[str]) -> Callable[[], int]:
    """How many lines "received" were logged since it was last asked."""
    return lambda: capsys.readouterr().out.count("received")


async def test_a05_a22_a_store_returns_when_another_session_sees_the_row(desk: Desk) -> None:
    """As it came, pending; "stored" and "handled" are different things."""
    await desk.ingest.store(5, -1001234567890, b'{"a":"\\u0000\xf0\x9f\x98\x80"}')
    assert await desk.rows() == [(5, -1001234567890, b'{"a":"\\u0000\xf0\x9f\x98\x80"}', "pending")]


async def test_a_duplicate_is_as_good_as_stored_and_changes_nothing(
    desk: Desk, received: Callable[[], int]
) -> None:
    """Within a batch, across batches; logged once."""
    assert await desk.store((5, 1, b"first"), (5, 2, b"second"), (6, None, b"other")) == [None] * 3
    assert await desk.store((5, 3, b"third")) == [None]
    assert await desk.rows() == [(5, 1, b"first", "pending"), (6, None, b"other", "pending")]
    assert received() == 2


async def test_s_rows_have_the_order_of_their_requests(desk: Desk) -> None:
    """Over many batches, with update_ids that do not grow."""
    updates = [((index * 7919) % 3001, index % 5, b"x") for index in range(3001)]
    assert await desk.store(*updates) == [None] * len(updates)
    assert [row[0] for row in await desk.rows()] == [update_id for update_id, _, _ in updates]


@pytest.mark.parametrize("update_id", [0, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("lane", [None, 0, -(2**63), 2**62 - 1])
async def test_the_whole_range_of_ids_is_stored(desk: Desk, update_id: int, lane: int | None) -> None:
    """Whatever the numbers, and their mixture in a batch."""
    assert await desk.store((update_id, lane, b""), (1, None, b""), (2, 3, b"")) == [None] * 3
    assert (await desk.rows())[0][:2] == (update_id, lane)


async def test_b27_the_same_update_of_another_bot_is_another_update(desk: Desk) -> None:
    """Bots may share a database."""
    other_bot = Ingest(InboxWriter(desk.link, BOT + 1), dispatches_here=lambda: True, wake=desk.wake)
    flusher = asyncio.create_task(other_bot.run())
    await asyncio.wait_for(other_bot.store(5, None, b"theirs"), HANG_SECONDS)
    await desk.ingest.store(5, None, b"ours")
    assert await desk.rows() == [(5, None, b"ours", "pending")]
    flusher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flusher


async def test_the_dispatcher_in_the_process_is_woken_and_nobody_notified(desk: Desk) -> None:
    """NOTIFY takes a lock that all commits share: the owner spares it."""
    heard = await listen(desk)
    desk.dispatches = True
    await desk.store(*((n, n, b"x") for n in range(100)))
    wakes = desk.wakes
    assert wakes >= 1
    await desk.store((1, 1, b"x"))
    assert desk.wakes == wakes, "a duplicate is no new work"
    assert await heard() == 0


async def test_the_owner_elsewhere_is_notified_once_a_flush(desk: Desk) -> None:
    """And not of duplicates."""
    heard = await listen(desk)
    await desk.ingest.store(1, None, b"x")
    assert await heard() == 1
    await desk.ingest.store(1, None, b"x")
    assert await heard() == 0
    assert desk.wakes == 0


async def listen(desk: Desk) -> Callable[[], Any]:
    notices: list[psycopg.Notify] = []
    desk.other.add_notify_handler(notices.append)
    await desk.other.execute(f"LISTEN {work_channel(BOT)}".encode())

    async def heard() -> int:
        # A notification precedes the answer to any later statement.
        await desk.other.execute("SELECT 1")
        count = len(notices)
        notices.clear()
        return count

    return heard


async def test_a23_more_than_the_buffer_holds_is_refused_at_once(database_url: str) -> None:
    """No 200 without a commit, and no memory without a bound; what was taken is stored."""
    async with running(database_url, buffer_rows=10, buffer_bytes=10_000) as desk:
        results = await desk.store(*((n, None, b"x") for n in range(25)))
        assert results[:10] == [None] * 10
        assert all(isinstance(result, BufferFull) for result in results[10:])
        assert [row[0] for row in await desk.rows()] == list(range(10))
        results = await desk.store(*((100 + n, None, b"x" * 3000) for n in range(5)))
        assert [isinstance(result, BufferFull) for result in results] == [False] * 3 + [True] * 2
        # And there is room again.
        assert await desk.store((200, None, b"x" * 9_000)) == [None]


async def test_b14_one_bad_row_does_not_fail_its_batch(desk: Desk, received: Callable[[], int]) -> None:
    """Only its own request is refused."""
    await desk.other.execute(
        "ALTER TABLE webhook_supervisor.inbox ADD CONSTRAINT c CHECK (body <> 'bad'::bytea)"
    )
    results = await desk.store((1, None, b"x"), (2, None, b"bad"), (3, None, b"y"), (1, None, b"x"))
    assert [isinstance(result, NotStored) for result in results] == [False, True, False, False]
    assert [row[0] for row in await desk.rows()] == [1, 3]
    assert desk.ingest.fault is None
    assert received() == 2


@pytest.mark.parametrize(
    ("damage", "repair"),
    [
        (
            "ALTER TABLE webhook_supervisor.inbox RENAME TO elsewhere",
            "ALTER TABLE webhook_supervisor.elsewhere RENAME TO inbox",
        ),
        (
            "ALTER ROLE postgres SET default_transaction_read_only = on",
            "ALTER ROLE postgres RESET default_transaction_read_only",
        ),
    ],
)
async def test_b14_what_the_database_refuses_is_503_and_recovers_alone(
    desk: Desk, damage: str, repair: str
) -> None:
    """Read-only, a missing table: nothing is answered 200; readiness says so, and sees the end of it."""
    # Defaults of a role hold for new sessions.
    await desk.other.execute(damage.encode())
    await desk.other.execute(END_SESSIONS)
    await until(
        lambda: desk.store((1, None, b"x")),
        "the database refuses",
        lambda results: any("SQLSTATE" in str(result) for result in results),
    )
    assert desk.ingest.fault is not None
    await desk.other.execute(repair.encode())
    await desk.other.execute(END_SESSIONS)
    await desk.ready()
    assert await desk.store((1, None, b"x")) == [None]
    assert len(await desk.rows()) == 1


async def test_a_flush_that_takes_too_long_is_given_up(database_url: str) -> None:
    """Somebody's lock on the table must not keep Telegram waiting; the session is closed, and a new one tries."""
    async with running(database_url, flush_limit_seconds=2.0) as desk:
        async with desk.other.transaction():
            await desk.other.execute("LOCK TABLE webhook_supervisor.inbox IN ACCESS EXCLUSIVE MODE")
            results = await desk.store((1, None, b"x"), (2, None, b"y"))
            assert all(isinstance(result, NotStored) for result in results)
            assert desk.ingest.fault is not None
        await desk.ready()
        assert await desk.store((3, None, b"z")) == [None]


async def test_b10_database_away_refuses_at_once_and_comes_back(own_postgres_server: PostgresServer) -> None:
    """Nothing is queued while it is away; what was answered before is there afterwards."""
    own_postgres_server.start()
    async with Link(own_postgres_server.dsn(), name="ingest") as link:
        async with await connect(own_postgres_server.dsn(), application_name="other") as other:
            await apply_schema(other)
        desk = Desk(link, other)
        flusher = asyncio.create_task(desk.ingest.run())
        await desk.ready()
        assert await desk.store((1, None, b"x")) == [None]
        await asyncio.to_thread(own_postgres_server.kill)
        async with asyncio.timeout(HANG_SECONDS):
            while (await desk.store((2, None, b"x")))[0] is None:
                pass
        assert desk.ingest.fault is not None
        assert desk.ingest.fault.startswith("database away")
        await asyncio.to_thread(own_postgres_server.start)
        await desk.ready()
        assert await desk.store((1, None, b"x"), (2, None, b"x"), (3, None, b"x")) == [None] * 3
        async with await connect(own_postgres_server.dsn(), application_name="other") as desk.other:
            assert {row[0] for row in await desk.rows()} == {1, 2, 3}
        flusher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flusher


async def test_a_request_that_goes_away_leaves_its_row_and_its_neighbours(desk: Desk) -> None:
    """The batch is written; the buffer's room comes back."""
    stores = [asyncio.create_task(stored(desk.ingest, n, None, b"x")) for n in range(3)]
    await asyncio.sleep(0)
    stores[1].cancel()
    assert [type(result) for result in await asyncio.gather(*stores, return_exceptions=True)] == [
        type(None),
        asyncio.CancelledError,
        type(None),
    ]
    assert [row[0] for row in await desk.rows()] == [0, 1, 2]


async def test_the_end_of_the_flusher_refuses_who_waits(desk: Desk) -> None:
    """Nobody is left waiting for a commit that will not come."""
    lone = Ingest(InboxWriter(desk.link, BOT), dispatches_here=lambda: False, wake=desk.wake)
    flusher = asyncio.create_task(lone.run())
    await asyncio.wait_for(lone.store(100, None, b"x"), HANG_SECONDS)
    async with desk.other.transaction():
        await desk.other.execute("LOCK TABLE webhook_supervisor.inbox IN ACCESS EXCLUSIVE MODE")
        stores = [asyncio.create_task(stored(lone, n, None, b"x")) for n in range(3)]
        while not desk.link.busy:
            await asyncio.sleep(0)
        flusher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flusher
    results = await asyncio.wait_for(asyncio.gather(*stores, return_exceptions=True), HANG_SECONDS)
    assert all(isinstance(result, NotStored) for result in results)
    with pytest.raises(NotStored):
        await lone.store(9, None, b"x")


async def test_b08_a_database_that_falls_silent_is_a_fault_although_nobody_writes(database_url: str) -> None:
    """Whoever routes by /readyz would send the next update here, where it waits for ten seconds."""
    port = int(str(conninfo.conninfo_to_dict(database_url)["port"]))
    async with run_proxy(port) as proxy, running(proxy.dsn(database_url)) as desk:
        await proxy.set(Conditions(Flow.SWALLOW))
        await until(lambda: desk.ingest.fault, "the silence is a fault")
        await proxy.heal()
        await desk.ready()


NO_ROOM = """
CREATE SEQUENCE tries;
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('tries');
    RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full';
END $$;
CREATE TRIGGER no_room BEFORE INSERT ON webhook_supervisor.inbox FOR EACH ROW EXECUTE FUNCTION no_room()
"""


async def test_b14_a_full_disk_is_a_fault_until_a_row_finds_room(desk: Desk) -> None:
    """A statement without a row goes well on it: /readyz would say so every second, and the log too."""
    await desk.other.execute(NO_ROOM)
    (refused,) = await desk.store((1, 7, b"first"))
    assert isinstance(refused, NotStored)
    async with asyncio.timeout(HANG_SECONDS):
        tries = 1
        while tries < 4:
            cursor = await desk.other.execute("SELECT last_value FROM tries")
            ((tries,),) = await cursor.fetchall()
            assert "could not extend file" in str(desk.ingest.fault)
            await asyncio.sleep(0.02)
    await desk.other.execute("DROP TRIGGER no_room ON webhook_supervisor.inbox")
    await desk.ready()
    assert [row[:3] for row in await desk.rows()] == [(1, 7, b"first")]
    assert await desk.store((1, 7, b"first"), (2, 7, b"second")) == [None, None]
    assert [row[0] for row in await desk.rows()] == [1, 2]
