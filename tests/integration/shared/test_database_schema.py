"""Applying and checking the schema against a real Postgres, alone, at once, and as roles with fewer rights."""

import asyncio
from typing import Any, cast

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from shared.database import apply_schema, check_schema, connect
from shared.database.schema import NEEDED, due_migrations, read_migrations
from shared.errors import SchemaError

LATEST = len(read_migrations())


async def session(dsn: str) -> AsyncConnection[TupleRow]:
    return await connect(dsn, application_name="test")


async def columns(connection: AsyncConnection[TupleRow]) -> dict[str, set[str]]:
    cursor = await connection.execute(
        "SELECT table_name::text, array_agg(column_name::text) FROM information_schema.columns"
        " WHERE table_schema = 'webhook_supervisor' AND table_name <> 'schema_version' GROUP BY 1"
    )
    return {table: set(names) for table, names in await cursor.fetchall()}


async def versions(connection: AsyncConnection[TupleRow]) -> list[int]:
    cursor = await connection.execute(
        "SELECT version FROM webhook_supervisor.schema_version ORDER BY version"
    )
    return [version for (version,) in await cursor.fetchall()]


async def test_a30_the_schema_is_applied_once_and_is_what_this_version_needs(database_url: str) -> None:
    """And nothing more than it says it needs: whoever adds a column to the file adds it to the check."""
    async with await session(database_url) as connection:
        assert await apply_schema(connection) == LATEST
        assert await apply_schema(connection) == 0
        await check_schema(connection)
        assert await columns(connection) == {table: set(names) for table, names in NEEDED.items()}
        assert await versions(connection) == list(range(1, LATEST + 1))


async def test_a30_many_instances_apply_it_at_once(database_url: str) -> None:
    """Each migration is applied by exactly one of them, and none fails."""
    connections = [await session(database_url) for _ in range(8)]
    try:
        applied = await asyncio.gather(*(apply_schema(connection) for connection in connections))
        assert sum(applied) == LATEST
        for connection in connections:
            await check_schema(connection)
    finally:
        for connection in connections:
            await connection.close()


async def test_a30_tables_that_another_has_begun_since_we_asked_are_not_taken_for_ones_made_by_hand(
    database_url: str,
) -> None:
    """Those would be left as they are, and the next migrations would be missing."""
    good = b"CREATE TABLE webhook_supervisor.terms (a int)"

    class Between:
        """The connection of one of two instances; the other is quick."""

        def __init__(self, connection: AsyncConnection[TupleRow]) -> None:
            self._connection = connection
            self._is_first = True

        async def execute(self, *args: Any) -> object:
            answer = await self._connection.execute(*args)
            if self._is_first:
                self._is_first = False
                async with await session(database_url) as other:
                    with pytest.raises(SchemaError, match="table inbox is missing"):
                        await apply_schema(other, (good,))
            return answer

    async with await session(database_url) as connection:
        assert await due_migrations(cast(Any, Between(connection)), 2) == range(2, 3)


async def test_a30_a_failed_migration_leaves_nothing_and_says_so(database_url: str) -> None:
    """The instance must not run on, silent; the next try begins where this one did."""
    good = b"CREATE TABLE webhook_supervisor.one (a int)"
    bad = b"CREATE TABLE webhook_supervisor.two (a int); SELECT 1/0"
    async with await session(database_url) as connection:
        with pytest.raises(SchemaError, match=r"migration 2 failed.*division by zero"):
            await apply_schema(connection, (good, bad))
        assert await versions(connection) == [1]
        assert set(await columns(connection)) == {"one"}


async def test_b14_a_database_that_takes_no_writes_is_told_from_one_that_our_role_may_not_change(
    database_url: str,
) -> None:
    """At a first start, when there is nothing yet that could be refused otherwise."""
    async with await session(database_url) as connection:
        await connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(SchemaError, match=r"read-only transaction .*Let sessions of DATABASE_URL write"):
            await apply_schema(connection)


async def test_b18_old_code_runs_on_a_newer_schema(database_url: str) -> None:
    """Also when the newer one has more tables and columns."""
    newer = (*read_migrations(), b"ALTER TABLE webhook_supervisor.inbox ADD COLUMN later int")
    async with await session(database_url) as connection:
        assert await apply_schema(connection, newer) == LATEST + 1
        assert await apply_schema(connection) == 0


async def test_a_later_migration_is_applied_on_the_schema_of_the_version_before(database_url: str) -> None:
    """The usual deploy."""
    newer = (*read_migrations(), b"ALTER TABLE webhook_supervisor.inbox ADD COLUMN later int")
    async with await session(database_url) as connection:
        await apply_schema(connection)
        assert await apply_schema(connection, newer) == 1
        assert "later" in (await columns(connection))["inbox"]


# What migration 1 made before a completed update was null but for its key.
FORMER = b"""
DROP INDEX webhook_supervisor.inbox_completed;
ALTER TABLE webhook_supervisor.inbox
    DROP COLUMN lane_key,
    ALTER COLUMN attempts SET NOT NULL,
    ALTER COLUMN starts SET NOT NULL,
    ALTER COLUMN received_at SET NOT NULL,
    ALTER COLUMN retry_told SET NOT NULL,
    ALTER COLUMN retries SET NOT NULL;
ALTER TABLE webhook_supervisor.inbox ADD COLUMN lane_key bigint NOT NULL
    GENERATED ALWAYS AS (coalesce(lane, 4611686018427387904 + seq)) STORED;
CREATE INDEX inbox_lanes ON webhook_supervisor.inbox (bot_id, lane_key, seq) WHERE state = 'pending';
CREATE INDEX inbox_claimed ON webhook_supervisor.inbox (bot_id, lane_key) WHERE state = 'claimed';
CREATE INDEX inbox_finished ON webhook_supervisor.inbox (bot_id, finished_at) WHERE state = 'done'
"""


async def test_b18_a_database_of_the_version_before_takes_what_this_one_writes(database_url: str) -> None:
    """Without a table that is written again, for which everybody would wait."""
    async with await session(database_url) as connection:
        first = read_migrations()[0]
        with pytest.raises(SchemaError, match="inbox refuses null in attempts, starts, received_at"):
            await apply_schema(connection, (first + FORMER,))
        file = "SELECT pg_relation_filenode('webhook_supervisor.inbox')"
        before = await (await connection.execute(file)).fetchone()
        assert await apply_schema(connection) == LATEST - 1
        assert await (await connection.execute(file)).fetchone() == before
        await connection.execute(
            "INSERT INTO webhook_supervisor.inbox"
            " (bot_id, update_id, state, attempts, starts, received_at, retry_told, retries)"
            " VALUES (1, 1, 'done', NULL, NULL, NULL, NULL, NULL)"
        )


async def test_b18_a_term_of_the_version_before_lives_through_the_column_for_requests(
    database_url: str,
) -> None:
    """In the catalogue alone, and its owner, which does not know the column, begins its next term as ever."""
    async with await session(database_url) as connection:
        await apply_schema_of(connection, 2)
        begun = (
            "INSERT INTO webhook_supervisor.terms AS t (bot_id, number, uuid, instance_id, deadline_seconds, began_at)"
            " VALUES (1, 1, gen_random_uuid(), 'old', 8, now())"
            " ON CONFLICT (bot_id) DO UPDATE SET number = t.number + 1, ended_at = NULL"
        )
        await connection.execute(begun)
        file = "SELECT pg_relation_filenode('webhook_supervisor.terms')"
        before = await (await connection.execute(file)).fetchone()
        assert await apply_schema(connection) == LATEST - 2
        assert await (await connection.execute(file)).fetchone() == before
        await connection.execute(begun)
        found = "SELECT number, handover_requested_at FROM webhook_supervisor.terms"
        assert await (await connection.execute(found)).fetchall() == [(2, None)]


async def apply_schema_of(connection: AsyncConnection[TupleRow], version: int) -> None:
    """As the code of that version left it."""
    with pytest.raises(SchemaError, match="lacks"):
        await apply_schema(connection, read_migrations()[:version])


async def test_a30_a_schema_that_was_prepared_by_hand_for_the_version_before_is_refused(
    database_url: str,
) -> None:
    """It has every column, and no completed update could be written."""
    async with await session(database_url) as connection:
        await apply_schema(connection)
        await connection.execute(
            "ALTER TABLE webhook_supervisor.inbox ALTER COLUMN starts SET NOT NULL, ALTER COLUMN retries SET NOT NULL"
        )
        await connection.execute("DROP TABLE webhook_supervisor.schema_version")
        with pytest.raises(SchemaError, match="inbox refuses null in starts, retries"):
            await apply_schema(connection)


async def test_a_migration_that_waits_for_a_reader_gives_up_soon_and_says_so(database_url: str) -> None:
    """Whoever comes after it waits too: it must not stand in the way of updates for as long as a dump takes."""
    newer = (*read_migrations(), b"ALTER TABLE webhook_supervisor.inbox ADD COLUMN later int")
    async with await session(database_url) as connection, await session(database_url) as reader:
        await apply_schema(connection)
        async with reader.transaction():
            await reader.execute("SELECT FROM webhook_supervisor.inbox")
            with pytest.raises(SchemaError, match=rf"migration {LATEST + 1} waits for another session"):
                await apply_schema(connection, newer)
        assert await apply_schema(connection, newer) == 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (b"ALTER TABLE webhook_supervisor.inbox DROP COLUMN error", "table inbox lacks error"),
        (b"DROP TABLE webhook_supervisor.terms", "table terms is missing"),
        (b"DROP SCHEMA webhook_supervisor CASCADE", "table inbox is missing"),
    ],
)
async def test_a30_what_is_missing_is_named(database_url: str, damage: bytes, words: str) -> None:
    """A schema that somebody changed is an error at start, not at the first update."""
    async with await session(database_url) as connection:
        await apply_schema(connection)
        await connection.execute(damage)
        with pytest.raises(SchemaError, match=words):
            await check_schema(connection)


async def with_role(connection: AsyncConnection[TupleRow], dsn: str, name: str, *grants: str) -> str:
    """DSN of a role made for this test; roles are the server's, so each has a name of its own."""
    await connection.execute(
        sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(name)),
    )
    for grant in grants:
        await connection.execute(sql.SQL("{} TO {}").format(sql.SQL(grant), sql.Identifier(name)))
    return make_conninfo(dsn, user=name, password="x")


async def drop_role(connection: AsyncConnection[TupleRow], name: str) -> None:
    for statement in ("DROP OWNED BY {}", "DROP ROLE {}"):
        await connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


ALL_TABLES = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA webhook_supervisor"
USAGE = "GRANT USAGE ON SCHEMA webhook_supervisor"


async def test_a_role_without_create_runs_on_a_prepared_schema(database_url: str) -> None:
    """Prepared by a role that may; with or without the table of versions."""
    async with await session(database_url) as owner:
        await apply_schema(owner)
        dsn = await with_role(owner, database_url, "may_use", USAGE, ALL_TABLES)
        try:
            async with await session(dsn) as connection:
                assert await apply_schema(connection) == 0
            await owner.execute("DROP TABLE webhook_supervisor.schema_version")
            async with await session(dsn) as connection:
                assert await apply_schema(connection) == 0
        finally:
            await drop_role(owner, "may_use")


async def test_a_role_without_rights_is_told_which_to_give(database_url: str) -> None:
    """CREATE where nothing is there; the rights on the tables where they are."""
    async with await session(database_url) as owner:
        dsn = await with_role(owner, database_url, "may_nothing")
        try:
            async with await session(dsn) as connection:
                with pytest.raises(SchemaError, match=r"permission denied.*CREATE on the database"):
                    await apply_schema(connection)
            await apply_schema(owner)
            async with await session(dsn) as connection:
                with pytest.raises(SchemaError, match="schema_version"):
                    await apply_schema(connection)
                with pytest.raises(SchemaError, match=r"may_nothing may not use table inbox.*GRANT USAGE"):
                    await check_schema(connection)
        finally:
            await drop_role(owner, "may_nothing")


async def test_a_second_role_that_may_create_waits_for_the_first(database_url: str) -> None:
    """Two users of one database at once: the lock is the database's, not the user's."""
    async with await session(database_url) as owner:
        database = (await (await owner.execute("SELECT current_database()")).fetchone() or ("",))[0]
        dsn = await with_role(owner, database_url, "may_create", f'GRANT CREATE ON DATABASE "{database}"')
        try:
            async with await session(dsn) as connection, await session(database_url) as other:
                results = await asyncio.gather(
                    apply_schema(connection), apply_schema(other), return_exceptions=True
                )
            # Each migration is applied by one of them. Whoever was first owns the tables; the superuser may use them in any
            # case, the other is told what to grant.
            assert all(isinstance(result, int | SchemaError) for result in results)
            assert sum(result for result in results if isinstance(result, int)) == LATEST
            assert isinstance(results[1], int)
        finally:
            await drop_role(owner, "may_create")


async def test_a_lost_connection_is_not_a_fault_of_the_schema(database_url: str) -> None:
    """It is tried again; a SchemaError would be shown to the operator as something to repair."""
    async with await session(database_url) as connection, await session(database_url) as other:
        await other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError):
            await apply_schema(connection)
