"""The supervisor's own HTTP server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from supervisor import messages as m
from supervisor.health import Answer, HttpServer, Sources, answer_own_port, answer_public_port

HANG_SECONDS = 60.0
OK = m.Health(ok=True, role="PASSIVE", reason=None)
FAILING = m.Health(ok=False, role="ACTIVE", reason="stopping")


def sources(health: m.Health = OK, storing: str | None = None) -> Sources:
    return Sources(
        health=lambda: health,
        storing=lambda: storing,
        status=lambda: {"role": health.role},
        webhook_path="/webhook/some-secret-path",
    )


def test_own_port_answers() -> None:
    """INTERFACE.md's table for HEALTH_PORT."""
    assert answer_own_port(sources(), "GET", "/healthz").status == 200
    failing = answer_own_port(sources(FAILING), "GET", "/healthz")
    assert failing.status == 503
    assert failing.body == b'{"status": "failing", "role": "ACTIVE", "reason": "stopping"}\n'
    assert answer_own_port(sources(storing="away"), "GET", "/readyz").status == 503
    assert answer_own_port(sources(), "GET", "/readyz").status == 200
    assert answer_own_port(sources(), "GET", "/status").status == 200
    assert answer_own_port(sources(), "POST", "/healthz").status == 405
    assert answer_own_port(sources(), "GET", "/elsewhere").status == 404


def test_public_port_without_a_worker_asks_telegram_to_come_back() -> None:
    """Whatever may be an update: 503 with the Retry-After that is worth minutes. The rest, as a worker answers it."""
    answer = answer_public_port(sources(), "POST", "/webhook/some-secret-path")
    assert (answer.status, answer.headers, answer.body) == (503, (("Retry-After", "2"),), b"")
    for method, path in (
        ("GET", "/"),
        ("GET", "/status"),
        ("GET", "/metrics"),
        ("POST", "/"),
        ("GET", "/webhook"),
        ("GET", "/wp-login.php"),
        ("POST", "/webhook/too-short"),
        ("POST", "/elsewhere/webhook/some-secret-path"),
        ("GET", "/webhook/some-other-secret-path"),
    ):
        assert answer_public_port(sources(), method, path) == Answer(404)
    for method, path in (("GET", "/webhook/some-secret-path"), ("POST", "/healthz")):
        assert answer_public_port(sources(), method, path).status == 405
    assert answer_public_port(sources(FAILING), "GET", "/healthz").status == 503
    assert answer_public_port(sources(), "GET", "/readyz").status == 503


@asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HttpServer(lambda method, path: answer)
        await server.start(listener)
        try:
            yield listener.getsockname()[1]
        finally:
            server.stop()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_over_the_wire_with_any_client(method: str) -> None:
    """A whole body is read before the close, so that the answer is not lost in a reset."""
    async with (
        served(Answer(503, b"x", (("Retry-After", "2"),))) as port,
        httpx.AsyncClient(trust_env=False, timeout=HANG_SECONDS) as client,
    ):
        content = b"y" * 300_000 if method == "POST" else b""
        answer = await client.request(method, f"http://127.0.0.1:{port}/any", content=content)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


@pytest.mark.parametrize(
    "target",
    [
        b"/webhook/some-secret-path?x=1",
        b"http://bot.example.com/webhook/some-secret-path",
        b"/webhook/some%2Dsecret-path",
    ],
)
async def test_a_path_may_be_written_in_several_ways(target: bytes) -> None:
    """As a worker's server reads it: a 404 would make Telegram wait longer and longer."""
    paths: list[str] = []

    def answer(method: str, path: str) -> Answer:
        paths.append(path)
        return Answer(503)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HttpServer(answer)
        await server.start(listener)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
        writer.write(b"POST " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        async with asyncio.timeout(HANG_SECONDS):
            assert (await reader.read()).startswith(b"HTTP/1.1 503")
        writer.close()
        server.stop()
    assert paths == ["/webhook/some-secret-path"]


async def test_rubbish_and_silence_harm_nobody() -> None:
    """What is not HTTP, and who says nothing, do not keep others from their answer."""
    async with served(Answer(200)) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01 this is no request\r\n\r\n")
        async with asyncio.timeout(HANG_SECONDS):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        async with httpx.AsyncClient(trust_env=False, timeout=HANG_SECONDS) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
        for _, other in [*silent, (reader, writer)]:
            other.close()


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"GET /health z HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n" + b"y" * 300_000,
    ],
)
async def test_b29_what_is_no_request_is_400_and_nothing_more(request_head: bytes) -> None:
    """A probe that is set up wrongly is told so, where a closed connection looks like an instance that is gone."""
    async with served(Answer(200, b"well")) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_head)
        writer.write_eof()
        async with asyncio.timeout(HANG_SECONDS):
            answer = await reader.read()
        writer.close()
    assert answer.split(b"\r\n") == [b"HTTP/1.1 400 ", b"Content-Length: 0", b"Connection: close", b"", b""]


async def test_stopping_leaves_the_socket_to_others() -> None:
    """The public socket is the supervisor's for life: a worker accepts on it when the fallback has stopped."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HttpServer(lambda method, path: Answer(200))
        await server.start(listener)
        server.stop()
        knocking = asyncio.create_task(asyncio.open_connection("127.0.0.1", listener.getsockname()[1]))
        async with asyncio.timeout(HANG_SECONDS):
            _, writer = await knocking
            accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
        accepted.close()
        writer.close()


@pytest.mark.parametrize("turns", range(6))
async def test_b02_who_comes_in_the_moment_of_the_stop_is_answered(turns: int) -> None:
    """By the one that stops, if it has accepted them, or by whoever accepts next: nobody is held without a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        leaving, next_one = (HttpServer(lambda method, path, at=at: Answer(at)) for at in (503, 200))  # type: ignore[misc]
        await leaving.start(listener)
        await asyncio.sleep(0)  # it listens at the next turn of the loop
        client = socket.create_connection(listener.getsockname())
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving.stop()
        await next_one.start(listener)
        reader, writer = await asyncio.open_connection(sock=client)
        async with asyncio.timeout(HANG_SECONDS):
            assert (await reader.readline()).split()[1] in (b"503", b"200")
        writer.close()
        next_one.stop()
