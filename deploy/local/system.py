"""The local system: Postgres, the Bot API emulator, the platform, put together and taken apart in order.

    user ──► emulator ── POST ──► router ──► instances (python -m supervisor) ──► Postgres
                ▲                                  └──── Bot API calls ──► emulator
                └── control API: /control/ at the emulator's address

Nothing is shared with a real bot: the token exists in the emulator only, the database is an empty one, and of
the shell's environment the instances see what a shell needs (guarded.py), never a bot's settings; but `make run`
passes BOT_APP on (__main__.py).

Not promised: that a system survives the death of one of its own parts. `failure` says which, and the block
ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.emulator_process import PROJECT_FOLDER, RunningEmulator, run_emulator
from deploy.local.platform.service import Timing
from deploy.local.platform.simulator import Platform
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_binaries import find_binaries
from deploy.local.workspace import Workspace, open_workspace

DATABASE = "bot"
_POSTGRES_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class LocalSystem:
    """A running system, its platform still without a deploy."""

    workspace: Workspace
    postgres: PostgresServer
    emulator: RunningEmulator
    platform: Platform

    @property
    def dsn(self) -> str:
        """Of the bot's database, with the password: not for printing."""
        return self.postgres.dsn(DATABASE)

    async def failure(self) -> str:
        """Returns, with a sentence about it, when the emulator or Postgres is gone."""
        ended = asyncio.create_task(self.emulator.process.wait_for_exit(), name="end of the emulator")
        try:
            while not ended.done():
                if not self.postgres.is_running:
                    return f"Postgres has ended, see {self.postgres.log_path}"
                await asyncio.wait([ended], timeout=_POSTGRES_POLL_SECONDS)
        finally:
            ended.cancel()
        return f"the Bot API emulator has ended, see {self.workspace.logs / 'emulator.log'}"


@asynccontextmanager
async def run_system(
    folder: Path,
    *,
    timing: Timing,
    environment: Mapping[str, str],
    local_postgres: str = "",
) -> AsyncIterator[LocalSystem]:
    """Starts a system and ends it with the block: instances first, then the emulator, Postgres last.

    Args:
        folder: of the system; see workspace.py.
        timing: of the platform.
        environment: further variables of the service, e.g. BOT_APP.
        local_postgres: which Postgres, see `find_binaries`.

    Raises:
        LocalSystemError: a part of it does not start, or the folder is in use.
    """
    async with AsyncExitStack() as stack:
        workspace = stack.enter_context(open_workspace(folder))
        postgres = PostgresServer(workspace.postgres, binaries=find_binaries(local_postgres), keep_data=False)
        stack.push_async_callback(asyncio.to_thread, postgres.close)
        starting = asyncio.create_task(asyncio.to_thread(postgres.start), name="start of Postgres")
        emulator = await stack.enter_async_context(run_emulator(workspace.logs / "emulator.log"))
        await starting
        dsn = await asyncio.to_thread(postgres.create_database, DATABASE)
        platform = Platform(
            folder=PROJECT_FOLDER,
            log_folder=workspace.logs,
            timing=timing,
            environment={
                "TELEGRAM_BOT_TOKEN": emulator.token,
                "TELEGRAM_API_BASE_URL": emulator.base_url,
                "DATABASE_URL": dsn,
                # Read by log_lines.py; the log files hold the same.
                "LOG_FORMAT": "json",
                **environment,
            },
        )
        await stack.enter_async_context(platform)
        yield LocalSystem(workspace, postgres, emulator, platform)
