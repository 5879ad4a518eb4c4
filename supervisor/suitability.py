"""Whether a server can hold a lease: ours alone, and the primary.

A pooler in transaction mode gives a session's lock to others, and a standby's locks exclude nobody. Both answer every statement
as if nothing were wrong, so they are looked for.

Not promised: that what is suitable now is so after a failover. A session that is lost is opened, and judged, anew.
"""

from __future__ import annotations

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared import database
from shared.errors import DatabaseRefused


async def connect(dsn: str, name: str) -> AsyncConnection[TupleRow]:
    """A session with our settings; `name` is what pg_stat_activity shows.

    Raises:
        DatabaseRefused: a pooler, or a server that is too old; nothing was set.
        psycopg.Error, TimeoutError: no session; see shared.database.connect.
    """
    try:
        return await database.connect(dsn, application_name=name)
    except database.UnsuitableServer as exc:
        raise DatabaseRefused(str(exc)) from exc


async def refuse_unsuitable(
    connection: AsyncConnection[TupleRow], dsn: str, *, is_first: bool = True
) -> None:
    """Refuse what cannot hold a lease; changes nothing.

    Args:
        connection: a session made by `connect`.
        dsn: where that led.
        is_first: of this process. A second connection is then opened for a moment, to find a pooler that tells the server's
            own pid. Of one that makes up a pid `connect` has judged already, as it does at every opening.

    Raises:
        DatabaseRefused: a transaction pooler, or a server in recovery.
        psycopg.Error, TimeoutError: the database went away.
    """
    pids = set()
    for _ in range(2):  # after the one that made the settings
        row = await (await connection.execute("SELECT pg_backend_pid(), pg_is_in_recovery()")).fetchone()
        assert row is not None
        pid, in_recovery = row
        assert isinstance(pid, int)
        pids.add(pid)
        if in_recovery:
            raise DatabaseRefused(
                "leads to a standby server (in recovery), whose locks exclude nobody; use the primary's address"
            )
    is_made_up = connection.info.backend_pid not in pids
    if len(pids) > 1 or (is_first and not is_made_up and not await database.is_ours_alone(connection, dsn)):
        raise DatabaseRefused(database.POOLED)
