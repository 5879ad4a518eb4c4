"""uvicorn on an inherited listening socket, without its ways that do not fit here.

It installs no signal handlers: the worker obeys its control socket alone. It stops accepting without refusing anybody, in the
one order that lost no request under load (measured; SIGTERM to a plain uvicorn reset hundreds):

    close the listening socket       the successor, which accepts on the same one, gets whoever comes from now on
    answer `Connection: close`       to everything that comes on connections that are open already
    wait                             until no connection is left, or the linger is over; then close those that are idle
    wait                             until what is being answered is answered, or there is no time left

And it bounds what a client may make us hold: the time that a request may take to arrive and that a client may take to read, and
what connection.py bounds.

Not promised: that a client which is silent for longer than the linger is not cut off at the moment it speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

from shared.answers import RETRY_AFTER_SECONDS
from webhook_worker.connection import Connection, TakeAtOnce
from webhook_worker.lean_uvicorn import uvicorn

# Longer than the pools of the platforms' proxies keep a connection: they, not we, must be who closes it, or they
# send a request into a closing connection.
KEEP_ALIVE_SECONDS = 120

# From the first byte of a request to its last. The application's own limit on the body is shorter, and answers; this one also
# ends a head that never ends, and a body that goes on after we refused it.
_MAX_ARRIVAL_SECONDS = 60.0
_SWEEP_TICKS = 10  # of 0.1 s
_CLOSE_POLL_SECONDS = 0.05
_STAY_SECONDS = float(RETRY_AFTER_SECONDS)
"""As long as Telegram waits after a 503 of ours (Retry-After): an idle connection gets its next request then, and is told to
go, rather than closed in the moment in which that is sent."""


class Server(uvicorn.Server):
    """Serves an ASGI application on one socket; `serve()` does not return by itself."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        take_at_once: TakeAtOnce | None = None,
        keep_alive_seconds: int = KEEP_ALIVE_SECONDS,
        arrival_seconds: float = _MAX_ARRIVAL_SECONDS,
    ) -> None:
        """Does nothing yet.

        Args:
            app: the ASGI application.
            take_at_once: is asked about every whole POST to /webhook/ before the application is.
            keep_alive_seconds: how long a connection may be silent between requests, and before the first.
            arrival_seconds: how long a request may take from its first byte to its last, and a client to read answers.
        """
        self._arrival_seconds = arrival_seconds
        # Its lines on start and end, and one for each malformed request, are noise; exceptions of the application are not.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        super().__init__(
            uvicorn.Config(
                cast(Any, app),
                # A class, says the annotation; anything that makes a protocol does.
                http=cast(Any, functools.partial(Connection, take_at_once=take_at_once)),
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
        self.servers = []  # uvicorn has none before it starts
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
        """Every 0.1 s; ends connections whose request does not come to an end, whose next one does not come, and whose answers
        nobody reads."""
        if counter % _SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in self._connections():
                slow_since = (connection.arriving_since, connection.stalled_since)
                is_slow = any(
                    since is not None and now - since > self._arrival_seconds for since in slow_since
                )
                silent = connection.silent_since
                is_silent = silent is not None and now - silent > self.config.timeout_keep_alive
                # Closing since the last look, it has something left that its client does not take.
                if is_slow or (is_silent and connection.transport.is_closing()):
                    connection.transport.abort()
                elif is_silent:
                    connection.transport.close()
        return await super().on_tick(counter)

    async def wait_accepting(self) -> None:
        """Returns when connections are accepted."""
        await self._accepting.wait()

    def _connections(self) -> list[Connection]:
        return cast(list[Connection], list(self.server_state.connections))

    async def stop_accepting(
        self, linger_seconds: float, *, stays: Callable[[], bool] = lambda: False
    ) -> None:
        """Leaves the socket to whoever else accepts on it; returns when no request can come to us any more: at once where
        nothing was accepted yet.

        Args:
            linger_seconds: how long open connections may bring further requests; longer than the pauses of the clients.
            stays: whether the process has something else to wait for: then they may for _STAY_SECONDS.
        """
        for server in self.servers:
            server.close()
        # In front of every answer from now on; uvicorn closes the connection after one that says so.
        self.config.encoded_headers = [(b"connection", b"close")]
        self.server_state.default_headers = self.config.encoded_headers
        for connection in self._connections():
            if connection.is_answering:
                connection.cycle.keep_alive = False
        await self._wait_until_none_is_open(linger_seconds)
        await self._wait_until_none_is_open(_STAY_SECONDS - linger_seconds, stays)
        # What is being answered is answered; the rest is idle.
        for connection in self._connections():
            connection.shutdown()

    async def wait_idle(self, limit_seconds: float) -> None:
        """After `stop_accepting`: returns when nothing is being answered any more, or at the limit. Cuts off nobody."""
        await self._wait_while(lambda: any(c.is_answering for c in self._connections()), limit_seconds)

    async def wait_answered(self, limit_seconds: float) -> None:
        """After `stop_accepting`: returns when everybody has an answer; at the limit whoever has none is cut off."""
        await self._wait_until_none_is_open(limit_seconds)
        for connection in self._connections():
            connection.transport.abort()

    async def _wait_until_none_is_open(
        self, limit_seconds: float, waits: Callable[[], bool] = lambda: True
    ) -> None:
        await self._wait_while(lambda: bool(self.server_state.connections) and waits(), limit_seconds)

    async def _wait_while(self, condition: Callable[[], bool], limit_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                # uvicorn does not tell when one ends.
                while condition():  # noqa: ASYNC110
                    await asyncio.sleep(_CLOSE_POLL_SECONDS)
