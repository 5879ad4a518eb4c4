"""Packets between us and a real Postgres are lost and come through again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_binaries import find_binaries
from tests.campaign.faults import Unavailable
from tests.campaign.faults.partition import Network, Route, a_network
from tests.campaign.faults.proxy import Direction

HANG_SECONDS = 60.0
Session = psycopg.AsyncConnection[tuple[object, ...]]


@dataclass
class Far:
    """A Postgres on the far side of a network."""

    network: Network
    server: PostgresServer

    async def connect(self, route: Route, **options: str) -> Session:
        dsn = self.server.dsn(address=route.address)
        return await psycopg.AsyncConnection.connect(dsn, autocommit=True, **options)  # type: ignore[arg-type]


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Far]:
    try:
        async with a_network() as network:
            server = PostgresServer(
                tmp_path / "postgres",
                binaries=find_binaries(os.environ.get("LOCAL_POSTGRES", "")),
                durable=False,
                keep_data=False,
                address=network.address,
                admits=[network.cidr],
                starter=network.enter,
            )
            await asyncio.to_thread(server.start)
            try:
                yield Far(network, server)
            finally:
                await asyncio.to_thread(server.close)
    except Unavailable as missing:
        pytest.skip(str(missing))


async def is_silent(session: Session) -> bool:
    """Whether a statement does not come back within a while in which it would if nothing were lost."""
    task = asyncio.ensure_future(session.execute("SELECT 1"))
    done, _ = await asyncio.wait({task}, timeout=0.5)
    if not done:
        # Left pending: TCP will bring it through once the network is healed.
        PENDING.append(task)
    return not done


async def answer(session: Session) -> None:
    """Until a statement has come back."""
    await asyncio.wait_for(session.execute("SELECT 1"), HANG_SECONDS)


PENDING: list[asyncio.Future[Any]] = []


async def directions_dropped(far: Far, route: Route) -> list[Direction]:
    """In which packets of a route were dropped."""
    dropped = await far.network.dropped(route)
    return [direction for direction in Direction if dropped[direction]]


async def pending_ends() -> None:
    async with asyncio.timeout(HANG_SECONDS):
        await asyncio.gather(*PENDING)
    PENDING.clear()


@pytest.mark.parametrize(
    "directions", [(), (Direction.TO_SERVER,), (Direction.TO_CLIENT,)], ids=["both", "to_server", "to_client"]
)
async def test_a_cut_route_is_silent_and_the_others_are_not(
    far: Far, directions: tuple[Direction, ...]
) -> None:
    """No answer and no error on the route that is cut; healed, TCP goes on where it was."""
    one, other = far.network.route(), far.network.route()
    async with (
        await far.connect(one) as cut,
        await far.connect(one) as listener,
        await far.connect(other) as spared,
    ):
        await answer(cut)
        await listener.execute("LISTEN news")
        await far.network.cut(one, *directions)
        assert await is_silent(cut)
        async with asyncio.timeout(HANG_SECONDS):
            # What the server says on the cut route, even where it hears nothing there.
            await spared.execute("NOTIFY news")
            while await directions_dropped(far, one) != list(directions or Direction):
                await asyncio.sleep(0.05)
        assert not any((await far.network.dropped(other)).values())
        await far.network.heal()
        await pending_ends()
        await answer(cut)


async def test_one_direction_lets_a_statement_through_and_no_answer(far: Far) -> None:
    """The asymmetric case: the server does what it was asked, and the client never hears of it."""
    one, other = far.network.route(), far.network.route()
    async with await far.connect(one) as cut, await far.connect(other) as spared:
        await spared.execute("CREATE TABLE heard (it int)")
        await far.network.cut(one, Direction.TO_CLIENT)
        PENDING.append(asyncio.ensure_future(cut.execute("INSERT INTO heard VALUES (1)")))
        async with asyncio.timeout(HANG_SECONDS):
            while (await (await spared.execute("SELECT count(*) FROM heard")).fetchone()) != (1,):
                await asyncio.sleep(0.01)
        assert not PENDING[0].done()
        await far.network.heal()
        await pending_ends()


async def test_lost_packets_come_again(far: Far) -> None:
    """With a fifth of the packets lost, everything arrives, later."""
    route = far.network.route()
    async with await far.connect(route) as session:
        await far.network.lose(route, 20)
        async with asyncio.timeout(HANG_SECONDS):
            for number in range(40):
                assert await (await session.execute("SELECT %s::int", [number])).fetchone() == (number,)
        assert sum((await far.network.dropped(route)).values()) > 0


async def test_nothing_is_left_when_the_block_ends() -> None:
    """Neither interface nor route nor a keeper of a namespace."""
    try:
        async with a_network() as network:
            interface, net = network.interface, network.cidr.rpartition(".")[0]
            assert interface in ip("link")
            assert net in ip("route")
    except Unavailable as missing:
        pytest.skip(str(missing))
    assert interface not in ip("link")
    assert net not in ip("route")


async def test_nothing_is_left_when_we_are_killed(tmp_path: Path) -> None:
    """SIGKILL to whoever made the network: the kernel takes it away with the last process in it."""
    script = textwrap.dedent(
        """
        import asyncio
        from tests.campaign.faults import Unavailable
        from tests.campaign.faults.partition import a_network

        async def main():
            try:
                async with a_network() as network:
                    print(network.interface, flush=True)
                    await asyncio.Event().wait()
            except Unavailable as missing:
                print("skip:", missing, flush=True)

        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=PROJECT_FOLDER
    ) as process:
        assert process.stdout is not None
        interface = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    if interface.startswith("skip:"):
        pytest.skip(interface)
    assert interface.startswith("camp")
    async with asyncio.timeout(HANG_SECONDS):
        while interface in ip("link"):
            await asyncio.sleep(0.05)


def ip(what: str) -> str:
    return subprocess.run(["ip", what, "show"], capture_output=True, text=True, check=True).stdout
