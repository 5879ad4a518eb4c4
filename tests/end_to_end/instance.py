"""A real `python -m supervisor` under test: started, read, signalled, ended; and the world it runs in.

Every wait has a limit on a hang, and none is a claim about speed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any

import httpx

from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator_process import PROJECT_FOLDER, RunningEmulator
from deploy.local.guarded import GuardedProcess, inherited_environment
from deploy.local.log_lines import LogLine, parse_line
from deploy.local.ports import LOOPBACK, free_port
from tests.waiting import until

HANG_SECONDS = 120.0
"""Limit of every wait: generous for two noisy cores."""

PROMPT_SECONDS = 2.0
"""Limit on a hang of what is answered from memory: below every time-out of the product, which are of 3 s and more."""

GRACE_SECONDS = 10.0
"""What a worker has to notice that its supervisor is gone, before it counts as left behind: a second on a quiet machine."""

PROBE_SECONDS = 5.0
"""A probe that gets no answer within this is repeated, as Render does (PLATFORMS.md)."""


class Instance:
    """One supervisor with its worker."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name = name
        self.environment = environment
        self.port = int(environment["PORT"])
        self.health_port = int(environment["HEALTH_PORT"])
        self.command: tuple[str, ...] = (sys.executable, "-m", "supervisor")
        self.output: list[str] = []
        self.lines: list[LogLine] = []
        self._process: GuardedProcess | None = None
        self._changed = asyncio.Event()

    async def start(self, *arguments: str) -> None:
        """Spawn it; returns before it is up."""
        self._process = await GuardedProcess.spawn(
            [*self.command, *arguments],
            environment={**inherited_environment(), **self.environment},
            folder=PROJECT_FOLDER,
            on_line=self._take,
            grace_seconds=GRACE_SECONDS,
        )

    def _take(self, text: str) -> None:
        self.output.append(text)
        line = parse_line(text)
        if line is not None:
            self.lines.append(line)
        self._changed.set()

    @property
    def process(self) -> GuardedProcess:
        """The running process."""
        assert self._process is not None, "start it first"
        return self._process

    @property
    def events(self) -> list[str]:
        """All lines as `[TAG] event`."""
        return [f"[{line.tag}] {line.event}" for line in self.lines]

    def has(self, beginning: str) -> bool:
        """Whether a line `[TAG] event` began so."""
        return any(event.startswith(beginning) for event in self.events)

    def count(self, beginning: str) -> int:
        """How many lines `[TAG] event` began so."""
        return sum(event.startswith(beginning) for event in self.events)

    async def wait_for(self, beginning: str, *, count: int = 1) -> None:
        """Until so many lines begin so."""
        await self.wait_until(lambda: self.count(beginning) >= count, f"log line {beginning!r}")

    async def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Until a condition on the output holds."""
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"{self.name}: no {what}; its output:\n" + "\n".join(self.output[-60:])
            ) from None

    async def wait_for_exit(self) -> int:
        """Until it has ended and all its output is read; its exit status (128 + n for signal n)."""
        async with asyncio.timeout(HANG_SECONDS):
            return await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.signal(SIGTERM)
        return await self.wait_for_exit()

    def signal(self, number: Signals) -> None:
        """A signal to the supervisor alone."""
        self.process.signal(number)

    async def worker_pid(self) -> int:
        """The pid of the worker that accepts, as soon as there is one."""

        async def pid() -> int | None:
            worker = (await self.status())["worker"]
            found: int | None = worker["pid"] if worker["ready"] else None
            return found

        await eventually(pid, f"a worker of {self.name}")
        return await pid() or await self.worker_pid()

    async def get(
        self, path: str, *, own_port: bool = False, limit_seconds: float = HANG_SECONDS
    ) -> httpx.Response:
        """GET on the public or on the health port."""
        port = self.health_port if own_port else self.port
        async with httpx.AsyncClient(trust_env=False, timeout=limit_seconds) as client:
            return await client.get(f"http://{LOOPBACK}:{port}{path}")

    async def status(self) -> dict[str, Any]:
        """The body of /status."""
        answer = await self.get("/status", own_port=True)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def wait_until_healthy(self) -> None:
        """Until /healthz on the public port is 200."""
        try:
            await eventually(self._is_healthy, f"healthy {self.name}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; its output:\n" + "\n".join(self.output[-60:])) from None

    async def _is_healthy(self) -> bool:
        try:
            return (await self.get("/healthz", limit_seconds=PROBE_SECONDS)).status_code == 200
        except httpx.HTTPError:
            return False

    async def wait_until_owner(self) -> None:
        """Until its worker dispatches and the registration is asserted."""
        await self.wait_for("[LOCK_CONTROLLER] ACTIVE MODE")
        await self.wait_for("[LOCK_CONTROLLER] active services initialized")
        await self.wait_for("[WORKER] worker dispatches updates")

    async def close(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process is not None:
            await self._process.end(SIGKILL, limit_seconds=HANG_SECONDS)


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Until an awaitable condition holds, asked a few times a second."""
    await until(condition, what, limit_seconds=HANG_SECONDS, pause_seconds=0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that waits for its reaper does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter where it is reaped while it is read
        if not Path("/proc/self").exists():
            return _answers_signal_zero(pid)
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _answers_signal_zero(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def freeze(pids: Iterable[int]) -> None:
    """SIGSTOP, in this order."""
    for pid in pids:
        os.kill(pid, SIGSTOP)


def thaw(pids: Iterable[int]) -> None:
    """SIGCONT, in this order; a worker whose supervisor goes on first may have been replaced by then."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, SIGCONT)


def running_first(program: str, folder: Path) -> dict[str, str]:
    """Variables with which every interpreter runs `program` before all else: for faults that nothing injects from outside."""
    (folder / "sitecustomize.py").write_text(program)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path}


@dataclass(slots=True)
class World:
    """A database, an emulator, and a way to make instances; one public URL, at whose port the first instance sits."""

    database_url: str
    emulator: RunningEmulator
    history: Path
    port: int
    instances: list[Instance] = field(default_factory=list)

    @property
    def telegram(self) -> EmulatorClient:
        """Users, the history of calls and deliveries, faults."""
        return self.emulator.client

    def instance(self, name: str, port: int, variables: dict[str, str]) -> Instance:
        """An instance that is not started yet."""
        environment = {
            "TELEGRAM_BOT_TOKEN": self.emulator.token,
            "TELEGRAM_API_BASE_URL": self.emulator.base_url,
            "DATABASE_URL": self.database_url,
            "WEBHOOK_BASE_URL": f"http://{LOOPBACK}:{self.port}",
            "HOST": LOOPBACK,
            "PORT": str(port),
            "HEALTH_PORT": str(free_port()),
            "LOG_FORMAT": "json",
            "INSTANCE_ID": name,
            "RENDER_INSTANCE_ID": name,  # under which the bot records its runs
            "LINGER_SECONDS": "0",
            "BOT_APP": "deploy.local.traffic_bot:build",
            "HISTORY_DIR": str(self.history),
            **variables,
        }
        instance = Instance(name, {k: v for k, v in environment.items() if v})
        self.instances.append(instance)
        return instance

    async def start(self, name: str, **variables: str) -> Instance:
        """A started instance at a port of its own: it gets what a test sends there."""
        instance = self.instance(name, free_port(), variables)
        await instance.start()
        return instance

    async def start_public(self, name: str, **variables: str) -> Instance:
        """A started instance at the port that Telegram delivers to."""
        instance = self.instance(name, self.port, variables)
        await instance.start()
        return instance

    async def say(self, user_id: int, text: str) -> str:
        """A user writes; the bot's answer."""
        after = await self.telegram.last_event_seq()
        await self.telegram.send_text(user_id, text)
        message = await self.telegram.wait_for_message(user_id, after=after, timeout_seconds=HANG_SECONDS)
        return message.text

    async def terminate_lock_session(self) -> None:
        """End the database session that holds the bot's lock."""
        from tests.integration.supervisor.lease_driver import rows

        await rows(
            self.database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted",
        )

    async def methods_called(self) -> list[str]:
        """Every Bot API method that was called, in order."""
        return [call.method for call in await self.telegram.calls()]


@asynccontextmanager
async def a_world(database_url: str, emulator: RunningEmulator, folder: Path) -> AsyncIterator[World]:
    """A world whose instances end with the block."""
    history = folder / "history"
    history.mkdir()
    world = World(database_url, emulator, history, free_port())
    try:
        yield world
    finally:
        for instance in world.instances:
            await instance.close()
