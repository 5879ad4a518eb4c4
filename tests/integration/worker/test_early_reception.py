"""A worker that takes updates in while its bot is imported: nobody waits for that, and nobody notices the change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from shared import wire
from shared.inherited import RECEIVE_VARIABLE
from tests.integration.worker.strangers import Target, request
from tests.integration.worker.worker_process import (
    HANG_SECONDS,
    WorkerProcess,
    client,
    database_of,
    inbox_locked,
    listening_socket,
    post,
    states,
    until_answered,
    until_ready,
    until_somebody_waits,
    until_state,
    update,
    worker,
)
from tests.waiting import until


@asynccontextmanager
async def early_worker(
    database_url: str, tmp_path: Path, bot: str = "held", **environ: str
) -> AsyncIterator[WorkerProcess]:
    """One that receives at once; its bot is built when `release(tmp_path)` was called."""
    told = {RECEIVE_VARIABLE: "1", "RELEASE": str(tmp_path / "release"), **environ}
    async with worker(database_url, tmp_path, bot=bot, environ=told) as process:
        yield process


def release(tmp_path: Path) -> None:
    """Lets the bot be built."""
    (tmp_path / "release").touch()


def public_port(process: WorkerProcess) -> Target:
    """Where strangers, and here Telegram, connect by hand."""
    url = httpx.URL(process.url)
    assert url.port is not None
    return Target(url.host, url.port)


async def test_b02_updates_are_stored_before_the_bot_is_built_and_handled_after(
    database_url: str, tmp_path: Path
) -> None:
    """Its main thread is held by the operator's code, and still the answer is 200; health says that it is starting."""
    async with (
        database_of(database_url) as database,
        early_worker(database_url, tmp_path) as process,
        client(process.url) as http,
    ):
        await process.expect(wire.Receiving)
        assert (await post(http, update(1))).status_code == 200
        assert (await post(http, update(2), secret="not-the-one-not-the-one")).status_code == 401
        assert await states(database) == {1: "pending"}
        health = await http.get("/healthz")
        assert (health.status_code, health.json()["reason"]) == (503, "starting")
        assert (await http.get("/readyz")).status_code == 200
        assert not any(isinstance(message, wire.Accepting) for message in process.messages)
        release(tmp_path)
        await process.expect(wire.Accepting)
        await process.lead(database)
        await until_state(database, 1, "done")


async def test_what_the_supervisor_says_meanwhile_is_not_forgotten(database_url: str, tmp_path: Path) -> None:
    """It says each thing once: the health that was told to the early reception is the worker's."""
    async with (
        database_of(database_url),
        early_worker(database_url, tmp_path) as process,
        client(process.url) as http,
    ):
        await process.expect(wire.Receiving)
        process.send(wire.SetHealth(ok=True, role="PASSIVE"))
        await until_answered(http, "/healthz", 200)
        release(tmp_path)
        await process.expect(wire.Accepting)
        async with client(process.url) as another:
            assert (await another.get("/healthz")).json() == {"status": "ok", "role": "PASSIVE"}


async def test_no_request_is_refused_when_the_bot_is_built_under_load(
    database_url: str, tmp_path: Path
) -> None:
    """Keep-alive connections and new ones, through the change: 200 to every update, and each row is there."""
    numbers = iter(range(1_000_000))
    sent: set[int] = set()
    stopping = asyncio.Event()

    async def telegram(http: httpx.AsyncClient, url: str) -> None:
        while not stopping.is_set():
            for connection in (http, None):
                number = next(numbers)
                if connection is not None:
                    assert (await post(connection, update(number))).status_code == 200
                else:
                    async with client(url) as fresh:
                        assert (await post(fresh, update(number))).status_code == 200
                sent.add(number)

    async def more(count: int) -> None:
        wanted = len(sent) + count
        await until(lambda: len(sent), f"{wanted} updates are sent", lambda number: number >= wanted)

    async with (
        database_of(database_url) as database,
        early_worker(database_url, tmp_path) as process,
        client(process.url) as one,
        client(process.url) as two,
    ):
        await process.expect(wire.Receiving)
        await until_ready(one)
        async with asyncio.TaskGroup() as group:
            for http in (one, two):
                group.create_task(telegram(http, process.url))
            await more(20)
            release(tmp_path)
            await process.expect(wire.Accepting)
            await more(50)
            stopping.set()
        assert set(await states(database)) >= sent
        process.send(wire.StopAccepting(linger_seconds=0.5))
        await process.expect(wire.ConnectionsClosed)


async def test_the_session_of_the_early_reception_is_closed(database_url: str, tmp_path: Path) -> None:
    """So that an instance has the sessions that DB_POOL_SIZE says."""
    async with (
        database_of(database_url) as database,
        early_worker(database_url, tmp_path) as process,
    ):

        async def sessions() -> set[str]:
            cursor = await database.execute(
                "SELECT application_name FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'webhook-supervisor %'"
            )
            return {name for (name,) in await cursor.fetchall()}

        await process.expect(wire.Receiving)
        assert await sessions() == {"webhook-supervisor early reception"}
        release(tmp_path)
        await process.expect(wire.Accepting)
        await until(
            sessions, "its session is closed", lambda names: "webhook-supervisor early reception" not in names
        )
        assert "webhook-supervisor worker ingest" in await sessions()


async def test_b17_a_worker_that_is_to_leave_before_its_bot_is_built_leaves(
    database_url: str, tmp_path: Path
) -> None:
    """Its open connections are served to their end, though the main thread is held; and its bot does not come up any more."""
    listener = listening_socket()
    told = {RECEIVE_VARIABLE: "1", "RELEASE": str(tmp_path / "release")}
    async with (
        database_of(database_url),
        worker(database_url, tmp_path, bot="held", environ=told, listener=listener) as process,
        client(process.url) as http,
    ):
        await process.expect(wire.Receiving)
        assert (await post(http, update(1))).status_code == 200
        process.send(wire.StopAccepting(linger_seconds=30))
        answers: list[httpx.Response] = []
        async with asyncio.timeout(HANG_SECONDS):
            while not answers or answers[-1].headers.get("connection") != "close":
                answers.append(await post(http, update(2)))
        assert {answer.status_code for answer in answers} == {200}
        await process.expect(wire.ConnectionsClosed)
        release(tmp_path)
        process.send(wire.Exit())
        assert await process.exit_status() == 0
        assert not any(isinstance(message, wire.Accepting) for message in process.messages)
    listener.close()


@pytest.mark.parametrize("bot", ["held", "held_and_raising"])
async def test_b21_what_is_being_answered_when_the_early_reception_leaves_is_answered(
    database_url: str, tmp_path: Path, bot: str
) -> None:
    """A commit that takes long, and a body that comes slowly, longer than the linger; also where the bot cannot be built."""
    async with (
        database_of(database_url) as database,
        early_worker(database_url, tmp_path, bot=bot) as process,
        client(process.url) as http,
        public_port(process).connect() as idle,
        public_port(process).connect() as slow,
    ):
        await process.expect(wire.Receiving)
        await until_ready(http)
        await slow.send(request(update(2))[:-1])
        await idle.send(request(update(3)))
        assert await idle.status() == "200"
        async with inbox_locked(database):
            waiting = asyncio.create_task(post(http, update(1)))
            await until_somebody_waits(database)
            release(tmp_path)
            await idle.end()  # the linger is over
            assert not waiting.done()
        assert (await waiting).status_code == 200
        await slow.send(request(update(2))[-1:])
        assert await slow.status() == "200"
        if bot == "held":
            await process.expect(wire.Accepting)
        else:
            [fault] = (await process.expect(wire.StartFailed)).faults
            assert "no menu today" in fault
            assert await process.exit_status() == 2
        assert await states(database) == {1: "pending", 2: "pending", 3: "pending"}


async def test_b06_it_beats_until_the_bot_is_built(database_url: str, tmp_path: Path) -> None:
    """So that the supervisor sees one that hangs, and what it could store."""
    async with database_of(database_url), early_worker(database_url, tmp_path) as process:
        await process.expect(wire.Receiving)
        beat = await process.expect(wire.Beat)
        while not beat.storing:
            beat = await process.expect(wire.Beat)
        assert beat.pool == wire.PoolUse(size=1, in_use=0, waiting=0)
        release(tmp_path)
        await process.expect(wire.Accepting)
        await process.expect(wire.Beat)


async def test_at_the_first_start_of_all_the_tables_may_be_made_later(
    database_url: str, tmp_path: Path
) -> None:
    """A worker may be quicker than its supervisor, who makes them: 503 until then, and no warning in the log."""
    async with early_worker(database_url, tmp_path) as process, client(process.url) as http:
        await process.expect(wire.Receiving)
        answer = await post(http, update(1))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        await process.logged("updates are answered 503 until the tables are made")
        async with database_of(database_url) as database:
            await until_ready(http)
            assert (await post(http, update(1))).status_code == 200
            assert await states(database) == {1: "pending"}
        assert "warning" not in process.log.lower()


async def test_that_the_tables_are_made_later_is_said_once(database_url: str, tmp_path: Path) -> None:
    """By the early reception; the worker's own finds it too, and says nothing of it."""
    line = "updates are answered 503 until the tables are made"
    async with early_worker(database_url, tmp_path) as process, client(process.url) as http:
        await process.expect(wire.Receiving)
        await process.logged(line)
        release(tmp_path)
        await process.expect(wire.Accepting)
        beat = await process.expect(wire.Beat)
        while beat.storing_reason == "no statement has succeeded yet":
            beat = await process.expect(wire.Beat)
        assert not beat.storing
        async with database_of(database_url):
            await until_ready(http)
        assert process.log.count(line) == 1


async def test_b31_a_database_that_is_away_does_not_hold_up_the_bot(tmp_path: Path) -> None:
    """Neither reception has a session; the worker comes up all the same, and its early reception is gone."""
    async with (
        early_worker("postgresql://x:x@127.0.0.1:1/x", tmp_path) as process,
        client(process.url) as http,
    ):
        release(tmp_path)
        await process.expect(wire.Accepting)
        assert (await post(http, update(1))).status_code == 503
        process.send(wire.StopAccepting(linger_seconds=0.5))
        await process.expect(wire.ConnectionsClosed)
        process.send(wire.Exit())
        assert await process.exit_status() == 0
