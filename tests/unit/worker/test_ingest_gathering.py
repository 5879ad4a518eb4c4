"""When a flush begins: at once for a lone update, and under load when those who were answered are back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest

from tests.unit.worker.virtual_time import now, run
from webhook_worker.ingest import Ingest, Row

COMMIT_SECONDS = 0.002
MOMENT_SECONDS = 0.003
"""For as long the next flush waits, under load, for those who were answered."""


class Writer:
    """A database that takes its time, and remembers when it was asked for how much."""

    connected = True
    reason = None

    def __init__(self) -> None:
        self.flushes: list[tuple[float, int]] = []

    async def wait_connected(self) -> None:
        """It is."""

    async def insert(self, rows: Sequence[Row], *, notify: bool, limit_seconds: float) -> list[int]:
        """Stores them all."""
        if rows:
            self.flushes.append((now(), len(rows)))
        await asyncio.sleep(COMMIT_SECONDS)
        return [row.update_id for row in rows]


@contextlib.asynccontextmanager
async def flushing(writer: Writer) -> AsyncIterator[Ingest]:
    """An ingest that is ready."""
    ingest = Ingest(writer, dispatches_here=lambda: True, wake=lambda: None)
    running = asyncio.create_task(ingest.run())
    while ingest.fault is not None:
        await asyncio.sleep(COMMIT_SECONDS)
    yield ingest
    running.cancel()
    await asyncio.wait({running})


async def client(ingest: Ingest, number: int, updates: int, pause_seconds: float) -> None:
    """A connection of Telegram's: one update after the other."""
    for _ in range(updates):
        await ingest.store(number, None, b"{}")
        await asyncio.sleep(pause_seconds)


def flushes(connections: int, updates: int, *, pause_seconds: float = 0.0005) -> list[tuple[float, int]]:
    """When how many rows were flushed for so many connections, which begin one after the other."""

    async def main() -> list[tuple[float, int]]:
        writer = Writer()
        async with flushing(writer) as ingest, asyncio.TaskGroup() as group:
            for number in range(connections):
                group.create_task(client(ingest, number, updates, pause_seconds))
                await asyncio.sleep(0.0003)
        return writer.flushes

    return run(main)


def test_under_load_a_flush_takes_all_connections_along() -> None:
    """Without it there would be two herds, each waiting for the other's commit, and twice the flushes."""
    sizes = [rows for _, rows in flushes(20, 50)]
    assert sum(sizes) == 20 * 50
    assert set(sizes[5:-5]) == {20}


@pytest.mark.parametrize("connections", [1, 2, 3])
def test_few_connections_wait_for_nobody(connections: int) -> None:
    """A flush begins when there is something, and the last one has ended."""
    begun = [at for at, _ in flushes(connections, 20, pause_seconds=0.0)]
    gaps = [after - before for before, after in pairwise(begun)]
    assert max(gaps) < COMMIT_SECONDS + MOMENT_SECONDS / 10


def test_who_does_not_come_back_is_not_waited_for() -> None:
    """A burst of 100, of whom one goes on: it waits no longer than a moment, once."""

    async def main() -> list[tuple[float, int]]:
        writer = Writer()
        async with flushing(writer) as ingest:
            await asyncio.gather(*(ingest.store(number, None, b"{}") for number in range(100)))
            for number in range(100, 103):
                await ingest.store(number, None, b"{}")
        return writer.flushes

    (burst_at, rows), *rest = run(main)
    begun = [burst_at, *(at for at, _ in rest)]
    gaps = [after - before for before, after in pairwise(begun)]
    assert (rows, len(rest)) == (100, 3)
    assert gaps[0] == pytest.approx(COMMIT_SECONDS + MOMENT_SECONDS, rel=1e-3)
    assert gaps[1:] == pytest.approx([COMMIT_SECONDS] * 2, rel=1e-3)
