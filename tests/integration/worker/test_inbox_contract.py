"""The inbox in Postgres keeps the same contract as the model that the dispatcher's tests rely on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.integration.worker.inbox_world import PostgresWorld, postgres_world
from tests.unit.worker.inbox_contract import InboxContract


@pytest_asyncio.fixture
async def world(database_url: str) -> AsyncIterator[PostgresWorld]:
    """An empty inbox under a term."""
    async with postgres_world(database_url) as made:
        yield made


class TestPostgresInbox(InboxContract):
    """The contract, on Postgres."""
