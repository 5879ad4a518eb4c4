"""The platform's reverse proxy: one public port, requests spread over the instances that get traffic.

It behaves as those of the platforms do in what matters to a webhook: it keeps connections to the instances
open and uses them again, it reads a request whole before it passes it on, and where an instance refuses the
connection, closes it, or does not answer, the caller gets 502. Nothing is sent twice: a POST that may have
been received is not repeated. With no instance to send to it answers 502 as well.

Not promised: streaming, upgrades, or more than one request under way on a connection.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import h11

from deploy.local.ports import LOOPBACK

# Larger than anything that an instance takes (1 MiB), so that the refusal is the instance's.
_LARGEST_BODY = 32 << 20
# Less than the instances' keep-alive (120 s, webhook_worker/server.py), as with the platforms' own
# proxies: the side that uses a connection closes it first, or a request would run into its end.
_LONGEST_IDLE_SECONDS = 60.0
_CONNECT_LIMIT_SECONDS = 5.0
# Heroku gives up after 30 s, Render after 100 min; the Bot API server itself after 60 s without an answer.
_ANSWER_LIMIT_SECONDS = 90.0
_READ_SIZE = 65536
# Of one connection, not to be passed on (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)


@dataclass(frozen=True, slots=True)
class Target:
    """An instance that gets requests."""

    name: str
    port: int
    host: str = LOOPBACK

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.host, self.port


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request that was answered.

    Attributes:
        at: `time.monotonic()` when the request had been read.
        seconds: until its answer had been read.
        method: of the request.
        path: of the request; a secret path is in it, so it is not for printing.
        status: what the caller got.
        target: the instance's name, empty where there was none.
        fault: why the router itself answered, else empty.
        retry_after: the answer's Retry-After, empty where it has none.
    """

    at: float
    seconds: float
    method: str
    path: str
    status: int
    target: str
    fault: str
    retry_after: str = ""


@dataclass(frozen=True, slots=True)
class _Message:
    head: h11.Request | h11.Response
    body: bytes


class _Closed(Exception):
    """The other side ended the connection, or broke the protocol."""


class _Connection:
    """One end of a connection: whole messages in, whole messages out."""

    def __init__(self, role: type, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._protocol = h11.Connection(role, max_incomplete_event_size=64 << 10)
        self._reader = reader
        self._writer = writer
        self.idle_since = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether the other side has, as far as is known, not closed it."""
        return not self._reader.at_eof() and not self._writer.is_closing()

    async def receive(self) -> _Message | None:
        """A whole request or response; None when the connection ended in between two."""
        head: h11.Request | h11.Response | None = None
        chunks: list[bytes] = []
        size = 0
        while True:
            try:
                event = self._protocol.next_event()
            except h11.RemoteProtocolError as error:
                raise _Closed("closed without an answer" if self._reader.at_eof() else str(error)) from error
            if event is h11.NEED_DATA:
                if self._protocol.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
                try:
                    self._protocol.receive_data(await self._reader.read(_READ_SIZE))
                except ConnectionError as error:
                    raise _Closed(str(error)) from error
            elif isinstance(event, h11.Request | h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > _LARGEST_BODY:
                    raise _Closed("body too large")
                chunks.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return _Message(head, b"".join(chunks))
            elif isinstance(event, h11.ConnectionClosed):
                if head is None:
                    return None
                raise _Closed("closed in the middle of a message")

    async def send(self, head: h11.Request | h11.Response, body: bytes) -> None:
        """Sends a whole request or response."""
        self._send(head)
        if body:
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        try:
            await self._writer.drain()
        except ConnectionError as error:
            raise _Closed(str(error)) from error

    def next_cycle(self) -> bool:
        """Prepares for the next exchange; False where the connection cannot be used for one."""
        if self._protocol.our_state is not h11.DONE or self._protocol.their_state is not h11.DONE:
            return False
        self._protocol.start_next_cycle()
        return True

    async def close(self) -> None:
        """Closes the connection."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            # Reset by the other side: closed is closed.
            return

    def abort(self) -> None:
        """Closes the connection without waiting."""
        self._writer.transport.abort()

    def _send(self, event: h11.Event) -> None:
        data = self._protocol.send(event)
        if data:
            self._writer.write(data)


class Router:
    """Listens on a port and passes requests on; `route` says to whom.

    Attributes:
        port: the public one.
        on_exchange: called after every request; by default nobody is told.
    """

    def __init__(self, port: int) -> None:
        """Does nothing yet."""
        self.port = port
        self.on_exchange: Callable[[Exchange], None] = lambda _: None
        self._targets: tuple[Target, ...] = ()
        self._turns = itertools.count()
        self._idle: dict[tuple[str, int], deque[_Connection]] = {}
        self._callers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port, backlog=1024)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        for pool in self._idle.values():
            for connection in pool:
                connection.abort()
        self._idle.clear()
        if self._server is not None:
            await self._server.wait_closed()

    @property
    def targets(self) -> tuple[Target, ...]:
        """Who gets requests now."""
        return self._targets

    def route(self, targets: Sequence[Target]) -> None:
        """Switches the traffic: requests read from now on go to these, in turn. Those under way are not touched."""
        self._targets = tuple(targets)
        addresses = {target.address for target in targets}
        for address in [address for address in self._idle if address not in addresses]:
            for connection in self._idle.pop(address):
                connection.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)
        caller = _Connection(h11.SERVER, reader, writer)
        try:
            await self._serve(caller, str(writer.get_extra_info("peername")[0]))
        except (_Closed, asyncio.CancelledError):
            # The caller's fault or its wish, and nobody is left to be told; or we are closing, and the stream
            # server would report a cancellation as an unhandled exception.
            return
        finally:
            caller.abort()
            self._callers.discard(task)

    async def _serve(self, caller: _Connection, address: str) -> None:
        while True:
            request = await caller.receive()
            if request is None:
                return
            assert isinstance(request.head, h11.Request)
            at = time.monotonic()
            target = self._next_target()
            answer, fault = await self._forward(request, target, address)
            assert isinstance(answer.head, h11.Response)
            seconds = time.monotonic() - at
            self.on_exchange(
                Exchange(
                    at,
                    seconds,
                    request.head.method.decode(),
                    request.head.target.decode(errors="replace"),
                    answer.head.status_code,
                    "" if target is None else target.name,
                    fault,
                    _value_of(answer.head, b"retry-after"),
                )
            )
            await caller.send(answer.head, answer.body)
            if not caller.next_cycle():
                await caller.close()
                return

    def _next_target(self) -> Target | None:
        if not self._targets:
            return None
        return self._targets[next(self._turns) % len(self._targets)]

    async def _forward(self, request: _Message, target: Target | None, address: str) -> tuple[_Message, str]:
        """The answer for the caller, and why it is not the instance's."""
        if target is None:
            return _bad_gateway(), "no instance"
        try:
            async with asyncio.timeout(_CONNECT_LIMIT_SECONDS):
                connection = await self._connect(target)
        except (OSError, TimeoutError) as error:
            return _bad_gateway(), f"no connection: {error}"
        reusable = False
        try:
            async with asyncio.timeout(_ANSWER_LIMIT_SECONDS):
                answer = await _exchange(connection, request, address)
            reusable = connection.next_cycle()
        except (_Closed, TimeoutError) as error:
            return _bad_gateway(), f"no answer: {error}"
        finally:
            if reusable and any(item.address == target.address for item in self._targets):
                connection.idle_since = time.monotonic()
                self._idle.setdefault(target.address, deque()).append(connection)
            else:
                connection.abort()
        return answer, ""

    async def _connect(self, target: Target) -> _Connection:
        pool = self._idle.get(target.address, deque())
        while pool:
            # The one used last: the others may grow old and be closed.
            connection = pool.pop()
            if connection.is_usable and time.monotonic() - connection.idle_since < _LONGEST_IDLE_SECONDS:
                return connection
            connection.abort()
        reader, writer = await asyncio.open_connection(*target.address)
        return _Connection(h11.CLIENT, reader, writer)


async def _exchange(connection: _Connection, request: _Message, address: str) -> _Message:
    assert isinstance(request.head, h11.Request)
    headers = [
        *_end_to_end(request.head),
        (b"x-forwarded-for", address.encode()),
        (b"x-forwarded-proto", b"https"),
    ]
    if request.body or request.head.method not in (b"GET", b"HEAD"):
        headers.append((b"content-length", b"%d" % len(request.body)))
    head = h11.Request(method=request.head.method, target=request.head.target, headers=headers)
    await connection.send(head, request.body)
    answer = await connection.receive()
    if answer is None:
        raise _Closed("closed without an answer")
    # Without the connection's own headers; h11 knows for itself whether the body needs a length.
    assert isinstance(answer.head, h11.Response)
    headers = _end_to_end(answer.head)
    if request.head.method != b"HEAD" and answer.head.status_code not in (204, 304):
        headers.append((b"content-length", b"%d" % len(answer.body)))
    return _Message(
        h11.Response(status_code=answer.head.status_code, reason=answer.head.reason, headers=headers),
        answer.body,
    )


def _end_to_end(head: h11.Request | h11.Response) -> list[tuple[bytes, bytes]]:
    return [
        (name, value)
        for name, value in head.headers
        if name not in _HOP_BY_HOP and name not in (b"content-length", b"expect")
    ]


def _value_of(head: h11.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in head.headers if key == name), "")


def _bad_gateway() -> _Message:
    return _Message(h11.Response(status_code=502, headers=[(b"content-length", b"0")]), b"")
