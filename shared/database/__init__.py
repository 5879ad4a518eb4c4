"""Postgres, as all parts of this project use it; imports `shared.errors` and `shared.log`, and knows nothing of ownership.

    advisory.py  the keys of the locks, and how pg_locks shows them
    session.py   how we connect, what an error means in one line
    pooler.py    whether a session is ours alone
    schema.py    shared/schema.sql: applying it, checking that it is what this version needs, what is agreed on its rows
    link.py      a session that is made again whenever it is lost

It never begins a transaction that outlives a call, and never logs a DSN or a row.
"""

from shared.database.advisory import IS_OF_KEY, LOCK_CLASS, lock_key, oids_of
from shared.database.link import After, Link
from shared.database.schema import (
    CLEARED,
    LISTED,
    OLDEST_ROWS,
    SUPERSEDED_KEPT,
    apply_schema,
    check_schema,
    due_migrations,
)
from shared.database.session import (
    POOLED,
    DatabaseAway,
    UnsuitableServer,
    bounds_transactions,
    connect,
    cut_off,
    describe,
    is_ours_alone,
    work_channel,
)

__all__ = [
    "CLEARED",
    "IS_OF_KEY",
    "LISTED",
    "LOCK_CLASS",
    "OLDEST_ROWS",
    "POOLED",
    "SUPERSEDED_KEPT",
    "After",
    "DatabaseAway",
    "Link",
    "UnsuitableServer",
    "apply_schema",
    "bounds_transactions",
    "check_schema",
    "connect",
    "cut_off",
    "describe",
    "due_migrations",
    "is_ours_alone",
    "lock_key",
    "oids_of",
    "work_channel",
]
