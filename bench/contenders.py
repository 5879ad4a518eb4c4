"""Ours and the peers, running, in the shape in which they are compared: a port, the CPU time, and how many were handled.

Ours comes in two kinds. `accepting` is kept from owning by the bench, which holds the bot's advisory lock from before it
starts: all it does is to accept, store and notify. `owning` handles what it stores; it is done when the database says so.

Not promised: the same guarantees. The peers' are those of their documentation: an update that was answered 200 and waits in
memory is lost with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import LiteralString

import psycopg

from bench.bed import Bed, Server
from bench.counter import VARIABLE, Counter
from bench.load import Updates, send_load
from shared.database import lock_key

READY_LIMIT_SECONDS = 60.0
HANDLED_LIMIT_SECONDS = 120.0
_POLL_SECONDS = 0.05
_WARM_UP = 500
_BETWEEN_REGISTRATIONS_SECONDS = 1.5

Connection = psycopg.AsyncConnection[tuple[object, ...]]


class Kind(Enum):
    """What is left of an update when all is done."""

    ANSWERS = "answers"  # nothing
    STORES = "stores"  # a row
    HANDLES = "handles"  # it was handled; each is counted


@dataclass(slots=True)
class Contender:
    """One that runs and has been warmed up.

    Attributes:
        name: in tables.
        server: its processes.
        kind: what `count` counts.
        count: how many updates it has stored or handled, since it started or was emptied.
        empty: forgets what is stored, that every round may begin alike; between rounds.
        database: a session of ours in its database, if it has one.
    """

    name: str
    server: Server
    kind: Kind
    count: Callable[[], Awaitable[int]]
    empty: Callable[[], Awaitable[None]]
    database: Connection | None = None

    async def wait_until_done(self, count: int) -> None:
        """Returns when so many are.

        Raises:
            TimeoutError: some never were.
        """
        async with asyncio.timeout(HANDLED_LIMIT_SECONDS):
            while await self.count() < count:  # noqa: ASYNC110 - another process counts
                await asyncio.sleep(_POLL_SECONDS)


async def count_query(connection: Connection, query: LiteralString) -> int:
    """The number that a query returns."""
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


async def _nothing() -> None:
    return None


async def warm_up(server: Server, updates: Updates) -> int:
    """Waits until it answers 200, and sends a few hundred updates; returns how many were answered 200.

    Raises:
        RuntimeError: it never did.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READY_LIMIT_SECONDS
    while loop.time() < deadline and server.process.is_running:
        with contextlib.suppress(OSError):
            load = await send_load(server.port, updates, connections=1, seconds=1, limit=1)
            if load.sent and not load.not_200:
                more = await send_load(server.port, updates, connections=10, seconds=30, limit=_WARM_UP)
                if not more.not_200:
                    return 1 + more.sent
        await asyncio.sleep(0.05)
    said = server.log_path.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"a server under test never answered 200, see {server.log_path}:\n{said}")


@asynccontextmanager
async def _session(dsn: str) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


_UNFINISHED: LiteralString = (
    "SELECT count(*) FROM (SELECT FROM webhook_supervisor.inbox WHERE state = 'pending' UNION ALL "
    "SELECT FROM webhook_supervisor.inbox WHERE state = 'claimed' LIMIT 1) AS one"
)
_DONE = "SELECT count(*) FROM webhook_supervisor.inbox WHERE state = 'done'"
_STORED = "SELECT count(*) FROM webhook_supervisor.inbox"
_TRUNCATE = "TRUNCATE webhook_supervisor.inbox"


@asynccontextmanager
async def run_accepting(
    bed: Bed, updates: Updates, *, name: str = "ours, accepting", **environment: str
) -> AsyncIterator[Contender]:
    """`python -m supervisor`, PASSIVE as long as the block lasts. `count` is how many are stored."""
    dsn = await bed.new_database()
    async with _session(dsn) as session:
        bot_id = int(bed.emulator.token.partition(":")[0])
        await session.execute("SELECT pg_advisory_lock(%s::int4, %s::int4)", lock_key(bot_id))
        async with bed.start(["-m", "supervisor"], bed.environment(dsn, **environment)) as server:
            await warm_up(server, updates)

            async def stored() -> int:
                return await count_query(session, _STORED)

            async def empty() -> None:
                await session.execute(_TRUNCATE)

            yield Contender(name, server, Kind.STORES, stored, empty, session)


@asynccontextmanager
async def run_owning(
    bed: Bed, updates: Updates, *, name: str = "ours, owning", **environment: str
) -> AsyncIterator[Contender]:
    """`python -m supervisor`, ACTIVE. `count`: 'done', and seen by a handler, since the table was last emptied."""
    dsn = await bed.new_database()
    path = bed.folder / f"ours_{bed.databases}.handled"
    counter = Counter(path)
    emptied_at = 0
    environment[VARIABLE] = str(path)
    async with bed.start(["-m", "supervisor"], bed.environment(dsn, **environment)) as server:
        sent = await warm_up(server, updates)
        async with _session(dsn) as session:

            async def done() -> int:
                # While there is work, only that there is: counting rows takes Postgres' time, and its core is the load's.
                if await count_query(session, _UNFINISHED):
                    return 0
                return min(await count_query(session, _DONE), counter.value - emptied_at)

            async def empty() -> None:
                nonlocal emptied_at
                await session.execute(_TRUNCATE)
                emptied_at = counter.value

            contender = Contender(name, server, Kind.HANDLES, done, empty, session)
            await contender.wait_until_done(sent)
            yield contender


@asynccontextmanager
async def run_peer(bed: Bed, updates: Updates, module: str, *, name: str) -> AsyncIterator[Contender]:
    """One of bench.peers."""
    dsn = await bed.new_database()
    path = bed.folder / f"{module}.handled"
    path.unlink(missing_ok=True)
    counter = Counter(path)
    # The emulator, as Telegram, takes one setWebhook a second, and the examples do not try again.
    await asyncio.sleep(_BETWEEN_REGISTRATIONS_SECONDS)
    environment = bed.peers_environment(dsn, module, **{VARIABLE: str(path)})
    async with bed.start(["-m", f"bench.peers.{module}"], environment) as server:
        await warm_up(server, updates)

        async def handled() -> int:
            return counter.value

        if module == "insert_per_request":
            async with _session(dsn) as session:

                async def empty() -> None:
                    await session.execute("TRUNCATE peer.inbox")

                async def stored() -> int:
                    return await count_query(session, "SELECT count(*) FROM peer.inbox")

                yield Contender(name, server, Kind.STORES, stored, empty, session)
        else:
            kind = Kind.ANSWERS if module == "bare_uvicorn" else Kind.HANDLES
            yield Contender(name, server, kind, handled, _nothing)
