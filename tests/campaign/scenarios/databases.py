"""Databases that are not what they should be: behind a pooler, full of sessions, read-only, without room, under maintenance."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

import httpx
import psycopg
from psycopg import sql

from deploy.local.postgres import PostgresServer
from deploy.local.postgres_binaries import find_binaries
from tests.campaign.faults.limits import exhausted_connections, few_descriptors, read_only
from tests.campaign.faults.pooler import pgbouncer
from tests.campaign.faults.small_disk import SmallDisk, a_small_disk
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Bound
from tests.campaign.scenario import Need, scenario
from tests.campaign.scenarios.restarts import unpromised
from tests.campaign.succession import count_terms
from tests.campaign.threads import in_thread
from tests.end_to_end.instance import eventually

_OURS = "webhook-supervisor"
_DISK_MEGABYTES = 8
_WHOLE_MEGABYTES = 96
"""An empty database takes 8, the campaign's own history of it some dozens."""

_INDEX = "CREATE INDEX CONCURRENTLY"
_ROOM = "room again, until every instance stores"
_INDEX_SECONDS = 20
"""Limit on a hang. It waits for every older snapshot, so a standby that waited for the lock in one would hold it up."""


@scenario(id="b13", title="PgBouncer in transaction mode in the DSN", repetitions=12, short=3,
    needs=(Need.LINUX, Need.PGBOUNCER))  # fmt: skip
async def pooled_instance(field: Field, chance: random.Random) -> None:
    """Refused at start with the reason and the remedy, exit status 2; whoever owns by the direct way does not notice."""
    await field.start("one")
    async with field.flowing(), pgbouncer(field.database_url) as pooled_url:
        await field.steady()
        terms = await count_terms(field)
        for repetition in range(field.repetitions):
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            field.inject("an instance behind PgBouncer")
            pooled = await field.start(f"pooled{repetition}", dsn=pooled_url)
            status = await pooled.wait_for_exit()
            said = "\n".join(pooled.output)
            if status != 2:
                field.object(
                    Invariant.AVAILABLE, f"an instance behind PgBouncer ended with {status}, expected 2"
                )
            for words in ("pooler in transaction mode", "direct address"):
                if words not in said:
                    field.object(Invariant.AVAILABLE, f"an instance behind PgBouncer does not say {words!r}")
            if pooled.has("[LOCK] PostgreSQL advisory lock acquired"):
                field.object(Invariant.EXCLUSION, "an instance behind PgBouncer took the lock")
        if (now := await count_terms(field)) != terms:
            field.object(
                Invariant.AVAILABLE, f"{now - terms} more terms, by instances that had to be refused"
            )


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit that can be reached.

    Attributes:
        reach: until the block ends.
        status: what an update is answered meanwhile.
    """

    name: str
    reach: Callable[[], AbstractAsyncContextManager[object]]
    status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE


class SmallServer(PostgresServer):
    """A server with a tablespace that can be filled up.

    Attributes:
        disk: where the tablespace is.
    """

    disk: SmallDisk


class CrampedServer(SmallServer):
    """One whose databases are in that tablespace, with all that belongs to them."""

    def create_database(self, name: str) -> str:
        """Creates an empty database and returns its DSN."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TABLESPACE small").format(sql.Identifier(name)))
        return self.dsn(name)


@asynccontextmanager
async def beside_a_small_disk(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[PostgresServer]:
    """A running server, and a tablespace `small` on a small file system."""
    async with _with_a_small_disk(SmallServer, _DISK_MEGABYTES, folder, settings) as server:
        yield server


@asynccontextmanager
async def on_a_small_disk(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[PostgresServer]:
    """A running server that makes its databases in the tablespace `small`. Its log (WAL) has room: it lives."""
    async with _with_a_small_disk(CrampedServer, _WHOLE_MEGABYTES, folder, settings) as server:
        yield server


@asynccontextmanager
async def _with_a_small_disk(
    kind: type[SmallServer], megabytes: int, folder: Path, settings: Mapping[str, str]
) -> AsyncIterator[SmallServer]:
    with a_small_disk(folder.with_name("disk"), megabytes=megabytes) as disk:
        server = kind(
            folder,
            binaries=find_binaries(os.environ.get("LOCAL_POSTGRES", "")),
            durable=False,
            keep_data=False,
            settings=settings,
        )
        server.disk = disk
        await asyncio.to_thread(server.start)
        try:
            server.lend(disk.folder / "tables")
            await _execute(server.dsn(), f"CREATE TABLESPACE small LOCATION '{disk.folder / 'tables'}'")
            yield server
        finally:
            await asyncio.to_thread(server.close)


@scenario(id="b14", title="max_connections reached; database read-only; disk full", repetitions=12, short=3,
    needs=(Need.LINUX, Need.ROOT), server_settings={"max_connections": "30"},
    place=beside_a_small_disk)  # fmt: skip
async def limit_reached(field: Field, chance: random.Random) -> None:
    """503 while nothing can be stored, never 200, and everything goes on by itself when it can."""
    assert isinstance(field.server, SmallServer)
    await _move_inbox(field, "small")
    await field.start("one")
    await field.start("two")

    disk = field.server.disk
    faults = [
        _Limit(
            "max_connections reached",
            lambda: in_thread(exhausted_connections(field.database_url, ending=_OURS)),
        ),
        _Limit("database read-only", lambda: in_thread(read_only(field.database_url))),
        _Limit("disk full", lambda: in_thread(disk.full())),
        # Nobody can be accepted, so nobody can be answered 503: the router says it, as a platform does.
        _Limit("descriptors used up", lambda: _without_descriptors(field), HTTPStatus.BAD_GATEWAY),
    ]
    async with field.flowing():
        for limit in itertools.islice(itertools.cycle(chance.sample(faults, len(faults))), field.repetitions):
            await field.steady()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            reached_at = time.monotonic()
            async with limit.reach():
                await _until_it_shows(field, reached_at, limit.name)
                await asyncio.sleep(chance.uniform(2.0, 4.0) if field.is_short else chance.uniform(5.0, 30.0))
            over_at = field.inject(limit.name).at
            await _until_all_store(field)
            what = f"{limit.name}: over, until every instance stores"
            field.times.setdefault(what, []).append(time.monotonic() - over_at)
            expected = (HTTPStatus.SERVICE_UNAVAILABLE, limit.status)
            for other in field.exchanges:
                if other.at >= reached_at and other.status not in expected:
                    why = f"{other.status} by {other.target} {other.at - over_at:+.3f} s from its end ({other.fault})"
                    field.object(
                        Invariant.AVAILABLE, f"{limit.name}: answered {why}, expected 200 or {limit.status}"
                    )


@scenario(id="b14-whole", title="the whole database on a full disk", repetitions=8, short=2,
    needs=(Need.LINUX, Need.ROOT), place=on_a_small_disk)  # fmt: skip
async def whole_disk_full(field: Field, chance: random.Random) -> None:
    """Not even a heartbeat can be written: the owner steps down and nobody owns, every update is answered 503 with Retry-After,
    and all goes on by itself in the same processes when there is room."""
    assert isinstance(field.server, SmallServer)
    names = ("one", "two")
    for name in names:
        await field.start(name)
    async with field.flowing():
        for _ in range(field.repetitions):
            await field.steady()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            full_at = time.monotonic()
            async with _without_heartbeats(field, field.server.disk):
                await eventually(partial(_are_all_passive, field), "an owner that steps down")
                await _until_it_shows(field, time.monotonic(), "a full disk")
                await asyncio.sleep(chance.uniform(2.0, 4.0) if field.is_short else chance.uniform(5.0, 30.0))
                if "ACTIVE" in await _roles(field):
                    field.object(Invariant.EXCLUSION, "somebody owns, and no term can be written")
            over_at = field.inject("whole disk full").at
            await _until_all_store(field)
            field.times.setdefault(_ROOM, []).append(time.monotonic() - over_at)
            await field.steady()
            if len(field.running) != len(names):
                field.object(Invariant.AVAILABLE, "an instance ended for want of room in the database")
            for other in unpromised(one for one in field.exchanges if one.at >= full_at):
                why = f"{other.status}, Retry-After {other.retry_after or 'none'}, {other.at - over_at:+.3f} s from its end"
                field.object(Invariant.AVAILABLE, f"{other.target or 'the router'} answered {why}")


@asynccontextmanager
async def _without_heartbeats(field: Field, disk: SmallDisk) -> AsyncIterator[None]:
    """The disk is full until the block ends, and so are the pages of the instances' rows: what is dead in them stays for as
    long as somebody reads an old snapshot."""
    async with (
        in_thread(disk.full()),
        await psycopg.AsyncConnection.connect(field.database_url) as reader,
        await psycopg.AsyncConnection.connect(field.database_url, autocommit=True) as writer,
    ):
        await reader.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await reader.execute("SELECT FROM webhook_supervisor.instances")
        # Past the campaign's own triggers: to them it would be a sign of life.
        await writer.execute("SET session_replication_role = replica")
        with contextlib.suppress(psycopg.errors.DiskFull):
            while True:
                await writer.execute("UPDATE webhook_supervisor.instances SET ready = ready")
        yield


async def _are_all_passive(field: Field) -> bool:
    return await _roles(field) == {"PASSIVE"}


async def _roles(field: Field) -> set[str]:
    """What instances say of themselves; empty of one that does not answer."""
    statuses = [await instance.try_status() for instance in field.running]
    return {"" if status is None else status["role"] for status in statuses}


@asynccontextmanager
async def _without_descriptors(field: Field) -> AsyncIterator[None]:
    """The owner's worker gets no new descriptor, so it takes no connection of a probe either."""
    owner = await field.owner()
    with field.standing_still(owner), few_descriptors(await owner.worker_pid(), 3):
        yield


@scenario(id="b19", title="CREATE INDEX CONCURRENTLY while standbys wait", repetitions=60, short=8,
    bounds={_INDEX: (Bound(f"{_INDEX}, worst", 5.0, worst=True),)})  # fmt: skip
async def index_concurrently(field: Field, chance: random.Random) -> None:
    """It waits for whoever has an older snapshot: no standby keeps one for more than a second."""
    for name in ("one", "two", "three"):
        await field.start(name)
    async with field.flowing():
        for _ in range(field.repetitions):
            await field.steady()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            fault = field.inject(_INDEX)
            await _execute(
                field.database_url,
                f"SET statement_timeout = '{_INDEX_SECONDS}s'",
                "CREATE INDEX CONCURRENTLY campaign_extra ON webhook_supervisor.inbox (received_at)",
            )
            field.times.setdefault(_INDEX, []).append(time.monotonic() - fault.at)
            await _execute(field.database_url, "DROP INDEX webhook_supervisor.campaign_extra")


async def _execute(dsn: str, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, application_name="campaign"
    ) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def _move_inbox(field: Field, tablespace: str) -> None:
    """Puts the inbox, and what belongs to it, where room is short; nobody may use it yet."""
    async with await psycopg.AsyncConnection.connect(field.database_url, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT indexname FROM pg_indexes WHERE schemaname = 'webhook_supervisor' AND tablename = 'inbox'"
        )
        indexes = [name for (name,) in await cursor.fetchall()]
        where = sql.Identifier(tablespace)
        await connection.execute(
            sql.SQL("ALTER TABLE webhook_supervisor.inbox SET TABLESPACE {}").format(where)
        )
        for index in indexes:
            await connection.execute(
                sql.SQL("ALTER INDEX {} SET TABLESPACE {}").format(
                    sql.Identifier("webhook_supervisor", index), where
                )
            )


async def _until_it_shows(field: Field, since: float, kind: str) -> None:
    """Returns when the limit bites: an update has not been answered 200, or a probe not at all."""

    async def shows() -> bool:
        return any(exchange.at >= since for exchange in field.exchanges) or any(
            probe.asked_at >= since and probe.status is None for probe in field.prober.probes
        )

    await eventually(shows, f"anything of {kind}")


async def _until_all_store(field: Field) -> None:
    """Returns when no instance says any more that it could not store an update: not just the one that had it easy."""
    for instance in field.running:

        async def stores(instance: Instance = instance) -> bool:
            try:
                return (await instance.get("/readyz")).status_code == HTTPStatus.OK
            except httpx.HTTPError:
                return False  # from a worker that ended with the question in hand

        await eventually(stores, f"{instance.name} to store updates again")
