"""What an owner that is cut off or frozen may leave half sent at the server must end by itself."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from tests.integration.worker.inbox_world import OneSession
from webhook_worker.inbox import ClaimRequest, Inbox, Superseded
from webhook_worker.lanes import Sweep


class RecordingConnection:
    """A connection that answers every statement with no row, and counts the pipelines."""

    def __init__(self, server_version: int) -> None:
        self.info = SimpleNamespace(server_version=server_version)
        self.pipelines = 0

    def pipeline(self) -> AbstractAsyncContextManager[None]:
        self.pipelines += 1
        return nullcontext()

    def transaction(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def cursor(self, *, binary: bool) -> RecordingConnection:
        return self

    async def execute(self, *_: object, **__: object) -> RecordingConnection:
        return self

    async def fetchall(self) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("server_version", "pipelines"), [(140000, 0), (160014, 0), (170000, 1), (180004, 1)]
)
async def test_b08_a_pipeline_is_sent_only_to_a_server_that_bounds_transactions(
    server_version: int, pipelines: int
) -> None:
    """Without transaction_timeout, half a pipeline would keep the term's row, and nobody could begin a term any more."""
    connection = RecordingConnection(server_version)
    session: Any = OneSession(connection)  # type: ignore[arg-type]
    with pytest.raises(Superseded):
        await Inbox(session, 1).exchange("a term", [], ClaimRequest(1, Sweep(), []))
    assert connection.pipelines == pipelines
