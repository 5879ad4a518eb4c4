"""Where it is measured: one core for the servers under test, the other for all that they need and all that loads them.

Postgres, the Bot API emulator and we ourselves run on LOAD_CORE; what is started by `Bed.start` runs on SERVER_CORE. What a
process costs is its CPU time as the kernel counts it, children included.

Not promised: that nobody else uses the cores. Hence the rounds (figures.py).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM

import psutil

from deploy.local.emulator_process import PROJECT_FOLDER, RunningEmulator, run_emulator
from deploy.local.guarded import GuardedProcess, inherited_environment
from deploy.local.ports import free_port
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_binaries import find_binaries

SERVER_CORE, LOAD_CORE = 0, 1
PEERS_TOKEN = "700000002:sandbox-" + "A" * 27
"""Of the peers' bot. From ours they would take the webhook; we set it again, and one of us meets the limit of one a second."""
_PRODUCTION = Path(__file__).parent / "production"
"""A folder for PYTHONPATH: each runs without what its own installation has not."""
_NOT_OURS = "tornado"

PATH, SECRET = "webhook-path-of-the-bench", "secret-token-of-the-bench"


@dataclass(slots=True)
class Server:
    """A running server under test.

    Attributes:
        port: where it listens.
        process: ends with its block.
        log_path: what it prints.
    """

    port: int
    process: GuardedProcess
    log_path: Path

    def processes(self) -> list[psutil.Process]:
        """All of it that lives."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """CPU time that its living processes have used."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def memory_bytes(self) -> int:
        """Proportional set size of all its processes: what it takes of the machine, shared pages counted once."""
        return sum(process.memory_full_info().pss for process in self.processes())


@dataclass(slots=True)
class Bed:
    """Postgres and the emulator, running."""

    folder: Path
    postgres: PostgresServer
    emulator: RunningEmulator
    databases: int = field(default=0)

    async def new_database(self) -> str:
        """The DSN of an empty one."""
        self.databases += 1
        return await asyncio.to_thread(self.postgres.create_database, f"bench_{self.databases}")

    def environment(self, dsn: str, *, bot_app: str = "bench.bots:counting", **more: str) -> dict[str, str]:
        """For `python -m supervisor`, without PORT."""
        return {
            "TELEGRAM_BOT_TOKEN": self.emulator.token,
            "TELEGRAM_API_BASE_URL": self.emulator.base_url,
            "DATABASE_URL": dsn,
            "WEBHOOK_BASE_URL": "http://127.0.0.1:1",
            "WEBHOOK_SECRET_PATH": PATH,
            "WEBHOOK_SECRET_TOKEN": SECRET,
            "BOT_APP": bot_app,
            "HEALTH_PORT": "0",
            "HOST": "127.0.0.1",
            "PYTHONPATH": str(_PRODUCTION),
            "PYTHONDONTWRITEBYTECODE": "",  # ours is no package that pip has compiled: the first start does it
            "BENCH_NOT_INSTALLED": _NOT_OURS,
            **more,
        }

    def peers_environment(self, dsn: str, module: str, **more: str) -> dict[str, str]:
        """For that module of bench.peers, without PORT."""
        not_installed = "click" if module == "run_webhook" else ""
        return self.environment(
            dsn, TELEGRAM_BOT_TOKEN=PEERS_TOKEN, BENCH_NOT_INSTALLED=not_installed, **more
        )

    @asynccontextmanager
    async def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, core: int = SERVER_CORE
    ) -> AsyncIterator[Server]:
        """Runs `python <arguments>` on that core, with a free PORT, from the project's folder.

        Ends with the block, by SIGTERM.
        """
        port = free_port()
        log_path = self.folder / f"{port}.log"
        # Into a file: who reads thousands of lines a second from a pipe would be part of the load.
        into_file = ["/bin/sh", "-c", 'exec "$@" > "$0" 2>&1', str(log_path)]
        process = await GuardedProcess.spawn(
            [*into_file, "taskset", "-c", str(core), sys.executable, *arguments],
            environment={**inherited_environment(), **environment, "PORT": str(port)},
            folder=PROJECT_FOLDER,
            on_line=print,
        )
        try:
            yield Server(port, process, log_path)
        finally:
            await process.end(SIGTERM, limit_seconds=30)


@asynccontextmanager
async def make_bed(
    folder: Path, *, settings: Mapping[str, str] | None = None, starter: Sequence[str] = ()
) -> AsyncIterator[Bed]:
    """Starts Postgres, durable, and the emulator; both end with the block. Moves us to LOAD_CORE.

    Args:
        folder: empty or not there; gets logs and data.
        settings: further ones of Postgres.
        starter: see PostgresServer.
    """
    os.sched_setaffinity(0, {LOAD_CORE})  # inherited by whatever we start from here
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        postgres = PostgresServer(
            folder / "postgres",
            binaries=find_binaries(""),
            keep_data=False,
            settings=settings,
            starter=starter,
        )
        stack.push_async_callback(asyncio.to_thread, postgres.close)
        await asyncio.to_thread(postgres.start)
        emulator = await stack.enter_async_context(
            run_emulator(folder / "emulator.log", arguments=["--token", PEERS_TOKEN])
        )
        yield Bed(folder, postgres, emulator)
