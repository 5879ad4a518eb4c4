"""The network between owner and database: cut, cut in one direction, acknowledged and swallowed, slow, lossy, in slices."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
from psycopg import conninfo

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_binaries import find_binaries
from tests.campaign.faults.partition import Network, Route, a_network
from tests.campaign.faults.proxy import Conditions, Direction, Flow, Proxy, run_proxy
from tests.campaign.field import Field
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Bound, Recovery
from tests.campaign.scenario import Need, scenario
from tests.campaign.succession import (
    STOPPED_BEFORE,
    STOPPED_BY_ITSELF,
    count_terms,
    measure_silence,
    until_recovered,
    until_superseded,
)

_BLACKHOLE: Mapping[Recovery | str, tuple[Bound, ...]] = {
    Recovery.NEXT_TERM: (Bound("owner cut off to the next term, worst", 16.0, worst=True),),
    STOPPED_BEFORE: STOPPED_BY_ITSELF,
}
_SLOW_SECONDS = 2.0
"""Of a statement and its answer together."""

_SLICE_BYTES = 7
"""Less than any message of Postgres' protocol with something in it."""

_LOSS_PERCENT = 10

_LONG_WORK_SECONDS = [12.0]
"""A handler that runs on past the deadline of an owner that is cut off, unless it is stopped; one, since what was in flight
runs again one at a time."""


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


def _choose_ways(chance: random.Random, count: int) -> list[tuple[Direction, ...]]:
    """For each of so many faults the directions that it hits: both, and each alone, in an order of its own."""
    alone = chance.sample([(Direction.TO_SERVER,), (Direction.TO_CLIENT,)], 2)
    return list(itertools.islice(itertools.cycle([tuple(Direction), *alone]), count))


def _name(directions: tuple[Direction, ...]) -> str:
    return " and ".join(direction.value.replace("_", " ") for direction in directions)


@scenario(id="b07", title="packets between owner and database dropped; one direction only", repetitions=12, short=2,
    needs=(Need.LINUX, Need.NETNS), recovery=Recovery.NEXT_TERM, bounds=_BLACKHOLE,
    place=far_away)  # fmt: skip
async def cut_off_owner(field: Field, chance: random.Random) -> None:
    """Each direction in turn, without a packet that would tell anybody; healed when another owns."""
    assert isinstance(field.server, FarServer)
    network = field.server.network
    routes = {name: network.route() for name in ("one", "two")}
    for name, route in routes.items():
        await field.start(name, dsn=conninfo.make_conninfo(field.database_url, host=route.address))
    async with field.flowing():
        for ways in _choose_ways(chance, field.repetitions):
            owner = await field.steady()
            await field.traffic.send(_LONG_WORK_SECONDS)
            await asyncio.sleep(chance.uniform(0.5, 2.5))  # the random moment, between any two heartbeats
            field.inject(f"cut {_name(ways)}", owner)
            await network.cut(routes[owner.name], *ways)
            await until_superseded(field, owner)
            await measure_silence(field, owner)
            dropped = await network.dropped(routes[owner.name])
            if not all(dropped[way] for way in ways):
                field.object(Invariant.FAILED, f"nothing was dropped {_name(ways)}: {dropped}")
            await network.heal()
            if not field.is_short:
                await until_recovered(field)


@scenario(id="b08", title="a proxy acknowledges every packet and forwards none", repetitions=9, short=2,
    recovery=Recovery.NEXT_TERM, bounds=_BLACKHOLE)  # fmt: skip
async def swallow(field: Field, chance: random.Random) -> None:
    """TCP sees a perfect connection, on both sides: only the deadline, and the server's limit on silence, are left."""
    proxies = await _start_behind_proxies(field)
    async with field.flowing():
        for ways in _choose_ways(chance, field.repetitions):
            owner = await field.steady()
            await field.traffic.send(_LONG_WORK_SECONDS)
            await asyncio.sleep(chance.uniform(0.5, 2.5))  # the random moment
            proxy = proxies[owner.name]
            swallowed = proxy.counts.swallowed_bytes
            field.inject(f"swallow {_name(ways)}", owner)
            await proxy.set(Conditions(Flow.SWALLOW), *ways)
            await until_superseded(field, owner)
            await measure_silence(field, owner)
            if proxy.counts.swallowed_bytes == swallowed:
                field.object(Invariant.FAILED, "nothing was swallowed")
            await proxy.heal()
            if not field.is_short:
                await until_recovered(field)


@scenario(id="b09", title="2 s latency, loss, sliced packets: no flapping", repetitions=9, short=3,
    needs=(Need.LINUX, Need.NETNS), place=far_away)  # fmt: skip
async def bad_network(field: Field, chance: random.Random) -> None:
    """Each for longer than a deadline and both of its renewals: the owner stays, and term and webhook with it."""
    assert isinstance(field.server, FarServer)
    network = field.server.network
    routes = {name: network.route() for name in ("one", "two")}
    proxies = {}
    for name, route in routes.items():
        proxy = await field.closing.enter_async_context(run_proxy(field.server.port, route.address))
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
            before = (await count_terms(field), _count_changes(field))
            trouble = troubles[repetition % len(troubles)]
            fault = field.inject(trouble.__name__)
            seen = await _count_trouble(network, routes, proxies)
            # Connected before: whoever connects at such a latency takes longer than the trouble.
            async with await psycopg.AsyncConnection.connect(
                proxies["one"].dsn(field.database_url), autocommit=True
            ) as connection:
                await trouble()
                begin = time.monotonic()
                await connection.execute("SELECT 1")
                took = time.monotonic() - begin
            if trouble is slow and took < _SLOW_SECONDS:
                field.object(Invariant.FAILED, f"slow: a statement through the proxy took {took:.3f} s")
            await asyncio.sleep(chance.uniform(10.0, 12.0) if field.is_short else chance.uniform(20.0, 40.0))
            now = await _count_trouble(network, routes, proxies)
            for proxy in proxies.values():
                await proxy.heal()
            await network.heal()
            # On the owner's way and the standby's: both store updates, and beat.
            for name in routes:
                if trouble is not slow and now[trouble.__name__, name] <= seen[trouble.__name__, name]:
                    field.object(
                        Invariant.FAILED, f"{fault.kind}: nothing of it was seen on the way of {name}"
                    )
            await field.steady()
            if (after := (await count_terms(field), _count_changes(field))) != before:
                field.object(
                    Invariant.AVAILABLE,
                    f"{fault.kind}: {after[0] - before[0]} more terms, {after[1] - before[1]} changes of state, and nobody "
                    "had failed",
                )


async def _count_trouble(
    network: Network, routes: Mapping[str, Route], proxies: Mapping[str, Proxy]
) -> dict[tuple[str, str], int]:
    """How many pieces were sent on by themselves, and how many packets dropped, by trouble and instance: it was there."""
    sliced = {("sliced", name): proxy.counts.slices for name, proxy in proxies.items()}
    lost = {("lossy", name): sum((await network.dropped(route)).values()) for name, route in routes.items()}
    return sliced | lost


def _count_changes(field: Field) -> int:
    """How often any instance became owner, or ceased to be one."""
    return sum(instance.count("[STATE_SYNC]") for instance in field.instances.values())


async def _start_behind_proxies(field: Field) -> dict[str, Proxy]:
    proxies = {}
    for name in ("one", "two"):
        proxies[name] = await field.closing.enter_async_context(run_proxy(field.server.port))
        await field.start(name, dsn=proxies[name].dsn(field.database_url))
    return proxies
