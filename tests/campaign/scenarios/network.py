"""The network between owner and database: cut, cut in one direction, acknowledged and swallowed, slow, lossy, in slices."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_binaries import find_binaries
from tests.campaign.faults.partition import Network, a_network
from tests.campaign.faults.proxy import Conditions, Direction, Flow, Proxy, run_proxy
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Bound, Recovery
from tests.campaign.scenario import Need, scenario
from tests.end_to_end.instance import eventually

_BLACKHOLE = (Bound("owner cut off to the next term, worst", 16.0, worst=True),)
_WAYS: tuple[tuple[Direction, ...], ...] = (
    (Direction.TO_SERVER, Direction.TO_CLIENT),
    (Direction.TO_SERVER,),
    (Direction.TO_CLIENT,),
)
_SLOW_SECONDS = 2.0
"""Of a statement and its answer together."""

_SLICE_BYTES = 7
"""Less than any message of Postgres' protocol with something in it."""

_LOSS_PERCENT = 10


class FarServer(PostgresServer):
    """A server behind a network of ours; instances, emulator and router stay on 127.0.0.1.

    Attributes:
        network: in between.
    """

    network: Network


@asynccontextmanager
async def far_away(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[PostgresServer]:
    """A running server on the far side of a network."""
    async with a_network() as network:
        server = FarServer(
            folder,
            binaries=find_binaries(os.environ.get("LOCAL_POSTGRES", "")),
            durable=False,
            keep_data=False,
            settings=settings,
            address=network.address,
            admits=[network.cidr],
            starter=network.enter,
        )
        server.network = network
        await asyncio.to_thread(server.start)
        try:
            yield server
        finally:
            await asyncio.to_thread(server.close)


async def _until_superseded(field: Field, owner: Instance) -> Instance:
    """Waits for an owner that is another, and returns it."""
    found: list[Instance] = []

    async def is_another() -> bool:
        found[:] = [await field.owner()]
        return found[0] is not owner

    await eventually(is_another, f"another owner than {owner.name}")
    return found[0]


def _name(directions: tuple[Direction, ...]) -> str:
    return " and ".join(direction.value.replace("_", " ") for direction in directions)


@scenario("b07", "packets between owner and database dropped; one direction only", repetitions=12, short=3,
    needs=(Need.LINUX, Need.NETNS), recovery=Recovery.NEXT_TERM, bounds={Recovery.NEXT_TERM: _BLACKHOLE},
    place=far_away)  # fmt: skip
async def cut_off_owner(field: Field, chance: random.Random) -> None:
    """Each direction in turn, without a packet that would tell anybody; healed when another owns."""
    assert isinstance(field.server, FarServer)
    network = field.server.network
    routes = {name: network.route() for name in ("one", "two")}
    for name, route in routes.items():
        await field.start(name, dsn=field.server.dsn(field.database, address=route.address))
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            await asyncio.sleep(
                chance.uniform(0.0, 2.0)
            )  # the random moment, anywhere between two heartbeats
            ways = _WAYS[repetition % len(_WAYS)]
            field.inject(f"cut {_name(ways)}", owner)
            await network.cut(routes[owner.name], *ways)
            await _until_superseded(field, owner)
            dropped = await network.dropped(routes[owner.name])
            if not all(dropped[way] for way in ways):
                field.object(Invariant.FAILED, f"nothing was dropped {_name(ways)}: {dropped}")
            await network.heal()


@scenario("b08", "a proxy acknowledges every packet and forwards none", repetitions=9, short=2,
    recovery=Recovery.NEXT_TERM, bounds={Recovery.NEXT_TERM: _BLACKHOLE})  # fmt: skip
async def swallow(field: Field, chance: random.Random) -> None:
    """TCP sees a perfect connection, on both sides: only the deadline, and the server's limit on silence, are left."""
    async with AsyncExitStack() as stack:
        proxies = await _start_behind_proxies(field, stack)
        async with field.flowing():
            for repetition in range(field.repetitions):
                owner = await field.steady()
                await asyncio.sleep(chance.uniform(0.0, 2.0))  # the random moment
                proxy = proxies[owner.name]
                swallowed = proxy.counts.swallowed_bytes
                ways = _WAYS[repetition % len(_WAYS)]
                field.inject(f"swallow {_name(ways)}", owner)
                await proxy.set(Conditions(Flow.SWALLOW), *ways)
                await _until_superseded(field, owner)
                if proxy.counts.swallowed_bytes == swallowed:
                    field.object(Invariant.FAILED, "nothing was swallowed")
                await proxy.heal()


@scenario("b09", "2 s latency, loss, sliced packets: no flapping", repetitions=9, short=3,
    needs=(Need.LINUX, Need.NETNS), place=far_away)  # fmt: skip
async def bad_network(field: Field, chance: random.Random) -> None:
    """Each for longer than a deadline and both of its renewals: the owner stays, and term and webhook with it."""
    assert isinstance(field.server, FarServer)
    network = field.server.network
    routes = {name: network.route() for name in ("one", "two")}
    async with AsyncExitStack() as stack:
        proxies = {}
        for name, route in routes.items():
            proxy = await stack.enter_async_context(run_proxy(field.server.port, route.address))
            proxies[name] = proxy
            await field.start(name, dsn=proxy.dsn(field.database_url))

        async def slow() -> None:
            for proxy in proxies.values():
                await proxy.set(Conditions(latency_seconds=_SLOW_SECONDS / 2))

        async def sliced() -> None:
            for proxy in proxies.values():
                await proxy.set(Conditions(slice_bytes=_SLICE_BYTES))

        async def lossy() -> None:
            for route in routes.values():
                await network.lose(route, _LOSS_PERCENT)

        troubles = (slow, sliced, lossy)
        async with field.flowing():
            for repetition in range(field.repetitions):
                await field.steady()
                terms = await _terms(field)
                trouble = troubles[repetition % len(troubles)]
                fault = field.inject(trouble.__name__)
                await trouble()
                await asyncio.sleep(
                    chance.uniform(10.0, 12.0) if field.is_short else chance.uniform(20.0, 40.0)
                )
                if (now := await _terms(field)) != terms:
                    field.object(
                        Invariant.AVAILABLE, f"{fault.kind}: {now - terms} more terms, and nobody had failed"
                    )
                for proxy in proxies.values():
                    await proxy.heal()
                await network.heal()


async def _terms(field: Field) -> int:
    return sum(not change.closed for change in await field.recorder.term_changes())


async def _start_behind_proxies(field: Field, stack: AsyncExitStack) -> dict[str, Proxy]:
    proxies = {}
    for name in ("one", "two"):
        proxies[name] = await stack.enter_async_context(run_proxy(field.server.port))
        await field.start(name, dsn=proxies[name].dsn(field.database_url))
    return proxies
