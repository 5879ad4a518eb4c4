"""Somebody keeps the inbox locked while the owner changes: what an owner asked for is carried out when another owns."""

from __future__ import annotations

import asyncio
import random

import psycopg

from tests.campaign.field import Field
from tests.campaign.recovery import Recovery
from tests.campaign.scenario import scenario
from tests.campaign.succession import end_lock_session
from tests.end_to_end.instance import eventually

_TABLE = "LOCK TABLE webhook_supervisor.inbox IN SHARE MODE"
_ROWS = "SELECT seq FROM webhook_supervisor.inbox WHERE state = 'claimed' FOR UPDATE"
_BLOCKED = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
   AND application_name = 'webhook-supervisor worker dispatch'"""


@scenario(
    id="b10-locked",
    title="the inbox is locked by somebody while the owner changes",
    repetitions=60,
    short=4,
    recovery=Recovery.NEXT_TERM,
)
async def lock_inbox(field: Field, chance: random.Random) -> None:
    """The fence at work: the owner's next claim and completion wait, and then its lock's session is ended.

    By turns the table is locked, and the rows of what is in flight. Waiting for the table they hold nothing: the next term
    begins, and they come too late. Waiting for a row they hold the term's row: the next term begins after them.
    """
    await field.start("one")
    await field.start("two")
    async with field.flowing():
        for repetition in range(field.repetitions):
            await field.steady()
            number = await field.term_number()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            async with await psycopg.AsyncConnection.connect(field.database_url) as somebody:
                if repetition % 2:
                    await _lock_rows(somebody)
                else:
                    await somebody.execute(_TABLE)

                async def is_blocked() -> bool:
                    return bool((await field.recorder.fetch(_BLOCKED))[0][0])

                await eventually(is_blocked, "an owner's statement that waits for a lock")
                field.inject("rows locked" if repetition % 2 else "table locked")
                await end_lock_session(field)
                if repetition % 2:
                    await asyncio.sleep(chance.uniform(0.0, 3.0))  # the length of the fault
                else:
                    await field.wait_for_term_after(number)
                await somebody.rollback()


async def _lock_rows(somebody: psycopg.AsyncConnection) -> None:
    """Returns when it holds rows: between two claims there is none in flight."""

    async def holds_any() -> bool:
        cursor = await somebody.execute(_ROWS)
        if cursor.rowcount == 0:
            await somebody.rollback()
        return cursor.rowcount > 0

    await eventually(holds_any, "rows in flight that can be locked")
