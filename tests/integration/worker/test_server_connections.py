"""What a client may make the server hold, and for how long: in this process, with limits short enough to wait for."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tests.integration.worker.worker_process import HANG_SECONDS, listening_socket
from webhook_worker.server import Server

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


async def refuse(scope: Any, receive: Any, send: Send) -> None:
    """Answers at once, and reads nothing of the body."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def served(app: Any = refuse, **limits: Any) -> AsyncIterator[tuple[socket.socket, Server]]:
    listener = listening_socket()
    address = listener.getsockname()
    server = Server(app, **limits)
    task = asyncio.create_task(server.serve([listener]))
    await asyncio.wait_for(server.wait_accepting(), HANG_SECONDS)
    client = socket.create_connection(address)
    client.setblocking(False)
    try:
        yield client, server
    finally:
        client.close()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        listener.close()


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[socket.socket]:
    async with served(**limits) as (client, _):
        yield client


async def until_closed(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    async with asyncio.timeout(HANG_SECONDS):
        try:
            while chunk := await asyncio.get_running_loop().sock_recv(client, 65536):
                received += chunk
        except ConnectionResetError:
            return received
    return received


async def send(client: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(client, data)


@pytest.mark.parametrize(
    "beginning",
    [
        b"POST /webh",
        b"POST / HTTP/1.1\r\nhost: x\r\nx-a",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
    ],
)
async def test_b29_a_request_that_does_not_end_is_cut_off(beginning: bytes) -> None:
    """In its line, in its head, or in a body that we have refused already."""
    async with serving(arrival_seconds=0.2) as client:
        await send(client, beginning)
        await until_closed(client)


@pytest.mark.parametrize("said", [b"", b"\r\n", b"\r\n\r\n"])
async def test_b29_a_connection_that_says_nothing_is_closed(said: bytes) -> None:
    """As one that is silent between requests; an empty line, which HTTP allows there, is no request."""
    async with serving(keep_alive_seconds=1) as client:
        await send(client, said)
        assert await until_closed(client) == b""


async def test_b29_an_empty_line_after_an_answer_does_not_keep_the_connection_for_ever() -> None:
    """The silence begins anew with it."""
    async with serving(keep_alive_seconds=1) as client:
        await send(client, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await asyncio.get_running_loop().sock_recv(client, 65536)).startswith(b"HTTP/1.1 404")
        await send(client, b"\r\n")
        assert await until_closed(client) == b""


async def test_b29_a_client_that_reads_no_answer_is_cut_off() -> None:
    """As long as its kernel acknowledges, nothing else would end it."""

    async def flood(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async with served(flood, arrival_seconds=0.2) as (client, server):
        await send(client, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(HANG_SECONDS):
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
            while server.server_state.connections:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("filler", [b"x-filler: " + b"y" * 1012 + b"\r\n", b"y" * 1024])
@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nx-first: ", CHUNKED + b"1\r\nx\r\n0\r\nx-first: "])
async def test_b29_a_head_or_trailers_without_end_are_cut_off(head: bytes, filler: bytes) -> None:
    """Many fields, or one that never ends; in front of a body, or behind the last chunk of one."""
    async with serving() as client:
        await send(client, head)
        with pytest.raises(ConnectionError):
            await send(client, filler * 64 * 1024)


@pytest.mark.parametrize("piece_bytes", [1000, 300_000])
async def test_long_bodies_are_none_of_these(piece_bytes: int) -> None:
    """However the bytes come, a chunk may be longer than a head, and a head may come together with a body."""
    body = b"%x\r\n" % 200_000 + b"x" * 200_000 + b"\r\n"
    request = CHUNKED + body * 3 + b"0\r\nx-trailer: y\r\n\r\n"
    async with serving() as client:
        for _ in range(3):
            for begin in range(0, len(request), piece_bytes):
                await send(client, request[begin : begin + piece_bytes])
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 65536), HANG_SECONDS)
            assert answer.startswith(b"HTTP/1.1 404")


async def test_a_head_in_two_pieces_may_be_followed_by_a_long_body_at_once() -> None:
    """The end of a head, and what comes together with it, is not the head's."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n"
    async with served() as (client, server):
        await send(client, head[:20])
        async with asyncio.timeout(HANG_SECONDS):
            while not any(each.arriving_since for each in server.server_state.connections):  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        await send(client, head[20:] + b"x" * 200_000)
        answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 65536), HANG_SECONDS)
        assert answer.startswith(b"HTTP/1.1 404")


class Counter:
    """Answers each request with its number, when it may."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        self.begun += 1
        number = b"%03d" % self.begun
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": number})


REQUEST = b"GET / HTTP/1.1\r\n\r\n"


async def test_some_requests_may_wait_for_the_one_before_them() -> None:
    """As HTTP/1.1 allows; they are answered in their order."""
    counter = Counter()
    async with served(counter) as (client, _):
        await send(client, REQUEST * 16)
        counter.may_answer.set()
        received = b""
        async with asyncio.timeout(HANG_SECONDS):
            while received.count(b"HTTP/1.1 200") < 16 or not received.endswith(b"016"):
                received += await asyncio.get_running_loop().sock_recv(client, 65536)
        assert [answer[-3:] for answer in received.split(b"HTTP/1.1 200")[1:]] == [
            b"%03d" % number for number in range(1, 17)
        ]


@pytest.mark.parametrize("rest", [REQUEST * 100_000, b"garbage\r\n\r\n"])
async def test_b29_pipelined_garbage_ends_the_connection_quietly(
    rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests enough to fill our memory, or what is none: nothing of it is answered in the place of the first."""
    counter = Counter()
    async with served(counter) as (client, server):
        await send(client, REQUEST)
        async with asyncio.timeout(HANG_SECONDS):
            while not counter.begun:
                await asyncio.sleep(0.01)
        with suppress(ConnectionError):
            await send(client, rest)
        assert await until_closed(client) == b""
        counter.may_answer.set()
        async with asyncio.timeout(HANG_SECONDS):
            while server.server_state.tasks:
                await asyncio.sleep(0.01)
        assert counter.begun == 1
    assert caplog.records == []


@pytest.mark.parametrize("refused_early", [False, True])
async def test_a_connection_is_kept_between_requests_and_closed_after_silence(refused_early: bool) -> None:
    """Also when a request was answered before it had arrived."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n"
    async with serving(keep_alive_seconds=1) as client:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            await send(client, head if refused_early else head + b"12345")
            answer = await asyncio.wait_for(loop.sock_recv(client, 65536), HANG_SECONDS)
            assert answer.startswith(b"HTTP/1.1 404")
            if refused_early:
                await send(client, b"12345")
        assert await until_closed(client) == b""
