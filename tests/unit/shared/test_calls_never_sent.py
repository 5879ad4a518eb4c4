"""Which calls of the Bot API client surely never reached Telegram, and which may have: against real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from shared.errors import TelegramUnavailable
from shared.secret import Secret
from shared.telegram_api import TelegramApi

TOKEN = Secret("123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc")
HANG_SECONDS = 2.0  # the limit given to the client where nobody answers; connecting takes less on any machine
LIMIT_SECONDS = 30.0  # on a hang of ours

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def says_nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Takes what comes, a TLS handshake for one, until it is cut off."""
    await asyncio.Event().wait()


async def closes(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """At once."""


async def reads_and_closes(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """As a server does that ends between the two."""
    await reader.readuntil(b"\r\n\r\n")


async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a proxy does that is not for everybody, and any server."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


@asynccontextmanager
async def listening(behave: Behaviour) -> AsyncIterator[str]:
    """Host and port of a server that does that to each connection."""
    connections = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await behave(reader, writer)
        except (asyncio.CancelledError, ConnectionError, EOFError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections)
        await server.wait_closed()


async def failure(base_url: str, *, timeout_seconds: float = LIMIT_SECONDS) -> TelegramUnavailable:
    """What a call of deleteWebhook there ends with."""
    async with TelegramApi(base_url, TOKEN, timeout_seconds=timeout_seconds) as api:
        with pytest.raises(TelegramUnavailable) as raised:
            await api.delete_webhook()
    return raised.value


async def test_without_a_connection_it_was_never_sent() -> None:
    """Nobody listens; or somebody does, and speaks no TLS, or nothing until our limit ends the wait."""
    async with listening(closes) as address:
        assert not (await failure(f"https://{address}")).may_be_applied
    assert not (await failure(f"http://{address}")).may_be_applied
    async with listening(says_nothing) as address:
        error = await failure(f"https://{address}", timeout_seconds=HANG_SECONDS)
    assert "no answer within 2 s" in str(error)
    assert not error.may_be_applied


async def test_through_a_proxy_that_refuses_it_was_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where the proxy is not there, or connects us to somebody who speaks no TLS."""

    async def connects(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await writer.drain()

    for behave in (refuses, connects):
        async with listening(behave) as address:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
            assert not (await failure("https://api.telegram.example")).may_be_applied
    assert not (await failure("https://api.telegram.example")).may_be_applied


async def test_without_a_client_it_was_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the environment is no doubt about Telegram."""
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:1")
    with pytest.raises(TelegramUnavailable) as raised:
        await TelegramApi("https://127.0.0.1:1", TOKEN).__aenter__()
    assert not raised.value.may_be_applied


async def test_once_a_connection_is_there_it_may_be_applied() -> None:
    """Cut, without an answer until our limit, or with one that is not the Bot API's."""
    for behave in (reads_and_closes, refuses):
        async with listening(behave) as address:
            assert (await failure(f"http://{address}")).may_be_applied
    async with listening(says_nothing) as address:
        assert (await failure(f"http://{address}", timeout_seconds=HANG_SECONDS)).may_be_applied


async def test_on_a_connection_that_was_kept_it_may_be_applied() -> None:
    """The second call makes none."""

    async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"ok": true, "result": true, "description": "Webhook was deleted"}'
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await reader.readuntil(b"\r\n\r\n")

    async with (
        listening(answers_once) as address,
        TelegramApi(f"http://{address}", TOKEN, timeout_seconds=LIMIT_SECONDS) as api,
    ):
        assert await api.delete_webhook() == "Webhook was deleted"
        with pytest.raises(TelegramUnavailable) as raised:
            await api.delete_webhook()
    assert raised.value.may_be_applied


async def test_b31_a_connection_whose_packets_are_dropped_is_given_up_long_before_the_call() -> None:
    """getUpdates may take 40 s; within those the kernel would ask again, more and more slowly, whether anybody is there."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        with contextlib.ExitStack() as stack:
            while fills(stack, port):  # what comes to a queue that is full is dropped
                pass
            api = TelegramApi(f"http://127.0.0.1:{port}", TOKEN, timeout_seconds=10 * LIMIT_SECONDS)
            async with api, asyncio.timeout(LIMIT_SECONDS):
                with pytest.raises(TelegramUnavailable) as caught:
                    await api.get_me()
    assert not caught.value.may_be_applied
    assert "no connection within" in str(caught.value)


def fills(stack: contextlib.ExitStack, port: int) -> bool:
    """Whether the server's queue took one more connection."""
    client = stack.enter_context(socket.socket())
    client.settimeout(0.2)
    try:
        client.connect(("127.0.0.1", port))
    except TimeoutError:
        return False
    return True
