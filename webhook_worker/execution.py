"""How the worker's statements on the inbox are executed: named parameters, many values in one, binary results."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from webhook_worker.ingest import Row


async def execute(
    connection: AsyncConnection[TupleRow], statement: str, named: Mapping[str, object], *, prepare: bool
) -> psycopg.AsyncCursor[TupleRow]:
    """Executes a statement of inbox_statements.py.

    Args:
        connection: in autocommit, a transaction, or a pipeline.
        statement: with `%(name)s` for its parameters; may name one several times.
        named: their values.
        prepare: True for STORE, and for what runs under PLAN; False where a plan must not be kept: psycopg would prepare
            anything at the fifth time, and keep a plan that was made for an empty table.
    """
    query, names = _numbered(statement)
    cursor = psycopg.AsyncRawCursor(connection)
    return await cursor.execute(query, [named[name] for name in names], prepare=prepare, binary=True)


def store_values(bot_id: int, rows: Sequence[Row]) -> dict[str, object]:
    """The parameters of STORE; of a row it reads id, lane and body."""
    # All bodies as one, for the same reason as in int_array.
    lengths = [len(row.body) for row in rows]
    return {
        "bot_id": bot_id,
        "bodies": b"".join([row.body for row in rows]),
        "update_ids": int_array([row.update_id for row in rows]),
        "lanes": int_array(["NULL" if row.lane is None else row.lane for row in rows]),
        "firsts": int_array(list(itertools.accumulate(lengths, initial=1))[:-1]),
        "lengths": int_array(lengths),
    }


def int_array(values: Iterable[int | str]) -> str:
    """An array as a parameter of a statement; an element may be "NULL"."""
    # As a text: of a list, psycopg would hand each element to a Python function.
    return f"{{{','.join(map(str, values))}}}"


@functools.cache
def _numbered(statement: str) -> tuple[bytes, tuple[str, ...]]:
    """With $1 for `%(name)s`, as Postgres has it, and the names in that order.

    psycopg would do the same, and anew for every exchange: it does not keep what is longer than 4 KiB, as the claim is.
    """
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    return re.sub(r"%\((\w+)\)s", number, statement).encode(), tuple(names)
