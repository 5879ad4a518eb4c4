"""The inbox of one bot, as the dispatch uses it: store along, claim, settle, recover, give up, count, forget.

What each statement does stands in inbox_statements.py, what it means in lanes.py.

Not promised: that a statement that failed with DatabaseAway did not happen. Every one of them can be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.database import DatabaseAway, bounds_transactions, describe
from shared.errors import SupervisorError
from shared.wire import InboxDepth
from webhook_worker import inbox_statements as sql
from webhook_worker.claim_plan import Batch, ClaimRequest
from webhook_worker.execution import execute, int_array, store_values
from webhook_worker.ingest import Row
from webhook_worker.lanes import Claimed, Settlement, Suspect

T = TypeVar("T")

STATEMENT_SECONDS = 5.0
"""Limit of every call here, less than the 8 s of a deadline. Measured: milliseconds, with 100,000 rows pending."""

KEY_DAYS: float = 3
"""Days from the end of an update to that of its key: more than the 24 h in which Telegram may send it again, less than the
week after which its update_id may come back with another content (TELEGRAM.md, update_id)."""


class Superseded(SupervisorError):
    """Our term is not the present one any more: nothing was changed. Stop dispatching at once."""

    def __init__(self, term: str) -> None:
        super().__init__(
            f"term {term} is over in the database: another has begun, or this one was ended; its worker must go"
        )


class Session(Protocol):
    """What the inbox needs of `shared.database.Link`."""

    async def run(
        self, fn: Callable[[AsyncConnection[TupleRow]], Coroutine[Any, Any, T]], limit_seconds: float
    ) -> T:
        """See Link.run."""
        ...


@dataclass(slots=True, eq=False)
class Arrivals:
    """New updates that an exchange takes along.

    Attributes:
        rows: in the order that `seq` is to have.
        on_stored: called as soon as they are committed, before anything of them runs: a handler may block the event loop. Is
            given the update_ids of those that were not there before.
        are_stored: in the end; False: it is not known.
    """

    rows: Sequence[Row]
    on_stored: Callable[[list[int]], None]
    are_stored: asyncio.Future[bool]

    def note_stored(self, new: list[int]) -> None:
        """They are committed."""
        self.on_stored(new)
        self.end(are_stored=True)

    def end(self, *, are_stored: bool) -> None:
        """Says whether they are, the first time."""
        if not self.are_stored.done():
            self.are_stored.set_result(are_stored)


class ArrivalsRefused(SupervisorError):
    """The database refuses an exchange that took updates along: nothing was stored, settled or claimed."""


class Inbox:
    """The inbox of one bot."""

    def __init__(
        self, link: Session, bot_id: int, *, limit: Callable[[], float] = lambda: STATEMENT_SECONDS
    ) -> None:
        """Of the bot, by this session; `limit` says, in seconds, how long a call may take that is made now."""
        self._link = link
        self._bot_id = bot_id
        self._limit = limit
        self.is_one_round_trip = False
        """Whether an exchange is one, as the last one found."""

    def limited(self, limit: Callable[[], float]) -> Inbox:
        """The same inbox, for somebody who has less time."""
        return Inbox(self._link, self._bot_id, limit=limit)

    async def exchange(
        self,
        term: str,
        settlements: Sequence[Settlement],
        request: ClaimRequest | None,
        arrivals: Arrivals | None = None,
    ) -> Batch | None:
        """Settles what has ended, stores what has come, and claims what can begin, in one transaction and (from Postgres 17 on)
        one round trip.

        The claim sees the rest: the next of a lane begins in the commit that ends the one before, and what comes to an idle
        bot in the commit that stores it. Arrivals are told when it is committed, also where the term is over; nobody is
        notified of them then, and the next owner finds them by its own polling, a second later at most.

        Returns:
            What was claimed; None without a request.

        Raises:
            Superseded: nothing was settled or claimed.
            ArrivalsRefused: see there.
            DatabaseAway: it may have happened or not; settle the same again, and let the next claim find what this one did.
        """

        async def both(connection: AsyncConnection[TupleRow]) -> list[TupleRow]:
            settled = stored = claimed = None
            self.is_one_round_trip = bounds_transactions(connection)
            async with in_one_transaction(connection):
                # What follows is prepared under this. Planning the claim costs more than executing it.
                await execute(connection, sql.PLAN, {}, prepare=True)
                if settlements:
                    named = self._settle_values(term, settlements, connection)
                    settled = await execute(connection, sql.SETTLE, named, prepare=True)
                if arrivals is not None:
                    named = store_values(self._bot_id, arrivals.rows)
                    stored = await execute(connection, sql.STORE, named, prepare=True)
                if request is not None:
                    named = self._claim_values(term, request)
                    claimed = await execute(connection, sql.CLAIM, named, prepare=True)
            # Only now that it is committed; asking for the rows before would also have been a round trip more.
            if arrivals is not None and stored is not None:
                row = await stored.fetchone()
                arrivals.note_stored(row[0] or [] if row is not None else [])
            if settled is not None and not await settled.fetchall():
                raise Superseded(term)
            rows = [] if claimed is None else await claimed.fetchall()
            if claimed is not None and not rows:
                raise Superseded(term)
            return rows

        try:
            rows = await self._run(both)
        except psycopg.Error as exc:
            if arrivals is None:
                raise
            # Were it not of the arrivals, the next exchange would say so again.
            raise ArrivalsRefused(describe(exc)) from exc
        except DatabaseAway as away:
            if arrivals is None or not isinstance(away.__cause__, psycopg.errors.DeadlockDetected):
                raise
            # Another instance was given the same ones in another order. All of ours was rolled back, and nothing is away.
            raise ArrivalsRefused(away.reason) from away
        if request is None:
            return None
        after_lane, is_complete, next_retry_seconds, has_suspects = rows[0][:4]
        return Batch(
            claimed=tuple([Claimed(*row[4:]) for row in rows if row[4] is not None]),
            sweep=request.sweep.next(after_lane),
            is_complete=is_complete,
            next_retry_seconds=next_retry_seconds,
            has_suspects=has_suspects,
        )

    async def peek(self, term: str, known: Sequence[int]) -> bool:
        """Whether a claim could find something. Writes nothing, so that an idle bot's database is idle.

        Raises:
            Superseded: the term is over.
            DatabaseAway: ask again later.
        """
        rows = await self._fenced(sql.PEEK, term, {"known": list(known)})
        return bool(rows[0][0])

    async def suspects(self, term: str) -> tuple[Suspect, ...]:
        """What was in flight at a crash and may start now; at most 1000 of it.

        Raises:
            DatabaseAway: ask again later.
        """
        rows = await self._fetch(sql.SUSPECTS, self._named(term))
        return tuple(Suspect(seq=seq, attempts=attempts) for seq, attempts in rows)

    async def claim_suspect(self, term: str, seq: int) -> Claimed | None:
        """Claims one suspect, counting an attempt; None when it is none any more.

        Raises:
            Superseded: nothing was claimed.
            DatabaseAway: it may be claimed; the next exchange finds it.
        """
        rows = await self._fenced(sql.CLAIM_SUSPECT, term, {"seq": seq})
        return None if rows[0][0] is None else Claimed(*(*rows[0], False))

    async def bury(self, term: str, seqs: Sequence[int], error: str) -> tuple[int, ...]:
        """Makes suspects dead letters.

        Returns:
            The update_ids of those that were.

        Raises:
            Superseded: nothing was changed.
            DatabaseAway: do it again.
        """
        rows = await self._fenced(sql.BURY, term, {"seqs": list(seqs), "error": error})
        return tuple(update_id for (update_id,) in rows if update_id is not None)

    async def condemn(self, term: str, claimed: Claimed, max_attempts: int, error: str) -> None:
        """Sees to it that a claimed row, which goes on running, is not started again if its process ends.

        Raises:
            Superseded: nothing was changed.
            DatabaseAway: do it again.
        """
        named = {"seq": claimed.seq, "starts": claimed.starts, "max_attempts": max_attempts, "error": error}
        await self._fenced(sql.CONDEMN, term, named)

    async def depth(self) -> InboxDepth:
        """Counts, and the age of the oldest that waits, 0 when none does. Some milliseconds, however many rows there are.

        Exact up to sql.COUNT_LIMIT and sql.DEAD_LIMIT; beyond, `pending` is an estimate, and `dead` says DEAD_LIMIT.

        Raises:
            DatabaseAway: ask again later.
        """

        async def count(connection: AsyncConnection[TupleRow]) -> list[TupleRow]:
            # Ended by the server, long before we would cut the session off, which may be the ingest's: nobody needs a count.
            # One transaction and one round trip; before Postgres 17 as well, since nothing is locked.
            async with connection.pipeline():
                await execute(connection, sql.COUNT_BRIEFLY, {}, prepare=False)
                counted = await execute(connection, sql.DEPTH, {"bot_id": self._bot_id}, prepare=False)
            return await counted.fetchall()

        pending, in_flight, dead, oldest = (await self._run(count))[0]
        return InboxDepth(pending=pending, in_flight=in_flight, dead=dead, oldest_pending_seconds=oldest)

    async def purge(self, dead_letter_days: int) -> bool:
        """Forgets a small number of rows whose time is over; whether there may be more.

        Raises:
            DatabaseAway: do it again later.
        """

        async def forget(connection: AsyncConnection[TupleRow]) -> bool:
            most = 0
            for statement, days in (
                (sql.FORGET_DONE, KEY_DAYS),
                (sql.FORGET_DEAD, dead_letter_days),
                (sql.UNKEY_DEAD, KEY_DAYS),
            ):
                named = {"bot_id": self._bot_id, "days": days}
                cursor = await execute(connection, statement, named, prepare=False)
                most = max(most, cursor.rowcount)
            return most >= sql.PURGE_ROWS

        return await self._run(forget)

    def _named(self, term: str) -> dict[str, object]:
        return {"bot_id": self._bot_id, "term": term}

    def _claim_values(self, term: str, request: ClaimRequest) -> dict[str, object]:
        return {
            **self._named(term),
            "free": request.free,
            "ahead": min(request.ahead, request.free),
            "after_lane": request.sweep.after_lane,
            "turn": request.sweep.turn,
            "known": int_array(request.known),
        }

    def _settle_values(
        self, term: str, settlements: Iterable[Settlement], connection: AsyncConnection[TupleRow]
    ) -> dict[str, object]:
        verdicts = [
            {
                "seq": settlement.seq,
                "starts": settlement.starts,
                "state": (verdict := settlement.verdict).state,
                "refund": verdict.refund,
                "is_retry": verdict.is_retry,
                "retry_seconds": verdict.retry_seconds,
                "is_told": verdict.is_told,
                "error": _as_it_can_hold(verdict.error, connection),
            }
            for settlement in settlements
        ]
        return {**self._named(term), "verdicts": msgspec.json.encode(verdicts).decode()}

    async def _fetch(self, statement: str, named: Mapping[str, object]) -> list[TupleRow]:
        async def fetch(connection: AsyncConnection[TupleRow]) -> list[TupleRow]:
            return await (await execute(connection, statement, named, prepare=False)).fetchall()

        return await self._run(fetch)

    async def _fenced(self, statement: str, term: str, named: Mapping[str, object]) -> list[TupleRow]:
        async def fetch(connection: AsyncConnection[TupleRow]) -> list[TupleRow]:
            values = {**self._named(term), **named}
            if isinstance(error := values.get("error"), str):
                values["error"] = _as_it_can_hold(error, connection)
            return await (await execute(connection, statement, values, prepare=False)).fetchall()

        rows = await self._run(fetch)
        if not rows:
            raise Superseded(term)
        return rows

    async def _run(self, fn: Callable[[AsyncConnection[TupleRow]], Coroutine[Any, Any, T]]) -> T:
        try:
            return await self._link.run(fn, self._limit())
        except (psycopg.OperationalError, psycopg.InternalError) as exc:
            # The session goes on, the statement did not: disk full, read-only after a failover, cancelled, deadlock.
            raise DatabaseAway(describe(exc)) from exc


_HOLD_ANY_TEXT = ("UTF8", "SQL_ASCII")
"""Encodings of a database; the second says that it does not look."""


def _as_it_can_hold(error: str | None, connection: AsyncConnection[TupleRow]) -> str | None:
    """An error's text as this database can hold it: others refuse what they have no character for, and with it the whole
    statement, every time that it is repeated."""
    if (
        error is None
        or error.isascii()
        or connection.info.parameter_status("server_encoding") in _HOLD_ANY_TEXT
    ):
        return error
    return error.encode("ascii", "backslashreplace").decode("ascii")


def in_one_transaction(connection: AsyncConnection[TupleRow]) -> AbstractAsyncContextManager[object]:
    """One transaction, and where it can be one round trip."""
    # A claim holds the term's row, so what we may leave half sent must end by itself, or nobody can begin a term.
    if bounds_transactions(connection):
        # To the server all that comes before a Sync is one transaction. A BEGIN would have to be waited for first.
        return connection.pipeline()
    return connection.transaction()
