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


async def refuse(scope: Any, receive: Any, send: Send) -> None:
    """Answers at once, and reads nothing of the body."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[socket.socket]:
    listener = listening_socket()
    address = listener.getsockname()
    server = Server(refuse, **limits)
    task = asyncio.create_task(server.serve([listener]))
    await asyncio.wait_for(server.wait_accepting(), HANG_SECONDS)
    client = socket.create_connection(address)
    client.setblocking(False)
    try:
        yield client
    finally:
        client.close()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        listener.close()


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


async def test_a_connection_that_never_speaks_is_closed() -> None:
    """As one that is silent between requests."""
    async with serving(keep_alive_seconds=1) as client:
        assert await until_closed(client) == b""


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
