"""How long it takes until somebody goes on: the next owner, the handler of an update, everybody else beside a blocked chat.

    take-over      kill -9 of the owner's supervisor, with a standby, to the next term in the database; beside it, a client that
                   tries to take the same lock every second, from a moment of its own on
    wake-up        `received_at`, the clock when the transaction of the INSERT began, to the first line of the handler: the
                   commit and its fsync are in it, so it is longer than what the target speaks of
    blocked chat   the same time for other chats at 300 updates a second, with and without a handler that sleeps for 10 s

Not promised: the time until a person sees an answer; that is Telegram's.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from statistics import median, quantiles
from time import perf_counter

import psycopg

from bench.bed import PATH, SECRET, Bed, Server
from bench.bots import BLOCKED_SECONDS, BLOCKING_TEXT, NOTE, NOTES_VARIABLE
from bench.contenders import Connection, warm_up
from bench.figures import Figure, Series
from bench.load import FIRST_UPDATE_ID, Updates
from bench.options import Options
from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.guarded import GuardedProcess, inherited_environment

_KILLS_PER_ROUND = 20
_POLLS_PER_ROUND = 8
_WAKE_UPS = 10_000
_RATE = 300  # updates a second beside a blocked chat
_BLOCKED_ROUND_SECONDS = 8.0  # within the handler's ten
_LIMIT_SECONDS = 60.0
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
            began_at = perf_counter()
            owner.process.signal(SIGKILL)
            number = await _until_owned(session, above=number)
            took.append(perf_counter() - began_at)
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
    """What a client that tries every second takes, after the holder was killed at any moment between two tries."""
    took: list[float] = []
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        for _ in range(polls):
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
                next_try = perf_counter() + random.random()  # noqa: S311 - the phase
                began_at = perf_counter()
                holder.signal(SIGKILL)
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
    """An owner whose bot notes when each handler began, and a client that posts to it."""

    def __init__(self, server: Server, session: Connection, path: Path) -> None:
        self._server = server
        self._session = session
        self._path = path
        self.next_id = FIRST_UPDATE_ID * 3

    def noted(self) -> int:
        """How many handlers have begun."""
        return self._path.stat().st_size // NOTE.size

    async def wait_noted(self, count: int) -> None:
        async with asyncio.timeout(_LIMIT_SECONDS):
            while self.noted() < count:  # noqa: ASYNC110 - another process notes
                await asyncio.sleep(_POLL_SECONDS)

    async def latencies_ms(self, chats_but: int, first_id: int) -> list[float]:
        """From received to begun, of updates from that id on, in all chats but one."""
        rows = await (
            await self._session.execute(
                "SELECT update_id, extract(epoch FROM received_at)::float8 FROM webhook_supervisor.inbox"
                " WHERE update_id >= %s AND lane IS DISTINCT FROM %s",
                (first_id, chats_but),
            )
        ).fetchall()
        received = {int(str(update_id)): float(str(at)) for update_id, at in rows}
        begun = dict(NOTE.iter_unpack(await asyncio.to_thread(self._path.read_bytes)))
        return [(begun[update_id] - at) * 1000 for update_id, at in received.items()]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[_Client]:
        """A keep-alive connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        try:
            yield _Client(self, reader, writer)
        finally:
            writer.close()


class _Client:
    def __init__(self, notes: _Notes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._notes = notes
        self._reader = reader
        self._writer = writer

    async def post(self, chat: int, text: str = "hello") -> None:
        """Posts one update, and returns at its 200.

        Raises:
            RuntimeError: it was another answer.
        """
        update_id = self._notes.next_id
        self._notes.next_id += 1
        party = f'"id":{chat},"first_name":"Alexandra"'
        body = (
            f'{{"update_id":{update_id},"message":{{"message_id":{update_id},"date":1768228800,"text":"{text}",'
            f'"from":{{{party},"is_bot":false}},"chat":{{{party},"type":"private"}}}}}}'
        )
        self._writer.write(
            f"POST /webhook/{PATH} HTTP/1.1\r\nHost: x\r\nX-Telegram-Bot-Api-Secret-Token: {SECRET}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        answer = await self._reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"not a 200: {answer!r}")


@asynccontextmanager
async def _noting(bed: Bed) -> AsyncIterator[_Notes]:
    dsn = await bed.new_database()
    path = bed.folder / "notes"
    environment = bed.environment(dsn, bot_app="bench.bots:noting", **{NOTES_VARIABLE: str(path)})
    async with bed.start(["-m", "supervisor"], environment) as server:
        sent = await warm_up(server, Updates())
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
            notes = _Notes(server, session, path)
            await notes.wait_noted(sent)
            yield notes


# ------------------------------------------------------------------------------------------------ wake-up, blocked chat


async def _measure_wake_up(notes: _Notes, count: int) -> list[Figure]:
    first_id = notes.next_id
    async with notes.client() as client:
        for number in range(count):
            there = notes.noted()
            await client.post(chat=6_100_000_000 + number % 5_000)
            await notes.wait_noted(there + 1)
    latencies = await notes.latencies_ms(0, first_id)
    beside = {"updates": len(latencies), "worst": round(max(latencies), 2)}
    return [
        Figure("wakeup_median_ms", round(median(latencies), 3), beside=beside),
        Figure("wakeup_p99_ms", round(_p99(latencies), 3), beside=beside),
    ]


async def _measure_blocked_chat(notes: _Notes, rounds: int) -> Figure:
    """Rounds without and with, in turns."""
    without: list[float] = []
    beside_it: list[float] = []
    blocked = 6_200_000_000
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(notes.client()) for _ in range(20)]
        for _ in range(rounds):
            without.append(median(await _steady(notes, clients, blocked)))
            ends_at = perf_counter() + BLOCKED_SECONDS
            for text in (BLOCKING_TEXT, "waits", "waits too"):
                await clients[0].post(blocked, text)
            beside_it.append(median(await _steady(notes, clients, blocked)))
            await asyncio.sleep(max(0.0, ends_at - perf_counter()) + 0.5)
    return Figure(
        "blocked_chat",
        median(beside_it) / median(without),
        [one / other for one, other in zip(beside_it, without, strict=True)],
        {
            "ms": round(median(beside_it), 3),
            "without, ms": round(median(without), 3),
            "updates a second": _RATE,
        },
    )


async def _steady(notes: _Notes, clients: Sequence[_Client], blocked: int) -> list[float]:
    """Latencies of other chats, at a steady rate."""
    first_id, there = notes.next_id, notes.noted()
    began_at = perf_counter()

    async def send(client: _Client, number: int) -> int:
        sent = 0
        while (due := began_at + (number + sent * len(clients)) / _RATE) < began_at + _BLOCKED_ROUND_SECONDS:
            await asyncio.sleep(max(0.0, due - perf_counter()))
            await client.post(6_300_000_000 + random.randrange(5_000))  # noqa: S311 - any chat
            sent += 1
        return sent

    sent = sum(await asyncio.gather(*(send(client, number) for number, client in enumerate(clients))))
    await notes.wait_noted(there + sent)
    return await notes.latencies_ms(blocked, first_id)
