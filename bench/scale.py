"""How it goes with more connections, larger bodies, fewer chats, a longer backlog: lines for plots, of ours alone.

Acknowledged is what an instance does that only accepts; handled is, of one that owns, from the first request to the last row
that is done. Backlogs are put into the table by SQL; what is handled then is the backlog.

Not promised: ratios. One measurement a point, on whatever else the machine does: the shape counts, not the number.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack
from time import perf_counter

from bench.bed import Bed
from bench.contenders import Contender, count_query, run_accepting, run_owning
from bench.figures import Figure, Series
from bench.load import CHATS, FIRST_UPDATE_ID, Updates, send_load
from bench.options import Options

CONNECTIONS = (1, 2, 5, 10, 20, 40, 70, 100)
BODY_KIB = (0.5, 1, 2, 4, 8, 16, 32, 64)
CHAT_COUNTS = (1, 10, 100, 1_000, 10_000, 100_000)
BACKLOGS = (0, 1_000, 10_000, 100_000, 1_000_000)
_USUAL_CONNECTIONS = 40  # Telegram's default
_LIMIT = 2_000  # updates to be handled for a point: 2 s
_SETTLES_SECONDS = 1.0

_FILL = """
INSERT INTO webhook_supervisor.inbox (bot_id, update_id, lane, body)
SELECT %(bot)s, id, 6000000000 + id %% %(chats)s, convert_to(format(
    '{"update_id":%%s,"message":{"message_id":%%s,"from":{"id":%%s,"is_bot":false,"first_name":"Alexandra"},'
    '"chat":{"id":%%s,"first_name":"Alexandra","type":"private"},"date":1768228800,"text":"hello"}}',
    id, id, 6000000000 + id %% %(chats)s, 6000000000 + id %% %(chats)s), 'UTF8')
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS id
"""


class _Lines:
    """Points by plot and label."""

    def __init__(self) -> None:
        self._points: dict[tuple[str, str, str, str], list[tuple[float, float]]] = defaultdict(list)

    def add(self, plot: str, label: str, x_name: str, y_name: str, x: float, y: float) -> None:
        self._points[plot, label, x_name, y_name].append((x, y))

    def series(self) -> list[Series]:
        return [Series(*key, points) for key, points in self._points.items()]


async def measure(bed: Bed, options: Options) -> tuple[list[Figure], list[Series]]:
    """Lines alone: nothing here has a target."""
    lines = _Lines()
    await _measure_load(bed, options, lines)
    await _measure_backlog(bed, options, lines)
    return [], lines.series()


async def _measure_load(bed: Bed, options: Options, lines: _Lines) -> None:
    async with AsyncExitStack() as stack:
        first = Updates()
        accepting = await stack.enter_async_context(run_accepting(bed, first))
        owning = await stack.enter_async_context(run_owning(bed, first))
        both = (accepting, owning)
        last_id = first.next_id

        async def point(
            plot: str, x_name: str, x: float, connections: int, *, chats: int = CHATS, body_bytes: int = 0
        ) -> None:
            nonlocal last_id
            updates = Updates(first_id=last_id, chats=chats, body_bytes=body_bytes)
            for contender in both:
                await _load_point(contender, updates, connections, options, lines, (plot, x_name, x))
            last_id = updates.next_id

        for connections in CONNECTIONS if not options.quick else (1, 40):
            await point("connections", "connections", connections, connections)
        for kib in BODY_KIB if not options.quick else (0.5, 64):
            await point("body", "KiB of an update", kib, _USUAL_CONNECTIONS, body_bytes=round(kib * 1024))
        for chats in CHAT_COUNTS if not options.quick else (1, 100):
            await point("chats", "chats", chats, _USUAL_CONNECTIONS, chats=chats)


async def _load_point(
    contender: Contender,
    updates: Updates,
    connections: int,
    options: Options,
    lines: _Lines,
    where: tuple[str, str, float],
) -> None:
    plot, x_name, x = where
    owns = contender.name == "ours, owning"
    limit = (100 if options.quick else _LIMIT) if owns else None
    await contender.empty()
    began_at = perf_counter()
    load = await send_load(
        contender.server.port, updates, connections=connections, seconds=_seconds(options), limit=limit
    )
    if load.not_200:
        raise RuntimeError(f"{plot} {x:g}: {load.not_200} of {load.sent} not answered 200")
    label = "acknowledged, while handling" if owns else "acknowledged"
    lines.add(f"{plot}_p99", label, x_name, "99th percentile of answers, ms", x, load.latency_ms(0.99))
    if owns:
        await contender.wait_until_done(load.sent)
        rate, label = load.sent / (perf_counter() - began_at), "handled"
    else:
        rate = load.rate
    lines.add(f"{plot}_rate", label, x_name, "updates a second", x, rate)
    print(f"{plot:>12} {x:>8g} {label:>13} {rate:>8.0f}/s, p99 of answers {load.latency_ms(0.99):.1f} ms")


def _seconds(options: Options) -> float:
    return 0.5 if options.quick else min(options.seconds, 2.0)


async def _measure_backlog(bed: Bed, options: Options, lines: _Lines) -> None:
    """Each on a database of its own, whose backlog grows from point to point."""
    backlogs = BACKLOGS if not options.quick else BACKLOGS[:3]
    bot = int(bed.emulator.token.partition(":")[0])
    updates = Updates()
    async with run_accepting(bed, updates) as contender:
        await contender.empty()
        for backlog in backlogs:
            there = await contender.count()
            await fill(contender, bot, there, backlog)
            load = await send_load(
                contender.server.port, updates, connections=_USUAL_CONNECTIONS, seconds=_seconds(options)
            )
            _add_backlog(lines, "acknowledged", backlog, load.rate)
            lines.add(
                "backlog_p99",
                "acknowledged",
                "updates that wait",
                "99th percentile of answers, ms",
                backlog,
                load.latency_ms(0.99),
            )
    updates = Updates()
    async with run_owning(bed, updates) as contender:
        for backlog in backlogs:
            # Of less, nothing would be left before it is measured.
            if backlog < 100_000:
                continue
            await fill(contender, bot, await _waiting(contender), backlog)
            await asyncio.sleep(_SETTLES_SECONDS)
            before, began_at = await _waiting(contender), perf_counter()
            await asyncio.sleep(_seconds(options))
            left = await _waiting(contender)
            _add_backlog(lines, "handled", backlog, (before - left) / (perf_counter() - began_at))


def _add_backlog(lines: _Lines, label: str, backlog: int, rate: float) -> None:
    lines.add("backlog_rate", label, "updates that wait", "updates a second", backlog, rate)
    print(f"{'backlog':>12} {backlog:>8} {label:>13} {rate:>8.0f}/s", flush=True)


async def _waiting(contender: Contender) -> int:
    assert contender.database is not None
    return await count_query(
        contender.database,
        "SELECT count(*) FROM webhook_supervisor.inbox WHERE state IN ('pending', 'claimed')",
    )


async def fill(contender: Contender, bot: int, there: int, backlog: int) -> None:
    """Adds rows until so many wait."""
    if backlog <= there:
        return
    assert contender.database is not None
    first = FIRST_UPDATE_ID * 5 + await count_query(
        contender.database, "SELECT coalesce(max(seq), 0)::bigint FROM webhook_supervisor.inbox"
    )
    await contender.database.execute(
        _FILL, {"bot": bot, "chats": CHATS, "first": first, "last": first + backlog - there - 1}
    )
    # The owner finds what nobody told it about only when it looks by itself.
    await contender.database.execute("SELECT pg_notify(%s, '')", (f"webhook_supervisor_{bot}",))
