"""`handover`: asks the owner to give up to another ready instance, and waits until another owns.

    request ──► row of the term ──► the owner's next heartbeat reads it ──► core: hands over to a ready instance, or stays

The request reaches the owner within a heartbeat (2 s) and counts for `succession.REQUESTED_SECONDS`. It is of the term that is
open now: the begin of the next one clears it, so it moves the ownership at most once. The owner ends its term in order, as for
a newer deploy, so nothing is lost and no update runs twice for it.

Not promised: that the owner obeys. It may be dead, its term open until another begins; of the version before, which does not
look; or alone. Nor which instance is next: any ready one that waits may be. Nor for how long: older code that was handed the
bot gives it back to a newer deploy after a minute.
"""

from __future__ import annotations

import asyncio

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.config import Config
from shared.errors import CommandFailed
from supervisor.commands.standing import read_standing, session
from supervisor.succession import REQUESTED_SECONDS

_LOOK_SECONDS = 0.25


async def hand_over(config: Config) -> int:
    """Asks, waits, and says who owns.

    Raises:
        CommandFailed: nobody owns, or nobody else could; or the owner did not let go while the request counted.
    """
    async with session(config, may_write=True) as connection:
        standing = await read_standing(connection, config)
        owner = standing.owner
        if owner is None:
            raise CommandFailed(
                "nobody owns the bot, so nobody can hand it over; `status` tells who is there"
            )
        # Ready is enough: between two of its waits an instance is not seen waiting.
        if not any(other.ready for other in standing.present if other is not owner):
            raise CommandFailed(
                f"{owner.instance_id} owns, and no other instance is ready: start one, or see in its log why it is not"
            )
        asked = await _ask(connection, config)
        print(f"asked {asked}", flush=True)
        successor = await _wait_for_another(connection, config, asked)
    print(f"{successor} owns")
    return 0


async def request(connection: AsyncConnection[TupleRow], bot_id: int) -> str | None:
    """Asks whoever owns to hand over to another ready instance; a later request renews an earlier one.

    Args:
        connection: in autocommit, with a limit on its statements: this one waits for the claims that are under way.
        bot_id: the number before the colon of the token.

    Returns:
        The instance that was asked; None: nobody owns, and nothing was written.

    Raises:
        psycopg.errors.UndefinedColumn, UndefinedTable: no instance of this version has run on that database yet.
        psycopg.OperationalError: the connection broke; whether it was asked is not known, and asking again does no harm.
    """
    cursor = await connection.execute(
        "UPDATE webhook_supervisor.terms SET handover_requested_at = clock_timestamp() "
        "WHERE bot_id = %s AND ended_at IS NULL RETURNING instance_id",
        (bot_id,),
    )
    row = await cursor.fetchone()
    return None if row is None else str(row[0])


async def read_owner(connection: AsyncConnection[TupleRow], bot_id: int) -> str | None:
    """The instance that owns now, by the row of the term; None between two terms, and where nobody does.

    Args and Raises: as of `request`.
    """
    cursor = await connection.execute(
        "SELECT instance_id FROM webhook_supervisor.terms WHERE bot_id = %s AND ended_at IS NULL",
        (bot_id,),
    )
    row = await cursor.fetchone()
    return None if row is None else str(row[0])


async def _ask(connection: AsyncConnection[TupleRow], config: Config) -> str:
    try:
        asked = await request(connection, config.bot_id)
    except psycopg.errors.UndefinedColumn as exc:
        raise CommandFailed(
            "no instance of this version has run yet: an older one does not take such requests"
        ) from exc
    if asked is None:
        raise CommandFailed("the ownership is changing hands just now; `status` tells who has it")
    return asked


async def _wait_for_another(connection: AsyncConnection[TupleRow], config: Config, asked: str) -> str:
    # The drain begins when the request is seen, and what it leaves behind is given up to the end of it.
    patience = REQUESTED_SECONDS + config.drain_seconds
    try:
        async with asyncio.timeout(patience):
            while True:
                found = await read_owner(connection, config.bot_id)
                if found is not None and found != asked:
                    return found
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError as exc:
        raise CommandFailed(
            f"{asked} did not hand over within {patience:g} s, and the request counts no longer; see [STATE_SYNC] "
            "in its log"
        ) from exc
