"""How long a start takes, and what a process that runs takes of the memory.

From just before exec to the first 200, by a client that connects every 2 ms and then waits: requests that come early wait in
the backlog of a socket that is bound. Both on the server's core alone, with all their processes; a supervisor starts a worker,
so there are two interpreters in the time of one.

Memory is the proportional set size of all processes of a server: what the machine would have free without them, each shared
page counted once in all.

Not promised: the start of a machine whose disk has not read the packages yet, nor the first one of a checkout, which compiles
our modules. Everything is in the page cache here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import psutil

from bench.bed import SERVER_CORE, Bed, Server
from bench.contenders import Contender, run_owning, run_peer, warm_up
from bench.counter import VARIABLE
from bench.figures import Figure, Series
from bench.load import FIRST_UPDATE_ID, Updates
from bench.options import Options
from bench.scale import fill
from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.guarded import inherited_environment
from deploy.local.ports import free_port

_STARTS = 9
_LIMIT_SECONDS = 60.0
_RETRY_SECONDS = 0.002
_SET_WEBHOOK_SECONDS = 1.5  # the emulator, as Telegram, takes one setWebhook a second
_IDLE_SECONDS = 10.0
_BACKLOG = 100_000
_SAMPLE_SECONDS = 0.5
_MIB = 1024 * 1024


async def measure(bed: Bed, options: Options) -> tuple[list[Figure], list[Series]]:
    """Of figures.TARGETS: start_*, bind_*, memory_*, supervisor_mib."""
    starts = 2 if options.quick else max(_STARTS, options.rounds)
    return [*await _measure_starts(bed, starts), *await _measure_memory(bed, options)], []


# ------------------------------------------------------------------------------------------------------------- starts


async def _measure_starts(bed: Bed, starts: int) -> list[Figure]:
    dsn = await bed.new_database()
    counts = {VARIABLE: str(bed.folder / "start.handled")}
    environment = bed.environment(dsn, LINGER_SECONDS="0", **counts)
    updates = Updates()
    ours: list[float] = []
    bound: list[float] = []
    theirs: list[float] = []
    interpreter: list[float] = []
    # The first one makes the tables, and reads what is not in the cache: not counted.
    for number in range(starts + 1):
        async with _started(["-m", "supervisor"], environment) as (port, began_at):
            bound_at, answered_at = await asyncio.to_thread(_first_200, port, updates)
            pair = answered_at - began_at, bound_at - began_at
        peers = bed.peers_environment(dsn, "run_webhook", **counts)
        async with _started(["-m", "bench.peers.run_webhook"], peers) as (port, began_at):
            their_start = (await asyncio.to_thread(_first_200, port, updates))[1] - began_at
        pass_began_at = perf_counter()
        await (await asyncio.create_subprocess_exec(*_on_server_core(["-c", "pass"]))).wait()
        passed = perf_counter() - pass_began_at
        if number:
            ours.append(pair[0])
            bound.append(pair[1])
            theirs.append(their_start)
            interpreter.append(passed)
        await asyncio.sleep(_SET_WEBHOOK_SECONDS)
    return [
        Figure(
            "start_vs_run_webhook",
            median(ours) / median(theirs),
            [one / other for one, other in zip(ours, theirs, strict=True)],
            {"ms": _ms(ours), "run_webhook ms": _ms(theirs), "starts": starts},
        ),
        Figure(
            "bind_vs_python",
            median(bound) / median(interpreter),
            [one / other for one, other in zip(bound, interpreter, strict=True)],
            {"ms": _ms(bound), "python -c pass, ms": _ms(interpreter), "starts": starts},
        ),
    ]


def _ms(seconds: Sequence[float]) -> float:
    return round(median(seconds) * 1000, 1)


def _on_server_core(arguments: Sequence[str]) -> list[str]:
    return ["taskset", "-c", str(SERVER_CORE), sys.executable, *arguments]


@asynccontextmanager
async def _started(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> AsyncIterator[tuple[int, float]]:
    """The port and the moment before exec; without the guard of Bed.start, whose own start would count."""
    port = free_port()
    began_at = perf_counter()
    process = await asyncio.create_subprocess_exec(
        *_on_server_core(arguments),
        env={**inherited_environment(), **environment, "PORT": str(port)},
        cwd=PROJECT_FOLDER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield port, began_at
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(30):
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _first_200(port: int, updates: Updates) -> tuple[float, float]:
    """When the port was bound, and when the first 200 came.

    Raises:
        TimeoutError: it never did.
    """
    deadline = perf_counter() + _LIMIT_SECONDS
    bound_at: float | None = None
    while (left_seconds := deadline - perf_counter()) > 0:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=left_seconds) as client:
                bound_at = bound_at or perf_counter()
                client.sendall(updates.next())
                if client.recv(65536).startswith(b"HTTP/1.1 200"):
                    return bound_at, perf_counter()
        except ConnectionError:
            pass
        time.sleep(_RETRY_SECONDS)  # in a thread of its own
    raise TimeoutError(f"no 200 from port {port} within {_LIMIT_SECONDS:g} s")


# ------------------------------------------------------------------------------------------------------------- memory


async def _measure_memory(bed: Bed, options: Options) -> list[Figure]:
    idle_seconds = 2.0 if options.quick else _IDLE_SECONDS
    backlog = 2_000 if options.quick else _BACKLOG
    rounds = [await _one_memory(bed, idle_seconds) for _ in range(1 if options.quick else options.rounds)]
    async with run_owning(bed, Updates()) as owning:
        await asyncio.sleep(idle_seconds)
        idle = owning.server.memory_bytes()
        peak = await _peak_under(owning, int(bed.emulator.token.partition(":")[0]), backlog)
        await _replace_worker(owning.server)
        await asyncio.sleep(idle_seconds)
        replaced = owning.server.memory_bytes()
        supervisor_of_replaced = owning.server.processes()[0].memory_full_info().pss
    theirs = median(memory.run_webhook for memory in rounds)
    ratios = [(memory.supervisor + memory.worker) / memory.run_webhook for memory in rounds]
    return [
        Figure(
            "memory_vs_run_webhook",
            median(ratios),
            ratios,
            {
                "MiB": _mib(median(memory.supervisor + memory.worker for memory in rounds)),
                "worker MiB": _mib(median(memory.worker for memory in rounds)),
                "run_webhook MiB": _mib(theirs),
                "idle seconds": idle_seconds,
                "with a worker that replaced one, MiB": _mib(replaced),
                "with a worker that replaced one": round(replaced / theirs, 2),
            },
        ),
        Figure("memory_backlog", peak / idle, beside={"peak MiB": _mib(peak), "backlog": backlog}),
        Figure(
            "supervisor_mib",
            _mib(median(memory.supervisor for memory in rounds)),
            [_mib(memory.supervisor) for memory in rounds],
            {
                "is": "proportional set size, beside the worker that is its fork",
                "beside a worker that replaced one, MiB": _mib(supervisor_of_replaced),
                "uss MiB": _mib(median(memory.supervisor_uss for memory in rounds)),
                "rss MiB": _mib(median(memory.supervisor_rss for memory in rounds)),
            },
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Memory:
    """Of one round, in bytes; proportional set sizes where nothing else is said."""

    run_webhook: int
    supervisor: int
    worker: int
    supervisor_uss: int
    supervisor_rss: int


async def _one_memory(bed: Bed, idle_seconds: float) -> _Memory:
    async with run_peer(bed, Updates(), "run_webhook", name="run_webhook") as peer:
        await asyncio.sleep(idle_seconds)
        theirs = peer.server.memory_bytes()
    async with run_owning(bed, Updates()) as owning:
        await asyncio.sleep(idle_seconds)
        top, *workers = owning.server.processes()
        supervisor = top.memory_full_info()
        worker = sum(process.memory_full_info().pss for process in workers)
    return _Memory(theirs, supervisor.pss, worker, supervisor.uss, supervisor.rss)


async def _replace_worker(server: Server) -> None:
    """Kills it, and returns when another answers."""
    _, worker = server.processes()
    worker.kill()
    async with asyncio.timeout(_LIMIT_SECONDS):
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 - the kernel's doing
            await asyncio.sleep(_RETRY_SECONDS)
    await warm_up(server, Updates(first_id=FIRST_UPDATE_ID * 2))


async def _peak_under(owning: Contender, bot: int, backlog: int) -> int:
    """The most memory while so many updates that wait are worked off."""
    assert owning.database is not None
    await owning.empty()
    await fill(owning, bot, 0, backlog)
    done = asyncio.create_task(owning.wait_until_done(backlog), name="end of the backlog")
    peak = 0
    while not done.done():
        peak = max(peak, owning.server.memory_bytes())
        await asyncio.wait({done}, timeout=_SAMPLE_SECONDS)
    done.result()
    return peak


def _mib(size: float) -> float:
    return round(size / _MIB, 1)
