"""shared/schema.sql: applying its migrations, and checking that the schema is what this version needs.

    version in the database    what happens
    none, nothing there        all migrations, in their order
    none, something there      nothing: an operator has prepared the schema by hand
    lower than ours            the missing migrations
    ours, or higher            nothing: during a deploy, and after a rollback, old code runs on a newer schema
    in the end                 every table and column that this version needs is there, and this role may use it

Several instances may do this at the same time, under different roles: each migration is one transaction, under an advisory
lock that all of them take. Nothing is created where nothing is missing, so that a role without CREATE can run on a schema
that the operator has prepared.

Not promised: that types and indexes are what they should be, where somebody has changed them by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.database.advisory import MIGRATION_CLASS
from shared.database.session import describe
from shared.errors import SchemaError

_MIGRATION_LOCK = (MIGRATION_CLASS, 0)
_TURN_TIMEOUT = "10s"
# A migration that waits for a lock on a table (a dump reads it) makes everybody who comes after it wait too, updates that are
# to be stored among them: better to fail soon, and to try again a second later. Not before autovacuum gives way, which the
# server sees to when somebody has waited for deadlock_timeout, 1 s.
_LOCK_TIMEOUT = "1500ms"
# Within what the core gives an opening (OPEN_SECONDS), so that it fails with words of its own.
_STATEMENT_TIMEOUT = "15s"
_MARK = re.compile(rb"^-- migration (\d+):.*$", re.MULTILINE)

NEEDED: Mapping[str, tuple[str, ...]] = {
    "terms": (
        *("bot_id", "number", "uuid", "instance_id", "deploy_id", "deadline_seconds"),
        *("began_at", "ended_at", "successor_id", "successor_until", "handover_requested_at"),
    ),
    "instances": (
        *("bot_id", "instance_id", "platform_instance_id", "deploy_id", "token_fingerprint", "ready"),
        *("candidate_after", "handed_over_at", "backend_pid", "first_announced_at", "announced_at"),
    ),
    "registrations": ("bot_id", "path_hash", "secret_hash", "recorded_at", "confirmed_at", "superseded_at"),
    "inbox": (
        *("seq", "bot_id", "update_id", "keyed", "lane", "lane_key", "body", "state", "attempts", "starts"),
        *("term", "received_at", "claimed_at", "retry_at", "retry_told", "retries", "finished_at", "error"),
    ),
}
"""What this version reads and writes: columns by table. A test compares it with what schema.sql makes."""

SUPERSEDED_KEPT = "10 minutes"
"""How long a superseded row of `registrations` is good, and then goes: longer than any request of Telegram's can be under way
(60 s idle) and any platform's switch of traffic (90 s)."""

LISTED = "5 minutes"
"""Rows of `instances` that spoke within this are listed: more than the supervisor's succession.REMEMBERED_SECONDS."""

CLEARED = (
    *("body", "lane", "attempts", "starts", "received_at", "claimed_at"),
    *("term", "retry_at", "retry_told", "retries", "error"),
)
"""Columns of `inbox` that are null in a row that is done, however it came to that. Only its key is needed any more, and when it
went, since that says until when; it is kept for days, and a null takes no room."""

OLDEST_ROWS = 4_000
"""Of what waits in `inbox`, the first by seq are looked at for the oldest: 10 ms, and 30 beside 1,000 updates a second, whose
dead rows are passed by."""

NULLABLE: Mapping[str, tuple[str, ...]] = {
    "inbox": ("attempts", "starts", "received_at", "retry_told", "retries")
}
"""Columns in which this version writes null, and the version before did not."""


def read_migrations(text: bytes | None = None) -> tuple[bytes, ...]:
    """The migrations in schema.sql; the first is number 1.

    Args:
        text: instead of the file's.

    Raises:
        SchemaError: the numbers are not 1, 2, 3 ...; a bug in schema.sql.
    """
    if text is None:
        text = (Path(__file__).parents[1] / "schema.sql").read_bytes()
    marks = list(_MARK.finditer(text))
    numbers = [int(mark.group(1)) for mark in marks]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise SchemaError(
            f"schema.sql: migrations must be numbered 1, 2, 3 ... in this order, found {numbers}"
        )
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return tuple(text[mark.end() : end] for mark, end in zip(marks, ends, strict=True))


async def apply_schema(
    connection: AsyncConnection[TupleRow], migrations: tuple[bytes, ...] | None = None
) -> int:
    """Brings the schema to this version, or finds that it is there.

    Args:
        connection: in autocommit, outside a transaction.
        migrations: instead of those of schema.sql.

    Returns:
        How many migrations were applied by this call.

    Raises:
        SchemaError: it could not be applied, or it is not what this version needs; the message names the remedy.
        psycopg.OperationalError: the connection broke; nothing is half done.
    """
    if migrations is None:
        migrations = read_migrations()
    applied = 0
    try:
        for number in await due_migrations(connection, len(migrations)):
            applied += await _apply(connection, number, migrations[number - 1])
    except psycopg.Error as exc:
        if connection.broken:
            raise
        raise SchemaError(
            f"database schema webhook_supervisor: {describe(exc)}; give the role of DATABASE_URL the right to read "
            "webhook_supervisor.schema_version"
        ) from exc
    await check_schema(connection)
    return applied


async def due_migrations(connection: AsyncConnection[TupleRow], known: int | None = None) -> range:
    """The numbers of the migrations that `apply_schema` would apply: all of them where nothing is there yet.

    Args:
        connection: any; nothing is changed.
        known: how many there are; those of schema.sql by default.

    Raises:
        psycopg.Error: it could not be asked, or our role may not.
    """
    version = await _version(connection)
    if version is None and await _found(connection):
        # By another instance, since we asked; or they were prepared by hand.
        version = await _version(connection)
        if version is None:
            return range(0)
    return range((version or 0) + 1, (len(read_migrations()) if known is None else known) + 1)


async def check_schema(connection: AsyncConnection[TupleRow]) -> None:
    """Verifies that every table and column that this version needs is there, and that our role may use it.

    Raises:
        SchemaError: names what is missing, and the remedy.
    """
    faults = await _faults(connection)
    if faults:
        raise SchemaError(
            f"database schema webhook_supervisor: {'; '.join(faults)}. Restore it, or drop the schema while no instance "
            "runs and let this version create it"
            if not any("may not" in fault for fault in faults)
            else f"database schema webhook_supervisor: {'; '.join(faults)}. As its owner: GRANT USAGE ON SCHEMA "
            "webhook_supervisor, and SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA webhook_supervisor, to that role"
        )


async def _found(connection: AsyncConnection[TupleRow]) -> dict[str, tuple[set[str], set[str], bool, str]]:
    """By table of ours: its columns, those that refuse null, whether our role may use it, and the role."""
    # By the catalogue and not by information_schema, which shows a role only what it may use: "missing" and "forbidden" have
    # different remedies.
    cursor = await connection.execute(
        """
        SELECT c.relname, array_agg(a.attname::text), coalesce(array_agg(a.attname::text) FILTER (WHERE a.attnotnull), '{}'),
               has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
               AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')
               AND has_table_privilege(c.oid, 'DELETE'),
               current_user::text
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE n.nspname = 'webhook_supervisor' AND c.relkind IN ('r', 'p')
         GROUP BY c.oid, c.relname, n.oid
        """
    )
    return {
        name: (set(columns), set(required), allowed, role)
        for name, columns, required, allowed, role in await cursor.fetchall()
        if name in NEEDED
    }


async def _faults(connection: AsyncConnection[TupleRow]) -> list[str]:
    found = await _found(connection)
    faults = []
    for table, columns in NEEDED.items():
        if table not in found:
            faults.append(f"table {table} is missing")
            continue
        there, required, allowed, role = found[table]
        if lacking := [column for column in columns if column not in there]:
            faults.append(f"table {table} lacks {', '.join(lacking)}")
        if strict := [column for column in NULLABLE.get(table, ()) if column in required]:
            faults.append(
                f"table {table} refuses null in {', '.join(strict)}, which a later migration allows"
            )
        if not allowed:
            faults.append(f"role {role} may not use table {table}")
    return faults


async def _version(connection: AsyncConnection[TupleRow]) -> int | None:
    """The number of the last migration; None where no migration has ever been applied by us."""
    cursor = await connection.execute(
        "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = 'webhook_supervisor' AND tablename = 'schema_version'"
    )
    if await cursor.fetchone() is None:
        return None
    cursor = await connection.execute(
        "SELECT coalesce(max(version), 0) FROM webhook_supervisor.schema_version"
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def _apply(connection: AsyncConnection[TupleRow], number: int, statements: bytes) -> bool:
    """Applies one migration, unless another instance was first; whether it was us."""
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
                (_TURN_TIMEOUT, _STATEMENT_TIMEOUT),
            )
            await connection.execute("SELECT pg_advisory_xact_lock(%s::int, %s::int)", _MIGRATION_LOCK)
            if (await _version(connection) or 0) >= number:
                return False
            await connection.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
            if number == 1:
                await _create_version_table(connection)
            await connection.execute(statements, prepare=False)
            await connection.execute(
                "INSERT INTO webhook_supervisor.schema_version (version) VALUES (%s)", (number,)
            )
    except psycopg.errors.LockNotAvailable as exc:
        raise SchemaError(
            f"database schema webhook_supervisor: migration {number} waits for another session, which migrates or holds a lock "
            "on a table (a dump, an open transaction); it is tried again, end that session if it does not end by itself"
        ) from exc
    except psycopg.Error as exc:
        if connection.broken:
            raise
        raise SchemaError(
            f"database schema webhook_supervisor: migration {number} failed, nothing of it is kept: {describe(exc)}. "
            f"{_remedy(exc)}"
        ) from exc
    return True


def _remedy(error: psycopg.Error) -> str:
    match error:
        case psycopg.errors.ReadOnlySqlTransaction():
            return (
                "Let sessions of DATABASE_URL write: make room if the disk is full; else end default_transaction_read_only, or "
                "connect to the primary"
            )
        case psycopg.errors.InsufficientPrivilege():
            return "The role of DATABASE_URL needs CREATE on the database; or let a role that has it start this version once"
        case _:
            return "It is tried again; `python -m supervisor check` tells more of the database"


async def _create_version_table(connection: AsyncConnection[TupleRow]) -> None:
    cursor = await connection.execute(
        "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = 'webhook_supervisor'"
    )
    # IF NOT EXISTS would ask for the right to create it also where it is there.
    if await cursor.fetchone() is None:
        await connection.execute("CREATE SCHEMA webhook_supervisor")
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS webhook_supervisor.schema_version ("
        " version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
    )
