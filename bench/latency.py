"""How long it takes until somebody goes on: the next owner, the handler of an update, everybody else beside a blocked chat.

    take-over      kill -9 of the owner's supervisor, with a standby, to the commit of the next term, as Postgres dates it: we
                   see it later, since four sessions end on the core that we share with Postgres. Its fsync is not in it;
                   beside it, a client that tries to take the same lock every second, from a moment of its own on
    wake-up        the commit of the INSERT, as Postgres dates it, to the first line of the handler, of updates 10 ms apart.
                   It dates a commit before it makes it durable: the fsync of the INSERT is in it, and so is the claim's
    blocked chat   from when an update is due to the first line of its handler, for each of 20 other chats at 300 updates a
                   second together, with and without a handler that sleeps for 10 s

Not promised: the time until a person sees an answer; that is Telegram's. The generator's timer has steps of a millisecond,
which latencies from when an update was due have in them.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from statistics import median, quantiles
from time import perf_counter

import psycopg

from bench.bed import Bed, Server
from bench.bots import BLOCKED_SECONDS, BLOCKING_TEXT, NOTE, NOTES_VARIABLE
from bench.contenders import Connection, warm_up
from bench.figures import Figure, Series
from bench.load import CHATS, FIRST_UPDATE_ID, Updates, send_load, send_steadily
from bench.options import Options
from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.guarded import GuardedProcess, inherited_environment

_KILLS_PER_ROUND = 20
_POLLS_PER_ROUND = 8
_WAKE_UPS = 10_000
_WAKE_UP_RATE = 100
_BLOCKED_CHAT = 6_200_000_000
_RATE = 300  # updates a second beside a blocked chat
_OTHER_CHATS = 20  # few: each has a median of its own
_BLOCKED_ROUND_SECONDS = 8.0  # within the handler's ten
_LIMIT_SECONDS = 60.0
POSTGRES_SETTINGS = {"track_commit_timestamp": "on"}
# In the INSERT's transaction, before its commit: nothing of it is in what is measured.
_NOTE_COMMITS = """
CREATE UNLOGGED TABLE bench_commits (update_id bigint, xid xid DEFAULT pg_current_xact_id()::xid);
CREATE FUNCTION bench_note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN INSERT INTO public.bench_commits (update_id) VALUES (NEW.update_id); RETURN NULL; END $$;
CREATE TRIGGER bench_note AFTER INSERT ON webhook_supervisor.inbox FOR EACH ROW EXECUTE FUNCTION bench_note();
"""
# Less would be no pause at all to uvloop, and take Postgres's core from it.
_POLL_SECONDS = 0.002
_LOCK_KEY = 4_711


async def measure(bed: Bed, options: Options) -> tuple[list[Figure], list[Series]]:
    """Of figures.TARGETS: takeover_*, wakeup_*, blocked_chat."""
    rounds = 1 if options.quick else options.rounds
    figures = await _measure_takeover(
        bed,
        kills=3 if options.quick else rounds * _KILLS_PER_ROUND,
        polls=2 if options.quick else rounds * _POLLS_PER_ROUND,
    )
    async with _noting(bed) as notes:
        figures += await _measure_wake_up(notes, 200 if options.quick else _WAKE_UPS)
        figures.append(await _measure_blocked_chat(notes, rounds))
    return figures, []


# ---------------------------------------------------------------------------------------------------------- take-over


async def _measure_takeover(bed: Bed, *, kills: int, polls: int) -> list[Figure]:
    dsn = await bed.new_database()
    took: list[float] = []
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn, autocommit=True))

        async def start(number: int) -> Server:
            environment = bed.environment(dsn, INSTANCE_ID=f"bench-{number}", LINGER_SECONDS="0")
            return await stack.enter_async_context(bed.start(["-m", "supervisor"], environment))

        owner = await start(0)
        number = await _until_owned(session, above=0)
        for kill in range(1, kills + 1):
            standby = await start(kill)
            await _until_somebody_waits(session)
            began_at = time.time()
            os.kill(owner.process.pid, SIGKILL)  # not by its guard, which would take its time
            number = await _until_owned(session, above=number)
            took.append(await _term_committed_at(session) - began_at)
            owner = standby
    polled = await _poll_after_kills(bed, await bed.new_database(), polls)
    beside = {
        "ms": round(median(took) * 1000, 1),
        "worst ms": round(max(took) * 1000, 1),
        "polling ms": round(median(polled) * 1000, 1),
        "kills": kills,
        "polls": polls,
    }
    return [
        Figure("takeover_vs_polling", median(took) / median(polled), beside=beside),
        Figure(
            "takeover_p99_vs_polling", _p99(took) / median(polled), beside={"ms": round(_p99(took) * 1000, 1)}
        ),
    ]


def _p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[-1]


async def _until_owned(session: Connection, *, above: int) -> int:
    """The number of the next term, once it has begun."""
    async with asyncio.timeout(_LIMIT_SECONDS):
        while True:
            try:
                row = await (
                    await session.execute("SELECT max(number) FROM webhook_supervisor.terms")
                ).fetchone()
            except psycopg.errors.UndefinedTable:  # nobody has started yet
                row = None
            if row is not None and isinstance(row[0], int) and row[0] > above:
                return row[0]
            await asyncio.sleep(_POLL_SECONDS)


async def _term_committed_at(session: Connection) -> float:
    """When the present term was committed, by the wall clock, which we share with Postgres."""
    committed = (
        "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM webhook_supervisor.terms"
    )
    row = await (await session.execute(committed)).fetchone()
    assert row is not None
    return float(str(row[0]))


async def _until_somebody_waits(session: Connection) -> None:
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted LIMIT 1"
    async with asyncio.timeout(_LIMIT_SECONDS):
        while await (await session.execute(waiting)).fetchone() is None:  # noqa: ASYNC110 - other processes' doing
            await asyncio.sleep(0.02)


_HOLD = f"""
import sys, time, psycopg
connection = psycopg.connect(sys.argv[1], autocommit=True)
connection.execute("SELECT pg_advisory_lock({_LOCK_KEY})")
print("held", flush=True)
time.sleep(3600)
"""


async def _poll_after_kills(bed: Bed, dsn: str, polls: int) -> list[float]:
    """What a client that tries every second takes, after the holder was killed at all moments between two tries."""
    took: list[float] = []
    # One in each part of the second, in any order: of as many at random the median would be anywhere from 0.25 to 0.75 s.
    phases = [(part + random.random()) / polls for part in range(polls)]  # noqa: S311 - no secrets
    random.shuffle(phases)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        for phase in phases:
            held = asyncio.Event()
            holder = await GuardedProcess.spawn(
                [sys.executable, "-c", _HOLD, dsn],
                environment=inherited_environment(),
                folder=PROJECT_FOLDER,
                on_line=lambda line, held=held: held.set() if line == "held" else print(line),  # type: ignore[misc]
            )
            try:
                async with asyncio.timeout(_LIMIT_SECONDS):
                    await held.wait()
                next_try = perf_counter() + phase
                began_at = perf_counter()
                os.kill(holder.pid, SIGKILL)
                while True:
                    await asyncio.sleep(max(0.0, next_try - perf_counter()))
                    row = await (
                        await session.execute(f"SELECT pg_try_advisory_lock({_LOCK_KEY})")
                    ).fetchone()
                    if row is not None and row[0]:
                        break
                    next_try += 1.0
                took.append(perf_counter() - began_at)
                await session.execute(f"SELECT pg_advisory_unlock({_LOCK_KEY})")
            finally:
                await holder.end(SIGKILL, limit_seconds=5)
    return took


# ------------------------------------------------------------------------------------------------------------- notes


class _Notes:
    """An owner whose bot notes when each handler began."""

    def __init__(self, server: Server, session: Connection, path: Path) -> None:
        self.port = server.port
        self._session = session
        self._path = path
        self.next_id = FIRST_UPDATE_ID * 3

    def noted(self) -> int:
        """How many handlers have begun."""
        return self._path.stat().st_size // NOTE.size

    async def wait_noted(self, count: int) -> None:
        """Returns when so many have."""
        async with asyncio.timeout(_LIMIT_SECONDS):
            while self.noted() < count:  # noqa: ASYNC110 - another process notes
                await asyncio.sleep(_POLL_SECONDS)

    async def begun(self, first_id: int) -> dict[int, float]:
        """When the handlers of the updates from that id on began: the wall clock, by update_id."""
        notes = NOTE.iter_unpack(await asyncio.to_thread(self._path.read_bytes))
        return {update_id: at for update_id, at in notes if update_id >= first_id}

    async def committed(self, first_id: int) -> dict[int, float]:
        """The same for when their INSERT was committed."""
        rows = await (
            await self._session.execute(
                "SELECT update_id, extract(epoch FROM pg_xact_commit_timestamp(xid))::float8 FROM bench_commits "
                "WHERE update_id >= %s",
                (first_id,),
            )
        ).fetchall()
        return {int(str(update_id)): float(str(at)) for update_id, at in rows}

    async def send(
        self, count: int, *, rate: float, connections: int, chats: int = CHATS
    ) -> dict[int, float]:
        """Sends so many at a steady rate, and returns when all handlers have begun: when each was due, by update_id.

        Raises:
            RuntimeError: an answer was not 200.
        """
        there, updates = self.noted(), Updates(first_id=self.next_id, chats=chats)
        wall_clock = time.time() - perf_counter()
        async with send_steadily(self.port, updates, connections=connections, rate=rate) as steady:
            await asyncio.sleep(count / rate)
        if steady.not_200:
            raise RuntimeError(f"{steady.not_200} of {steady.sent} not answered 200")
        first_id, self.next_id = self.next_id, updates.next_id
        await self.wait_noted(there + steady.sent)
        began_at = wall_clock + steady.began_at
        return {
            update_id: began_at + (update_id - first_id) / rate for update_id in range(first_id, self.next_id)
        }

    async def block(self) -> None:
        """A chat whose handler sleeps, with others behind it.

        Raises:
            RuntimeError: an answer was not 200.
        """
        there = self.noted()
        for text, count in ((BLOCKING_TEXT, 1), ("waits", 2)):
            updates = Updates(first_id=self.next_id, chats=1, texts=(text,), first_chat=_BLOCKED_CHAT)
            load = await send_load(self.port, updates, connections=1, seconds=_LIMIT_SECONDS, limit=count)
            if load.not_200:
                raise RuntimeError(f"{load.not_200} of {load.sent} not answered 200")
            self.next_id = updates.next_id
        await self.wait_noted(there + 1)


@asynccontextmanager
async def _noting(bed: Bed) -> AsyncIterator[_Notes]:
    dsn = await bed.new_database()
    path = bed.folder / "notes"
    environment = bed.environment(dsn, bot_app="bench.bots:noting", **{NOTES_VARIABLE: str(path)})
    async with bed.start(["-m", "supervisor"], environment) as server:
        sent = await warm_up(server, Updates())
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
            await session.execute(_NOTE_COMMITS)
            notes = _Notes(server, session, path)
            await notes.wait_noted(sent)
            yield notes


# ------------------------------------------------------------------------------------------------ wake-up, blocked chat


async def _measure_wake_up(notes: _Notes, count: int) -> list[Figure]:
    first_id = notes.next_id
    await notes.send(count, rate=_WAKE_UP_RATE, connections=1)
    begun = await notes.begun(first_id)
    latencies = [
        (begun[update_id] - at) * 1000 for update_id, at in (await notes.committed(first_id)).items()
    ]
    beside = {"updates": len(latencies), "worst": round(max(latencies), 2)}
    return [
        Figure("wakeup_median_ms", round(median(latencies), 3), beside=beside),
        Figure("wakeup_p99_ms", round(_p99(latencies), 3), beside=beside),
    ]


async def _measure_blocked_chat(notes: _Notes, rounds: int) -> Figure:
    """Rounds without and with, in turns. The figure is that of the other chat whose median moved most."""
    without: dict[int, list[float]] = defaultdict(list)
    beside_it: dict[int, list[float]] = defaultdict(list)
    for _ in range(rounds):
        await _add_latencies_ms(notes, without)
        ends_at = perf_counter() + BLOCKED_SECONDS
        await notes.block()
        await _add_latencies_ms(notes, beside_it)
        await asyncio.sleep(max(0.0, ends_at - perf_counter()) + 0.5)
    moved = {chat: median(beside_it[chat]) / median(without[chat]) for chat in without}
    of_all, of_all_without = (
        [ms for of_one in by_chat.values() for ms in of_one] for by_chat in (beside_it, without)
    )
    return Figure(
        "blocked_chat",
        max(moved.values()),
        beside={
            "other chats": len(moved),
            "the one that moved least": round(min(moved.values()), 3),
            "ms": round(median(of_all), 3),
            "without, ms": round(median(of_all_without), 3),
            "p99 ms": round(_p99(of_all), 3),
            "without, p99 ms": round(_p99(of_all_without), 3),
            "updates a second": _RATE,
        },
    )


async def _add_latencies_ms(notes: _Notes, by_chat: dict[int, list[float]]) -> None:
    """Of the other chats, at a steady rate."""
    first_id = notes.next_id
    due = await notes.send(
        round(_RATE * _BLOCKED_ROUND_SECONDS), rate=_RATE, connections=20, chats=_OTHER_CHATS
    )
    begun = await notes.begun(first_id)
    chat_of = Updates(chats=_OTHER_CHATS, first_id=first_id).chat_of
    for update_id, at in due.items():
        by_chat[chat_of(update_id)].append((begun[update_id] - at) * 1000)
