"""A bot of one's own on this machine: `python -m supervisor` in polling mode, with Telegram itself and an embedded Postgres.

The shell's environment is the bot's, but for the database and the ports. What the bot has not handled when it is stopped is in
the database, which is kept, and is handled the next time.

A bot whose webhook is set is served somewhere: to poll here would delete that and take the bot away from there. So it is
refused.

Not promised: the database where Postgres has to run as another user who does not reach the folder (postgres_process.py). And a
bot that is polled somewhere else is not known from here: both log that something else polls.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from urllib.parse import urlsplit

from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.errors import LocalSystemError
from deploy.local.guarded import GuardedProcess
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_binaries import find_binaries, major_version
from deploy.local.system import DATABASE
from deploy.local.workspace import open_workspace
from shared import config
from shared.errors import TelegramError, TokenRefused
from shared.telegram_api import TelegramApi

STOP_SECONDS = 30.0
"""Longer than any shutdown takes (shared.config.SHUTDOWN_SECONDS)."""

_COMMAND = f"{shlex.quote(sys.executable)} -m supervisor webhook delete --force"
# In the shell that has the token, from the project's folder. Forced, it asks no database who owns, so any address will do.
_DELETE_WEBHOOK = f"BOT_MODE=polling DATABASE_URL=host={LOOPBACK} {_COMMAND}"


class WebhookIsSet(LocalSystemError):
    """The bot is served somewhere else."""


@dataclass(frozen=True, slots=True)
class OwnBot:
    """The running supervisor.

    Attributes:
        process: it.
        status_url: its /status.
        postgres_port: of the embedded server, on 127.0.0.1.
    """

    process: GuardedProcess
    status_url: str
    postgres_port: int


@asynccontextmanager
async def run_own_bot(
    folder: Path, environ: Mapping[str, str], show: Callable[[str], None], *, local_postgres: str = ""
) -> AsyncIterator[OwnBot]:
    """Starts the bot, and ends it with the block: the supervisor in order, Postgres after it.

    Args:
        folder: of its database.
        environ: the shell's.
        show: gets every line of its log.
        local_postgres: which Postgres, see `find_binaries`.

    Raises:
        ConfigurationError: the environment is none.
        WebhookIsSet: see there.
        LocalSystemError: Postgres does not start, or the folder is in use.
    """
    health_port = free_port()
    variables = {
        **environ,
        "BOT_MODE": "polling",
        "HOST": LOOPBACK,
        "PORT": str(free_port()),
        "HEALTH_HOST": LOOPBACK,
        "HEALTH_PORT": str(health_port),
        "LINGER_SECONDS": "0",  # nobody delivers here
        "LOG_FORMAT": environ.get("LOG_FORMAT") or "text",
    }
    # What is wrong with the environment is said before anything is started.
    await _expect_no_webhook(
        config.load(
            {**variables, "DATABASE_URL": f"host={LOOPBACK}"},
            stdin_is_terminal=False,
            stdout_is_terminal=True,
        )
    )
    with open_workspace(folder, keeps_database=True) as workspace:
        binaries = find_binaries(local_postgres)
        _expect_same_version(workspace.postgres, binaries)
        postgres = PostgresServer(workspace.postgres, binaries=binaries)
        try:
            await asyncio.to_thread(postgres.start)
            dsn = await asyncio.to_thread(postgres.open_database, DATABASE)
            process = await GuardedProcess.spawn(
                [sys.executable, "-m", "supervisor"],
                environment={**variables, "DATABASE_URL": dsn},
                folder=PROJECT_FOLDER,
                on_line=show,
            )
            try:
                yield OwnBot(process, f"http://{LOOPBACK}:{health_port}/status", postgres.port)
            finally:
                await process.end(SIGTERM, limit_seconds=STOP_SECONDS)
        finally:
            await asyncio.to_thread(postgres.close)


def _expect_same_version(folder: Path, binaries: Path) -> None:
    made_by = folder / "data" / "PG_VERSION"
    version = str(major_version(binaries))
    if made_by.exists() and (former := made_by.read_text().strip()) != version:
        raise LocalSystemError(
            f"{folder} was made by Postgres {former}, and {binaries} is {version}: choose the former with LOCAL_POSTGRES, or "
            "delete the folder, with whatever this bot has not handled yet"
        )


async def _expect_no_webhook(settings: config.Config) -> None:
    try:
        async with TelegramApi(settings.api_base_url, settings.token) as api:
            info = await api.get_webhook_info()
    except TokenRefused:
        return  # the supervisor says it better, and ends
    except TelegramError as exc:
        raise LocalSystemError(
            f"Telegram does not say whether a webhook of this bot is set, which polling would delete: {exc}; try again"
        ) from exc
    if info.url:
        host = urlsplit(info.url).hostname
        raise WebhookIsSet(
            f"the webhook of this bot is set, to {host}: polling here would delete it and take the bot away from there. "
            f"Use the token of another bot; or, if nobody serves it there any more, delete the webhook: {_DELETE_WEBHOOK}"
        )
