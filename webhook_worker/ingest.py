"""From accepted request to committed row: group commit.

    store() ──► buffer ──► one flusher: INSERT of all that waits ──► commit ──► every store() of the batch returns
    store() ──►   │                        │
                  └── fills meanwhile ◄────┘   no timer: the next flush begins when the last one ends

A lone update is committed at once, and under load batches grow by themselves (measured: 3 times the throughput of an INSERT
for each request, and 6 times on a disk with a slow fsync; a second flusher is no better). The order in which requests came is
the order of `seq`.

No store() returns without a commit. What cannot be stored now is refused now (NotStored, a 503 with Retry-After: 2): the buffer
is bounded, nothing is queued while the database is away, and a flush that takes longer than its limit is given up. What was
refused may have been stored all the same; Telegram sends it again, and the unique key tells.

Not promised: anything about a row after its commit; see dispatch.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared import log
from shared.database import DatabaseAway, Link, describe, work_channel
from shared.errors import SupervisorError

_FLUSH_LIMIT_SECONDS = 10.0  # far below the 60 s that Telegram waits (TELEGRAM.md, "failure")
_PROBE_SECONDS = 1.0
_BATCH_ROWS = 1000
_BATCH_BYTES = 8 * 1024 * 1024
# Telegram has at most 100 updates under way for a bot (TELEGRAM.md, "parallel connections"); several routers may repeat them.
_BUFFER_ROWS = 5000
_BUFFER_BYTES = 32 * 1024 * 1024  # beside the bot in 512 MB

_INSERT = """
WITH stored AS (
    INSERT INTO webhook_supervisor.inbox (bot_id, update_id, lane, body)
    SELECT %b, sent.update_id, sent.lane, sent.body
      FROM unnest(%b::bigint[], %b::bigint[], %b::bytea[]) WITH ORDINALITY AS sent (update_id, lane, body, position)
     ORDER BY sent.position
    ON CONFLICT DO NOTHING
    RETURNING update_id
)
SELECT array_agg(update_id){notify} FROM stored
"""
# One notification a flush, and none without news: NOTIFY takes a lock that all commits of the server share.
_STORE = _INSERT.format(notify="").encode()
_STORE_AND_NOTIFY = _INSERT.format(notify=", CASE WHEN count(*) > 0 THEN pg_notify(%b, '') END").encode()

_log = log.get_logger("WEBHOOK")


class NotStored(SupervisorError):
    """The update is not known to be stored; answer 503 with Retry-After. `reason` is one line for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BufferFull(NotStored):
    """More requests wait than we can hold."""


@dataclass(slots=True, eq=False)
class _Row:
    update_id: int
    lane: int | None
    body: bytes
    stored: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, reason: str | None) -> None:
        # Whoever waited may have been cancelled meanwhile.
        if self.stored.done():
            return
        if reason is None:
            self.stored.set_result(None)
        else:
            self.stored.set_exception(NotStored(reason))
            self.stored.exception()  # seen, also where nobody waits any more


class Ingest:
    """The buffer and its flusher; `run()` must run for `store()` to return."""

    def __init__(
        self,
        link: Link,
        bot_id: int,
        *,
        dispatches_here: Callable[[], bool],
        wake: Callable[[], None],
        buffer_rows: int = _BUFFER_ROWS,
        buffer_bytes: int = _BUFFER_BYTES,
        batch_rows: int = _BATCH_ROWS,
        flush_limit_seconds: float = _FLUSH_LIMIT_SECONDS,
    ) -> None:
        """Does nothing yet.

        Args:
            link: nobody else's where DB_POOL_SIZE allows it.
            bot_id: whose inbox.
            dispatches_here: whether this process dispatches; if not, the owner is notified through the database.
            wake: tells the dispatcher in this process that there is new work.
        """
        self._link = link
        self._bot_id = bot_id
        self._dispatches_here = dispatches_here
        self._wake = wake
        self._buffer_rows = buffer_rows
        self._buffer_bytes = buffer_bytes
        self._batch_rows = batch_rows
        self._flush_limit_seconds = flush_limit_seconds
        self._waiting: list[_Row] = []
        self._held_rows = 0  # waiting, or in the flush under way
        self._held_bytes = 0
        self._has_ended = False
        self._work = asyncio.Event()
        self._fault: str | None = "no statement has succeeded yet"

    @property
    def fault(self) -> str | None:
        """Why an update sent now would not be stored, in one line without secrets; None when it would."""
        if not self._link.connected:
            return f"database away: {self._link.reason}"
        if self._is_full(1):
            return "the buffer is full"
        return self._fault

    async def store(self, update_id: int, lane: int | None, body: bytes) -> None:
        """Returns when the update is committed, by us or by whoever stored it before.

        Raises:
            NotStored: it is not known to be.
        """
        if not self._link.connected:
            raise NotStored(f"database away: {self._link.reason}")
        if self._has_ended:
            raise NotStored("the worker ends")
        if self._is_full(len(body)):
            raise BufferFull(f"{self._held_rows} updates of {self._held_bytes} bytes wait to be stored")
        row = _Row(update_id, lane, body)
        self._waiting.append(row)
        self._held_rows += 1
        self._held_bytes += len(body)
        self._work.set()
        await row.stored

    def _is_full(self, more_bytes: int) -> bool:
        return self._held_rows >= self._buffer_rows or self._held_bytes + more_bytes > self._buffer_bytes

    async def run(self) -> NoReturn:
        """Flushes, until it is cancelled. While there is a fault, finds out every second whether it is over."""
        try:
            if self._link.connected:
                await self._flush([])
            while True:
                if not self._waiting:
                    await self._wait_for_work()
                await self._flush(self._take())
        finally:
            self._has_ended = True
            self._release(self._waiting, "the worker ends")

    async def _wait_for_work(self) -> None:
        self._work.clear()
        if self._fault is None:
            await self._work.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PROBE_SECONDS):
                await (self._work.wait() if self._link.connected else self._link.wait_connected())

    def _take(self) -> list[_Row]:
        size = 0
        count = 0
        for row in self._waiting[: self._batch_rows]:
            size += len(row.body)
            if count and size > _BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _flush(self, batch: Sequence[_Row]) -> None:
        """Stores a batch; an empty one only finds out whether it would work."""
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
                    row.settle(refusal)
        finally:
            self._release(batch, "the worker ends")

    async def _store(self, batch: Sequence[_Row], end: float) -> str | None:
        """Settles the batch, in one statement; or returns why the database refuses what is in it."""
        left_seconds = end - asyncio.get_running_loop().time()
        try:
            if left_seconds <= 0:
                raise DatabaseAway(f"no answer within {self._flush_limit_seconds:g} s")
            new = await self._link.run(functools.partial(self._insert, batch), left_seconds)
        except (psycopg.DataError, psycopg.IntegrityError) as exc:
            return describe(exc)
        except (DatabaseAway, psycopg.Error) as exc:
            away = isinstance(exc, DatabaseAway)
            self._note_fault(f"database away: {exc}" if away else describe(exc))
            self._settle(batch, self._fault)
            if away:
                waiting, self._waiting = self._waiting, []
                self._release(waiting, self._fault)
            return None
        self._note_fault(None)
        self._settle(batch, None)
        if new and self._dispatches_here():
            self._wake()
        for update_id in new:
            _log.info("received", update_id=update_id)
        return None

    def _note_fault(self, fault: str | None) -> None:
        if fault != self._fault and fault is not None:
            _log.warning("updates are answered 503", reason=fault)
        self._fault = fault

    def _settle(self, rows: Sequence[_Row], reason: str | None) -> None:
        for row in rows:
            row.settle(reason)

    def _release(self, rows: Sequence[_Row], reason: str | None) -> None:
        """They are out of the buffer; whoever of them has no answer yet gets this one."""
        self._settle(rows, reason)
        self._held_rows -= len(rows)
        self._held_bytes -= sum(len(row.body) for row in rows)

    async def _insert(self, batch: Sequence[_Row], connection: AsyncConnection[TupleRow]) -> list[int]:
        """Ids of those that were not there before; all are, when this returns."""
        parameters: list[object] = [
            self._bot_id,
            [row.update_id for row in batch],
            [row.lane for row in batch],
            [row.body for row in batch],
        ]
        statement = _STORE
        if not self._dispatches_here():
            statement = _STORE_AND_NOTIFY
            parameters.append(work_channel(self._bot_id))
        cursor = connection.cursor(binary=True)
        await cursor.execute(statement, parameters, prepare=True)
        row = await cursor.fetchone()
        return row[0] or [] if row is not None else []
