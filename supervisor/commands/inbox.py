"""`inbox`: the backlog and the dead letters, to look at, to run again, to drop.

    list     what waits, runs or is dead; never what people wrote
    show     one update: its error in full, and with --body what was written
    retry    dead letters run again, as if they had just come; what waits for its next try is tried now
    drop     never run: what it was goes, its key stays for as long as a redelivery is recognised

An update that is in flight is the owner's: it is neither retried nor dropped. The owner is woken, and begins what is due within
a moment; where there is none, the next one does.

Not promised: that a retried dead letter runs in the order in which it came. Its chat has gone on meanwhile.
Nor that `show` finds a dead letter whose key has gone, once it was run again or dropped: nothing but its number is left of it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, dict_row

from shared import database
from shared.config import Config
from shared.errors import CommandFailed, naming_line
from supervisor.commands.standing import has_tables, session
from supervisor.commands.times import moment, moment_ago

_ORDERS = {"pending": "seq", "claimed": "seq + 0", "dead": "seq + 0"}
STATES = tuple(_ORDERS)
"""What can be listed; what is done is a key and nothing else."""

# Each state by itself, so that it is answered from its own index: what is done is most of the table. Only that of what waits
# has the order as well. For the others the planner would walk along the primary key, through all that is done, in the hope of
# meeting enough of them soon; in the order of a sum it cannot.
_LISTED = """
(SELECT seq, update_id, state, attempts, starts, retries, received_at, claimed_at, retry_at, finished_at, error
   FROM webhook_supervisor.inbox WHERE bot_id = %(bot)s AND state = '{state}' ORDER BY {order} LIMIT %(limit)s)"""

# An update has its key as long as a redelivery is recognised, done or not. What has none was a dead letter once, and is found
# among those that are not done.
_SHOW = (
    "UNION ALL".join(
        f"""
SELECT seq, update_id, state, lane, attempts, starts, retries, received_at, claimed_at, retry_at, finished_at, error, body
  FROM webhook_supervisor.inbox WHERE bot_id = %(bot)s AND update_id = %(id)s AND {which}
"""  # noqa: S608 - put together from constants of this module
        for which in ("keyed", *(f"NOT keyed AND state = '{state}'" for state in STATES))
    )
    + " ORDER BY seq"
)

_CHOSEN = "bot_id = %(bot)s AND (%(all)s OR update_id = ANY (%(ids)s::bigint[]))"

# As if it had just come: no attempt counts against it, and the day for which it may be repeated begins anew. `starts` stays,
# since it tells a handler (`attempt()`) that this is not the first run.
_RETRY = f"""
UPDATE webhook_supervisor.inbox
   SET state = 'pending', attempts = CASE WHEN state = 'dead' THEN 0 ELSE attempts END,
       retries = CASE WHEN state = 'dead' THEN 0 ELSE retries END,
       received_at = CASE WHEN state = 'dead' THEN now() ELSE received_at END,
       term = NULL, retry_at = NULL, retry_told = false, finished_at = NULL
 WHERE {_CHOSEN} AND (state = 'dead' OR (NOT %(all)s AND state = 'pending' AND retry_at IS NOT NULL))
RETURNING update_id"""  # noqa: S608 - the same

# As if it had been completed: its key, and when it went.
_DROP = f"""
UPDATE webhook_supervisor.inbox
   SET state = 'done', finished_at = now(), {", ".join(f"{column} = NULL" for column in database.CLEARED)}
 WHERE {_CHOSEN} AND (state = 'dead' OR (NOT %(all)s AND state = 'pending'))
RETURNING update_id"""  # noqa: S608 - the same


def _list(states: Sequence[str]) -> str:
    each = "UNION ALL".join(_LISTED.format(state=state, order=_ORDERS[state]) for state in states)
    return f"""
SELECT seq, update_id, state, attempts, starts, retries, received_at, claimed_at, retry_at, finished_at,
       right(coalesce(error, ''), 400) AS error
  FROM ({each}) AS listed ORDER BY seq LIMIT %(limit)s"""  # noqa: S608 - the same


async def list_inbox(config: Config, *, states: Sequence[str], limit: int, as_json: bool) -> int:
    """Prints what is there, oldest first.

    Raises:
        CommandFailed: the database cannot be used.
    """
    async with session(config) as connection:
        rows = await _rows(connection, _list(states), {"bot": config.bot_id, "limit": limit})
    if as_json:
        print(json.dumps([_document(row) for row in rows], indent=1))
        return 0
    now = datetime.datetime.now(datetime.UTC)
    for row in rows:
        print(as_line(row, now))
    if len(rows) == limit:
        print(f"... the oldest {limit}; --limit shows more")
    if not rows:
        print(f"nothing is {' or '.join(states)}")
    return 0


async def show(config: Config, update_id: int, *, with_body: bool, as_json: bool) -> int:
    """Prints one update; more than one row where an old dead letter's id came again.

    Args:
        config: whose.
        update_id: Telegram's.
        with_body: also what was sent; people's own words.
        as_json: for programs.

    Raises:
        CommandFailed: there is no such update, or the database cannot be used.
    """
    async with session(config) as connection:
        rows = await _rows(connection, _SHOW, {"bot": config.bot_id, "id": update_id})
    if not rows:
        raise CommandFailed(f"there is no update {update_id}; `inbox list` shows what there is")
    documents = [_document(row, with_body=with_body) for row in rows]
    if as_json:
        print(json.dumps(documents, indent=1))
        return 0
    for document in documents:
        for name, value in document.items():
            text = str(value)
            print(f"{name:12} {text}" if "\n" not in text else f"{name}:\n{text.rstrip()}")
    return 0


async def retry(config: Config, update_ids: Sequence[int], *, every_dead: bool) -> int:
    """Has dead letters run again, and what waits for its next try run now; wakes the owner.

    Raises:
        CommandFailed: one of these is neither, or the database cannot be used. The others are retried.
    """
    return await _change(
        config, _RETRY, update_ids, every_dead, "will run again", "dead, or waiting for its next try"
    )


async def drop(config: Config, update_ids: Sequence[int], *, every_dead: bool) -> int:
    """Drops dead letters, and what waits.

    Raises:
        CommandFailed: one of these is neither, or the database cannot be used. The others are dropped.
    """
    return await _change(config, _DROP, update_ids, every_dead, "dropped", "dead or waiting")


async def _change(
    config: Config, statement: str, update_ids: Sequence[int], every_dead: bool, done: str, needed: str
) -> int:
    values = {"bot": config.bot_id, "ids": list(update_ids), "all": every_dead}
    async with session(config, may_write=True) as connection:
        changed = [row["update_id"] for row in await _rows(connection, statement, values)]
        if changed:
            await connection.execute("SELECT pg_notify(%s, '')", (database.work_channel(config.bot_id),))
    for update_id in sorted(changed):
        print(f"update {update_id}: {done}")
    if every_dead and not changed:
        print("there are no dead letters")
    if missed := sorted(set(update_ids) - set(changed)):
        raise CommandFailed(
            f"not {needed}, so left alone: update {', '.join(map(str, missed))}; `inbox show` tells what became of it"
        )
    return 0


async def _rows(
    connection: AsyncConnection[TupleRow], statement: str, values: dict[str, Any]
) -> list[dict[str, Any]]:
    if not await has_tables(connection):
        return []
    async with connection.cursor(row_factory=dict_row) as cursor:
        return await (await cursor.execute(statement.encode(), values)).fetchall()


def _document(row: dict[str, Any], *, with_body: bool = False) -> dict[str, Any]:
    shown = {name: value for name, value in row.items() if name != "body"}
    for name, value in shown.items():
        if isinstance(value, datetime.datetime):
            shown[name] = value.astimezone(datetime.UTC).isoformat()
    if with_body:
        body: bytes | None = row["body"]
        shown["body"] = None if body is None else body.decode(errors="replace")
    return shown


def as_line(row: dict[str, Any], now: datetime.datetime) -> str:
    """An update for people: since when it is what it is, and the line that names its error."""
    since = {"dead": "finished_at", "claimed": "claimed_at"}.get(row["state"], "received_at")
    said = [
        moment_ago(row[since], now),
        f"{row['state']:7}",
        f"update {row['update_id']}",
    ]
    if row["starts"]:
        said.append(f"starts {row['starts']}")
    if row["retry_at"] is not None:
        said.append(f"next try {moment(row['retry_at'])}")
    if error := row["error"].strip():
        said.append(naming_line(error))
    return "  ".join(said)
