"""A TCP proxy that does to a connection what networks and middleboxes do.

    client ◄──► proxy ◄──► server           each direction has conditions of its own

    PASS      what comes goes on, after `latency_seconds`, in pieces of `slice_bytes`
    FREEZE    nothing is read: buffers fill up, and at last the sender's window is closed
    SWALLOW   everything is read and forgotten: the kernel acknowledges every byte and every keepalive, so TCP sees a
              perfect connection that nobody answers on
    HOLD      everything is read and kept, and goes on in order when the direction is PASS again

The ends of a connection are data too: while a direction is not PASS, the other side does not learn that its peer
closed, was killed, or reset. New connections are accepted under every condition, and can be refused apart from it.
A connection that lost bytes is reset once its direction is PASS again: to go on in the middle of a stream is no
fault that a network has.

It runs in a thread with a loop of its own, so that a busy test does not become latency. Not promised: latency more
exact than some milliseconds, nor that a direction that is frozen had nothing on the way: up to one read is kept
back, and goes on later.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from psycopg import conninfo

from deploy.local.ports import LOOPBACK, free_port

T = TypeVar("T")

_CHUNK_BYTES = 1 << 16
_CONNECT_SECONDS = 5.0
_NO_LINGER = struct.pack("ii", 1, 0)


class Direction(enum.Enum):
    """Of what flows through the proxy."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


class Flow(enum.Enum):
    """What becomes of the bytes of one direction; see the module's docstring."""

    PASS = "pass"
    FREEZE = "freeze"
    SWALLOW = "swallow"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of one direction.

    Attributes:
        latency_seconds: of every byte, on its way through.
        slice_bytes: the longest piece that is sent on at once; 0 for no limit.
    """

    flow: Flow = Flow.PASS
    latency_seconds: float = 0.0
    slice_bytes: int = 0


@dataclass(slots=True)
class Counts:
    """What the proxy has done so far; proves that a fault was there.

    Attributes:
        connections: accepted and connected to the server.
        swallowed_bytes: read and forgotten.
        slices: pieces that were sent on by themselves.
        resets: connections that it reset.
    """

    connections: int = 0
    swallowed_bytes: int = 0
    slices: int = 0
    resets: int = 0


class _Reset(enum.Enum):
    """In the place of a chunk: the sender is gone without a goodbye."""

    RESET = "reset"


@dataclass(slots=True)
class _Weather:
    """The conditions of both directions, and how to wait for their change."""

    conditions: dict[Direction, Conditions] = field(
        default_factory=lambda: dict.fromkeys(Direction, Conditions())
    )
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self, conditions: Conditions, directions: tuple[Direction, ...]) -> None:
        self.conditions |= dict.fromkeys(directions, conditions)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def wait_until(self, direction: Direction, *flows: Flow) -> None:
        while self.conditions[direction].flow not in flows:
            await self.changed.wait()


class _Pump:
    """One direction of one connection: a reader, a queue, a writer."""

    def __init__(
        self,
        direction: Direction,
        source: socket.socket,
        target: socket.socket,
        weather: _Weather,
        counts: Counts,
    ) -> None:
        self.direction = direction
        self.has_lost = False
        self._source = source
        self._target = target
        self._weather = weather
        self._counts = counts
        self._queue: deque[tuple[float, bytes | _Reset]] = deque()
        self._filled = asyncio.Event()

    @property
    def _conditions(self) -> Conditions:
        return self._weather.conditions[self.direction]

    async def read(self) -> None:
        """Until the sender's end."""
        loop = asyncio.get_running_loop()
        chunk: bytes | _Reset = b"-"
        while chunk and chunk is not _Reset.RESET:
            await self._weather.wait_until(self.direction, Flow.PASS, Flow.SWALLOW, Flow.HOLD)
            try:
                chunk = await loop.sock_recv(self._source, _CHUNK_BYTES)
            except OSError:
                chunk = _Reset.RESET
            self._queue.append((loop.time() + self._conditions.latency_seconds, chunk))
            self._filled.set()

    async def write(self) -> bool:
        """Until the sender's end has been passed on; whether it was a goodbye, and no reset."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._filled.clear()
                await self._filled.wait()
            due, chunk = self._queue[0]
            await asyncio.sleep(due - loop.time())
            await self._weather.wait_until(self.direction, Flow.PASS, Flow.SWALLOW)
            self._queue.popleft()
            if self._conditions.flow is Flow.SWALLOW:
                self.has_lost = True
                self._counts.swallowed_bytes += len(chunk) if isinstance(chunk, bytes) else 0
                continue
            if isinstance(chunk, _Reset):
                return False
            # The receiver's end is seen by the pump that reads from it, and passed on if its direction passes.
            with contextlib.suppress(OSError):
                if not chunk:
                    self._target.shutdown(socket.SHUT_WR)
                    return True
                await self._send(chunk)

    async def _send(self, chunk: bytes) -> None:
        loop = asyncio.get_running_loop()
        length = self._conditions.slice_bytes
        if not length:
            await loop.sock_sendall(self._target, chunk)
            return
        for begin in range(0, len(chunk), length):
            await loop.sock_sendall(self._target, chunk[begin : begin + length])
            self._counts.slices += 1
            # So that the receiver gets to read each piece by itself.
            await asyncio.sleep(0)


class _Connection:
    """A client's connection and the one to the server that stands for it."""

    def __init__(self, client: socket.socket, server: socket.socket, weather: _Weather, counts: Counts):
        self._sockets = (client, server)
        self._counts = counts
        self.pumps = (
            _Pump(Direction.TO_SERVER, client, server, weather, counts),
            _Pump(Direction.TO_CLIENT, server, client, weather, counts),
        )

    async def run(self) -> None:
        """Until both directions are at their end; a reset, of either side or by cancellation, ends both at once."""
        for end in self._sockets:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        readers = [asyncio.create_task(pump.read()) for pump in self.pumps]
        writers = {asyncio.create_task(pump.write()) for pump in self.pumps}
        is_orderly = False
        try:
            left = writers
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                if not all(writer.result() for writer in done):
                    return
            is_orderly = True
        finally:
            for task in (*readers, *writers):
                task.cancel()
            await asyncio.gather(*readers, *writers, return_exceptions=True)
            for end in self._sockets:
                if not is_orderly:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                end.close()
            self._counts.resets += not is_orderly


class _Server:
    """What lives in the proxy's own loop."""

    def __init__(self, port: int, target: tuple[str, int], counts: Counts) -> None:
        self.weather = _Weather()
        self.target = target
        self._port = port
        self._counts = counts
        self._listening: tuple[socket.socket, asyncio.Task[None]] | None = None
        self._connections: dict[asyncio.Task[None], asyncio.Future[_Connection]] = {}

    async def listen(self) -> None:
        if self._listening is not None:
            return
        listener = socket.create_server((LOOPBACK, self._port), backlog=512)
        listener.setblocking(False)
        self._listening = (listener, asyncio.create_task(self._accept(listener)))

    async def refuse(self) -> None:
        if self._listening is None:
            return
        listener, task = self._listening
        self._listening = None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listener.close()

    async def change(self, conditions: Conditions, directions: tuple[Direction, ...]) -> None:
        self.weather.change(conditions, directions)
        if conditions.flow is Flow.PASS:
            await self.reset(
                lambda connection: any(p.has_lost and p.direction in directions for p in connection.pumps)
            )

    async def reset(self, which: Any = lambda connection: True) -> None:
        # A server may have accepted what we have not seen to be connected yet.
        if under_way := [connected for connected in self._connections.values() if not connected.done()]:
            await asyncio.wait(under_way, timeout=_CONNECT_SECONDS)
        chosen = [
            task
            for task, connected in self._connections.items()
            if connected.done() and not connected.cancelled() and which(connected.result())
        ]
        for task in chosen:
            task.cancel()
        await asyncio.gather(*chosen, return_exceptions=True)

    async def close(self) -> None:
        await self.refuse()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            connected: asyncio.Future[_Connection] = loop.create_future()
            task = asyncio.create_task(self._serve(client, connected))
            self._connections[task] = connected
            task.add_done_callback(lambda ended: self._connections.pop(ended).cancel())

    async def _serve(self, client: socket.socket, connected: asyncio.Future[_Connection]) -> None:
        client.setblocking(False)
        server = socket.socket()
        server.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(server, self.target)
        except BaseException as error:
            # As the server would: a reset, since nobody listens behind us.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            client.close()
            server.close()
            if isinstance(error, OSError):
                return
            raise
        connection = _Connection(client, server, self.weather, self._counts)
        self._counts.connections += 1
        connected.set_result(connection)
        await connection.run()


class Proxy:
    """A running proxy; every change has happened when the call returns.

    Attributes:
        port: on 127.0.0.1.
        counts: what it did; read at any time.
    """

    def __init__(self, server: _Server, port: int, counts: Counts, loop: asyncio.AbstractEventLoop) -> None:
        """Use `run_proxy`."""
        self._server = server
        self._loop = loop
        self.port = port
        self.counts = counts

    def dsn(self, dsn: str) -> str:
        """A DSN of the server, that leads through the proxy."""
        return conninfo.make_conninfo(dsn, host=LOOPBACK, port=self.port)

    async def set(self, conditions: Conditions, *directions: Direction) -> None:
        """Puts conditions in force, for both directions if none is named, on all connections present and to come."""
        await self._call(self._server.change(conditions, directions or tuple(Direction)))

    async def heal(self) -> None:
        """Everything passes again; connections that lost something are reset."""
        await self.set(Conditions())

    async def reset_all(self) -> None:
        """Resets every connection, towards both sides."""
        await self._call(self._server.reset())

    async def refuse(self) -> None:
        """Stops listening: new connections are refused, those that are there go on."""
        await self._call(self._server.refuse())

    async def listen(self) -> None:
        """Takes new connections again."""
        await self._call(self._server.listen())

    async def lead_to(self, host: str, port: int) -> None:
        """New connections go to another server from now on, as when a name is moved at a failover."""

        async def change() -> None:
            self._server.target = (host, port)

        await self._call(change())

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


@asynccontextmanager
async def run_proxy(target_port: int, target_host: str = LOOPBACK) -> AsyncIterator[Proxy]:
    """A proxy before a server, which passes everything until told otherwise; ends with the block.

    Args:
        target_port: of the server; it need not be there yet.
        target_host: an IP address.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    counts = Counts()
    port = free_port()
    server = _Server(port, (target_host, target_port), counts)
    proxy = Proxy(server, port, counts, loop)
    try:
        await proxy.listen()
        yield proxy
    finally:
        await proxy._call(server.close())
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()
