"""A network of our own between us and a server, whose packets can be lost.

    our namespace ── veth ── router's namespace ── veth ── far namespace: the server, with an address for each route
      10.a.b.1           .2   nftables: forward   .129      .130, .131, ...

Whoever is to be cut off alone connects to the server by a route of its own, i.e. another of its addresses. What is
dropped is dropped in the middle: neither end's kernel learns of it, as in a real network. Nothing of it touches
the rules, addresses and routes of the machine, apart from one interface and the route behind it.

The namespaces have no names; each is kept by a process that ends with us, and the kernel takes them, the
interfaces and the route away with it. So nothing is left after a failure, or after kill -9.

Not promised: latency; the kernels of the machines that this runs on have no netem. `proxy` has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from deploy.local.guarded import GuardedProcess, inherited_environment
from tests.campaign.faults import Unavailable, find_program, require_root
from tests.campaign.faults.proxy import Direction

ROUTES = 16
"""How many routes a network has."""

_HANG_SECONDS = 30.0
_LIMIT_OF_TRIES = 20


@dataclass(frozen=True, slots=True)
class Route:
    """A way to the server.

    Attributes:
        address: of the server, when it is reached by this route.
    """

    address: str

    def counter(self, direction: Direction) -> str:
        """The name of the counter of dropped packets."""
        return f"{direction.value}_{self.address.replace('.', '_')}"


@dataclass(frozen=True, slots=True)
class _Namespace:
    """A network namespace, and the process that keeps it."""

    keeper: GuardedProcess
    enter: tuple[str, ...]


@dataclass(slots=True)
class Network:
    """A network that lives; made by `a_network`.

    Attributes:
        enter: the command line that a command is put behind to run on the far side; it execs.
        cidr: everything of ours, for the server's rules.
        address: of the server for us, by a route that is never cut.
    """

    enter: tuple[str, ...]
    cidr: str
    address: str
    interface: str
    _router: _Namespace
    _free: Iterator[Route]
    _losses: dict[tuple[Route, Direction], int] = field(default_factory=dict)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def route(self) -> Route:
        """A route that nobody has yet."""
        return next(self._free)

    async def cut(self, route: Route, *directions: Direction) -> None:
        """Drops every packet on a route, in these directions, or in both."""
        await self.lose(route, 100, *directions)

    async def lose(self, route: Route, percent: int, *directions: Direction) -> None:
        """Drops so many of a hundred packets, each by the dice."""
        async with self._changing:
            self._losses |= {(route, direction): percent for direction in directions or tuple(Direction)}
            await self._apply()

    async def heal(self, *routes: Route) -> None:
        """Nothing is dropped any more, on these routes or on all."""
        async with self._changing:
            self._losses = {
                key: percent for key, percent in self._losses.items() if routes and key[0] not in routes
            }
            await self._apply()

    async def dropped(self, route: Route) -> dict[Direction, int]:
        """How many packets were dropped so far: proves that the fault was there."""
        listed = json.loads(await _run([*self._router.enter, _nft(), "-j", "list", "counters"]))
        packets = {
            entry["counter"]["name"]: int(entry["counter"]["packets"])
            for entry in listed["nftables"]
            if "counter" in entry
        }
        return {direction: packets.get(route.counter(direction), 0) for direction in Direction}

    async def _apply(self) -> None:
        """All rules anew, in one transaction."""
        lines = [
            "add table ip faults",
            "add chain ip faults forward { type filter hook forward priority 0; policy accept; }",
            "flush chain ip faults forward",
        ]
        for (route, direction), percent in self._losses.items():
            end = "daddr" if direction is Direction.TO_SERVER else "saddr"
            dice = "" if percent >= 100 else f"numgen random mod 100 < {percent} "
            lines += [
                f"add counter ip faults {route.counter(direction)}",
                f"add rule ip faults forward ip {end} {route.address} {dice}"
                f"counter name {route.counter(direction)} drop",
            ]
        await _run([*self._router.enter, _nft(), "-f", "-"], "\n".join(lines) + "\n")


def _nft() -> str:
    return find_program("nft", "nftables")


async def _run(command: Sequence[str], text: str = "") -> str:
    """Runs a program to its end.

    Raises:
        OSError: it failed, with what it said.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(text.encode())
    if process.returncode != 0:
        raise OSError(f"{' '.join(command)} failed: {output.decode(errors='replace').strip()}")
    return output.decode()


async def _ip(lines: Sequence[str], enter: Sequence[str] = ()) -> None:
    await _run([*enter, find_program("ip", "iproute2"), "-batch", "-"], "\n".join(lines) + "\n")


@asynccontextmanager
async def _namespace() -> AsyncIterator[_Namespace]:
    """A network namespace of its own, with nothing in it."""
    ours = os.readlink("/proc/self/ns/net")
    said: list[str] = []
    keeper = await GuardedProcess.spawn(
        [
            find_program("unshare", "util-linux"),
            "--net",
            "--",
            sys.executable,
            *("-I", "-S", "-c", "import signal; print('here', flush=True); signal.pause()"),
        ],
        environment=inherited_environment(),
        folder=Path("/"),
        on_line=said.append,
    )
    try:
        async with asyncio.timeout(_HANG_SECONDS):
            while not said and keeper.is_running:
                await asyncio.sleep(0.005)
        if not keeper.is_running or os.readlink(f"/proc/{keeper.pid}/ns/net") == ours:
            raise Unavailable(f"no network namespace can be made here: {' '.join(said)}")
        enter = (find_program("nsenter", "util-linux"), f"--net=/proc/{keeper.pid}/ns/net", "--")
        yield _Namespace(keeper, enter)
    finally:
        await keeper.end(SIGKILL, limit_seconds=0)


async def _connect(router: _Namespace, far: _Namespace) -> Network:
    """Wires, addresses and routes; another network is tried if somebody has this one."""
    for tries_left in reversed(range(_LIMIT_OF_TRIES)):
        net = f"10.{random.randint(64, 250)}.{random.randint(0, 255)}"
        interface = f"camp{random.randrange(1 << 40):010x}"
        wire = (
            f"link add {interface} type veth peer name near netns {router.keeper.pid}",
            f"addr add {net}.1/30 dev {interface}",
            f"link set {interface} up",
        )
        try:
            if (
                await _run([find_program("ip", "iproute2"), "route", "show", "to", "root", f"{net}.0/24"])
            ).strip():
                continue
            await _ip(wire)
            break
        except OSError:
            if not tries_left:
                raise
            with contextlib.suppress(OSError):
                await _ip([f"link del {interface}"])
    await _ip(
        [
            "link set lo up",
            f"addr add {net}.2/30 dev near",
            "link set near up",
            f"link add far type veth peer name server netns {far.keeper.pid}",
            f"addr add {net}.129/25 dev far",
            "link set far up",
        ],
        router.enter,
    )
    await _run(
        [*router.enter, shutil.which("sh") or "/bin/sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
    )
    addresses = [f"{net}.{130 + number}" for number in range(ROUTES + 1)]
    await _ip(
        [
            "link set lo up",
            *(f"addr add {address}/25 dev server" for address in addresses),
            "link set server up",
            f"route add default via {net}.129",
        ],
        far.enter,
    )
    await _ip([f"route add {net}.128/25 via {net}.2"])
    return Network(
        enter=far.enter,
        cidr=f"{net}.0/24",
        address=addresses[0],
        interface=interface,
        _router=router,
        _free=iter([Route(address) for address in addresses[1:]]),
    )


@asynccontextmanager
async def a_network() -> AsyncIterator[Network]:
    """A network that loses nothing until told to; it ends with the block, and whatever runs on its far side
    must have ended by then.

    Raises:
        Unavailable: not root, a program is missing, or the kernel refuses.
    """
    require_root("a network namespace")
    _nft()
    async with _namespace() as router, _namespace() as far:
        try:
            network = await _connect(router, far)
            await network.heal()
        except OSError as refused:
            raise Unavailable(f"no network can be made here: {refused}") from refused
        yield network
        await _ip([f"link del {network.interface}"])
