"""A webhook to deliver to, that answers as a test tells it and keeps what it got."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

import httptools

LIMIT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the webhook; `close` ends the connection after it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    close: bool = False


@dataclass(slots=True)
class Received:
    """One request. `answer` sends its reply later, `hang_up` ends the connection instead."""

    method: str
    target: str
    version: str
    headers: dict[str, str]
    body: bytes
    connection: int
    peer: _Peer

    @property
    def update(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self.body))

    @property
    def text(self) -> str:
        return str(self.update["message"]["text"])

    def answer(self, reply: Reply | None = None) -> None:
        self.peer.answer(reply or Reply())

    def hang_up(self) -> None:
        self.peer.hang_up()


class Receiver:
    """Listens on 127.0.0.1; `answer` decides at once, or returns None to leave a request open. With `tls`, over https."""

    def __init__(
        self,
        answer: Callable[[Received], Reply | None] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer or (lambda request: Reply())
        self.requests: list[Received] = []
        self.open: set[_Peer] = set()
        self.opened = 0
        self.most_unanswered = 0
        self.unanswered = 0
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/hook/path?x=1"

    @property
    def texts(self) -> list[str]:
        return [request.text for request in self.requests]

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.refuse()
        await self.until(lambda: not self.open)

    async def listen(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Peer(self), "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Nobody listens any more, and open connections end."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for peer in list(self.open):
            peer.hang_up()

    def note_change(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition on what was received."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_count(self, count: int) -> None:
        await self.until(lambda: len(self.requests) >= count)


class _Peer(asyncio.Protocol):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body = b""
        receiver.opened += 1
        self._number = receiver.opened
        self._is_unanswered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._receiver.open.add(self)
        self._receiver.note_change()

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiver.open.discard(self)
        self._note_answered()
        self._receiver.note_change()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        request = Received(
            self._parser.get_method().decode(),
            self._target.decode(),
            self._parser.get_http_version(),
            self._headers,
            self._body,
            self._number,
            self,
        )
        self._target, self._headers, self._body = b"", {}, b""
        receiver = self._receiver
        self._is_unanswered = True
        receiver.unanswered += 1
        receiver.most_unanswered = max(receiver.most_unanswered, receiver.unanswered)
        receiver.requests.append(request)
        reply = receiver.answer(request)
        if reply is not None:
            self.answer(reply)
        receiver.note_change()

    def answer(self, reply: Reply) -> None:
        assert self._transport is not None
        self._note_answered()
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        if reply.close:
            headers["Connection"] = "close"
        lines = [
            f"HTTP/1.1 {reply.status} Whatever",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._transport.write(("\r\n".join(lines) + "\r\n\r\n").encode() + reply.body)
        if reply.close:
            self._transport.close()

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _note_answered(self) -> None:
        if self._is_unanswered:
            self._is_unanswered = False
            self._receiver.unanswered -= 1
