"""An exchange with the inbox that the server ended for a deadlock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest

from shared.database import DatabaseAway
from webhook_worker.inbox import Arrivals, ArrivalsRefused, Inbox


class Deadlocked:
    """A session whose next transaction is rolled back."""

    async def run(self, fn: Callable[[Any], Coroutine[Any, Any, Any]], limit_seconds: float) -> Any:
        raise psycopg.errors.DeadlockDetected("deadlock detected")


async def test_b17_arrivals_that_deadlock_are_left_to_their_sender_and_the_database_is_not_away() -> None:
    """Two instances store the same updates in another order: it is no reason to stop all dispatch for a second."""
    arrivals = Arrivals([], lambda new: None, asyncio.get_running_loop().create_future())
    with pytest.raises(ArrivalsRefused, match="40P01"):
        await Inbox(Deadlocked(), 1).exchange("term", [], None, arrivals)
    with pytest.raises(DatabaseAway, match="40P01"):
        await Inbox(Deadlocked(), 1).exchange("term", [], None)
