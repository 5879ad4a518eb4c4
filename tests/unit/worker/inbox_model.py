"""The inbox in memory: what inbox_contract.py says of the one in Postgres is true of this one too.

It takes the same decisions by the plainest means: a list of rows, looked through from the begin. Faults can be put in: the
database is away, an answer is lost after the commit, a statement that was given up is executed later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from shared.database import DatabaseAway
from shared.wire import InboxDepth
from webhook_worker import inbox_statements as sql
from webhook_worker.inbox import KEY_DAYS, Batch, ClaimRequest, Inbox, Superseded
from webhook_worker.lanes import Claimed, Settlement, State, Suspect

T = TypeVar("T")

DAY_SECONDS = 86_400.0


@dataclass
class Row:
    """One row of the inbox; times on the model's clock."""

    seq: int
    update_id: int
    lane: int | None
    body: bytes | None
    received_at: float
    keyed: bool = True
    state: State = State.PENDING
    attempts: int = 0
    starts: int = 0
    term: str | None = None
    retry_at: float | None = None
    retry_told: bool = False
    retries: int = 0
    finished_at: float | None = None
    error: str | None = None

    @property
    def lane_key(self) -> int:
        return self.lane if self.lane is not None else 2**62 + self.seq


@dataclass(frozen=True)
class Commit:
    """A settlement that was committed."""

    term: str
    update_id: int
    state: State
    at: float


@dataclass
class Store:
    """The database: what all models of one bot share."""

    clock: Callable[[], float]
    term: str | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    last_seq: int = 0

    def reserve(self) -> int:
        """The seq of a row that is inserted now and committed later."""
        self.last_seq += 1
        return self.last_seq

    def insert(
        self, update_id: int, lane: int | None, body: bytes = b"{}", *, seq: int | None = None
    ) -> int | None:
        """Stores an update; None when its key is there."""
        if any(row.keyed and row.update_id == update_id for row in self.rows.values()):
            return None
        seq = seq or self.reserve()
        self.rows[seq] = Row(seq, update_id, lane, body, self.clock())
        return seq

    def heads(self) -> list[Row]:
        """The head of every lane that has one."""
        blocked = {row.lane_key for row in self.rows.values() if row.state is State.CLAIMED}
        lowest: dict[int, Row] = {}
        for row in sorted(self.rows.values(), key=lambda row: row.seq):
            if row.state is State.PENDING and row.lane_key not in blocked:
                lowest.setdefault(row.lane_key, row)
        return list(lowest.values())

    def is_due(self, row: Row) -> bool:
        return row.retry_at is None or row.retry_at <= self.clock()


class ModelInbox(Inbox):
    """A connection to the store, with faults.

    Attributes:
        away: statements fail, and do nothing.
        cut: its process is dead: nothing it sends is executed.
        lose_answers: so many of the next statements are executed, and then fail.
        ghosts: so many of the next statements fail, and are executed some seconds later.
        delay_seconds: how long a statement takes; one that takes longer than its limit fails, and is executed all the same.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._limit: Callable[[], float] = lambda: 5.0
        self.away = False
        self.cut = False
        self.lose_answers = 0
        self.ghosts = 0
        self.ghost_seconds: Callable[[], float] = lambda: 2.0
        self.delay_seconds: Callable[[], float] = lambda: 0.001
        self.calls: list[str] = []

    def limited(self, limit: Callable[[], float]) -> Inbox:
        self._limit = limit
        return self

    async def exchange(
        self, term: str, settlements: Sequence[Settlement], request: ClaimRequest | None
    ) -> Batch | None:
        def act() -> Batch | None:
            self._check(term)
            for settlement in settlements:
                self._settle(term, settlement)
            return None if request is None else self._claim(term, request)

        return await self._call("exchange" if request is None or request.free else "adopt", act)

    async def peek(self, term: str, known: Sequence[int]) -> bool:
        def act() -> bool:
            self._check(term)
            return any(
                row.state is State.PENDING
                or (row.state is State.CLAIMED and (row.term != term or row.seq not in known))
                for row in self._store.rows.values()
            )

        return await self._call("peek", act)

    async def suspects(self, term: str) -> tuple[Suspect, ...]:
        def act() -> tuple[Suspect, ...]:
            heads = {row.seq for row in self._store.heads()}
            return tuple(
                Suspect(row.seq, row.attempts)
                for row in self._store.rows.values()
                if (row.state is State.CLAIMED and row.term != term)
                or (row.seq in heads and row.attempts > 0 and self._store.is_due(row))
            )

        return await self._call("suspects", act)

    async def claim_suspect(self, term: str, seq: int) -> Claimed | None:
        def act() -> Claimed | None:
            self._check(term)
            row = self._store.rows[seq]
            return self._start(row, term) if self._is_suspect(row, term) else None

        return await self._call("claim_suspect", act)

    async def bury(self, term: str, seqs: Sequence[int], error: str) -> tuple[int, ...]:
        def act() -> tuple[int, ...]:
            self._check(term)
            rows = [self._store.rows[seq] for seq in seqs if self._is_suspect(self._store.rows[seq], term)]
            for row in rows:
                row.state, row.finished_at, row.retry_at = State.DEAD, self._store.clock(), None
                row.error = error if row.error is None else f"{error}\n{row.error}"
            return tuple(row.update_id for row in rows)

        return await self._call("bury", act)

    async def condemn(self, term: str, claimed: Claimed, max_attempts: int, error: str) -> None:
        def act() -> None:
            self._check(term)
            row = self._store.rows[claimed.seq]
            if row.state is State.CLAIMED and row.term == term and row.starts == claimed.starts:
                row.attempts, row.error = max(row.attempts, max_attempts), error

        await self._call("condemn", act)

    async def depth(self) -> InboxDepth:
        def act() -> InboxDepth:
            rows = self._store.rows.values()
            pending = [row for row in rows if row.state is State.PENDING]
            oldest = min((row.received_at for row in pending), default=self._store.clock())
            return InboxDepth(
                pending=len(pending),
                in_flight=sum(row.state is State.CLAIMED for row in rows),
                dead=sum(row.state is State.DEAD for row in rows),
                oldest_pending_seconds=self._store.clock() - oldest,
            )

        return await self._call("depth", act)

    async def purge(self, dead_letter_days: int) -> bool:
        def act() -> bool:
            for row in list(self._store.rows.values()):
                days = (self._store.clock() - (row.finished_at or self._store.clock())) / DAY_SECONDS
                if days > (KEY_DAYS if row.state is State.DONE else dead_letter_days):
                    del self._store.rows[row.seq]
                elif row.state is State.DEAD and days > KEY_DAYS:
                    row.keyed = False
            return False

        return await self._call("purge", act)

    async def _call(self, name: str, act: Callable[[], T]) -> T:
        self.calls.append(name)
        limit = self._limit()
        before, after = self.delay_seconds() / 2, self.delay_seconds() / 2
        if before + after > limit:
            # As a Link: given up at the limit; the server may still be at it.
            await asyncio.sleep(limit)
            if not self.away:
                asyncio.get_running_loop().call_later(before + after - limit, _haunt, act)
            raise DatabaseAway("the model took too long")
        await asyncio.sleep(before)
        if self.away or self.cut:
            raise DatabaseAway("the model is away")
        if self.ghosts:
            self.ghosts -= 1
            asyncio.get_running_loop().call_later(self.ghost_seconds(), _haunt, act)
            raise DatabaseAway("the model executes it later")
        result = act()
        await asyncio.sleep(after)
        if self.lose_answers or self.cut:
            self.lose_answers = max(0, self.lose_answers - 1)
            raise DatabaseAway("the model lost the answer")
        return result

    def _check(self, term: str) -> None:
        if self._store.term != term:
            raise Superseded(term)

    def _is_suspect(self, row: Row, term: str) -> bool:
        foreign = row.state is State.CLAIMED and row.term != term
        return foreign or (row.state is State.PENDING and row.attempts > 0)

    def _settle(self, term: str, settlement: Settlement) -> None:
        row, verdict, now = self._store.rows[settlement.seq], settlement.verdict, self._store.clock()
        if row.state is not State.CLAIMED or row.term != term or row.starts != settlement.starts:
            return
        row.state = verdict.state
        row.body = None if verdict.state is State.DONE else row.body
        row.attempts = max(0, row.attempts - verdict.refund)
        row.term = None if verdict.state is State.PENDING else row.term
        row.retry_at = None if verdict.retry_seconds is None else now + verdict.retry_seconds
        row.retry_told = verdict.is_told
        row.retries += verdict.is_retry
        row.finished_at = now if verdict.state in (State.DONE, State.DEAD) else None
        row.error = verdict.error or row.error
        self._store.commits.append(Commit(term, row.update_id, row.state, now))

    def _start(self, row: Row, term: str, *, is_ahead: bool = False) -> Claimed:
        row.state, row.term = State.CLAIMED, term
        row.attempts, row.starts = row.attempts + 1, row.starts + 1
        row.retry_at, row.retry_told = None, False
        return replace(self._claimed(row), is_ahead=is_ahead)

    def _claimed(self, row: Row) -> Claimed:
        assert row.body is not None
        age_seconds = self._store.clock() - row.received_at
        return Claimed(
            row.seq,
            row.starts,
            row.update_id,
            row.lane_key,
            row.body,
            row.attempts,
            row.retries,
            age_seconds,
            is_ahead=False,
        )

    def _claim(self, term: str, request: ClaimRequest) -> Batch:
        rows = list(self._store.rows.values())
        unknown = [
            self._claimed(row)
            for row in rows
            if row.state is State.CLAIMED and row.term == term and row.seq not in request.known
        ]
        heads = [row for row in self._store.heads() if row.attempts == 0]
        ready = [row for row in heads if self._store.is_due(row)]
        # In turn: the lanes from where the last claim stopped.
        ready.sort(key=lambda row: (row.lane_key <= request.sweep.after_lane, row.lane_key))
        newest = sorted(row.seq for row in rows if row.state is State.PENDING)[-sql.FRESH_ROWS :]
        if request.sweep.turn == 0:
            ready.sort(key=lambda row: row.seq not in newest)
        chosen = ready[: request.free]
        waiting = sorted(
            (row for row in heads if not self._store.is_due(row) and not row.retry_told),
            key=lambda row: row.retry_at or 0.0,
        )
        ahead = waiting[: min(request.ahead, request.free - len(chosen))]
        claimed = [self._start(row, term) for row in chosen]
        claimed += [self._start(row, term, is_ahead=True) for row in ahead]
        retries = [
            row.retry_at - self._store.clock()
            for row in rows
            if row.state is State.PENDING and row.retry_at is not None and not self._store.is_due(row)
        ]
        return Batch(
            claimed=tuple(sorted([*claimed, *unknown], key=lambda one: one.seq)),
            sweep=request.sweep.next(chosen[-1].lane_key if chosen else request.sweep.after_lane),
            is_complete=len(chosen) < request.free,
            next_retry_seconds=min(retries, default=None),
            has_suspects=any(
                (row.state is State.CLAIMED and row.term != term)
                or (row.state is State.PENDING and row.attempts > 0 and self._store.is_due(row))
                for row in rows
            ),
        )


def _haunt(act: Callable[[], object]) -> None:
    with contextlib.suppress(Superseded):
        act()
