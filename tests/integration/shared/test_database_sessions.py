"""One session with a real Postgres: its settings, what ends it, the lock's key."""

import asyncio
import datetime

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.database import bounds_transactions, connect, describe, lock_key
from shared.dsn import STANDBYS_ONLY

HANG_SECONDS = 60.0
Connection = AsyncConnection[TupleRow]


async def test_a_session_has_our_settings_whatever_the_database_defaults_are(
    database_url: str, other: Connection
) -> None:
    """Durable commits, autocommit, time limits, also on clients that vanish, the isolation that the fence is built on.

    And values that are written as we and psycopg read them.
    """
    for setting in (
        "synchronous_commit = off",
        "default_transaction_isolation = 'serializable'",
        "idle_session_timeout = '1s'",
        "datestyle = 'German'",
        "timezone = 'Asia/Kathmandu'",
        "extra_float_digits = -15",
        "array_nulls = off",
    ):
        await other.execute(f"ALTER ROLE postgres SET {setting}".encode())
    try:
        async with await connect(
            database_url, application_name="x", settings={"lock_timeout": "7s"}
        ) as connection:
            expected = {
                "synchronous_commit": "on",
                "default_transaction_isolation": "read committed",
                "client_encoding": "UTF8",
                "lock_timeout": "7s",
                "statement_timeout": "15s",
                "idle_in_transaction_session_timeout": "10s",
                "idle_session_timeout": "0",
                "tcp_keepalives_idle": "6",
                "tcp_keepalives_interval": "2",
                "tcp_keepalives_count": "3",
                "tcp_user_timeout": "12000",
                "application_name": "x",
                "search_path": '"$user", public',
                "datestyle": "ISO, DMY",
                "timezone": "UTC",
                "extra_float_digits": "1",
                "array_nulls": "on",
            }
            for name, value in expected.items():
                assert await (await connection.execute(f"SHOW {name}".encode())).fetchone() == (value,)
            cursor = await connection.execute(
                "SELECT to_timestamp(0.5), 0.123456789::float8, %s::bigint[]", ([1, None],)
            )
            epoch = datetime.datetime.fromtimestamp(0.5, datetime.UTC)
            assert await cursor.fetchone() == (epoch, 0.123456789, [1, None])
        async with await connect(
            database_url, application_name="x", settings={"idle_session_timeout": "9s"}
        ) as own:
            assert await (await own.execute("SHOW idle_session_timeout")).fetchone() == ("9s",)
        assert connection.autocommit
    finally:
        await other.execute("ALTER ROLE postgres RESET ALL")


@pytest.mark.parametrize("wanted", STANDBYS_ONLY)
async def test_a_wish_for_a_standby_has_its_own_words(
    database_url: str, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    """libpq takes it from the environment too, and refuses the primary."""
    monkeypatch.setenv("PGTARGETSESSIONATTRS", wanted)
    with pytest.raises(psycopg.OperationalError) as raised:
        await connect(database_url, application_name="x")
    assert "target_session_attrs asks for a standby" in describe(raised.value)


async def test_a_stricter_durability_than_ours_is_left(database_url: str, other: Connection) -> None:
    """remote_apply is the operator's wish; our "on" would weaken it."""
    await other.execute("ALTER ROLE postgres SET synchronous_commit = remote_apply")
    try:
        async with await connect(database_url, application_name="x") as connection:
            assert await (await connection.execute("SHOW synchronous_commit")).fetchone() == ("remote_apply",)
    finally:
        await other.execute("ALTER ROLE postgres RESET ALL")


@pytest.mark.parametrize("bot_id", [0, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1])
async def test_a08_the_key_is_taken_by_postgres_and_seen_by_others(database_url: str, bot_id: int) -> None:
    """Negative second integers too: no "OID out of range", no second holder."""
    async with (
        await connect(database_url, application_name="a") as one,
        await connect(database_url, application_name="b") as two,
    ):
        take = "SELECT pg_try_advisory_lock(%s::int, %s::int)"
        assert await (await one.execute(take, lock_key(bot_id))).fetchone() == (True,)
        assert await (await two.execute(take, lock_key(bot_id))).fetchone() == (False,)


async def test_a08_a_negative_key_is_among_those_tested() -> None:
    """Half of all bots have one."""
    assert any(lock_key(bot_id)[1] < 0 for bot_id in (0, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1))


async def test_what_a_client_left_half_sent_ends_by_itself(database_url: str, other: Connection) -> None:
    """b08: in the middle of a pipeline no other limit of the server runs, and the locks would stay while TCP lives."""
    await other.execute("CREATE TABLE locked AS SELECT 1 AS it")
    connection = await connect(database_url, application_name="x", transaction_timeout_seconds=2.0)
    raw = connection.pgconn
    try:
        if not bounds_transactions(connection):
            pytest.skip(f"Postgres {connection.info.server_version // 10000} has no transaction_timeout")
        raw.enter_pipeline_mode()
        raw.send_query_params(b"BEGIN", None)
        raw.send_query_params(b"SELECT it FROM locked FOR UPDATE", None)
        raw.send_flush_request()
        while raw.flush():
            await asyncio.sleep(0)
        async with asyncio.timeout(HANG_SECONDS):
            while await (await other.execute("SELECT it FROM locked FOR UPDATE SKIP LOCKED")).fetchone():
                await asyncio.sleep(0.001)
        # Waits for the row until its holder is ended.
        await asyncio.wait_for(other.execute("SELECT it FROM locked FOR UPDATE"), HANG_SECONDS)
    finally:
        raw.finish()
