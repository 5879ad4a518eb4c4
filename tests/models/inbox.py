"""The inbox in memory: what inbox_contract.py says of the one in Postgres is true of this one too.

`Store` is the table and what each statement does to it, at one moment. `ModelInbox` is a connection to it that takes time and
has faults: the database is away, an answer is lost after the commit, a statement that was given up is executed later.

Not modelled: two statements at one time. Each is a transaction at the moment of its commit; only the `seq` of an insert is
drawn earlier (`reserve`), as in Postgres.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from msgspec.structs import replace

from shared.database import DatabaseAway
from shared.wire import InboxDepth
from webhook_worker import inbox_statements as sql
from webhook_worker.claim_plan import Batch, ClaimRequest
from webhook_worker.inbox import KEY_DAYS, Arrivals, Inbox, Superseded
from webhook_worker.lanes import Claimed, Settlement, State, Suspect

T = TypeVar("T")

Exchanged = tuple[list[int], Batch | Superseded | None]
"""The update_ids that were new, and what Inbox.exchange returns or raises."""

DAY_SECONDS = 86_400.0
FINISHED = (State.DONE, State.DEAD)


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
    claimed_at: float | None = None
    retry_told: bool = False
    retries: int = 0
    finished_at: float | None = None
    error: str | None = None

    @property
    def lane_key(self) -> int:
        return self.lane if self.lane is not None else 2**62 + self.seq


@dataclass(frozen=True)
class Commit:
    """A change of a row's state that was committed: a claim, a settlement, or a burial.

    Attributes:
        term: under which it was made.
        present_term: which was the present one at that moment; the fence makes them the same.
    """

    term: str
    update_id: int
    state: State
    at: float
    present_term: str | None = None


class Store:
    """The database: what all connections of one bot share."""

    def __init__(self, clock: Callable[[], float], term: str | None = None) -> None:
        """Empty; `term` is the present one."""
        self.clock = clock
        self.term = term
        self.on_commit: Callable[[Commit], object] = lambda _: None
        self.rows: dict[int, Row] = {}
        self.commits: list[Commit] = []  # without the claims
        self.last_seq = 0
        self._keys: dict[int, int] = {}
        self._lanes: dict[int, list[int]] = {}  # seqs of pending rows, in their order
        self._claimed: dict[int, Row] = {}
        self._claimed_lanes: Counter[int] = Counter()

    # ------------------------------------------------------------------------------------------------------ statements

    def reserve(self) -> int:
        """The seq of a row that is inserted now and committed later."""
        self.last_seq += 1
        return self.last_seq

    def insert(
        self, update_id: int, lane: int | None, body: bytes = b"{}", *, seq: int | None = None
    ) -> int | None:
        """Stores an update; None when its key is there."""
        if self.has_key(update_id):
            return None
        row = Row(seq or self.reserve(), update_id, lane, body, self.clock())
        self.rows[row.seq] = row
        self._keys[update_id] = row.seq
        self._index(row)
        return row.seq

    def exchange(
        self, term: str, settlements: Sequence[Settlement], request: ClaimRequest | None
    ) -> Batch | None:
        """Inbox.exchange."""
        if settlements or request is None:
            self.fence_settlement(term)
        if request is not None:
            self.fence_claim(term)
        for settlement in settlements:
            self._settle(term, settlement)
        return None if request is None else self._claim(term, request)

    def exchange_all(
        self,
        term: str,
        settlements: Sequence[Settlement],
        request: ClaimRequest | None,
        arrivals: Arrivals | None,
    ) -> Exchanged:
        """Inbox.exchange, as the server carries it out; see `tell` for its answer."""
        new = [
            row.update_id
            for row in (() if arrivals is None else arrivals.rows)
            if self.insert(row.update_id, row.lane, row.body) is not None
        ]
        try:
            return new, self.exchange(term, settlements, request)
        except Superseded as superseded:
            return new, superseded

    def peek(self, term: str, known: Sequence[int]) -> bool:
        """Inbox.peek."""
        self.fence_claim(term)
        return bool(self._lanes) or any(
            row.term != term or row.seq not in known for row in self._claimed.values()
        )

    def suspects(self, term: str) -> tuple[Suspect, ...]:
        """Inbox.suspects."""
        foreign = [row for row in self._claimed.values() if row.term != term]
        heads = [row for row in self.heads() if row.attempts > 0 and self._is_due(row)]
        return tuple(Suspect(row.seq, row.attempts) for row in (*foreign, *heads))

    def claim_suspect(self, term: str, seq: int) -> Claimed | None:
        """Inbox.claim_suspect."""
        self.fence_claim(term)
        row = self.rows.get(seq)
        return self._start(row, term) if row is not None and self._is_suspect(row, term) else None

    def bury(self, term: str, seqs: Sequence[int], error: str) -> tuple[int, ...]:
        """Inbox.bury."""
        self.fence_settlement(term)
        found = [self.rows[seq] for seq in seqs if seq in self.rows]
        rows = [row for row in found if self._is_suspect(row, term)]
        for row in rows:
            row.retry_at = None
            row.error = error if row.error is None else f"{error}\n{row.error}"
            self._finish(row, State.DEAD, term)
        return tuple(row.update_id for row in rows)

    def condemn(self, term: str, claimed: Claimed, max_attempts: int, error: str) -> None:
        """Inbox.condemn."""
        self.fence_settlement(term)
        row = self.rows.get(claimed.seq)
        if row is None:
            return
        if row.state is State.CLAIMED and row.term == term and row.starts == claimed.starts:
            row.attempts, row.error = max(row.attempts, max_attempts), error

    def depth(self) -> InboxDepth:
        """Inbox.depth."""
        oldest = min((self.rows[seqs[0]].received_at for seqs in self._lanes.values()), default=self.clock())
        return InboxDepth(
            pending=sum(map(len, self._lanes.values())),
            in_flight=len(self._claimed),
            dead=sum(row.state is State.DEAD for row in self.rows.values()),
            oldest_pending_seconds=self.clock() - oldest,
        )

    def purge(self, dead_letter_days: int) -> bool:
        """Inbox.purge, all at once."""
        for row in list(self.rows.values()):
            days = (self.clock() - (row.finished_at or self.clock())) / DAY_SECONDS
            if days > (KEY_DAYS if row.state is State.DONE else dead_letter_days):
                del self.rows[row.seq]
                self._unkey(row)
            elif row.state is State.DEAD and days > KEY_DAYS:
                row.keyed = False
                self._unkey(row)
        return False

    # ------------------------------------------------------------------------------------- safeties, each by itself

    def fence_claim(self, term: str) -> None:
        """A claim reads the term's row.

        Raises:
            Superseded: it is another's.
        """
        if self.term != term:
            raise Superseded(term)

    def fence_settlement(self, term: str) -> None:
        """A completion reads the term's row.

        Raises:
            Superseded: it is another's.
        """
        if self.term != term:
            raise Superseded(term)

    def has_key(self, update_id: int) -> bool:
        """Whether the unique key is there already."""
        return update_id in self._keys

    def heads(self) -> list[Row]:
        """The head of every lane that has one."""
        return [
            self.rows[seqs[0]] for lane_key, seqs in self._lanes.items() if not self._claimed_lanes[lane_key]
        ]

    def count_start(self, row: Row) -> None:
        """A start is counted in the commit that makes it possible."""
        row.attempts += 1

    # -------------------------------------------------------------------------------------------------------- the table

    def _index(self, row: Row) -> None:
        if row.state is State.PENDING:
            bisect.insort(self._lanes.setdefault(row.lane_key, []), row.seq)
        elif row.state is State.CLAIMED:
            self._claimed[row.seq] = row
            self._claimed_lanes[row.lane_key] += 1

    def _move(self, row: Row, state: State) -> None:
        if row.state is State.PENDING:
            seqs = self._lanes[row.lane_key]
            seqs.remove(row.seq)
            if not seqs:
                del self._lanes[row.lane_key]
        elif row.state is State.CLAIMED:
            del self._claimed[row.seq]
            self._claimed_lanes[row.lane_key] -= 1
        row.state = state
        self._index(row)

    def _note(self, row: Row, term: str) -> None:
        commit = Commit(term, row.update_id, row.state, self.clock(), self.term)
        if row.state is not State.CLAIMED:
            self.commits.append(commit)
        self.on_commit(commit)

    def restore(self, rows: dict[int, Row], last_seq: int, term: str | None) -> None:
        """The table as it was at another time; numbers that were drawn since are drawn again."""
        self.rows, self.last_seq, self.term = rows, last_seq, term
        self._keys = {row.update_id: row.seq for row in rows.values() if row.keyed}
        self._lanes, self._claimed, self._claimed_lanes = {}, {}, Counter()
        for row in rows.values():
            self._index(row)

    def _unkey(self, row: Row) -> None:
        if self._keys.get(row.update_id) == row.seq:
            del self._keys[row.update_id]

    def _finish(self, row: Row, state: State, term: str) -> None:
        self._move(row, state)
        row.finished_at = self.clock() if state in FINISHED else None
        self._note(row, term)

    def _is_due(self, row: Row) -> bool:
        is_set_back = row.claimed_at is not None and row.claimed_at > self.clock()
        return row.retry_at is None or row.retry_at <= self.clock() or is_set_back

    def _is_suspect(self, row: Row, term: str) -> bool:
        foreign = row.state is State.CLAIMED and row.term != term
        return foreign or (row.state is State.PENDING and row.attempts > 0)

    def _settle(self, term: str, settlement: Settlement) -> None:
        row, verdict, now = self.rows.get(settlement.seq), settlement.verdict, self.clock()
        if row is None:
            return  # a failover has forgotten it
        if row.state is not State.CLAIMED or row.term != term or row.starts != settlement.starts:
            return
        row.body = None if verdict.state is State.DONE else row.body
        row.attempts = max(0, row.attempts - verdict.refund)
        row.term = None if verdict.state is State.PENDING else row.term
        row.retry_at = None if verdict.retry_seconds is None else now + verdict.retry_seconds
        row.retry_told = verdict.is_told
        row.retries += verdict.is_retry
        row.error = verdict.error or row.error
        self._finish(row, verdict.state, term)

    def _start(self, row: Row, term: str, *, is_ahead: bool = False) -> Claimed:
        self._move(row, State.CLAIMED)
        self._note(row, term)
        row.term = term
        self.count_start(row)
        row.starts += 1
        row.retry_at, row.retry_told, row.claimed_at = None, False, self.clock()
        return replace(self._as_claimed(row), is_ahead=is_ahead)

    def _as_claimed(self, row: Row) -> Claimed:
        assert row.body is not None
        return Claimed(
            row.seq,
            row.starts,
            row.update_id,
            row.lane_key,
            row.body,
            row.attempts,
            row.retries,
            self.clock() - row.received_at,
            is_ahead=False,
        )

    def _claim(self, term: str, request: ClaimRequest) -> Batch:
        assert min(request.free, request.ahead) >= 0, "LIMIT must not be negative"
        unknown = [
            self._as_claimed(row)
            for row in self._claimed.values()
            if row.term == term and row.seq not in request.known
        ]
        heads = [row for row in self.heads() if row.attempts == 0]
        ready = [row for row in heads if self._is_due(row)]
        # In turn: the lanes from where the last claim stopped.
        ready.sort(key=lambda row: (row.lane_key <= request.sweep.after_lane, row.lane_key))
        pending = [self.rows[seq] for seqs in self._lanes.values() for seq in seqs]
        if request.sweep.turn == 0:
            newest = set(sorted(row.seq for row in pending)[-sql.FRESH_ROWS :])
            ready.sort(key=lambda row: row.seq not in newest)
        chosen = ready[: request.free]
        waiting = sorted(
            (row for row in heads if not self._is_due(row) and not row.retry_told),
            key=lambda row: row.retry_at or 0.0,
        )
        ahead = waiting[: min(request.ahead, request.free - len(chosen))]
        taken = {row.seq for row in (*chosen, *ahead)}
        claimed = [self._start(row, term) for row in chosen]
        claimed += [self._start(row, term, is_ahead=True) for row in ahead]
        retries = [
            row.retry_at - self.clock()
            for row in pending
            if row.retry_at is not None and row.seq not in taken and not self._is_due(row)
        ]
        return Batch(
            claimed=tuple(sorted([*claimed, *unknown], key=lambda one: one.seq)),
            sweep=request.sweep.next(chosen[-1].lane_key if chosen else request.sweep.after_lane),
            is_complete=len(chosen) < request.free,
            next_retry_seconds=min(retries, default=None),
            has_suspects=any(row.term != term for row in self._claimed.values())
            or any(row.attempts > 0 and self._is_due(row) for row in pending if row.seq not in taken),
        )


def tell(exchanged: Exchanged, arrivals: Arrivals | None) -> Batch | None:
    """What Inbox.exchange does with the server's answer."""
    new, outcome = exchanged
    if arrivals is not None:
        arrivals.note_stored(new)
    if isinstance(outcome, Superseded):
        raise outcome
    return outcome


class ModelInbox(Inbox):
    """A connection to the store, with faults.

    Attributes:
        away: statements fail, and do nothing.
        away_for: the same of these calls alone, by their names.
        cut: its process is dead: nothing it sends is executed.
        lose_answers: so many of the next statements are executed, and then fail.
        ghosts: so many of the next statements fail, and are executed some seconds later.
        delay_seconds: how long a statement takes; one that takes longer than its limit fails, and is executed all the same.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._limit: Callable[[], float] = lambda: 5.0
        self.is_one_round_trip = True
        self.away = False
        self.away_for: frozenset[str] = frozenset()
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
        self,
        term: str,
        settlements: Sequence[Settlement],
        request: ClaimRequest | None,
        arrivals: Arrivals | None = None,
    ) -> Batch | None:
        name = "exchange" if request is None or request.free else "adopt"
        return tell(
            await self._call(name, lambda: self._store.exchange_all(term, settlements, request, arrivals)),
            arrivals,
        )

    async def peek(self, term: str, known: Sequence[int]) -> bool:
        return await self._call("peek", lambda: self._store.peek(term, known))

    async def suspects(self, term: str) -> tuple[Suspect, ...]:
        return await self._call("suspects", lambda: self._store.suspects(term))

    async def claim_suspect(self, term: str, seq: int) -> Claimed | None:
        return await self._call("claim_suspect", lambda: self._store.claim_suspect(term, seq))

    async def bury(self, term: str, seqs: Sequence[int], error: str) -> tuple[int, ...]:
        return await self._call("bury", lambda: self._store.bury(term, seqs, error))

    async def condemn(self, term: str, claimed: Claimed, max_attempts: int, error: str) -> None:
        await self._call("condemn", lambda: self._store.condemn(term, claimed, max_attempts, error))

    async def depth(self) -> InboxDepth:
        return await self._call("depth", self._store.depth)

    async def purge(self, dead_letter_days: int) -> bool:
        return await self._call("purge", lambda: self._store.purge(dead_letter_days))

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
        if self.away or self.cut or name in self.away_for:
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


def _haunt(act: Callable[[], object]) -> None:
    with contextlib.suppress(Superseded):
        act()
