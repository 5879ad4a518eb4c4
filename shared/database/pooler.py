"""Whether a session of the server is ours alone, or lent to us by a pooler from one transaction to the next.

The pid that is told at the start of a session is for cancelling, and whoever stands between us and the server may make one up:
PgBouncer does in every mode, and so does Neon's proxy, behind which a session is nobody else's. So a pid that is not the
server's is a suspicion. The verdict is the server's own, by what it says in statements of ours, each sent by itself:

    the pid from statement to statement            it changes: lent
    the pid that a second connection has           it is ours: lent
    a lock of ours, tried by a second connection   it gets it: lent, or a server whose locks exclude nobody

Nothing is set on the way, since a lent session would keep it for others. The lock comes last, where hardly any pooler gets to.

Not promised: that a pooler is found that is busy in such a way that each of the two gets the same session again every time,
and not the other's. Nor that the lock is freed where such a pooler does not lend us its session again while we look for it: its
key is a random one, and nobody waits for it. To end that session would end a transaction of somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.database.advisory import IS_OF_KEY, PROBE_CLASS, oids_of

_RELEASE_SECONDS = 5.0
"""As long as a connection may take to come about (session.py, connect_timeout)."""

_SEARCH_SECONDS = 2.0
_SEARCH_PAUSE_SECONDS = 0.05

_PID: LiteralString = "SELECT pg_backend_pid()"

# Asked first whether it is there: to free what is not held writes a warning into somebody's log.
_RELEASE: LiteralString = f"""
SELECT coalesce((
    SELECT pg_advisory_unlock(%(class)s::int4, %(object)s::int4) FROM pg_catalog.pg_locks
    WHERE pid = pg_backend_pid() AND granted AND {IS_OF_KEY}
), false)"""  # noqa: S608 - put together from constants


async def find_stable_pid(connection: AsyncConnection[TupleRow]) -> int | None:
    """The server's pid of this session; None if two statements had two. Good enough where a second connection was asked before.

    Raises:
        psycopg.Error: the session broke.
    """
    pid = await _ask(connection, _PID)
    assert isinstance(pid, int)
    return pid if await _ask(connection, _PID) == pid else None


async def find_own_pid(
    connection: AsyncConnection[TupleRow], open_second: Callable[[], Awaitable[AsyncConnection[TupleRow]]]
) -> int | None:
    """The server's pid of this session, which is ours alone; None if it is lent to us.

    Args:
        connection: in autocommit; nothing needs to be set.
        open_second: another such connection, to the same address; it is closed.

    Raises:
        psycopg.Error, TimeoutError: the session broke, or there is no second one.
    """
    pid = await find_stable_pid(connection)
    if pid is None:
        return None
    async with await open_second() as second:
        if await _ask(second, _PID) == pid or await _ask(connection, _PID) != pid:
            return None
        key = uuid.uuid4().int & 0x7FFFFFFF
        is_taken: object = False
        try:
            await _ask(connection, "SELECT pg_advisory_lock(%(class)s::int4, %(object)s::int4)", key)
            # For as long as the statement only, in whichever session it is carried out.
            is_taken = await _ask(
                second, "SELECT pg_try_advisory_xact_lock(%(class)s::int4, %(object)s::int4)", key
            )
        finally:
            was_here = await release(key, connection, second)
        return pid if was_here and not is_taken else None


async def release(
    key: int,
    first: AsyncConnection[TupleRow],
    second: AsyncConnection[TupleRow],
    search_seconds: float = _SEARCH_SECONDS,
) -> bool:
    """Frees the probe's lock, in whichever session it is held.

    Where sessions are lent, the one that took it may be lent to another client at the moment: it is looked for through both
    connections, again and again for a while.

    Returns:
        Whether it was the first's: found there at once.

    Raises:
        psycopg.Error, TimeoutError: the first cannot be asked any more, which is no verdict. Its session has ended, the lock
            with it, unless it was lent.
    """
    try:
        async with asyncio.timeout(_RELEASE_SECONDS):
            if await _ask(first, _RELEASE, key):
                return True
    except (psycopg.OperationalError, TimeoutError):
        await _search(search_seconds, key, second)
        raise
    await _search(search_seconds, key, first, second)
    return False


async def _search(limit_seconds: float, key: int, *connections: AsyncConnection[TupleRow]) -> None:
    """Frees the lock once one of them is lent the session that has it; or gives up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_seconds):
            while not all(connection.closed for connection in connections):
                if await _look(key, connections):
                    return
                await asyncio.sleep(_SEARCH_PAUSE_SECONDS)


async def _look(key: int, connections: Sequence[AsyncConnection[TupleRow]]) -> bool:
    """Whether one of them had it. One that breaks must not keep us from the other."""
    with contextlib.suppress(psycopg.OperationalError):
        async with contextlib.AsyncExitStack() as transactions:
            for connection in connections:
                with contextlib.suppress(psycopg.OperationalError):
                    # A pooler lends first what came back last: in transactions side by side, each is lent another session.
                    await transactions.enter_async_context(connection.transaction())
                    if await _ask(connection, _RELEASE, key):
                        return True
    return False


async def _ask(connection: AsyncConnection[TupleRow], statement: LiteralString, key: int = 0) -> object:
    """The one value that a statement gives."""
    # Never prepared, as psycopg does with what is asked often: another session that we are lent would not know it.
    # Both integers of the key are positive, so that as oids they are the same.
    cursor = await connection.execute(statement, oids_of((PROBE_CLASS, key)), prepare=False)
    row = await cursor.fetchone()
    assert row is not None
    return row[0]
