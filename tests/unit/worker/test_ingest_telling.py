"""Who is told what became of an update, and when: once, after the commit, and when the next flush is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.unit.worker.test_ingest_gathering import COMMIT_SECONDS, Writer, flushing
from tests.unit.worker.virtual_time import now, run
from webhook_worker.ingest import Ingest, NotStored

Told = list[tuple[int, str | None, float]]
"""update_id, the reason if there was one, and when."""


def tell(told: Told, update_id: int) -> Callable[[str | None], None]:
    return lambda reason: told.append((update_id, reason, now()))


def take(ingest: Ingest, told: Told, *update_ids: int) -> None:
    for update_id in update_ids:
        ingest.take(update_id, None, b"{}", tell(told, update_id))


def test_each_is_told_once_after_the_commit() -> None:
    """And not by `take` itself, nor again when the worker ends."""

    async def main() -> None:
        told: Told = []
        async with flushing(Writer()) as ingest:
            begun_at = now()
            take(ingest, told, 1, 2)
            assert told == []
            await asyncio.sleep(10 * COMMIT_SECONDS)
        await asyncio.sleep(COMMIT_SECONDS)
        assert [(update_id, reason) for update_id, reason, _ in told] == [(1, None), (2, None)]
        assert min(at for _, _, at in told) >= begun_at + COMMIT_SECONDS

    run(main)


def test_what_fails_is_told_why() -> None:
    """The whole flush, and what has come meanwhile."""

    async def main() -> None:
        told: Told = []
        writer = Writer()
        async with flushing(writer) as ingest:
            writer.reason_to_fail = "connection refused"
            take(ingest, told, 1, 2)
            await asyncio.sleep(10 * COMMIT_SECONDS)
        assert [(update_id, reason) for update_id, reason, _ in told] == [
            (1, "database away: connection refused"),
            (2, "database away: connection refused"),
        ]

    run(main)


def test_what_is_refused_is_not_told() -> None:
    """It raises, and that is all."""

    async def main() -> None:
        told: Told = []
        async with flushing(Writer(), buffer_rows=1) as ingest:
            take(ingest, told, 1)
            with pytest.raises(NotStored):
                take(ingest, told, 2)
            await asyncio.sleep(10 * COMMIT_SECONDS)
        assert [update_id for update_id, _, _ in told] == [1]

    run(main)


def test_what_waits_when_the_worker_ends_is_told_so() -> None:
    """Committed or not: it is sent again."""

    async def main() -> None:
        told: Told = []
        async with flushing(Writer()) as ingest:
            take(ingest, told, 1)
            await asyncio.sleep(COMMIT_SECONDS / 2)
            take(ingest, told, 2)
        await asyncio.sleep(COMMIT_SECONDS)
        assert [(update_id, reason) for update_id, reason, _ in told] == [
            (1, "the worker ends"),
            (2, "the worker ends"),
        ]

    run(main)


def test_the_next_flush_is_sent_before_anybody_is_told() -> None:
    """So that the database works while we answer."""

    async def main() -> None:
        seen: list[int] = []
        writer = Writer()
        async with flushing(writer) as ingest:
            ingest.take(1, None, b"{}", lambda reason: seen.append(len(writer.flushes)))
            await asyncio.sleep(COMMIT_SECONDS / 2)
            ingest.take(2, None, b"{}", lambda reason: None)
            await asyncio.sleep(10 * COMMIT_SECONDS)
        assert seen == [2]

    run(main)


def test_one_who_cannot_be_told_does_not_keep_the_others_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A bug of ours; it is in the log."""

    async def main() -> None:
        told: Told = []

        def fail(reason: str | None) -> None:
            raise RuntimeError("no transport")

        async with flushing(Writer()) as ingest:
            take(ingest, told, 1)
            ingest.take(2, None, b"{}", fail)
            take(ingest, told, 3)
            await asyncio.sleep(10 * COMMIT_SECONDS)
            await ingest.store(4, None, b"{}")
        assert [update_id for update_id, _, _ in told] == [1, 3]

    run(main)
    assert "no transport" in capsys.readouterr().out


def test_a_store_that_nobody_waits_for_any_more_is_no_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    """Its client has gone."""

    async def main() -> None:
        async with flushing(Writer()) as ingest:
            gone, other = (ingest.store(number, None, b"{}") for number in (1, 2))
            gone.cancel()
            await other

    run(main)
    assert "cannot tell" not in capsys.readouterr().out
