"""Limits are reached, and given back."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing

import psycopg
import pytest

from deploy.local.postgres import PostgresServer
from tests.campaign.faults.limits import exhausted_connections, few_descriptors, read_only

VICTIM = "victim of the test"


def connect(dsn: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(dsn, autocommit=True, application_name=VICTIM)


def test_no_connection_is_left_until_the_block_ends(own_postgres_server: PostgresServer) -> None:
    """Who is connected stays so, or is ended and does not get back in; afterwards everybody can connect."""
    dsn = own_postgres_server.dsn()
    with closing(connect(dsn)) as session:
        with exhausted_connections(dsn) as ended:
            assert ended == 0
            session.execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError, match="too many clients"):
                connect(dsn)
        with exhausted_connections(dsn, ending=VICTIM) as ended:
            assert ended == 1
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError, match="too many clients"):
                connect(dsn)
    connect(dsn).close()


def test_a_database_is_read_only_until_the_block_ends(database_url: str) -> None:
    """Old sessions end, new ones cannot write; one that was opened meanwhile stays as it is."""
    with closing(connect(database_url)) as old:
        old.execute("CREATE TABLE written (it int)")
        with read_only(database_url) as ended:
            assert ended == 1
            with pytest.raises(psycopg.OperationalError):
                old.execute("INSERT INTO written VALUES (1)")
            meanwhile = connect(database_url)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                meanwhile.execute("INSERT INTO written VALUES (2)")
    with closing(meanwhile), pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        meanwhile.execute("INSERT INTO written VALUES (3)")
    with closing(connect(database_url)) as new:
        new.execute("INSERT INTO written VALUES (4)")


def test_a_running_process_runs_out_of_descriptors() -> None:
    """EMFILE in the process at the next open, and no more when the block has ended."""
    script = """
import sys
for _ in sys.stdin:
    try:
        open("/dev/null").close()
        print("opened", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def ask() -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        assert ask() == "opened"
        with few_descriptors(process.pid, 3):
            assert ask() == "Too many open files"
        assert ask() == "opened"
