"""Whether an hour ends as it began: 1,000 updates a second at 40 connections, to an owner that handles them.

Keys are kept for five minutes instead of days, so that all that grows must have stopped to grow soon. The last minutes are
compared with the first ones of the same run.

Not promised: that the slowest statement is the slowest commit; Postgres' log, which tells of statements of over 20 ms, has none
of those at the end of a pipeline.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.bed import Bed, make_bed
from bench.bots import WINDOW_MINUTES
from bench.contenders import run_owning
from bench.figures import Figure, Series
from bench.load import Updates
from bench.options import Options
from bench.steady import Sample, latency_ms, loaded, wait_until_all_done

_PART = 1 / 12
"""Of the soak, that is compared: the first and the last five minutes of an hour."""
_LOGGED_MS = 20
"""Shorter statements are not told of by Postgres."""

_SETTINGS = {"log_min_duration_statement": str(_LOGGED_MS)}
_DURATION = re.compile(r"duration: (\d+\.\d+) ms")


async def measure(bed: Bed, options: Options) -> tuple[list[Figure], list[Series]]:
    """Of figures.TARGETS: soak_*, but for what a completed update leaves behind.

    Raises:
        RuntimeError: an answer was not 200.
        TimeoutError: an update was never completed.
    """
    async with make_bed(bed.folder / "logging", settings=_SETTINGS) as logging:
        return await _soak(logging, 1.0 if options.quick else options.minutes)


async def _soak(bed: Bed, minutes: float) -> tuple[list[Figure], list[Series]]:
    updates = Updates()
    async with run_owning(bed, updates, bot_app="bench.bots:forgetting") as contender:
        assert contender.database is not None
        await contender.database.execute("SET log_min_duration_statement = -1")  # what we ask ourselves
        log_begins_at = bed.postgres.log_path.stat().st_size
        async with loaded(contender, updates) as load:
            samples = await load.sample_for(minutes * 60)
        await wait_until_all_done(contender)
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
            latency_ms(last, 0.5) / latency_ms(first, 0.5),
            beside={
                "minutes": minutes,
                "updates": sent,
                "first ms": round(latency_ms(first, 0.5), 2),
                "last ms": round(latency_ms(last, 0.5), 2),
                "most that waited": max(sample.waiting for sample in samples),
                "sent late ms": round(median(load.steady.take_lateness()) * 1000, 2),
            },
        ),
        Figure(
            "soak_p99_drift",
            latency_ms(last, 0.99) / latency_ms(first, 0.99),
            beside={
                "first ms": round(latency_ms(first, 0.99), 2),
                "last ms": round(latency_ms(last, 0.99), 2),
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


def _lines(samples: Sequence[Sample]) -> list[Series]:
    """What the soak's minutes brought, a point a minute."""
    minutes: dict[int, list[Sample]] = {}
    for sample in samples:
        minutes.setdefault(int((sample.at - 0.001) // 60), []).append(sample)
    x = "age of the tables, minutes"

    def line(plot: str, label: str, y: str, values: Sequence[float]) -> Series:
        return Series(plot, label, x, y, list(zip((minute + 1 for minute in minutes), values, strict=True)))

    groups = list(minutes.values())
    latency = "from due to 200, ms"
    return [
        line("soak_latency", "median", latency, [latency_ms(group, 0.5) for group in groups]),
        line("soak_latency", "99th percentile", latency, [latency_ms(group, 0.99) for group in groups]),
        line(
            "soak_size",
            "inbox with indexes",
            "MiB",
            [max(s.bytes for s in group) / 2**20 for group in groups],
        ),
    ]


def _slowest_statement_ms(log: Path, begins_at: int) -> float:
    """Of those that Postgres told of since; `_LOGGED_MS` where there were none."""
    with log.open("rb") as file:
        file.seek(begins_at)
        text = file.read().decode(errors="replace")
    return max((float(found[1]) for found in _DURATION.finditer(text)), default=float(_LOGGED_MS))
