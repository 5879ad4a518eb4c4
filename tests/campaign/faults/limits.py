"""Limits that are reached: connections of a database, its permission to write, descriptors of a process.

Blocks, for as long as the database takes to answer: from asyncio, use `asyncio.to_thread`.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
from psycopg import sql

Session = psycopg.Connection[tuple[object, ...]]


@contextmanager
def exhausted_connections(dsn: str, *, ending: str | None = None) -> Iterator[int]:
    """Takes every connection that the server has left, the superuser's reserve included.

    Args:
        dsn: of a database.
        ending: sessions whose application_name begins so are ended, and their places taken before they are back.

    Yields:
        How many sessions were ended.
    """
    with psycopg.connect(dsn, autocommit=True) as control, ExitStack() as taken:
        _take_all(dsn, taken)
        ended = 0
        # Each that ends leaves a place, which they and we race for; until none of theirs is there.
        while ending is not None and (count := _end(control, ending)):
            ended += count
            _take_all(dsn, taken)
        yield ended


def _take_all(dsn: str, taken: ExitStack) -> None:
    while True:
        try:
            taken.enter_context(psycopg.connect(dsn, application_name="hog"))
        except psycopg.OperationalError as error:
            if "too many clients" not in str(error) and "remaining connection slots" not in str(error):
                raise
            return


def _end(control: Session, victims: str) -> int:
    row = control.execute(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND backend_type = 'client backend'"
        " AND pid <> pg_backend_pid() AND starts_with(application_name, %s)",
        [victims],
    ).fetchone()
    assert row is not None
    return int(str(row[0]))


@contextmanager
def read_only(dsn: str) -> Iterator[int]:
    """A database in which every session is read-only from now on, as providers make it when the disk is nearly full.

    Sessions that are there are ended, since the setting is for new ones. At the end the database is writable again; sessions
    stay, and those that were opened meanwhile stay read-only: nobody tells them.

    Yields:
        How many sessions were ended.
    """
    with psycopg.connect(dsn, autocommit=True) as control:
        name = sql.Identifier(control.info.dbname)
        control.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        try:
            yield _end(control, "")
        finally:
            control.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))


@contextmanager
def few_descriptors(pid: int, count: int) -> Iterator[None]:
    """A running process may not have more open descriptors than that; those it has, it keeps."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
