"""StopAccepting on a shared listening socket: a worker is replaced under load, and nobody is refused."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from shared import clock, wire
from shared.inherited import RECEIVE_VARIABLE
from tests.integration.worker.worker_process import (
    HANG_SECONDS,
    PATH,
    SECRET,
    client,
    database_of,
    inbox_locked,
    listening_socket,
    post,
    states,
    until_ready,
    until_somebody_waits,
    update,
    worker,
)
from tests.waiting import until


async def test_a_worker_is_replaced_under_load_without_an_error(database_url: str, tmp_path: Path) -> None:
    """Every request of keep-alive clients is answered 200, through two replacements; each row is there."""
    listener = listening_socket()
    numbers = iter(range(1_000_000))
    sent: set[int] = set()
    stopping = asyncio.Event()

    async def telegram(http: httpx.AsyncClient) -> None:
        while not stopping.is_set():
            number = next(numbers)
            assert (await post(http, update(number))).status_code == 200
            sent.add(number)
            await asyncio.sleep(0.005)

    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(database_of(database_url))
        current = await stack.enter_async_context(worker(database_url, tmp_path, listener=listener, name="0"))
        await current.expect(wire.Accepting)
        url = current.url
        https = [await stack.enter_async_context(client(url)) for _ in range(8)]
        await until_ready(https[0])
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(telegram(http)) for http in https]
            for name in ("1", "2"):
                successor = await stack.enter_async_context(
                    worker(database_url, tmp_path, listener=listener, name=name)
                )
                await successor.expect(wire.Accepting)
                async with asyncio.timeout(HANG_SECONDS):
                    # Its links are up a moment later; until then it says 503, as it must.
                    beat = await successor.expect(wire.Beat)
                    while not beat.storing:
                        beat = await successor.expect(wire.Beat)
                current.send(wire.StopAccepting(linger_seconds=10))
                await current.expect(wire.ConnectionsClosed)
                current.send(wire.Exit())
                assert await current.exit_status() == 0
                current = successor
            wanted = len(sent) + 50
            await until(lambda: len(sent), f"{wanted} updates are sent", lambda number: number >= wanted)
            stopping.set()
            await asyncio.gather(*clients)
        assert set(await states(database)) >= sent
        assert all("received" in (tmp_path / f"{name}.log").read_text() for name in ("0", "1", "2"))
    listener.close()


async def test_stop_accepting_answers_close_and_ends_idle_connections(
    database_url: str, tmp_path: Path
) -> None:
    """What comes on an open connection is served and told to go; what stays silent is cut off when the linger is over."""
    listener = listening_socket()
    async with (
        database_of(database_url),
        worker(database_url, tmp_path, listener=listener) as process,
        client(process.url) as speaker,
        client(process.url) as silent,
        client(process.url) as probe,
    ):
        await process.expect(wire.Accepting)
        await until_ready(speaker)
        assert "connection" not in (await silent.get("/readyz")).headers
        assert (await probe.get("/healthz")).status_code == 503
        process.send(wire.StopAccepting(linger_seconds=5.0))
        async with asyncio.timeout(HANG_SECONDS):
            while (await probe.get("/healthz")).headers.get("connection") != "close":
                pass
        answer = await post(speaker, update(1))
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        await process.expect(wire.ConnectionsClosed)
        assert process.is_alive()
    listener.close()


async def test_b14_a_worker_that_has_to_stay_gives_silent_connections_the_time(
    database_url: str, tmp_path: Path
) -> None:
    """Its term is not over yet: whoever comes after a second, as Telegram does after a 503, is answered and told to go."""
    listener = listening_socket()
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, listener=listener) as process,
        client(process.url) as silent,
        client(process.url) as probe,
    ):
        await process.expect(wire.Accepting)
        await until_ready(silent)
        await process.lead(database)
        await process.expect(wire.Dispatching)
        assert (await probe.get("/healthz")).status_code == 503
        process.send(wire.StopAccepting(linger_seconds=0.0))
        async with asyncio.timeout(HANG_SECONDS):
            while (await probe.get("/healthz")).headers.get("connection") != "close":
                pass
        assert (await silent.get("/readyz")).headers.get("connection") == "close"
        process.send(wire.EndTerm(drain_seconds=0.0))
        await process.expect(wire.ConnectionsClosed)
    listener.close()


async def test_without_connections_it_is_over_at_once(database_url: str, tmp_path: Path) -> None:
    """However long the linger is; and whoever comes now waits for the successor, and is not refused."""
    listener = listening_socket()
    async with database_of(database_url), AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            worker(database_url, tmp_path, listener=listener, name="first")
        )
        await first.expect(wire.Accepting)
        first.send(wire.StopAccepting(linger_seconds=1000))
        await first.expect(wire.ConnectionsClosed)
        http = await stack.enter_async_context(client(first.url))
        waiting = asyncio.create_task(http.get("/healthz"))
        second = await stack.enter_async_context(
            worker(database_url, tmp_path, listener=listener, name="second")
        )
        await second.expect(wire.Accepting)
        assert (await waiting).status_code == 503
    listener.close()


async def test_a_request_under_way_is_answered_before_connections_closed(
    database_url: str, tmp_path: Path
) -> None:
    """Its body comes slowly, in the middle of the change."""
    listener = listening_socket()
    body = update(1)
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, listener=listener) as process,
    ):
        await process.expect(wire.Accepting)
        async with client(process.url) as http:
            await until_ready(http)
        host, port = process.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        fields = (
            f"POST /webhook/{PATH} HTTP/1.1",
            "host: x",
            f"x-telegram-bot-api-secret-token: {SECRET}",
            f"content-length: {len(body)}",
        )
        writer.write("\r\n".join([*fields, "", ""]).encode() + body[:10])
        # Connections are accepted in their order: once a later one is answered, this one is the server's.
        async with client(process.url) as http:
            await http.get("/healthz")
        process.send(wire.StopAccepting(linger_seconds=1000))
        with pytest.raises(TimeoutError):
            await process.expect(wire.ConnectionsClosed, limit_seconds=0.5)
        writer.write(body[10:])
        answer = (await asyncio.wait_for(reader.read(), HANG_SECONDS)).lower()
        assert answer.startswith(b"http/1.1 200")
        assert b"connection: close" in answer
        await process.expect(wire.ConnectionsClosed)
        assert await states(database) == {1: "pending"}
        writer.close()
    listener.close()


async def test_b09_b17_an_update_whose_commit_takes_longer_than_the_linger_is_answered(
    database_url: str, tmp_path: Path
) -> None:
    """Before ConnectionsClosed, to which Exit is the answer. Who asks nothing is not waited for."""
    listener = listening_socket()
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path, listener=listener) as process,
        client(process.url) as http,
        client(process.url) as silent,
    ):
        await process.expect(wire.Accepting)
        await until_ready(http)
        await silent.get("/healthz")
        async with inbox_locked(database):
            waiting = asyncio.create_task(post(http, update(1)))
            await until_somebody_waits(database)
            process.send(wire.StopAccepting(linger_seconds=0.1))
            with pytest.raises(TimeoutError):
                await process.expect(wire.ConnectionsClosed, limit_seconds=1.0)
        await process.expect(wire.ConnectionsClosed)
        process.send(wire.Exit())
        assert (await waiting).status_code == 200
        assert await process.exit_status() == 0
        assert await states(database) == {1: "pending"}
    listener.close()


@pytest.mark.parametrize("early", [False, True])
async def test_b14_an_answer_that_does_not_come_is_waited_for_no_longer_than_the_supervisor_waits(
    database_url: str, tmp_path: Path, early: bool
) -> None:
    """A platform's limit has no room for a database that hangs."""
    listener = listening_socket()
    told = {RECEIVE_VARIABLE: "1", "RELEASE": str(tmp_path / "release")}
    async with (
        database_of(database_url) as database,
        worker(
            database_url,
            tmp_path,
            bot="held" if early else "obedient",
            environ=told if early else None,
            listener=listener,
        ) as process,
        client(process.url) as http,
    ):
        await process.expect(wire.Receiving if early else wire.Accepting)
        await until_ready(http)
        async with inbox_locked(database):
            waiting = asyncio.create_task(post(http, update(1)))
            await until_somebody_waits(database)
            began_at = clock.now()
            process.send(wire.StopAccepting(linger_seconds=0.1))
            await process.expect(wire.ConnectionsClosed, limit_seconds=0.1 + wire.ANSWER_SECONDS + 2.0)
            assert clock.now() - began_at >= wire.ANSWER_SECONDS
            process.send(wire.Exit())
            assert await process.exit_status() == 0
        with pytest.raises(httpx.HTTPError):
            await waiting
    listener.close()
