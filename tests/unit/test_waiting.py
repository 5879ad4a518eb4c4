"""The wait that tests have in common says what it waited for, and how far it came."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.waiting import until


async def test_the_first_value_that_holds_is_returned() -> None:
    """Read anew each time, in a call or in a coroutine."""
    numbers = iter(range(10))

    async def later() -> int:
        return next(numbers)

    assert await until(lambda: next(numbers), "three", lambda number: number == 3, pause_seconds=0) == 3
    assert await until(later, "six", lambda number: number == 6, pause_seconds=0) == 6
    assert await until(later, "any") == 7


async def test_a_wait_in_vain_says_for_what_and_tells_the_last_value() -> None:
    """Also where the reading itself hangs."""
    words = "never came true: update 7 is done; the last value: {7: 'pending'}"
    with pytest.raises(AssertionError, match=f"^{re.escape(words)}$"):
        await until(lambda: {7: "pending"}, "update 7 is done", lambda found: 8 in found, limit_seconds=0.01)
    with pytest.raises(AssertionError, match=r"^never came true: it; the last value: 'not one was read'$"):
        await until(lambda: asyncio.Event().wait(), "it", limit_seconds=0.01)


async def test_a_time_out_of_the_reading_is_not_taken_for_the_waits() -> None:
    """It has its own traceback."""

    async def read() -> bool:
        raise TimeoutError("of the reading")

    with pytest.raises(TimeoutError, match="of the reading"):
        await until(read, "it")
