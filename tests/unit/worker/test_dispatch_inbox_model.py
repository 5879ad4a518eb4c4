"""The model that the dispatcher's tests rely on keeps the contract of the inbox."""

from __future__ import annotations

import copy
import uuid

import pytest

from tests.models.inbox import ModelInbox, Row, Store
from tests.unit.worker.inbox_contract import InboxContract


class _ModelWorld:
    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.term = str(uuid.uuid4())
        self.store = Store(lambda: self.now, term=self.term)
        self.inbox = ModelInbox(self.store)

    async def insert(
        self, update_id: int, lane: int | None, body: bytes = b"{}", *, seq: int | None = None
    ) -> int | None:
        return self.store.insert(update_id, lane, body, seq=seq)

    async def row(self, seq: int) -> Row | None:
        return copy.copy(self.store.rows.get(seq))

    async def begin_term(self, term: str) -> None:
        self.store.term = term

    async def end_term(self) -> None:
        self.store.term = None

    async def age(self, seq: int, seconds: float) -> None:
        row = self.store.rows[seq]
        row.received_at -= seconds
        if row.retry_at is not None:
            row.retry_at -= seconds
        if row.finished_at is not None:
            row.finished_at -= seconds
        if row.claimed_at is not None:
            row.claimed_at -= seconds


@pytest.fixture
def world() -> _ModelWorld:
    """An empty inbox under a term."""
    return _ModelWorld()


class TestModelInbox(InboxContract):
    """The contract, on the model."""
