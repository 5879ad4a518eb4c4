"""What an owner that is cut off or frozen may leave half sent at the server must end by itself."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from webhook_worker.inbox import in_one_transaction


class RecordingConnection:
    """A connection to a server of that version, which says what it was asked for."""

    def __init__(self, server_version: int) -> None:
        self.info = SimpleNamespace(server_version=server_version)

    def pipeline(self) -> AbstractAsyncContextManager[str]:
        return nullcontext("pipeline")

    def transaction(self) -> AbstractAsyncContextManager[str]:
        return nullcontext("transaction")


@pytest.mark.parametrize(
    ("server_version", "way"),
    [(140000, "transaction"), (160014, "transaction"), (170000, "pipeline"), (180004, "pipeline")],
)
async def test_b08_a_pipeline_is_sent_only_to_a_server_that_bounds_transactions(
    server_version: int, way: str
) -> None:
    """Without transaction_timeout, half a pipeline would keep the term's row, and nobody could begin a term any more."""
    connection: Any = RecordingConnection(server_version)
    async with in_one_transaction(connection) as opened:
        assert opened == way
