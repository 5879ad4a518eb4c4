"""The short way of a POST to the webhook, in front of ASGI: what goes it, what does not; from outside it looks the same."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.asgi import read_body
from tests.integration.worker.test_server_connections import (
    REQUEST,
    Counter,
    Send,
    send,
    served,
    until_closed,
)
from tests.integration.worker.worker_process import HANG_SECONDS
from tests.waiting import until

HEAD = b"POST /webhook/%s HTTP/1.1\r\nHost: x\r\nX-Secret: s\r\nContent-Length: %d\r\n%s\r\n"


def post(body: bytes = b"{}", path: bytes = b"known", more: bytes = b"") -> bytes:
    return HEAD % (path, len(body), more) + body


class Storage:
    """Takes what comes to a known path; each is stored, or not, when the test says so."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, bytes]] = []
        self.tell: list[Callable[[str | None], None]] = []
        self.by_asgi: list[bytes] = []

    def take_at_once(
        self,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        tell: Callable[[str | None], None],
    ) -> bool:
        if path != b"/webhook/known" or (b"x-secret", b"s") not in headers:
            return False
        self.taken.append((path, body))
        self.tell.append(tell)
        return True

    async def app(self, scope: Any, receive: Any, send: Send) -> None:
        """Reads the whole body, and answers 204."""
        body = await read_body(receive)
        if body is None:
            return
        self.by_asgi.append(body)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def wait_taken(self, count: int) -> None:
        await until(lambda: len(self.taken), f"{count} are taken", lambda number: number >= count)


async def answers(client: socket.socket, count: int) -> list[bytes]:
    """So many heads of answers, without bodies."""
    received = b""
    async with asyncio.timeout(HANG_SECONDS):
        while received.count(b"\r\n\r\n") < count:
            chunk = await asyncio.get_running_loop().sock_recv(client, 65536)
            assert chunk, received
            received += chunk
    return received.split(b"\r\n\r\n")[:count]


async def test_a_whole_post_is_answered_when_it_is_stored_and_not_before() -> None:
    """Again and again on one connection, with no ASGI in between."""
    storage = Storage()
    async with served(storage.app, take_at_once=storage.take_at_once) as (client, _):
        for number in range(1, 4):
            await send(client, post(b"%d" % number))
            await storage.wait_taken(number)
            with pytest.raises(BlockingIOError):
                client.recv(1)
            storage.tell[-1](None)
            assert await answers(client, 1) == [b"HTTP/1.1 200 OK\r\ncontent-length: 0"]
    assert storage.taken == [(b"/webhook/known", b"%d" % number) for number in range(1, 4)]
    assert storage.by_asgi == []


async def test_what_was_not_stored_is_a_503_with_retry_after() -> None:
    """And the connection is as good as before."""
    storage = Storage()
    async with served(storage.app, take_at_once=storage.take_at_once) as (client, _):
        for _ in range(2):
            await send(client, post())
            await storage.wait_taken(len(storage.tell) + 1)
            storage.tell[-1]("the database is away")
            (answer,) = await answers(client, 1)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 2" in answer


@pytest.mark.parametrize(
    "request_of",
    [
        pytest.param(lambda: post(path=b"other"), id="another path"),
        pytest.param(lambda: post(path=b"known?x=1"), id="a query"),
        pytest.param(lambda: post().replace(b"X-Secret: s", b"X-Secret: t"), id="another secret"),
        pytest.param(lambda: post(more=b"Connection: close\r\n"), id="to be closed after"),
        pytest.param(lambda: post().replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP 1.0"),
        pytest.param(lambda: post().replace(b"POST", b"PUT"), id="another method"),
    ],
)
async def test_all_else_is_the_applications(request_of: Any) -> None:
    """With its whole body, as if nobody had asked before."""
    storage = Storage()
    async with served(storage.app, take_at_once=storage.take_at_once) as (client, _):
        await send(client, request_of())
        (answer,) = await answers(client, 1)
        assert answer.startswith(b"HTTP/1.1 204 ")
    assert storage.taken == []
    assert storage.by_asgi == [b"{}"]


@pytest.mark.parametrize("in_pieces", [True, False])
async def test_a_body_is_never_a_request_of_its_own(in_pieces: bool) -> None:
    """Of a request that asks for another protocol: whoever reuses the connection would take its answer for that of the next."""
    storage = Storage()
    body = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    whole = post(body, path=b"other", more=b"Connection: Upgrade\r\nUpgrade: h2c\r\n")
    async with served(storage.app, take_at_once=storage.take_at_once) as (client, _):
        if in_pieces:
            await send(client, whole.removesuffix(body))
            first = (await answers(client, 1))[0]
            with contextlib.suppress(ConnectionError):
                await send(client, body)
        else:
            await send(client, whole)
            first = b""
        received = first + await until_closed(client)
    assert received.count(b"HTTP/1.1 ") == 1, received


async def test_a_body_that_comes_in_pieces_is_the_applications() -> None:
    """Which has a limit for the time that it may take."""
    storage = Storage()
    whole = post(b"x" * 1000)
    async with served(storage.app, take_at_once=storage.take_at_once) as (client, server):
        await send(client, whole[:-600])
        async with asyncio.timeout(HANG_SECONDS):
            while not server.server_state.tasks:
                await asyncio.sleep(0.001)
        await send(client, whole[-600:])
        (answer,) = await answers(client, 1)
        assert answer.startswith(b"HTTP/1.1 204 ")
    assert storage.by_asgi == [b"x" * 1000]


async def test_requests_behind_one_that_went_the_short_way_wait_for_it() -> None:
    """They are answered in their order, whichever way they go."""
    storage, counter = Storage(), Counter()
    counter.may_answer.set()
    async with served(counter, take_at_once=storage.take_at_once) as (client, _):
        await send(client, post() + REQUEST + post())
        await storage.wait_taken(1)
        assert counter.begun == 0
        storage.tell[0](None)
        received = b""
        async with asyncio.timeout(HANG_SECONDS):
            while not received.endswith(b"002"):
                received += await asyncio.get_running_loop().sock_recv(client, 65536)
        # The third came while the first was in progress, so it is the application's.
        assert re.findall(rb"content-length: (\d)", received) == [b"0", b"3", b"3"]


@pytest.mark.parametrize("rest", [REQUEST * 100, b"garbage\r\n\r\n"])
async def test_b29_garbage_behind_one_that_went_the_short_way_ends_the_connection(rest: bytes) -> None:
    """Nothing is answered in the place of the first."""
    storage = Storage()
    async with served(storage.app, take_at_once=storage.take_at_once) as (client, _):
        await send(client, post())
        await storage.wait_taken(1)
        await send(client, rest)
        assert await until_closed(client) == b""
        storage.tell[0](None)
        await asyncio.sleep(0)


async def test_a_server_that_is_led_out_answers_and_closes() -> None:
    """Those under way and those that still come; `Connection: close` is in every answer."""
    storage = Storage()
    async with served(storage.app, take_at_once=storage.take_at_once) as (client, server):
        await send(client, post())
        await storage.wait_taken(1)
        leaving = asyncio.create_task(server.stop_accepting(HANG_SECONDS))
        await asyncio.sleep(0)
        storage.tell[0](None)
        said = await until_closed(client)
        assert said == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        await asyncio.wait_for(leaving, HANG_SECONDS)


async def test_an_idle_connection_of_a_server_that_is_led_out_may_speak_once_more() -> None:
    """What races with the close is answered, and told to go."""
    storage = Storage()
    async with served(storage.app, take_at_once=storage.take_at_once) as (client, server):
        await send(client, post())
        await storage.wait_taken(1)
        storage.tell[0](None)
        await answers(client, 1)
        leaving = asyncio.create_task(server.stop_accepting(HANG_SECONDS))
        await asyncio.sleep(0)
        await send(client, post())
        await storage.wait_taken(2)
        storage.tell[1](None)
        assert (await until_closed(client)).endswith(b"connection: close\r\n\r\n")
        await asyncio.wait_for(leaving, HANG_SECONDS)


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("stored", [True, False])
async def test_a_client_that_goes_before_its_answer_is_no_error(
    stored: bool, resets: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged. Where it only ends its side it may wait for the answer, which nobody can tell from here."""
    storage = Storage()
    async with served(storage.app, take_at_once=storage.take_at_once) as (client, server):
        await send(client, post())
        await storage.wait_taken(1)
        if resets:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        async with asyncio.timeout(HANG_SECONDS):
            while any(connection.cycle.keep_alive for connection in server._connections()):
                await asyncio.sleep(0.001)
            assert len(server.server_state.connections) == (0 if resets else 1)
            if stored:
                storage.tell[0](None)
            else:
                storage.tell[0]("the database is away")
            while server.server_state.connections:
                await asyncio.sleep(0.001)
    assert caplog.records == []


async def test_silence_after_a_short_answer_ends_the_connection() -> None:
    """As after any other."""
    storage = Storage()
    async with served(storage.app, take_at_once=storage.take_at_once, keep_alive_seconds=1) as (client, _):
        await send(client, post())
        await storage.wait_taken(1)
        storage.tell[0](None)
        assert await until_closed(client) == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("path", [b"known", b"other"])
async def test_an_answer_may_take_longer_than_a_silence(path: bytes) -> None:
    """Whichever way the request goes: its client is not silent, it waits."""
    storage = Storage()
    begun, released = asyncio.Event(), asyncio.Event()

    async def slow_app(scope: Any, receive: Any, send: Send) -> None:
        begun.set()
        await released.wait()
        await storage.app(scope, receive, send)

    async with served(slow_app, take_at_once=storage.take_at_once, keep_alive_seconds=1) as (client, server):
        await send(client, post(path=path))
        await (storage.wait_taken(1) if path == b"known" else asyncio.wait_for(begun.wait(), HANG_SECONDS))
        # Two looks at the connections after it would have been silent for too long.
        await asyncio.sleep(3.5)
        assert len(server.server_state.connections) == 1
        released.set()
        if path == b"known":
            storage.tell[0](None)
        [answer] = await answers(client, 1)
        assert answer.startswith(b"HTTP/1.1 20")
