"""The HTTP/1.1 server under the Bot API and the control API.

Why not uvicorn: the faults that this emulator is for happen below a framework - a connection that is reset instead of
answered, an answer that never comes, a port on which nobody listens for a while and then again. On httptools' parser
that is this one page; it logs nothing, so no token of a URL can reach a log.

Does not promise anything that a public server needs: no limits on slow clients, no TLS.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import httptools

MAX_BODY_BYTES = 64 * 1024 * 1024
_log = logging.getLogger("emulator.http")


@dataclass(frozen=True, slots=True)
class Request:
    """A request, whole. `disconnected` is set when its client has gone."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    disconnected: asyncio.Event


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, whole."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


# None resets the connection without an answer.
Handler = Callable[[Request], Awaitable[Response | None]]


class HttpServer:
    """Listens on one address of 127.0.0.1 or another host, and can stop and start listening there again."""

    def __init__(self, handler: Handler, name: str) -> None:
        self._handler = handler
        self._name = name
        self._address: tuple[str, int] | None = None
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._address is not None, "not started"
        host, port = self._address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self, host: str, port: int) -> None:
        """Listens; port 0 takes a free one."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            listening = probe.dup()
        self._address = (host, listening.getsockname()[1])
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), sock=listening, backlog=1024
        )

    async def stop_listening(self) -> None:
        """From now on connections are refused, and those that are open are reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.abort()

    async def listen_again(self) -> None:
        """On the same address as before."""
        if self._server is None and self._address is not None:
            await self.start(*self._address)

    async def aclose(self) -> None:
        await self.stop_listening()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self.connections):
            await connection.wait_closed()

    def serve(self, connection: _Connection, request: Request) -> None:
        task = asyncio.get_running_loop().create_task(
            self._answer(connection, request), name=f"{self._name}-request"
        )
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer(self, connection: _Connection, request: Request) -> None:
        try:
            response = await self._handler(request)
        except Exception as exc:  # noqa: BLE001 - a bug in one method must not end the server; the traceback is logged
            # The path is left out: it holds a token.
            _log.error("a request failed with %s", type(exc).__name__, exc_info=exc)
            response = Response(500, b'{"ok":false,"error_code":500,"description":"Internal Server Error"}')
        if response is None:
            connection.abort()
        else:
            connection.answer(response)


class _Connection(asyncio.Protocol):
    """One client; its requests are answered one after the other."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._is_busy = False
        self._keep_alive = True
        self._disconnected = asyncio.Event()
        self._begin_request()

    def abort(self) -> None:
        if self._transport is not None:
            # With lingering off and no data unread the peer would see an orderly end; a reset is what is meant.
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    async def wait_closed(self) -> None:
        """After `abort`: waits until the socket is gone."""
        await self._disconnected.wait()

    def answer(self, response: Response) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        lines = [
            f"HTTP/1.1 {response.status} {_reason(response.status)}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            f"Connection: {'keep-alive' if self._keep_alive else 'close'}",
            *(f"{name}: {value}" for name, value in response.headers.items()),
        ]
        self._transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + response.body)
        if not self._keep_alive:
            self._transport.close()
            return
        self._is_busy = False
        self._serve_next()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._disconnected.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._keep_alive = False
            self.answer(Response(400, b"Bad Request", "text/plain"))

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            self.abort()

    def on_message_complete(self) -> None:
        path, _, query = self._target.decode("latin-1").partition("?")
        request = Request(
            self._parser.get_method().decode("latin-1"),
            path,
            query,
            self._headers,
            bytes(self._body),
            self._disconnected,
        )
        self._waiting.append((request, self._parser.should_keep_alive()))
        self._begin_request()
        self._serve_next()

    def _begin_request(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def _serve_next(self) -> None:
        if self._waiting and not self._is_busy:
            self._is_busy = True
            request, self._keep_alive = self._waiting.popleft()
            self._server.serve(self, request)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
