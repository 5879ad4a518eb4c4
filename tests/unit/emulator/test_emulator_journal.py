"""The journals that tests judge the project by."""

from __future__ import annotations

import asyncio

import pytest

from deploy.local.emulator import journal as module
from deploy.local.emulator.journal import BotEvent, Journal


def _event(seq: int) -> BotEvent:
    return BotEvent(seq=seq, bot_id=seq % 2, kind="sent", at=0.0, monotonic=0.0)


@pytest.mark.parametrize("limit", [100, module.NEARLY_UP_TO_DATE * 2])
def test_after_gives_the_entries_above_a_number_in_order_from_either_end(limit: int) -> None:
    """Also when the oldest are gone, when all are old, and with a condition."""
    journal: Journal[BotEvent] = Journal(limit)
    count = limit + 10
    for _ in range(count):
        journal.add(_event(journal.take_seq()))
    assert [entry.seq for entry in journal.after(0, limit=3)] == [11, 12, 13]
    assert [entry.seq for entry in journal.after(20, limit=2)] == [21, 22]
    assert [entry.seq for entry in journal.after(count - 2, limit=9)] == [count - 1, count]
    assert journal.after(count, limit=9) == journal.after(count + 5, limit=9) == []
    assert [entry.seq for entry in journal.after(20, limit=2, matching=lambda entry: entry.bot_id == 0)] == [
        22,
        24,
    ]


async def test_wait_ends_with_the_change_or_with_the_limit() -> None:
    """True as soon as the condition holds; False when the time is over."""
    journal: Journal[BotEvent] = Journal(10)
    waiting = asyncio.create_task(journal.wait(lambda: journal.last_seq == 1, 20))
    assert not await journal.wait(lambda: False, 0.01)
    assert not waiting.done()
    journal.add(_event(journal.take_seq()))
    assert await waiting
