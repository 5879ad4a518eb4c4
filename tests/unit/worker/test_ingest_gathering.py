"""When a flush begins: at once for a lone update, and under load when those who were answered are back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from shared.database import DatabaseAway
from tests.unit.worker.virtual_time import now, run
from webhook_worker.ingest import Ingest, NotStored, Row

COMMIT_SECONDS = 0.002
MOMENT_SECONDS = 0.003
"""For as long the next flush waits, under load, for those who were answered."""


class Writer:
    """A database that takes its time, and remembers when it was asked for how much."""

    connected = True
    reason = None

    def __init__(self) -> None:
        self.flushes: list[tuple[float, int]] = []
        self.reason_to_fail: str | None = None

    async def wait_connected(self) -> None:
        """It is."""

    async def insert(self, rows: Sequence[Row], *, notify: bool, limit_seconds: float) -> list[int]:
        """Stores them all; a Link sends from a task of its own."""
        await asyncio.create_task(self._send(rows))
        if self.reason_to_fail is not None:
            raise DatabaseAway(self.reason_to_fail)
        await asyncio.sleep(COMMIT_SECONDS)
        return [row.update_id for row in rows]

    async def _send(self, rows: Sequence[Row]) -> None:
        if rows:
            self.flushes.append((now(), len(rows)))


@contextlib.asynccontextmanager
async def flushing(writer: Writer, **settings: Any) -> AsyncIterator[Ingest]:
    """An ingest that is ready."""
    ingest = Ingest(writer, **{"dispatches_here": lambda: True, "wake": lambda: None, **settings})
    running = asyncio.create_task(ingest.run())
    while ingest.fault is not None:
        await asyncio.sleep(COMMIT_SECONDS)
    try:
        yield ingest
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


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


@pytest.mark.parametrize("connections", [1, 2, 7])
def test_few_connections_wait_for_nobody(connections: int) -> None:
    """A flush begins when there is something, and the last one has ended."""
    begun = [at for at, _ in flushes(connections, 20, pause_seconds=0.0005)]
    gaps = [after - before for before, after in pairwise(begun)]
    assert max(gaps) < COMMIT_SECONDS + 0.0006


def test_many_connections_do_not_wait_for_all() -> None:
    """When 40 are there a flush begins; the others come in while it is under way."""

    async def main() -> list[int]:
        writer = Writer()
        async with flushing(writer) as ingest:
            await asyncio.gather(*(ingest.store(number, None, b"{}") for number in range(100)))
            back = []
            for number in range(100, 160):
                back.append(ingest.store(number, None, b"{}"))
                await asyncio.sleep(MOMENT_SECONDS / 100)
            await asyncio.gather(*back)
        return [rows for _, rows in writer.flushes]

    assert run(main) == [100, 40, 20]


@pytest.mark.parametrize(("burst", "waits"), [(7, 0.0), (8, MOMENT_SECONDS), (100, MOMENT_SECONDS)])
def test_who_does_not_come_back_is_not_waited_for(burst: int, waits: float) -> None:
    """A burst, of which one goes on: after a large one it waits no longer than a moment, once."""

    async def main() -> list[tuple[float, int]]:
        writer = Writer()
        async with flushing(writer) as ingest:
            await asyncio.gather(*(ingest.store(number, None, b"{}") for number in range(burst)))
            for number in range(burst, burst + 3):
                await ingest.store(number, None, b"{}")
        return writer.flushes

    (burst_at, rows), *rest = run(main)
    begun = [burst_at, *(at for at, _ in rest)]
    gaps = [after - before for before, after in pairwise(begun)]
    assert (rows, len(rest)) == (burst, 3)
    assert gaps == pytest.approx([COMMIT_SECONDS + waits, COMMIT_SECONDS, COMMIT_SECONDS], rel=1e-3)


async def _store_during_gathering(ingest: Ingest) -> asyncio.Future[None]:
    """What waits for others to come: the burst before it is answered, and nobody of it is back."""
    await asyncio.gather(*(ingest.store(number, None, b"{}") for number in range(20)))
    waiting = ingest.store(20, None, b"{}")
    await asyncio.sleep(MOMENT_SECONDS / 2)
    assert not waiting.done()
    return waiting


def test_an_end_during_the_moment_refuses_what_waits() -> None:
    """Nobody is left without an answer."""

    async def main() -> BaseException | None:
        writer = Writer()
        async with flushing(writer) as ingest:
            waiting = await _store_during_gathering(ingest)
        await asyncio.wait({waiting})
        assert [rows for _, rows in writer.flushes] == [20]
        return waiting.exception()

    assert isinstance(run(main), NotStored)


def test_b10_who_is_refused_is_not_waited_for() -> None:
    """It comes back when Telegram thinks fit, not at once."""

    async def main() -> list[BaseException | None]:
        writer = Writer()
        async with flushing(writer) as ingest:
            writer.reason_to_fail = "gone"
            burst = [ingest.store(number, None, b"{}") for number in range(20)]
            await asyncio.wait(burst)
            writer.reason_to_fail = None
            begins = now()
            await ingest.store(20, None, b"{}")
            assert now() - begins == pytest.approx(COMMIT_SECONDS, rel=1e-3)
        return [refused.exception() for refused in burst]

    assert {type(error) for error in run(main)} == {NotStored}


def test_a_buffer_that_is_full_is_flushed_at_once() -> None:
    """There is no room for those who would be waited for."""

    async def main() -> None:
        writer = Writer()
        async with flushing(writer, buffer_rows=20) as ingest:
            await asyncio.gather(*(ingest.store(number, None, b"{}") for number in range(20)))
            ended = now()
            await asyncio.gather(*(ingest.store(number, None, b"{}") for number in range(20, 40)))
            assert now() - ended == pytest.approx(COMMIT_SECONDS, rel=1e-3)

    run(main)


@pytest.mark.parametrize("pause_seconds", [0.0, MOMENT_SECONDS / 10])
def test_a_buffer_of_large_bodies_is_flushed_when_no_more_would_fit(pause_seconds: float) -> None:
    """However many are waited for, and whether they come one after the other or all at once."""

    async def main() -> None:
        writer = Writer()
        async with flushing(writer, buffer_bytes=3000) as ingest:
            await asyncio.gather(*(ingest.store(number, None, b"{}") for number in range(20)))
            first = ingest.store(20, None, b"0" * 1000)
            if pause_seconds:
                await asyncio.sleep(pause_seconds)
            begins = now()
            others = [ingest.store(number, None, b"0" * 1000) for number in (21, 22)]
            await asyncio.gather(first, *others)
            assert now() - begins == pytest.approx(COMMIT_SECONDS, rel=1e-3)

    run(main)


def test_b17_a_batch_that_met_the_same_updates_in_another_order_is_stored_all_the_same() -> None:
    """Two instances deadlock on the keys; the one that the database picks asks again, and nobody is answered 503."""

    class Deadlocking(Writer):
        deadlocks = 0

        async def insert(self, rows: Sequence[Row], *, notify: bool, limit_seconds: float) -> list[int]:
            if rows and not self.deadlocks:
                self.deadlocks += 1
                raise psycopg.errors.DeadlockDetected("deadlock detected")
            return await super().insert(rows, notify=notify, limit_seconds=limit_seconds)

    async def main() -> None:
        writer = Deadlocking()
        async with flushing(writer) as ingest:
            await ingest.store(1, None, b"{}")
            assert (writer.deadlocks, ingest.fault) == (1, None)

    run(main)
