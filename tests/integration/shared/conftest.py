"""For the tests of sessions and of links."""

from collections.abc import AsyncIterator

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.database import connect


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """A session beside the one under test."""
    async with await connect(database_url, application_name="other") as connection:
        yield connection
