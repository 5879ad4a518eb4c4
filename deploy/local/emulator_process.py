"""The Bot API emulator in a process of its own, for as long as a block runs.

In its own process, as Telegram is in its own house: neither the bot nor whoever drives a test can slow it down or
take it along.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import msgspec

from deploy.local.emulator.client import EmulatorClient
from deploy.local.errors import InstanceFailed
from deploy.local.guarded import GuardedProcess, inherited_environment

PROJECT_FOLDER = Path(__file__).resolve().parents[2]
# Of a bot that exists nowhere else: it has the form of a token, and is no secret. Other users of the machine can read it.
SANDBOX_TOKEN = "700000001:sandbox-" + "A" * 27


class _Started(msgspec.Struct):
    base_url: str
    control_url: str


@dataclass(frozen=True, slots=True)
class RunningEmulator:
    """An emulator that answers.

    Attributes:
        base_url: for TELEGRAM_API_BASE_URL.
        control_url: serves the control API, also while the Bot API plays dead.
        token: of its one bot, for TELEGRAM_BOT_TOKEN.
        client: to act as users, to read the history, to inject faults.
        process: to be killed, if that is the test.
    """

    base_url: str
    control_url: str
    token: str
    client: EmulatorClient
    process: GuardedProcess


@asynccontextmanager
async def run_emulator(log_path: Path, *, arguments: Sequence[str] = ()) -> AsyncIterator[RunningEmulator]:
    """Starts an emulator, and ends it with the block.

    Args:
        log_path: what it prints.
        arguments: more for its command line, e.g. `["--seed", "7"]`.

    Raises:
        InstanceFailed: it did not start.
    """
    first_line: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    with log_path.open("a", buffering=1) as log:

        def take(line: str) -> None:
            log.write(f"{line}\n")
            if not first_line.done():
                first_line.set_result(line)

        process = await GuardedProcess.spawn(
            [
                sys.executable,
                "-m",
                "deploy.local.emulator",
                "--port",
                "0",
                "--token",
                SANDBOX_TOKEN,
                *arguments,
            ],
            environment=inherited_environment(),
            folder=PROJECT_FOLDER,
            on_line=take,
        )
        try:
            ended = asyncio.create_task(process.wait_for_exit(), name="end of the emulator")
            either: tuple[asyncio.Future[Any], ...] = (ended, first_line)
            await asyncio.wait(either, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            try:
                started = msgspec.json.decode(first_line.result(), type=_Started)
            except (asyncio.InvalidStateError, msgspec.DecodeError) as error:
                # It is about to end, and to say why.
                await asyncio.wait([ended], timeout=5)
                raise InstanceFailed(f"the Bot API emulator did not start, see {log_path}") from error
            finally:
                ended.cancel()
            async with EmulatorClient(started.control_url) as client:
                yield RunningEmulator(started.base_url, started.control_url, SANDBOX_TOKEN, client, process)
        finally:
            await process.end(SIGTERM, limit_seconds=5)
