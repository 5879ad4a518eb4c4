"""A standby of a real Postgres: follows, lags, loses touch, is promoted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.local.postgres import PostgresServer
from tests.campaign.faults.standby import Standby, a_standby


@pytest.fixture
def standby(own_postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Standby]:
    with psycopg.connect(own_postgres_server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE counted (it int)")
    with a_standby(own_postgres_server, tmp_path / "standby") as made:
        yield made


def write(server: PostgresServer, number: int) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("INSERT INTO counted VALUES (%s)", [number])


def read(server: PostgresServer) -> list[int]:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        return [row[0] for row in connection.execute("SELECT it FROM counted ORDER BY it").fetchall()]


def test_a_standby_follows_and_refuses_to_write(
    own_postgres_server: PostgresServer, standby: Standby
) -> None:
    """It has what the primary has, and is in recovery."""
    write(own_postgres_server, 1)
    standby.wait_until_caught_up(own_postgres_server)
    assert read(standby.server) == [1]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        write(standby.server, 2)


def test_a_paused_standby_shows_the_past_and_loses_nothing(
    own_postgres_server: PostgresServer, standby: Standby
) -> None:
    """What arrived is there after a promotion, and the old primary lives on beside the new one."""
    standby.pause_replay()
    write(own_postgres_server, 1)
    assert read(standby.server) == []
    standby.resume_replay()
    standby.wait_until_caught_up(own_postgres_server)
    assert read(standby.server) == [1]
    standby.promote()
    write(standby.server, 2)
    write(own_postgres_server, 3)
    assert read(standby.server) == [1, 2]
    assert read(own_postgres_server) == [1, 3]


def test_a_standby_that_lost_touch_loses_what_came_after(
    own_postgres_server: PostgresServer, standby: Standby
) -> None:
    """A failover to a replica that lagged: the primary's last commits are gone."""
    write(own_postgres_server, 1)
    standby.wait_until_caught_up(own_postgres_server)
    standby.stop_receiving()
    write(own_postgres_server, 2)
    own_postgres_server.kill()
    standby.promote()
    assert read(standby.server) == [1]
