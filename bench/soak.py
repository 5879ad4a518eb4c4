"""Whether it ends as it began: steady load for an hour, what a completed update leaves behind, a purge beside traffic.

    soak     1,000 updates a second at 40 connections to an owner that handles them; keys are kept for five minutes instead of
             days, so that all that grows must have stopped to grow soon
    growth   the same load with keys kept for days: what the inbox takes on the disk, indexes included, for a completed update;
             by how much it grew, or what a row takes in a table that was written anew, whichever is more
    purge    the same, and every few minutes the keys of a third of a day (of a bot with 600,000 updates a day) are due to go

Latencies count from when an update was due to its 200. They are compared with those of the same run: of its first minutes, of
the moments without a purge.

Not promised: an absolute latency; load and Postgres share a core, and the generator's timer has steps of a millisecond, which
all latencies have in them (results.json says how late it sent). Nor that the slowest statement is the slowest commit: Postgres'
log, which tells of statements of over 20 ms, has none of those at the end of a pipeline.
"""

from __future__ import annotations

import asyncio
import re
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.bed import Bed, make_bed
from bench.bots import WINDOW_MINUTES
from bench.contenders import Connection, Contender, count_query, run_owning
from bench.figures import Figure, Series
from bench.load import Steady, Updates, quantile_ms, send_steadily
from bench.options import Options
from webhook_worker.inbox import KEY_DAYS

RATE = 1_000.0
CONNECTIONS = 40  # Telegram's default
_PART = 1 / 12
"""Of the soak, that is compared: the first and the last five minutes of an hour."""
_SAMPLE_SECONDS = 5.0
_GROWTH_MINUTES = 6.0
_DAY = 600_000
_PURGES = 3
_PURGE_ROUND_SECONDS = 200.0
"""A purge looks every 60 s, and forgets 2,500 keys a second at most: 80 s of 200, and the rest is without."""
_LOGGED_MS = 20
"""Shorter statements are not told of by Postgres."""

_SETTINGS = {"log_min_duration_statement": str(_LOGGED_MS)}
_DURATION = re.compile(r"duration: (\d+\.\d+) ms")

_FILL = """
INSERT INTO webhook_supervisor.inbox (bot_id, update_id, state, attempts, starts, received_at, finished_at)
SELECT %(bot)s, id, 'done', 1, 1, due, due
  FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS id,
       LATERAL (SELECT now() - %(days)s * interval '1 day' + %(due_in)s * interval '1 second') AS d(due)
"""


@dataclass(frozen=True, slots=True)
class _Sample:
    """What a few seconds brought.

    Attributes:
        at: seconds of load before its end.
        latencies: in seconds.
        bytes: of the inbox on the disk, with indexes.
        done: completed since the database began.
        waiting: updates that nobody has completed.
        deleted: rows that were deleted since the database began; Postgres counts them now and then.
    """

    at: float
    latencies: Sequence[float]
    bytes: int
    done: int
    waiting: int
    deleted: int

    def latency_ms(self, quantile: float) -> float:
        return _quantile_ms([self], quantile)


def _quantile_ms(samples: Sequence[_Sample], quantile: float) -> float:
    return quantile_ms((latency for sample in samples for latency in sample.latencies), quantile)


async def measure(bed: Bed, options: Options) -> tuple[list[Figure], list[Series]]:
    """Of figures.TARGETS: soak_*, purge_median_drift.

    Raises:
        RuntimeError: an answer was not 200, or too few keys were purged.
        TimeoutError: an update was never completed.
    """
    async with make_bed(bed.folder / "logging", settings=_SETTINGS) as logging:
        figures, series = await _soak(logging, 1.0 if options.quick else options.minutes)
        figures += await _grow_and_purge(logging, options)
    return figures, series


async def _soak(bed: Bed, minutes: float) -> tuple[list[Figure], list[Series]]:
    updates = Updates()
    async with run_owning(bed, updates, bot_app="bench.bots:forgetting") as contender:
        assert contender.database is not None
        await contender.database.execute("SET log_min_duration_statement = -1")  # what we ask ourselves
        log_begins_at = bed.postgres.log_path.stat().st_size
        async with _loaded(contender, updates) as load:
            samples = await load.sample_for(minutes * 60)
        await _wait_until_all_done(contender)
        slowest = _slowest_statement_ms(bed.postgres.log_path, log_begins_at)
    count = max(1, round(len(samples) * _PART))
    first, last = samples[:count], samples[-count:]
    # When the first keys have gone, and a vacuum has been there, the tables have the size that they keep.
    settled_at = (WINDOW_MINUTES + 3) * 60
    settled = [sample for sample in samples if sample.at >= settled_at][:count] or last
    sent = load.steady.sent
    figures = [
        Figure(
            "soak_median_drift",
            _quantile_ms(last, 0.5) / _quantile_ms(first, 0.5),
            beside={
                "minutes": minutes,
                "updates": sent,
                "first ms": round(_quantile_ms(first, 0.5), 2),
                "last ms": round(_quantile_ms(last, 0.5), 2),
                "most that waited": max(sample.waiting for sample in samples),
                "sent late ms": round(median(load.steady.take_lateness()) * 1000, 2),
            },
        ),
        Figure(
            "soak_p99_drift",
            _quantile_ms(last, 0.99) / _quantile_ms(first, 0.99),
            beside={
                "first ms": round(_quantile_ms(first, 0.99), 2),
                "last ms": round(_quantile_ms(last, 0.99), 2),
            },
        ),
        Figure("soak_slowest_statement_ms", slowest),
        Figure(
            "soak_table_drift",
            max(sample.bytes for sample in last) / max(sample.bytes for sample in settled),
            beside={"MiB": round(last[-1].bytes / 2**20, 1)},
        ),
    ]
    return figures, _lines(samples)


def _lines(samples: Sequence[_Sample]) -> list[Series]:
    """What the soak's minutes brought, a point a minute."""
    minutes: dict[int, list[_Sample]] = {}
    for sample in samples:
        minutes.setdefault(int((sample.at - 0.001) // 60), []).append(sample)
    x = "age of the tables, minutes"

    def line(plot: str, label: str, y: str, values: Sequence[float]) -> Series:
        return Series(plot, label, x, y, list(zip((minute + 1 for minute in minutes), values, strict=True)))

    groups = list(minutes.values())
    latency = "from due to 200, ms"
    return [
        line("soak_latency", "median", latency, [_quantile_ms(group, 0.5) for group in groups]),
        line("soak_latency", "99th percentile", latency, [_quantile_ms(group, 0.99) for group in groups]),
        line(
            "soak_size",
            "inbox with indexes",
            "MiB",
            [max(s.bytes for s in group) / 2**20 for group in groups],
        ),
    ]


async def _grow_and_purge(bed: Bed, options: Options) -> list[Figure]:
    updates = Updates()
    async with run_owning(bed, updates) as contender:
        async with _loaded(contender, updates) as load:
            # The first minute makes room for what is in flight, which is used again.
            before = (await load.sample_for(10 if options.quick else 60))[-1]
            after = (await load.sample_for(20 if options.quick else (_GROWTH_MINUTES - 1) * 60))[-1]
        await _wait_until_all_done(contender)
        grown = (after.bytes - before.bytes) / (after.done - before.done)
        packed = await _packed_bytes(contender)
        # What bodies have left is filled up first, so that the table grows by less than a row for some time.
        beside = {"grown": round(grown, 1), "packed": round(packed, 1), "updates": after.done - before.done}
        return [
            Figure("soak_bytes_per_update", max(grown, packed), beside=beside),
            await _purge(contender, bed, updates, options),
        ]


async def _packed_bytes(contender: Contender) -> float:
    """What a completed update takes where nothing else is."""
    assert contender.database is not None
    await contender.database.execute("VACUUM (FULL) webhook_supervisor.inbox")
    size = await count_query(
        contender.database, "SELECT pg_total_relation_size('webhook_supervisor.inbox')::bigint"
    )
    return size / await contender.count()


async def _purge(contender: Contender, bed: Bed, updates: Updates, options: Options) -> Figure:
    purges, keys = (1, 20_000) if options.quick else (_PURGES, _DAY // _PURGES)
    round_seconds = 150.0 if options.quick else _PURGE_ROUND_SECONDS
    assert contender.database is not None
    first = 1
    for number in range(purges):
        await contender.database.execute(
            _FILL,
            {
                "bot": int(bed.emulator.token.partition(":")[0]),
                "days": KEY_DAYS,
                # Time to fill and to vacuum; then half a round without a purge.
                "due_in": 60 + round_seconds * (number + 0.5),
                "first": first,
                "last": first + keys - 1,
            },
        )
        first += keys
    await contender.database.execute("VACUUM (ANALYZE) webhook_supervisor.inbox")
    async with _loaded(contender, updates) as load:
        samples = await load.sample_for(60 + round_seconds * (purges + 0.5))
    await _wait_until_all_done(contender)
    quiet, purging = [], []
    for before, sample, after in zip(samples, samples[1:], samples[2:], strict=False):
        # Postgres counts late: only what lies in the midst of its kind.
        if after.deleted == before.deleted:
            quiet.append(sample)
        elif after.deleted > sample.deleted > before.deleted:
            purging.append(sample)
    purged = samples[-1].deleted - samples[0].deleted
    if purged < purges * keys or not quiet or not purging:
        raise RuntimeError(
            f"{purged} of {purges * keys} keys were purged, {len(purging)} samples beside it, {len(quiet)} without"
        )
    return Figure(
        "purge_median_drift",
        _quantile_ms(purging, 0.5) / _quantile_ms(quiet, 0.5),
        beside={
            "keys": purged,
            "ms": round(_quantile_ms(purging, 0.5), 2),
            "ms otherwise": round(_quantile_ms(quiet, 0.5), 2),
            "p99 ms": round(_quantile_ms(purging, 0.99), 2),
            "p99 ms otherwise": round(_quantile_ms(quiet, 0.99), 2),
        },
    )


class _Load:
    """A steady load and what it comes to."""

    def __init__(self, steady: Steady, database: Connection) -> None:
        self.steady = steady
        self._database = database
        self._began_at = perf_counter()

    async def sample_for(self, seconds: float) -> list[_Sample]:
        """Samples of the next seconds.

        Raises:
            RuntimeError: an answer was not 200, or there was none.
        """
        end = perf_counter() + seconds
        samples: list[_Sample] = []
        self.steady.take_latencies()
        while end - perf_counter() > _SAMPLE_SECONDS / 2:
            await asyncio.sleep(_SAMPLE_SECONDS)
            sample = await self._sample()
            if self.steady.not_200:
                raise RuntimeError(f"{self.steady.not_200} of {self.steady.sent} not answered 200")
            if not sample.latencies:
                raise RuntimeError(f"nothing was answered for {_SAMPLE_SECONDS:g} s")
            samples.append(sample)
            if not len(samples) % 12:
                print(
                    f"{sample.at:>7.0f} s  median {sample.latency_ms(0.5):.2f} ms, p99 {sample.latency_ms(0.99):.2f} ms, "
                    f"{sample.bytes / 2**20:.1f} MiB, {sample.waiting} wait",
                    flush=True,
                )
        return samples

    async def _sample(self) -> _Sample:
        latencies: array[float] = self.steady.take_latencies()
        size = await count_query(
            self._database, "SELECT pg_total_relation_size('webhook_supervisor.inbox')::bigint"
        )
        waiting = await count_query(
            self._database,
            "SELECT (SELECT count(*) FROM webhook_supervisor.inbox WHERE state = 'pending') + "
            "(SELECT count(*) FROM webhook_supervisor.inbox WHERE state = 'claimed')",
        )
        deleted = await count_query(
            self._database,
            "SELECT n_tup_del FROM pg_stat_user_tables WHERE schemaname = 'webhook_supervisor' AND relname = 'inbox'",
        )
        at = perf_counter() - self._began_at
        return _Sample(at, latencies, size, self.steady.sent - waiting, waiting, deleted)


@asynccontextmanager
async def _loaded(contender: Contender, updates: Updates) -> AsyncIterator[_Load]:
    assert contender.database is not None
    async with send_steadily(contender.server.port, updates, connections=CONNECTIONS, rate=RATE) as steady:
        load = _Load(steady, contender.database)
        yield load
    if steady.not_200:
        raise RuntimeError(f"{steady.not_200} of {steady.sent} not answered 200")


async def _wait_until_all_done(contender: Contender) -> None:
    await contender.wait_until_done(1)


def _slowest_statement_ms(log: Path, begins_at: int) -> float:
    """Of those that Postgres told of since; `_LOGGED_MS` where there were none."""
    with log.open("rb") as file:
        file.seek(begins_at)
        text = file.read().decode(errors="replace")
    return max((float(found[1]) for found in _DURATION.finditer(text)), default=float(_LOGGED_MS))
