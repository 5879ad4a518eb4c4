"""Asking the owner to hand over, from outside: `python -m supervisor handover`.

    request ──► row of the term ──► the owner's next heartbeat reads it ──► core: hands over to a ready instance, or stays

The request reaches the owner within a heartbeat (2 s) and counts for `succession.REQUESTED_SECONDS`. It is of the term that is
open now: the begin of the next one clears it, so it moves the ownership at most once.

Not promised: that the owner obeys. It may be dead, its term open until another begins; of the version before, which does not
look; or alone. Whoever asks looks who `owner` is afterwards, for as long as it has patience.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose term is open. The same instance under another `term` has replaced its worker, or was handed the bot back."""

    term: str  # its UUID
    instance_id: str


async def request(connection: AsyncConnection[TupleRow], bot_id: int) -> Owner | None:
    """Asks whoever owns to hand over to another ready instance; a later request renews an earlier one.

    Args:
        connection: in autocommit, with a limit on its statements: this one waits for the claims that are under way.
        bot_id: the number before the colon of the token.

    Returns:
        Who was asked; None: nobody owns, and nothing was written.

    Raises:
        psycopg.errors.UndefinedColumn, UndefinedTable: no instance of this version has run on that database yet.
        psycopg.OperationalError: the connection broke; whether it was asked is not known, and asking again does no harm.
    """
    cursor = await connection.execute(
        "UPDATE webhook_supervisor.terms SET handover_requested_at = clock_timestamp() "
        "WHERE bot_id = %s AND ended_at IS NULL RETURNING uuid::text, instance_id",
        (bot_id,),
    )
    return _owner(await cursor.fetchone())


async def owner(connection: AsyncConnection[TupleRow], bot_id: int) -> Owner | None:
    """Who owns now, by the row of the term; None between two terms, and where nobody does.

    Args and Raises: as of `request`.
    """
    cursor = await connection.execute(
        "SELECT uuid::text, instance_id FROM webhook_supervisor.terms WHERE bot_id = %s AND ended_at IS NULL",
        (bot_id,),
    )
    return _owner(await cursor.fetchone())


def _owner(row: TupleRow | None) -> Owner | None:
    return None if row is None else Owner(term=row[0], instance_id=row[1])
