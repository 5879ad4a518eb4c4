"""The proxy of the campaign, between a client and a server that are both here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from deploy.local.ports import LOOPBACK
from tests.campaign.faults.proxy import Conditions, Direction, Flow, Proxy, run_proxy

HANG_SECONDS = 30.0
MUCH = bytes(range(256)) * (1 << 18)
"""64 MB: more than any kernel keeps for a connection."""


@dataclass
class Peer:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read(self, length: int) -> bytes:
        async with asyncio.timeout(HANG_SECONDS):
            return await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(HANG_SECONDS):
            await self.writer.drain()

    async def expect_end(self) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            assert await self.reader.read(1) == b""

    async def expect_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(self.reader.read(-1), HANG_SECONDS)

    async def expect_nothing(self) -> None:
        """Nothing comes, neither data nor an end, in the time in which a proxy that passes would bring it."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await self.reader.read(1)


@dataclass
class Scene:
    """A server that does nothing by itself, and a proxy before it."""

    proxy: Proxy
    accepted: asyncio.Queue[Peer] = field(default_factory=asyncio.Queue)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[Peer, Peer]:
        """A client, and what the server has of it."""
        client = Peer(*await asyncio.open_connection(LOOPBACK, self.proxy.port))
        self.writers.append(client.writer)
        async with asyncio.timeout(HANG_SECONDS):
            return client, await self.accepted.get()


@asynccontextmanager
async def a_server() -> AsyncIterator[tuple[int, asyncio.Queue[Peer]]]:
    accepted: asyncio.Queue[Peer] = asyncio.Queue()
    writers = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        accepted.put_nowait(Peer(reader, writer))

    server = await asyncio.start_server(accept, LOOPBACK, 0)
    try:
        yield server.sockets[0].getsockname()[1], accepted
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with a_server() as (port, accepted), run_proxy(port) as proxy:
        scene = Scene(proxy, accepted)
        yield scene
        for writer in scene.writers:
            writer.transport.abort()


async def test_what_comes_goes_on_both_ways_and_the_ends_too(scene: Scene) -> None:
    """Without a fault nothing is noticed: bytes in their order, each side's end by itself."""
    client, server = await scene.connect()
    await client.send(b"question")
    assert await server.read(8) == b"question"
    client.writer.write_eof()
    await server.expect_end()
    await server.send(b"answer")
    server.writer.close()
    assert await client.read(6) == b"answer"
    await client.expect_end()
    assert scene.proxy.counts.resets == 0


async def test_swallowed_bytes_are_acknowledged_and_gone(scene: Scene) -> None:
    """The sender gets rid of any amount, the receiver gets nothing, not even the end; healed, both are reset."""
    client, server = await scene.connect()
    await scene.proxy.set(Conditions(Flow.SWALLOW), Direction.TO_SERVER)
    await client.send(MUCH)
    client.writer.write_eof()
    await server.expect_nothing()
    await server.send(b"still heard")
    assert await client.read(11) == b"still heard"
    while scene.proxy.counts.swallowed_bytes < len(MUCH):
        await asyncio.sleep(0.01)
    await scene.proxy.heal()
    await server.expect_reset()
    await client.expect_reset()


async def test_a_client_that_is_killed_behind_a_swallowing_proxy_is_not_missed(scene: Scene) -> None:
    """A reset is forwarded as little as a byte."""
    client, server = await scene.connect()
    await scene.proxy.set(Conditions(Flow.SWALLOW))
    client.writer.transport.abort()
    await server.expect_nothing()
    await scene.proxy.heal()
    await server.expect_reset()


async def test_a_frozen_direction_takes_no_more_than_buffers_hold(scene: Scene) -> None:
    """Nothing is read: the sender is stuck; healed, every byte arrives."""
    client, server = await scene.connect()
    await scene.proxy.set(Conditions(Flow.FREEZE), Direction.TO_SERVER)
    client.writer.write(MUCH)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await client.writer.drain()
    await server.expect_nothing()
    await server.send(b"other way")
    assert await client.read(9) == b"other way"
    await scene.proxy.heal()
    assert await server.read(len(MUCH)) == MUCH


async def test_what_is_held_back_goes_on_later_in_order(scene: Scene) -> None:
    """Answers that come late are the same answers, and the end comes after them."""
    client, server = await scene.connect()
    await scene.proxy.set(Conditions(Flow.HOLD), Direction.TO_CLIENT)
    await server.send(MUCH)
    server.writer.write_eof()
    await client.expect_nothing()
    await client.send(b"heard")
    assert await server.read(5) == b"heard"
    await scene.proxy.heal()
    assert await client.read(len(MUCH)) == MUCH
    await client.expect_end()


async def test_latency_is_added_and_order_kept(scene: Scene) -> None:
    """Every byte takes at least that long; many at one time take no longer than one."""
    client, server = await scene.connect()
    await scene.proxy.set(Conditions(latency_seconds=0.3))
    begin = time.monotonic()
    for number in range(20):
        await client.send(bytes([number]))
    assert await server.read(20) == bytes(range(20))
    assert time.monotonic() - begin >= 0.3
    assert time.monotonic() - begin < 0.3 * 20


async def test_slices_arrive_as_slices(scene: Scene) -> None:
    """What was sent at once is sent on in pieces, the same bytes; whether they are read one by one is the kernel's choice."""
    client, server = await scene.connect()
    await scene.proxy.set(Conditions(slice_bytes=3))
    await client.send(MUCH[:3000])
    assert await server.read(3000) == MUCH[:3000]
    # The last of them may be counted a moment after it was read.
    assert scene.proxy.counts.slices >= 999


async def test_a_reset_is_seen_by_both_sides(scene: Scene) -> None:
    """No goodbye: an error at once."""
    client, server = await scene.connect()
    await scene.proxy.reset_all()
    await client.expect_reset()
    await server.expect_reset()
    assert scene.proxy.counts.resets == 1


async def test_refusing_is_for_new_connections_only(scene: Scene) -> None:
    """Who is connected stays so, and the port comes back as the same."""
    client, server = await scene.connect()
    await scene.proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(LOOPBACK, scene.proxy.port)
    await client.send(b"x")
    assert await server.read(1) == b"x"
    await scene.proxy.listen()
    client, server = await scene.connect()
    # It counts in a thread of its own, and has counted what it carries.
    await client.send(b"y")
    assert await server.read(1) == b"y"
    assert scene.proxy.counts.connections == 2


async def test_a_server_that_is_away_is_a_reset(scene: Scene) -> None:
    """The proxy invents no server."""
    await scene.proxy.lead_to(LOOPBACK, 1)
    try:
        client = Peer(*await asyncio.open_connection(LOOPBACK, scene.proxy.port))
    except ConnectionResetError:
        return  # before we had looked at the connection for the first time
    scene.writers.append(client.writer)
    await client.expect_reset()


async def test_new_connections_can_be_led_elsewhere(scene: Scene) -> None:
    """As at a failover: those that are there stay with the old server."""
    client, server = await scene.connect()
    async with a_server() as (port, accepted):
        await scene.proxy.lead_to(LOOPBACK, port)
        second = Peer(*await asyncio.open_connection(LOOPBACK, scene.proxy.port))
        scene.writers.append(second.writer)
        async with asyncio.timeout(HANG_SECONDS):
            new = await accepted.get()
        await second.send(b"new")
        assert await new.read(3) == b"new"
        await client.send(b"old")
        assert await server.read(3) == b"old"
