"""`handover`: asks the owner to give up to another ready instance, and waits until another owns.

The request is a mark in the database that the owner sees with its next heartbeat; it ends its term in order, as for a newer
deploy, so nothing is lost and no update runs twice for it.

Not promised: which instance is next; any ready one that waits may be. Nor for how long: older code that was handed the bot
gives it back to a newer deploy after a minute.
"""

from __future__ import annotations

import asyncio

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.config import Config
from shared.errors import CommandFailed
from supervisor import handover
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
        print(f"asked {asked.instance_id}", flush=True)
        successor = await _wait_for_another(connection, config, asked)
    print(f"{successor.instance_id} owns")
    return 0


async def _ask(connection: AsyncConnection[TupleRow], config: Config) -> handover.Owner:
    try:
        asked = await handover.request(connection, config.bot_id)
    except psycopg.errors.UndefinedColumn as exc:
        raise CommandFailed(
            "no instance of this version has run yet: an older one does not take such requests"
        ) from exc
    if asked is None:
        raise CommandFailed("the ownership is changing hands just now; `status` tells who has it")
    return asked


async def _wait_for_another(
    connection: AsyncConnection[TupleRow], config: Config, asked: handover.Owner
) -> handover.Owner:
    # The drain begins when the request is seen, and what it leaves behind is given up to the end of it.
    patience = REQUESTED_SECONDS + config.drain_seconds
    try:
        async with asyncio.timeout(patience):
            while True:
                found = await handover.owner(connection, config.bot_id)
                if found is not None and found.instance_id != asked.instance_id:
                    return found
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError as exc:
        raise CommandFailed(
            f"{asked.instance_id} did not hand over within {patience:g} s, and the request counts no longer; see [STATE_SYNC] "
            "in its log"
        ) from exc
