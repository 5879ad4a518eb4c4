"""How many updates a second, and what a thousand of them cost, beside the peers.

    acknowledged    from the first request to the last 200: ours accepting only, after the commit; the peers as they are
    handled         from the first request to the last update that a handler has seen: ours stored it, let python-telegram-bot's
                    process_update handle it, and marked it done

A round sends updates for some seconds to one contender after the other, so that what disturbs the machine disturbs all. The
value is the ratio of what 1,000 updates cost in CPU-seconds of the server, all its processes, since the rates depend on what
else runs on the two cores; the ratio of the rates stands beside. It is the worse of those at 40 and at 100 connections.

With a slow fsync it is not the CPU that limits: there the ratio of the rates is the value. The slow disk is strace, which lets
every fdatasync of Postgres, that of a commit, return 2 ms later (Debian's package strace; without it this row is left out). As
with a slow disk, whoever commits meanwhile waits for the next one.

Not promised: that a real disk behaves so in all respects.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from time import perf_counter

import psycopg

from bench.bed import Bed, make_bed
from bench.contenders import Contender, Kind, run_accepting, run_owning, run_peer
from bench.figures import Figure, Series
from bench.load import Updates, send_load
from bench.options import Options

CONNECTIONS = (40, 100)
SLOW_MS = 2
SLOW_FSYNC = (
    *("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"),
    *("-e", "trace=fdatasync", "-e", f"inject=fdatasync:delay_exit={SLOW_MS * 1000}"),
)
"""Before the command line of a process: it and its children wait 2 ms longer for each fdatasync, and nothing else."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one contender did in one round.

    Attributes:
        rate: updates a second.
        cpu: of the server, seconds for 1,000 updates.
        busy: part of a core that the server used meanwhile.
        p99_ms: of the answers.
    """

    rate: float
    cpu: float
    busy: float
    p99_ms: float


async def run_round(
    contender: Contender, updates: Updates, *, connections: int, seconds: float
) -> tuple[Round, Round]:
    """Loads one; returns it as acknowledged, and as handled.

    Raises:
        RuntimeError: an answer was not 200, or an update was not handled.
    """
    await contender.empty()
    count_before = await contender.count()
    cpu_before = contender.server.cpu_seconds()
    began_at = perf_counter()
    load = await send_load(contender.server.port, updates, connections=connections, seconds=seconds)
    cpu_acknowledged = contender.server.cpu_seconds() - cpu_before
    if load.not_200:
        raise RuntimeError(
            f"{contender.name}: {load.not_200} of {load.sent} not answered 200, see {contender.server.log_path}"
        )
    p99 = load.latency_ms(0.99)
    acknowledged = Round(load.rate, cpu_acknowledged / load.sent * 1000, cpu_acknowledged / load.seconds, p99)
    if contender.kind is Kind.HANDLES:
        await contender.wait_until_done(count_before + load.sent)
    took = perf_counter() - began_at
    cpu = contender.server.cpu_seconds() - cpu_before
    counted = await contender.count() - count_before
    if contender.kind is not Kind.ANSWERS and counted != load.sent:
        raise RuntimeError(f"{contender.name}: {counted} stored or handled of {load.sent}")
    return acknowledged, Round(load.sent / took, cpu / load.sent * 1000, cpu / took, p99)


Rounds = dict[str, dict[int, list[tuple[Round, Round]]]]
"""By contender and connections."""


async def measure(bed: Bed, options: Options) -> tuple[list[Figure], list[Series]]:
    """Of figures.TARGETS, ack_* and handled_*."""
    rounds = await _run_all(bed, options)
    async with AsyncExitStack() as stack:
        if (not options.only or "slow" in options.only) and _can_be_slow():
            slow_bed = await stack.enter_async_context(make_bed(bed.folder / "slow", starter=SLOW_FSYNC))
            rounds |= await _run_slow(slow_bed, options)
    _print(rounds)
    return _figures(rounds), []


async def _run_all(bed: Bed, options: Options) -> Rounds:
    updates = Updates()
    async with AsyncExitStack() as stack:
        contenders: list[Contender] = []
        makers: dict[str, Callable[[], AbstractAsyncContextManager[Contender]]] = {
            "ours_accepting": lambda: run_accepting(bed, updates),
            "run_webhook": lambda: run_peer(bed, updates, "run_webhook", name="run_webhook"),
            "bare_uvicorn": lambda: run_peer(bed, updates, "bare_uvicorn", name="bare_uvicorn"),
            "insert_per_request": lambda: run_peer(
                bed, updates, "insert_per_request", name="insert_per_request"
            ),
            "ours_owning": lambda: run_owning(bed, updates),
            "starlette": lambda: run_peer(bed, updates, "starlette_example", name="starlette"),
            "aiogram": lambda: run_peer(bed, updates, "aiogram_background", name="aiogram"),
        }
        if unknown := set(options.only) - {"ours", "slow", *makers}:
            known = ", ".join(["ours", *makers, "slow"])
            raise SystemExit(f"no such contender: {', '.join(sorted(unknown))}; there are {known}")
        for key, make in makers.items():
            if not options.only or options.only & {key, key.partition("_")[0]}:
                contenders.append(await stack.enter_async_context(make()))
        return await _interleave(contenders, updates, options)


def _can_be_slow() -> bool:
    """Whether strace is there and may trace; says so if not."""
    try:
        done = subprocess.run([*SLOW_FSYNC, "true"], capture_output=True, text=True, timeout=60, check=False)
        reason = done.stderr.strip()
    except FileNotFoundError:
        done, reason = None, "there is no strace; install it (Debian, Ubuntu: apt install strace)"
    if done is not None and done.returncode == 0:
        return True
    print(f"not measured: the slow fsync: {reason}", file=sys.stderr)
    return False


async def _run_slow(bed: Bed, options: Options) -> Rounds:
    updates = Updates()
    if (commit_ms := await _commit_ms(bed)) < SLOW_MS:
        raise RuntimeError(f"strace delays no fdatasync here: a commit takes {commit_ms:.2f} ms")
    async with AsyncExitStack() as stack:
        contenders = [
            await stack.enter_async_context(run_accepting(bed, updates, name="ours, slow fsync")),
            await stack.enter_async_context(
                run_peer(bed, updates, "insert_per_request", name="insert_per_request, slow fsync")
            ),
        ]
        return await _interleave(contenders, updates, options)


async def _commit_ms(bed: Bed) -> float:
    """What a commit takes, alone: the median of some."""
    took = []
    async with await psycopg.AsyncConnection.connect(await bed.new_database(), autocommit=True) as session:
        await session.execute("CREATE TABLE commits (number int)")
        for number in range(20):
            began_at = perf_counter()
            await session.execute("INSERT INTO commits VALUES (%s)", [number])
            took.append((perf_counter() - began_at) * 1000)
    return statistics.median(took)


async def _interleave(contenders: Sequence[Contender], updates: Updates, options: Options) -> Rounds:
    rounds: Rounds = {contender.name: {n: [] for n in CONNECTIONS} for contender in contenders}
    for connections in CONNECTIONS:
        for number in range(1 if options.quick else options.rounds):
            # There and back: who comes after whom changes, and nobody always follows the one that left the disk busy.
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                rounds[contender.name][connections].append(
                    await run_round(
                        contender,
                        updates,
                        connections=connections,
                        seconds=1 if options.quick else options.seconds,
                    )
                )
    return rounds


_FIGURES = (
    ("ack_vs_run_webhook", "ours, accepting", "run_webhook", 0),
    ("ack_vs_bare_uvicorn", "ours, accepting", "bare_uvicorn", 0),
    ("ack_vs_insert_per_request", "ours, accepting", "insert_per_request", 0),
    ("ack_vs_insert_per_request_slow_fsync", "ours, slow fsync", "insert_per_request, slow fsync", 0),
    ("handled_vs_run_webhook", "ours, owning", "run_webhook", 1),
    ("handled_vs_starlette", "ours, owning", "starlette", 1),
    ("handled_vs_aiogram", "ours, owning", "aiogram", 1),
)


_HANDLING = {name for _, ours, peer, kind in _FIGURES if kind == 1 for name in (ours, peer)}


def _figures(rounds: Rounds) -> list[Figure]:
    figures = []
    for name, our_name, peer_name, kind in _FIGURES:
        if our_name not in rounds or peer_name not in rounds:
            continue
        by_rate = name.endswith("slow_fsync")
        ratios: dict[int, list[float]] = {}
        beside: dict[str, object] = {"decides": "rate" if by_rate else "CPU"}
        for n in CONNECTIONS:
            ours = [pair[kind] for pair in rounds[our_name][n]]
            peers = [pair[kind] for pair in rounds[peer_name][n]]
            rates = [a.rate / b.rate for a, b in zip(ours, peers, strict=True)]
            costs = [b.cpu / a.cpu for a, b in zip(ours, peers, strict=True)]
            ratios[n] = rates if by_rate else costs
            beside[f"{n} connections"] = {
                "rate ratio": round(statistics.median(rates), 2),
                "CPU ratio": round(statistics.median(costs), 2),
                "ours": _beside(ours),
                "peer": _beside(peers),
            }
        worse = min(CONNECTIONS, key=lambda n: statistics.median(ratios[n]))
        figures.append(Figure(name, statistics.median(ratios[worse]), ratios[worse], beside))
    return figures


def _beside(rounds: Sequence[Round]) -> dict[str, float]:
    return {
        "updates a second": round(statistics.median(r.rate for r in rounds)),
        "CPU-seconds for 1,000": round(statistics.median(r.cpu for r in rounds), 4),
        "busy": round(statistics.median(r.busy for r in rounds), 2),
        "p99 ms": round(statistics.median(r.p99_ms for r in rounds), 1),
    }


def _print(rounds: Rounds) -> None:
    print(f"{'':46}{'conns':>6}{'updates/s':>11}{'CPU s/1,000':>13}{'busy':>7}{'p99 ms':>8}")
    for name, by_connections in rounds.items():
        for kind, word in enumerate(("acknowledged", "handled")[: 1 + (name in _HANDLING)]):
            for connections, pairs in by_connections.items():
                rate, cpu, busy, p99 = _beside([pair[kind] for pair in pairs]).values()
                print(
                    f"{name + ': ' + word:46}{connections:>6}{rate:>11,.0f}{cpu:>13.4f}{busy:>7.2f}{p99:>8.1f}"
                )
