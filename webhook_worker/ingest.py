"""From accepted request to committed row: group commit.

    store() ──► buffer ──► one flusher: INSERT of all that waits ──► commit ──► every store() of the batch is done
    store() ──►   │                        │
                  └── fills meanwhile ◄────┘   the next flush begins when the last one ends; under load, when those whom it
                                               answered have had a moment to send what comes next

A lone update is committed at once, but in the moment after a large flush; under load batches grow. The order in which requests
came is the order of `seq`.

`store` gives a future, `take` is told: the same without one. Where this process dispatches and has nothing else to do, its
dispatcher stores what comes along with the claim (dispatch.py, store_along), and the flusher only waits for that.

No store() is done without a commit. What cannot be stored now is refused now (NotStored, a 503 with Retry-After: 2): the buffer
is bounded, nothing is queued while the database is away, and a flush that takes longer than its limit is given up. What was
refused may have been stored all the same; Telegram sends it again, and the unique key tells.

Not promised: anything about a row after its commit; see dispatch.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import psycopg

from shared import log
from shared.database import DatabaseAway, describe
from shared.errors import SupervisorError

_FLUSH_LIMIT_SECONDS = 10.0  # far below the 60 s that Telegram waits (TELEGRAM.md, "failure")
# Whoever asks whether an update would be stored hears of a database that is silent, although nobody writes.
_IDLE_PROBE_SECONDS = 2.0
_PROBE_LIMIT_SECONDS = 5.0
_FAULT_PROBE_SECONDS = 1.0
# At the first start of all, until the supervisor has made the tables.
_TABLES_SECONDS = 0.1
_TABLES_LIMIT_SECONDS = 5.0
_BATCH_ROWS = 1000
# Load is when so many are answered or wait; and up to some 40 rows, what a flush costs is mostly the flush.
_GATHER_FROM_ROWS = 8
_GATHER_ROWS = 40
_GATHER_SECONDS = 0.003  # nobody sees them
_ALONG_SECONDS = 1.0
_BATCH_BYTES = 8 * 1024 * 1024
# Telegram has at most 100 updates under way for a bot (TELEGRAM.md, "parallel connections"); several routers may repeat them.
_BUFFER_ROWS = 5000
_BUFFER_BYTES = 32 * 1024 * 1024  # beside the bot in 512 MB

_NO_TABLES = "the tables are not made yet"

_TAG = "WEBHOOK"
_log = log.get_logger(_TAG)


StoreAlong = Callable[[Sequence["Row"], Callable[[list[int]], None]], asyncio.Future[bool] | None]
"""`Dispatcher.store_along`."""

Tell = Callable[[str | None], None]
"""Is told what became of an update: None, it is committed; else why it is not known to be."""


class NotStored(SupervisorError):
    """The update is not known to be stored; answer 503 with Retry-After. `reason` is one line for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BufferFull(NotStored):
    """More requests wait than we can hold."""


@dataclass(slots=True, eq=False)
class Row:
    """An update that waits to be committed.

    Attributes:
        tell: called once, when it is decided.
        is_settled: what it will be told is decided.
    """

    update_id: int
    lane: int | None
    body: bytes
    tell: Tell
    is_settled: bool = False


class Writer(Protocol):
    """What an Ingest needs of the database: `inbox_writer.InboxWriter`."""

    @property
    def connected(self) -> bool:
        """Whether there is a session, as far as is known."""
        ...

    @property
    def reason(self) -> str | None:
        """Why there is none, in one line without secrets."""
        ...

    async def wait_connected(self) -> None:
        """Returns when there is a session."""
        ...

    async def insert(self, rows: Sequence[Row], *, notify: bool, limit_seconds: float) -> list[int]:
        """See InboxWriter.insert."""
        ...


class Ingest:
    """The buffer and its flusher; `run()` must run for `store()` to be done."""

    def __init__(
        self,
        writer: Writer,
        *,
        dispatches_here: Callable[[], bool],
        wake: Callable[[], None],
        store_along: StoreAlong = lambda rows, on_stored: None,
        tells_of_tables: bool = True,
        buffer_rows: int = _BUFFER_ROWS,
        buffer_bytes: int = _BUFFER_BYTES,
        flush_limit_seconds: float = _FLUSH_LIMIT_SECONDS,
    ) -> None:
        """Does nothing yet.

        Args:
            writer: on a session that is nobody else's where DB_POOL_SIZE allows it.
            dispatches_here: whether this process dispatches; if not, the owner is notified through the database.
            wake: tells the dispatcher in this process that there is new work.
            store_along: has the dispatcher store and claim rows in one; None: it is not idle.
            tells_of_tables: whether the log hears that they are not made yet; False: it hears it from another of this process.
            buffer_rows: how many updates may wait to be stored, those of the flush under way among them.
            buffer_bytes: of how many bytes together.
            flush_limit_seconds: how long a flush may take; then its updates are answered 503.
        """
        self._writer = writer
        self._dispatches_here = dispatches_here
        self._wake = wake
        self._store_along = store_along
        self._tells_of_tables = tells_of_tables
        self._buffer_rows = buffer_rows
        self._buffer_bytes = buffer_bytes
        self._flush_limit_seconds = flush_limit_seconds
        self._waiting: list[Row] = []
        self._held_rows = 0  # waiting, or in the flush under way
        self._held_bytes = 0
        self._has_ended = False
        self._began_at = float("-inf")
        self._work = asyncio.Event()  # as many wait as are waited for
        self._wanted = 1
        self._gathers = 1
        self._gathers_until = 0.0
        self._fault: str | None = "no statement has succeeded yet"
        self._tried = asyncio.Event()
        self._unstored: Row | None = None  # found no room, and nothing has been stored since

    @property
    def fault(self) -> str | None:
        """Why an update sent now would not be stored, in one line without secrets; None when it would."""
        if not self._writer.connected:
            return f"database away: {self._writer.reason}"
        if self._is_full(1):
            return "the buffer is full"
        return self._fault

    async def wait_tried(self, limit_seconds: float) -> None:
        """Returns when the first statement has come to something, good or bad, or the limit is over; at once without a session.

        Tables that are not made yet are nothing: they come within moments.
        """
        if not self._writer.connected:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                await self._tried.wait()

    @property
    def unstored_count(self) -> int:
        """How many updates wait to be stored, those of the flush under way among them."""
        return self._held_rows

    def store(self, update_id: int, lane: int | None, body: bytes) -> asyncio.Future[None]:
        """Done when the update is committed, by us or by whoever stored it before; fails with NotStored.

        Raises:
            NotStored: it will not even be tried.
        """
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.take(update_id, lane, body, functools.partial(_end, stored))
        return stored

    def take(self, update_id: int, lane: int | None, body: bytes, tell: Tell) -> None:
        """The same for who waits for nothing: `tell` is called when it has come to an end; never before this returns.

        Raises:
            NotStored: it will not even be tried, and nobody is told.
        """
        if not self._writer.connected:
            raise NotStored(f"database away: {self._writer.reason}")
        if self._has_ended:
            raise NotStored("the worker ends")
        if self._is_full(len(body)):
            raise BufferFull(f"{self._held_rows} updates of {self._held_bytes} bytes wait to be stored")
        self._waiting.append(Row(update_id, lane, body, tell))
        self._held_rows += 1
        self._held_bytes += len(body)
        if len(self._waiting) >= self._wanted or self._is_full(len(body)):
            self._work.set()

    def _is_full(self, more_bytes: int) -> bool:
        return self._held_rows >= self._buffer_rows or self._held_bytes + more_bytes > self._buffer_bytes

    async def run(self) -> NoReturn:
        """Flushes, until it is cancelled. Finds out from time to time whether it would work, every second where it did not."""
        self._began_at = asyncio.get_running_loop().time()
        try:
            if self._writer.connected:
                await self._probe()
            while True:
                if not self._waiting:
                    await self._wait_for_work()
                await self._gather()
                if batch := self._take():
                    await self._flush(batch)
                else:
                    await self._probe()
                self._expect(len(batch))
        finally:
            self._has_ended = True
            self._release(self._waiting, "the worker ends")

    def _expect(self, answered: int) -> None:
        """Whoever has been answered is expected back: Telegram sends the next one then."""
        rows = answered + len(self._waiting)
        gathers = rows >= _GATHER_FROM_ROWS and self._fault is None
        self._gathers = min(rows, _GATHER_ROWS) if gathers else 1
        self._gathers_until = asyncio.get_running_loop().time() + _GATHER_SECONDS

    async def _gather(self) -> None:
        """Waits until as many wait as are expected, or the moment for it is over: long since, where there was nothing to do."""
        is_due = len(self._waiting) >= self._gathers or self._is_full(1)
        if is_due or self._gathers_until <= asyncio.get_running_loop().time():
            return
        self._wanted = self._gathers
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._gathers_until):
                await self._work.wait()
        self._wanted = 1

    async def _wait_for_work(self) -> None:
        self._work.clear()
        if self._fault is None:
            seconds = _IDLE_PROBE_SECONDS
        else:
            seconds = _TABLES_SECONDS if self._fault == _NO_TABLES else _FAULT_PROBE_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await (self._work.wait() if self._writer.connected else self._writer.wait_connected())

    def _take(self) -> list[Row]:
        size = 0
        count = 0
        for row in self._waiting[:_BATCH_ROWS]:
            size += len(row.body)
            if count and size > _BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _probe(self) -> None:
        """Finds out whether an update would be stored: by none, or by the one that found no room, as none goes well on a full
        disk. That one was refused, and comes again; stored by then, it is there already."""
        if not self._writer.connected:
            return
        end = asyncio.get_running_loop().time() + min(_PROBE_LIMIT_SECONDS, self._flush_limit_seconds)
        if await self._store([] if self._unstored is None else [self._unstored], end) is not None:
            self._unstored = None  # refused for what is in it

    async def _flush(self, batch: Sequence[Row]) -> None:
        """Stores a batch."""
        end = asyncio.get_running_loop().time() + self._flush_limit_seconds
        try:
            refusal = await self._store(batch, end)
            if refusal is None:
                return
            # One row must not keep the others from being stored for ever, and the database does not say which it was.
            for row in batch:
                refusal = await self._store([row], end)
                if refusal is not None:
                    _log.error("the database refuses an update", update_id=row.update_id, reason=refusal)
                    self._settle([row], refusal)
        finally:
            self._release(batch, "the worker ends")

    async def _store(self, batch: Sequence[Row], end: float) -> str | None:
        """Settles the batch, in one statement; or returns why the database refuses what is in it."""
        if await self._is_stored_along(batch):
            return None
        left_seconds = end - asyncio.get_running_loop().time()
        try:
            if left_seconds <= 0:
                raise DatabaseAway(f"no answer within {self._flush_limit_seconds:g} s")
            new = await self._insert(batch, left_seconds)
        except (psycopg.DataError, psycopg.IntegrityError) as exc:
            return describe(exc)
        except (DatabaseAway, psycopg.Error) as exc:
            away = isinstance(exc, DatabaseAway)
            if isinstance(exc, psycopg.errors.UndefinedTable) and self._is_new():
                self._note_no_tables()
            else:
                self._note_fault(f"database away: {exc}" if away else describe(exc))
            if batch and isinstance(exc, psycopg.errors.DiskFull):
                first = batch[0]
                self._unstored = Row(first.update_id, first.lane, first.body, _tell_nobody, is_settled=True)
            self._settle(batch, self._fault)
            if away:
                waiting, self._waiting = self._waiting, []
                self._release(waiting, self._fault)
            return None
        self._note_stored()
        self._settle(batch, None)
        if new and self._dispatches_here():
            self._wake()
        log.info_each(_TAG, "received", "update_id", new)
        return None

    async def _insert(self, batch: Sequence[Row], limit_seconds: float) -> list[int]:
        end = asyncio.get_running_loop().time() + limit_seconds
        notify = not self._dispatches_here()
        try:
            return await self._writer.insert(batch, notify=notify, limit_seconds=limit_seconds)
        except psycopg.errors.DeadlockDetected:
            # Another instance was given the same updates in another order, and has stored them by now.
            left_seconds = max(0.0, end - asyncio.get_running_loop().time())
            return await self._writer.insert(batch, notify=notify, limit_seconds=left_seconds)

    async def _is_stored_along(self, batch: Sequence[Row]) -> bool:
        """Whether the dispatcher has stored the batch, and its senders are told; if not, that may still come."""
        if not batch:
            return False
        along = self._store_along(batch, functools.partial(self._note_stored_along, batch))
        if along is None:
            return False
        # A session that hangs is not waited for: stored twice is stored once.
        await asyncio.wait({along}, timeout=_ALONG_SECONDS)
        return along.done() and along.result()

    def _note_stored_along(self, batch: Sequence[Row], new: Sequence[int]) -> None:
        self._note_stored()
        _tell_all(self._decide(batch), None)
        log.info_each(_TAG, "received", "update_id", new)

    def _is_new(self) -> bool:
        return asyncio.get_running_loop().time() - self._began_at < _TABLES_LIMIT_SECONDS

    def _note_no_tables(self) -> None:
        """At the first start of all a worker may be quicker than its supervisor, who makes them: nothing to warn of."""
        if self._tells_of_tables and self._fault != _NO_TABLES:
            _log.info("updates are answered 503 until the tables are made")
        self._fault = _NO_TABLES

    def _note_fault(self, fault: str) -> None:
        if fault != self._fault:
            _log.warning("updates are answered 503", reason=fault)
        self._fault = fault
        self._tried.set()

    def _note_stored(self) -> None:
        self._fault = self._unstored = None
        self._tried.set()

    def _settle(self, rows: Sequence[Row], reason: str | None) -> None:
        """Decides what those are told who have not been told yet, and tells them soon."""
        if told := self._decide(rows):
            # In the round after the next: the next flush is sent first, by a task (link.py), for the database to work on.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, _tell_all, told, reason)

    def _decide(self, rows: Sequence[Row]) -> list[Row]:
        undecided = [row for row in rows if not row.is_settled]
        for row in undecided:
            row.is_settled = True
        return undecided

    def _release(self, rows: Sequence[Row], reason: str | None) -> None:
        """They are out of the buffer; whoever of them has no answer yet gets this one."""
        self._settle(rows, reason)
        self._held_rows -= len(rows)
        self._held_bytes -= sum(len(row.body) for row in rows)


def _tell_nobody(reason: str | None) -> None:
    pass


def _tell_all(rows: Sequence[Row], reason: str | None) -> None:
    for row in rows:
        try:
            row.tell(reason)
        except Exception:  # noqa: BLE001 - a bug of ours; see below
            # Not raised, not even when the others are told: in a callback of the loop it would end nothing, and in the
            # dispatcher's exchange (_note_stored_along) it would cost what was claimed with it. The end of the worker would
            # cost whoever else waits its answer, for one whose client sends again what is stored.
            _log.exception("cannot tell what became of an update", update_id=row.update_id)


def _end(stored: asyncio.Future[None], reason: str | None) -> None:
    # Whoever waited may have been cancelled meanwhile.
    if stored.done():
        return
    if reason is None:
        stored.set_result(None)
    else:
        stored.set_exception(NotStored(reason))
        stored.exception()  # seen, also where nobody waits any more
