"""A steady load on an owner, and what it comes to every few seconds: for soak.py and growth.py.

Latencies count from when an update was due to its 200.

Not promised: an absolute latency; load and Postgres share a core, and the generator's timer has steps of a millisecond, which
all latencies have in them (results.json says how late it sent).
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

from bench.contenders import Connection, Contender, count_query
from bench.load import Steady, Updates, quantile_ms, send_steadily

RATE = 1_000.0
CONNECTIONS = 40  # Telegram's default
_SAMPLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
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
        """Of these seconds; the median is 0.5."""
        return latency_ms([self], quantile)


def latency_ms(samples: Sequence[Sample], quantile: float) -> float:
    """Of all samples together."""
    return quantile_ms((latency for sample in samples for latency in sample.latencies), quantile)


class Load:
    """A steady load and what it comes to."""

    def __init__(self, steady: Steady, database: Connection) -> None:
        """Of a load that runs; the database is that of who is loaded."""
        self.steady = steady
        self._database = database
        self._began_at = perf_counter()

    async def sample_for(self, seconds: float) -> list[Sample]:
        """Samples of the next seconds.

        Raises:
            RuntimeError: an answer was not 200, or there was none.
        """
        end = perf_counter() + seconds
        samples: list[Sample] = []
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

    async def _sample(self) -> Sample:
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
        return Sample(at, latencies, size, self.steady.sent - waiting, waiting, deleted)


@asynccontextmanager
async def loaded(contender: Contender, updates: Updates) -> AsyncIterator[Load]:
    """Loads an owner for as long as the block lasts.

    Raises:
        RuntimeError: an answer was not 200.
    """
    assert contender.database is not None
    async with send_steadily(contender.server.port, updates, connections=CONNECTIONS, rate=RATE) as steady:
        load = Load(steady, contender.database)
        yield load
    if steady.not_200:
        raise RuntimeError(f"{steady.not_200} of {steady.sent} not answered 200")


async def wait_until_all_done(contender: Contender) -> None:
    """Until nothing waits.

    Raises:
        TimeoutError: something waits for too long.
    """
    # The count of an owner is 0 for as long as anything is unfinished.
    await contender.wait_until_done(1)
