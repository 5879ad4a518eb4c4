"""How the worker's statements on the inbox are executed: named parameters, binary results."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow


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
