"""uvicorn on an inherited listening socket, without its ways that do not fit here.

It installs no signal handlers: the worker obeys its control socket alone. It stops accepting without refusing anybody, in the
one order that lost no request under load (measured; SIGTERM to a plain uvicorn reset hundreds):

    close the listening socket       the successor, which accepts on the same one, gets whoever comes from now on
    answer `Connection: close`       to everything that comes on connections that are open already
    wait                             until no connection is left, or the linger is over; then close those that are idle

And it bounds what a client may make us hold: bytes of a request's head and of its trailers, requests that wait for the one
before them, and the time that a request may take to arrive.

Not promised: that a client which is silent for longer than the linger is not cut off at the moment it speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# Longer than the pools of the platforms' proxies keep a connection (DESIGN.md): they, not we, must be who closes it, or they
# send a request into a closing connection.
KEEP_ALIVE_SECONDS = 120

# The head of a request from Telegram through any proxy has some 2 KiB; 64 KiB is what proxies take at most themselves.
_MAX_HEAD_BYTES = 64 * 1024
# From the first byte of a request to its last. The application's own limit on the body is shorter, and answers; this one also
# ends a head that never ends, and a body that goes on after we refused it.
_MAX_ARRIVAL_SECONDS = 60.0
# Telegram and proxies send a request when the one before is answered. One that waits costs us 2 KiB, and its sender 18 bytes.
_MAX_PIPELINED = 16
_SWEEP_TICKS = 10  # of 0.1 s
_CLOSE_POLL_SECONDS = 0.05


class _Protocol(HttpToolsProtocol):
    """One connection."""

    arriving_since: float | None = None
    _answering: RequestResponseCycle | None = None
    # The part of a request that arrives now, and how much of it the parser keeps: head and trailers, and nothing of a body.
    _part = 0
    _kept_bytes: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn arms its timer after a response only: a client that never sends would stay for ever.
        self._arm_keep_alive()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells the last request only; those before it would answer into a transport that is gone, and fail loudly.
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        part = self._part
        super().data_received(data)
        # llhttp puts no limit on these, and uvicorn keeps all of them. What begins or ends within the data is short.
        if self._kept_bytes is not None and self._part == part:
            self._kept_bytes += len(data)
            if self._kept_bytes > _MAX_HEAD_BYTES:
                self.transport.abort()
                return
        # Data disarms the timer, also an empty line, or the rest of a request that was answered before it had arrived.
        if self._is_idle() and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._arm_keep_alive()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # It would be taken for the answer to what came before it.
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.arriving_since = self.loop.time()
        self._begin_part(is_kept=True)

    def on_headers_complete(self) -> None:
        self._begin_part(is_kept=False)
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise _TooManyPipelined  # for the parser, which refuses the data
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A chunk begins; the last one has no body, and is followed by trailers."""
        self._begin_part(is_kept=True)

    def on_body(self, body: bytes) -> None:
        self._begin_part(is_kept=False)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.arriving_since = None
        self._begin_part(is_kept=False)
        super().on_message_complete()

    def _begin_part(self, *, is_kept: bool) -> None:
        self._part += 1
        self._kept_bytes = 0 if is_kept else None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _is_idle(self) -> bool:
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and self.arriving_since is None

    def _arm_keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )


class _TooManyPipelined(Exception):
    """Nobody who waits for answers sends so much ahead of them."""


class Server(uvicorn.Server):
    """Serves an ASGI application on one socket; `serve()` does not return by itself."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        keep_alive_seconds: int = KEEP_ALIVE_SECONDS,
        arrival_seconds: float = _MAX_ARRIVAL_SECONDS,
    ) -> None:
        """Does nothing yet.

        Args:
            app: the ASGI application.
            keep_alive_seconds: how long a connection may be silent between requests, and before the first.
            arrival_seconds: how long a request may take from its first byte to its last.
        """
        self._arrival_seconds = arrival_seconds
        # Its lines on start and end, and one for each malformed request, are noise; exceptions of the application are not.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        super().__init__(
            uvicorn.Config(
                cast(Any, app),
                http=_Protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=keep_alive_seconds,
                timeout_graceful_shutdown=1,
            )
        )
        self._accepting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """No handlers: the supervisor speaks through the control socket, and a terminal signals everybody."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept; see `wait_accepting`."""
        await super().startup(sockets)
        self._accepting.set()

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s; ends connections whose request does not come to an end."""
        if counter % _SWEEP_TICKS == 0:
            oldest = asyncio.get_running_loop().time() - self._arrival_seconds
            for connection in self._connections():
                if connection.arriving_since is not None and connection.arriving_since < oldest:
                    connection.transport.abort()
        return await super().on_tick(counter)

    async def wait_accepting(self) -> None:
        """Returns when connections are accepted."""
        await self._accepting.wait()

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        return len(self.server_state.connections)

    def _connections(self) -> list[_Protocol]:
        return cast(list[_Protocol], list(self.server_state.connections))

    async def stop_accepting(self, linger_seconds: float) -> None:
        """Leaves the socket to whoever else accepts on it; returns when no request can come to us any more.

        Args:
            linger_seconds: how long open connections may bring further requests; longer than the pauses of the clients.
        """
        for server in self.servers:
            server.close()
        # In front of every answer from now on; uvicorn closes the connection after one that says so.
        self.config.encoded_headers = [(b"connection", b"close")]
        self.server_state.default_headers = self.config.encoded_headers
        for connection in self._connections():
            if connection.cycle is not None and not connection.cycle.response_complete:
                connection.cycle.keep_alive = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(linger_seconds):
                while self.server_state.connections:  # noqa: ASYNC110 - uvicorn does not tell when one ends
                    await asyncio.sleep(_CLOSE_POLL_SECONDS)
        # What is being answered is answered; the rest is idle.
        for connection in self._connections():
            connection.shutdown()
