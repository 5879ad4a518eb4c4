"""Plays the supervisor to a real worker process: socket, control, health, kill."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared import clock, inherited, wire
from shared.database import apply_schema, connect
from tests.end_to_end.instance import is_alive
from tests.waiting import until

HANG_SECONDS = 60.0
BOT = 123456789
TOKEN = f"{BOT}:{'t' * 35}"
PATH, SECRET = "p" * 40, "s" * 40
REPOSITORY = Path(__file__).parents[3]

MessageT = TypeVar("MessageT")


def update(update_id: int, text: str = "hello", chat_id: int = 7) -> bytes:
    """A message to the bot, as Telegram sends it."""
    chat = {"id": chat_id, "type": "private", "first_name": "Ada"}
    sender = {"id": chat_id, "is_bot": False, "first_name": "Ada"}
    message = {"message_id": update_id, "date": 1700000000, "chat": chat, "from": sender, "text": text}
    return json.dumps({"update_id": update_id, "message": message}).encode()


def listening_socket() -> socket.socket:
    """As the supervisor's: bound, listening, inherited by its workers."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    return listener


@dataclass(slots=True)
class WorkerProcess:
    """One worker. Messages are kept in the order in which they came."""

    popen: subprocess.Popen[bytes]
    control: socket.socket
    lifeline: int
    observations_path: Path
    log_path: Path
    url: str
    messages: list[wire.ToSupervisor] = field(default_factory=list)
    seen: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    rest: bytes = b""

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def observations(self) -> list[str]:
        return [line for _, line in self._observations()]

    def observed_at(self, line: str) -> float:
        """When the bot first wrote a line, on `shared.clock`."""
        return next(time for time, written in self._observations() if written == line)

    def _observations(self) -> list[tuple[float, str]]:
        if not self.observations_path.exists():
            return []
        parts = [line.split(" ", 1) for line in self.observations_path.read_text().splitlines()]
        return [(float(time), line) for time, line in parts]

    def send(self, *messages: wire.ToWorker) -> None:
        for message in messages:
            self.control.sendall(wire.encode(message))

    def send_at_once(self, *messages: wire.ToWorker) -> None:
        """So that they are read together."""
        self.control.sendall(b"".join(map(wire.encode, messages)))

    def hang_up(self) -> None:
        """The end of the supervisor, as the worker sees it."""
        if self.control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.control.fileno())
            self.control.close()
        self.let_go()

    def let_go(self) -> None:
        """The part of it that is the kernel's to see to."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1

    def readable(self) -> None:
        try:
            chunk = self.control.recv(65536)
        except BlockingIOError:
            return
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            asyncio.get_running_loop().remove_reader(self.control.fileno())
            self.ended.set()
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        self.messages += map(wire.decode_for_supervisor, lines)
        self.changed.set()

    async def expect(self, kind: type[MessageT], limit_seconds: float = HANG_SECONDS) -> MessageT:
        """The next message of a kind; those before it are passed over."""
        async with asyncio.timeout(limit_seconds):
            while True:
                while self.seen < len(self.messages):
                    self.seen += 1
                    message = self.messages[self.seen - 1]
                    if isinstance(message, kind):
                        return message
                assert not self.ended.is_set(), f"the worker ended before {kind.__name__}:\n{self.log}"
                self.changed.clear()
                await self.changed.wait()

    async def observed(self, line: str) -> None:
        """Returns when the bot has written this line."""
        async with asyncio.timeout(HANG_SECONDS):
            while line not in self.observations:
                assert not self.ended.is_set(), f"the worker ended before {line}:\n{self.log}"
                await asyncio.sleep(0.01)

    async def logged(self, words: str) -> None:
        """Returns when the log has these words."""
        await until(lambda: self.log, f"the log has {words!r}", lambda log: words in log)

    async def exit_status(self, limit_seconds: float = HANG_SECONDS) -> int:
        """Of the process; waits for its end."""
        return await asyncio.wait_for(asyncio.to_thread(self.popen.wait), limit_seconds)

    async def lead(
        self, database: AsyncConnection[TupleRow], seconds: float = 1000.0, *, recover: float = 0.0
    ) -> str:
        """Begins a term, as the lease writes it and the supervisor says it; its UUID."""
        term = await begin_term(database)
        now = clock.now()
        self.send(wire.Lead(term=term, deadline=now + seconds, recover_at=now + recover))
        return term

    def is_alive(self) -> bool:
        return self.popen.poll() is None


async def begin_term(database: AsyncConnection[TupleRow]) -> str:
    """Writes a new term of the bot into the database."""
    term = str(uuid.uuid4())
    await database.execute(
        "INSERT INTO webhook_supervisor.terms (bot_id, number, uuid, instance_id, deadline_seconds, began_at)"
        " VALUES (%s, 1, %s, 'test', 8, now())"
        " ON CONFLICT (bot_id) DO UPDATE SET number = terms.number + 1, uuid = excluded.uuid, ended_at = NULL",
        (BOT, term),
    )
    return term


@asynccontextmanager
async def database_of(dsn: str) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """A session of the test's own, with the schema applied."""
    async with await connect(dsn, application_name="test") as connection:
        await apply_schema(connection)
        yield connection


@asynccontextmanager
async def worker(
    dsn: str,
    tmp_path: Path,
    *,
    bot: str = "obedient",
    listener: socket.socket | None = None,
    environ: Mapping[str, str] | None = None,
    name: str = "worker",
    output: int | None = None,
) -> AsyncIterator[WorkerProcess]:
    """Starts a worker, with its log in a file or, unread by us, in `output`; afterwards it and its group are gone."""
    own = listener if listener is not None else listening_socket()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    hanging, holding = os.pipe()
    log_path = tmp_path / f"{name}.log"
    with theirs, log_path.open("wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "-m", "webhook_worker"],
            env={
                "PATH": os.defpath,
                "TELEGRAM_BOT_TOKEN": TOKEN,
                "DATABASE_URL": dsn,
                "WEBHOOK_BASE_URL": "https://bot.example.com",
                "WEBHOOK_SECRET_PATH": PATH,
                "WEBHOOK_SECRET_TOKEN": SECRET,
                "BOT_APP": f"tests.integration.worker.worker_bots:{bot}",
                "LOG_FORMAT": "text",
                "OBSERVATIONS": str(tmp_path / f"{name}.observations"),
                inherited.LISTEN_FD_VARIABLE: str(own.fileno()),
                inherited.CONTROL_FD_VARIABLE: str(theirs.fileno()),
                inherited.LIFELINE_FD_VARIABLE: str(hanging),
                inherited.INSTANCE_VARIABLE: "test-instance",
                **(environ or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=log if output is None else output,
            stderr=log if output is None else output,
            pass_fds=(own.fileno(), theirs.fileno(), hanging),
            process_group=0,
            cwd=REPOSITORY,
        )
    os.close(hanging)
    process = WorkerProcess(
        popen=popen,
        control=ours,
        lifeline=holding,
        observations_path=tmp_path / f"{name}.observations",
        log_path=log_path,
        url=f"http://127.0.0.1:{own.getsockname()[1]}",
    )
    asyncio.get_running_loop().add_reader(ours.fileno(), process.readable)
    try:
        yield process
    finally:
        process.hang_up()
        if popen.poll() is None:
            os.killpg(popen.pid, signal.SIGKILL)
        await asyncio.to_thread(popen.wait)
        if listener is None:
            own.close()


def client(url: str, **settings: Any) -> httpx.AsyncClient:
    """An HTTP client as Telegram's: a hundred connections that are kept, no proxy."""
    limits = httpx.Limits(max_connections=100, keepalive_expiry=HANG_SECONDS)
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=HANG_SECONDS, limits=limits, **settings)


async def post(
    http: httpx.AsyncClient, body: bytes, *, secret: str = SECRET, path: str = PATH
) -> httpx.Response:
    """Delivers an update."""
    headers = {"content-type": "application/json", "x-telegram-bot-api-secret-token": secret}
    return await http.post(f"/webhook/{path}", content=body, headers=headers)


@asynccontextmanager
async def inbox_locked(database: AsyncConnection[TupleRow]) -> AsyncIterator[None]:
    """While the block runs, no commit of the worker's comes to its end: a disk that stalls, a network of seconds."""
    async with database.transaction():
        await database.execute("LOCK TABLE webhook_supervisor.inbox IN ACCESS EXCLUSIVE MODE")
        yield


async def until_somebody_waits(database: AsyncConnection[TupleRow]) -> None:
    """Returns when a statement of the worker waits for a lock."""

    async def waiting() -> list[TupleRow]:
        return await (await database.execute("SELECT 1 FROM pg_locks WHERE NOT granted")).fetchall()

    await until(waiting, "a statement waits for a lock")


async def until_ready(http: httpx.AsyncClient) -> None:
    """Returns when /readyz is 200."""
    await until_answered(http, "/readyz", 200)


async def until_answered(http: httpx.AsyncClient, path: str, status: int, words: str = "") -> httpx.Response:
    """The first answer with that status, and with those words in it."""

    async def ask() -> tuple[int, str, httpx.Response]:
        answer = await http.get(path)
        return answer.status_code, answer.text, answer

    *_, answer = await until(
        ask,
        f"{path} answers {status} {words}".rstrip(),
        lambda found: found[0] == status and words in found[1],
    )
    return answer


async def states(database: AsyncConnection[TupleRow]) -> dict[int, str]:
    """State by update_id."""
    cursor = await database.execute("SELECT update_id, state FROM webhook_supervisor.inbox ORDER BY seq")
    return dict(await cursor.fetchall())


async def until_state(database: AsyncConnection[TupleRow], update_id: int, state: str) -> None:
    """Returns when an update is in a state."""
    await until(
        lambda: states(database),
        f"update {update_id} is {state}",
        lambda found: found.get(update_id) == state,
    )


def most_memory_bytes(pid: int) -> int:
    """The most that a process has had resident in its life."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that its parent has not reaped yet has."""
    return not is_alive(pid)


async def until_gone(pid: int) -> None:
    """Returns when a process has ended."""
    await until(lambda: is_gone(pid), f"process {pid} is gone")
