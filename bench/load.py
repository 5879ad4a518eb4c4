"""The load generator: Telegram, as a bot's server sees it, on keep-alive connections of which each waits for its answer.

`send_load` is a closed loop, as Telegram's own: at most `connections` updates are under way, and the next goes out when one is
answered. So a slow server is not flooded, and a latency is one that a user would see, at full load. `send_steadily` is an open
one: updates become due at a rate, and what has to wait for a connection is late; its latencies count from when it was due.

It shares its core with Postgres, so it must be much cheaper than any server: raw protocols, one `bytes % tuple` and one write
for an update, and no parser for an answer that is known (measured: 16 µs an update, 10 of them the kernel's; bare uvicorn, the
cheapest of the servers, takes 32).

Not promised: HTTP in general. Answers have a Content-Length, as those of all servers here.
"""

from __future__ import annotations

import asyncio
import random
import re
from array import array
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import NoReturn

from bench.bed import PATH, SECRET

CHATS = 5_000
FIRST_UPDATE_ID = 100_000_000
FIRST_CHAT_ID = 5_000_000_000
_DRAWN = 1 << 18  # chats drawn beforehand; then again from the start
_ANSWER_LIMIT_SECONDS = 30.0
_PACE_SECONDS = 0.001
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")

# Bodies of 500 to 680 bytes, as a bot in private chats gets them; non-ASCII is escaped, as Telegram does.
_TEXTS = (
    "hello",
    "/start",
    "Where is my order? It was to be here on Tuesday, and the courier has not called me yet.",
    r"\u0421\u043f\u0430\u0441\u0438\u0431\u043e, \u0432\u0441\u0451 "
    r"\u043f\u043e\u043b\u0443\u0447\u0438\u043b\u043e\u0441\u044c!",
    "Can you remind me tomorrow at 9 to send the report to the accountant, and then again on Friday if I have not said that "
    "it is done? The address is in the message from last week.",
    r"ok \ud83d\udc4d",
    "42",
    "I would like to book a table for four people on Saturday evening, if possible near the window.",
)  # fmt: skip

_BODY = (
    '{"update_id":%d,\n"message":{"message_id":%d,"from":{"id":%d,"is_bot":false,"first_name":"Alexandra","last_name":"Petrova"'
    ',"username":"alexandra_petrova_84","language_code":"en","is_premium":true},"chat":{"id":%d,"first_name":"Alexandra","last_name":"Petrova",'
    '"username":"alexandra_petrova_84","type":"private"},"date":1768228800,"text":"TEXT"'
    ',"effect_id":"5104841245755180586","link_preview_options":{"is_disabled":true},"entities":[{"offset":0,"length":2,"type":"bold"}]}}'
)  # fmt: skip


class Updates:
    """Requests with updates of distinct ids, without end."""

    def __init__(
        self,
        *,
        chats: int = CHATS,
        body_bytes: int = 0,
        first_id: int = FIRST_UPDATE_ID,
        first_chat: int = FIRST_CHAT_ID,
        texts: Sequence[str] = _TEXTS,
    ) -> None:
        """Draws the chats.

        Args:
            chats: among so many, at random, but the same in every run.
            body_bytes: of each body, by a longer text; 0 for `texts`.
            first_id: update_id of the first.
            first_chat: id of the first chat.
            texts: of the messages, in turn.
        """
        sample = (first_id, first_id, FIRST_CHAT_ID, FIRST_CHAT_ID)
        if body_bytes:
            bare = len((_BODY.replace("TEXT", "") % sample).encode())
            texts = [("lorem ipsum " * (body_bytes // 12 + 1))[: max(1, body_bytes - bare)]]
        self._requests = []
        for text in texts:
            body = _BODY.replace("TEXT", text)
            head = (
                f"POST /webhook/{PATH} HTTP/1.1\r\nHost: bot.example.com\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len((body % sample).encode())}\r\nConnection: keep-alive\r\n"
                f"X-Telegram-Bot-Api-Secret-Token: {SECRET}\r\nAccept-Encoding: gzip, deflate\r\n\r\n"
            )
            self._requests.append((head + body).encode())
        drawn = random.Random(20260112)  # noqa: S311 - the same every time
        self._chats = array("q", (first_chat + drawn.randrange(chats) for _ in range(_DRAWN)))
        self.next_id = first_id

    def chat_of(self, update_id: int) -> int:
        """The id of its chat."""
        return self._chats[update_id & (_DRAWN - 1)]

    def next(self) -> bytes:
        """The next request. All ids have nine digits, and all chats ten: what Content-Length says stays true."""
        update_id = self.next_id
        self.next_id = update_id + 1
        chat = self.chat_of(update_id)
        return self._requests[update_id % len(self._requests)] % (update_id, update_id, chat, chat)


@dataclass(slots=True)
class Load:
    """What came of a load.

    Attributes:
        sent: updates; every one was answered, or is counted in not_200.
        not_200: other answers, and none at all.
        seconds: from the first request to the last answer.
        latencies: in seconds, of those answered 200.
    """

    sent: int
    not_200: int
    seconds: float
    latencies: array[float]

    @property
    def rate(self) -> float:
        """Answers of 200 a second."""
        return (self.sent - self.not_200) / self.seconds

    def latency_ms(self, quantile: float) -> float:
        """Of the latencies; 0 where there are none."""
        return quantile_ms(self.latencies, quantile)


def quantile_ms(seconds: Iterable[float], quantile: float) -> float:
    """In milliseconds; 0 where there are none."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1000 if ordered else 0.0


class _Run:
    """What the connections of a load share."""

    def __init__(self, updates: Updates, limit: int | None) -> None:
        self.updates = updates
        self.left = -1 if limit is None else limit
        self.sent = 0
        self.not_200 = 0
        self.under_way = 0
        self.last_answer_at = 0.0
        self.latencies: array[float] = array("d")
        self.stopped = False
        # Complete answers of 200, known by all their bytes: a server repeats its own, but for the date.
        self.plain_answers: set[bytes] = set()
        self.open: set[_Connection] = set()
        self.all_answered = asyncio.Event()

    def take(self, connection: _Connection) -> tuple[bytes, float] | None:
        """The next request for a connection that is free, and the time that its latency counts from; or None."""
        if self.stopped or self.left == 0:
            if self.under_way == 0:
                self.all_answered.set()
            return None
        self.left -= 1
        self.sent += 1
        self.under_way += 1
        return self.updates.next(), perf_counter()

    def forget(self, connection: _Connection) -> None:
        """It is closed."""
        self.open.discard(connection)


class _SteadyRun(_Run):
    """Updates become due one after the other, whoever is free for them."""

    def __init__(self, updates: Updates, rate: float) -> None:
        super().__init__(updates, None)
        self._interval = 1 / rate
        self.began_at = self._due_at = perf_counter()
        # In turn, as a server sees Telegram's: none is idle for so long that it would be closed.
        self._free: deque[_Connection] = deque()
        self.late: array[float] = array("d")

    def take(self, connection: _Connection) -> tuple[bytes, float] | None:
        if self.stopped:
            return super().take(connection)
        due_at, now = self._due_at, perf_counter()
        if due_at > now:
            self._free.append(connection)
            return None
        self._due_at = due_at + self._interval
        self.late.append(now - due_at)
        self.sent += 1
        self.under_way += 1
        return self.updates.next(), due_at

    def forget(self, connection: _Connection) -> None:
        super().forget(connection)
        if connection in self._free:
            self._free.remove(connection)

    async def pace(self) -> NoReturn:
        while True:
            while self._free and self._due_at <= perf_counter():
                self._free.popleft().send()
            await asyncio.sleep(_PACE_SECONDS)


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run, port: int) -> None:
        self._run = run
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._pending = b""
        self._is_waiting = False
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._run.open.add(self)
        self._transport = transport  # type: ignore[assignment] # uvloop's are none of asyncio's

    def send(self) -> None:
        taken = self._run.take(self)
        if taken is None:
            return
        request, self._since = taken
        self._is_waiting = True
        assert self._transport is not None
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        run = self._run
        if data in run.plain_answers and not self._pending:
            self._take_answer(is_200=True, keeps_alive=True)
            return
        self._pending += data
        head_end = self._pending.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._pending[:head_end].lower()
        length = _CONTENT_LENGTH.search(head)
        if len(self._pending) < head_end + 4 + (int(length[1]) if length is not None else 0):
            return
        is_200, keeps_alive = head[9:12] == b"200", b"connection: close" not in head
        if is_200 and keeps_alive and data == self._pending:
            run.plain_answers.add(data)
        self._pending = b""
        self._take_answer(is_200=is_200, keeps_alive=keeps_alive)

    def _take_answer(self, *, is_200: bool, keeps_alive: bool) -> None:
        run = self._run
        now = perf_counter()
        self._is_waiting = False
        run.under_way -= 1
        run.last_answer_at = now
        if is_200:
            run.latencies.append(now - self._since)
        else:
            run.not_200 += 1
        if keeps_alive:
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        run = self._run
        run.forget(self)
        if self._is_waiting:
            self._is_waiting = False
            run.under_way -= 1
            run.not_200 += 1
        if run.stopped:
            if run.under_way == 0:
                run.all_answered.set()
            return
        asyncio.get_running_loop().create_task(self._reconnect(), name="reconnect")

    async def _reconnect(self) -> None:
        await asyncio.sleep(0.05)
        if not self._run.stopped:
            await _connect(self._run, self._port)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _connect(run: _Run, port: int) -> None:
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: _Connection(run, port), "127.0.0.1", port
    )
    connection.send()


async def send_load(
    port: int, updates: Updates, *, connections: int, seconds: float, limit: int | None = None
) -> Load:
    """Sends updates to a server, and returns when all are answered.

    Args:
        port: of the server on 127.0.0.1.
        updates: goes on where it is.
        connections: that many at a time.
        seconds: how long new ones are sent.
        limit: at most so many are sent.
    """
    run = _Run(updates, limit)
    began_at = perf_counter()
    for _ in range(connections):
        await _connect(run, port)
    try:
        async with asyncio.timeout(seconds):
            await run.all_answered.wait()
    except TimeoutError:
        run.stopped = True
    await _finish(run)
    return Load(run.sent, run.not_200, max(run.last_answer_at, began_at + 1e-9) - began_at, run.latencies)


async def _finish(run: _Run) -> None:
    """Waits for what is under way; what is never answered is no 200."""
    run.stopped = True
    if run.under_way:
        try:
            async with asyncio.timeout(_ANSWER_LIMIT_SECONDS):
                await run.all_answered.wait()
        except TimeoutError:
            run.not_200 += run.under_way
    for connection in list(run.open):
        connection.close()


class Steady:
    """A steady load that goes on."""

    def __init__(self, run: _SteadyRun) -> None:
        self._run = run

    @property
    def began_at(self) -> float:
        """When the first update was due, by `perf_counter`; the next ones follow at equal distances."""
        return self._run.began_at

    @property
    def sent(self) -> int:
        """Updates sent until now."""
        return self._run.sent

    @property
    def not_200(self) -> int:
        """Answers other than 200 until now; once it has ended, those that never came too."""
        return self._run.not_200

    def take_lateness(self) -> array[float]:
        """In seconds, how long after they were due updates were sent, whoever's doing that is; since the last call."""
        late, self._run.late = self._run.late, array("d")
        return late

    def take_latencies(self) -> array[float]:
        """In seconds, from when an update was due to its 200; of those answered since the last call."""
        latencies, self._run.latencies = self._run.latencies, array("d")
        return latencies


@asynccontextmanager
async def send_steadily(
    port: int, updates: Updates, *, connections: int, rate: float
) -> AsyncIterator[Steady]:
    """Sends updates to a server at a rate while the block runs; after it, all are answered.

    Args:
        port: of the server on 127.0.0.1.
        updates: goes on where it is.
        connections: at most that many are under way.
        rate: so many become due in a second, at equal distances.
    """
    run = _SteadyRun(updates, rate)
    for _ in range(connections):
        await _connect(run, port)
    pacing = asyncio.create_task(run.pace(), name="pace of the load")
    try:
        yield Steady(run)
    finally:
        pacing.cancel()
        with suppress(asyncio.CancelledError):
            await pacing
        await _finish(run)
