"""Processes that end with us: how the guard (guard.py) is called, and one under asyncio, its output by lines.

Does not promise the order of lines and end: a line may still be on its way when the exit is known. `wait`
returns after the last line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, Signals

from deploy.local import guard
from deploy.local.errors import InstanceFailed

# A line longer than this is cut: the reader must go on whatever the process writes, or the writer
# would block.
_LONGEST_LINE = 1 << 20

GRACE_SECONDS = 1.0
"""Children of a process that was killed should notice by themselves, within about a second."""


def guard_command(
    command: Sequence[str],
    *,
    orphan_signal: Signals,
    privilege: str = "as_is",
    remove: Sequence[Path] = (),
    grace_seconds: float = GRACE_SECONDS,
) -> list[str]:
    """The command line that runs a command under the guard, tied to the life of this process.

    The environment of the command is that in which the guard is started.
    """
    specification = {
        "command": list(command),
        "privilege": privilege,
        "starter": os.getpid(),
        "orphan_signal": int(orphan_signal),
        "remove": [str(folder) for folder in remove],
        "grace_seconds": float(grace_seconds),
    }
    return [sys.executable, "-I", "-S", guard.__file__, json.dumps(specification)]


def inherited_environment() -> dict[str, str]:
    """The part of our environment that a child may see: never the settings of some bot that the shell has."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ")
    return {name: value for name, value in os.environ.items() if name in kept or name.startswith("PYTHON")}


class GuardedProcess:
    """A running process; ended by `end`, by its own will, or by our death.

    Attributes:
        pid: of the process itself, not of its guard.
        exited_at: `time.monotonic()` of its exit, None while it runs.
        exit_status: in the shell's manner: 128 and more for a signal.
        leftovers: how many children it left behind that the guard had to kill.
    """

    def __init__(self, process: asyncio.subprocess.Process, pid: int) -> None:
        """Use `spawn`."""
        self._process = process
        self._exited = asyncio.Event()
        self._reading: list[asyncio.Task[None]] = []
        self.pid = pid
        self.exited_at: float | None = None
        self.exit_status = 0
        self.leftovers = 0

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        on_line: Callable[[str], None],
        grace_seconds: float = GRACE_SECONDS,
    ) -> GuardedProcess:
        """Starts a command. If we die, it gets SIGKILL.

        Args:
            command: the program by its full path, and its arguments.
            environment: all of it.
            folder: the working folder.
            on_line: called in the event loop with every line of stdout and stderr.
            grace_seconds: what its children have when it has ended, before they are killed and counted.

        Raises:
            InstanceFailed: the guard did not start it.
        """
        process = await asyncio.create_subprocess_exec(
            *guard_command(command, orphan_signal=SIGKILL, grace_seconds=grace_seconds),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env=environment,
            # A Ctrl-C at the terminal is ours: we stop the processes in order.
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        words = (await process.stdout.readline()).split()
        if len(words) != 2:
            _, said = await process.communicate()
            raise InstanceFailed(f"cannot start {command[0]}: {said.decode(errors='replace').strip()}")
        self = cls(process, int(words[1]))
        self._reading = [
            asyncio.create_task(_read_lines(process.stderr, on_line), name=f"output of {self.pid}"),
            asyncio.create_task(self._read_guard(process.stdout), name=f"guard of {self.pid}"),
        ]
        return self

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self.exited_at is None

    def signal(self, number: Signals) -> None:
        """Sends a signal to the process if it is still there, never to another that has got its pid."""
        pipe = self._process.stdin
        if pipe is not None and not pipe.is_closing() and self.is_running:
            pipe.write(f"signal {int(number)}\n".encode())

    async def wait_for_exit(self) -> None:
        """Returns when the process itself has ended; its children may live on for as long as they have to notice."""
        await self._exited.wait()

    async def wait(self) -> int:
        """Returns the exit status when the process and all below it are gone and every line has been read."""
        for task in self._reading:
            await task
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self.exit_status

    async def end(self, number: Signals, *, limit_seconds: float) -> int:
        """Sends a signal, and SIGKILL when the limit is over; returns the exit status."""
        self.signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                await self.wait_for_exit()
        self.signal(SIGKILL)
        return await self.wait()

    async def _read_guard(self, reader: asyncio.StreamReader) -> None:
        await _read_lines(reader, self._note)
        if self.is_running:
            # The guard was killed, and the kernel killed the process for it (PDEATHSIG).
            self._note(f"exited {128 + SIGKILL}")

    def _note(self, line: str) -> None:
        word, _, number = line.partition(" ")
        if word == "exited":
            self.exit_status = int(number)
            self.exited_at = time.monotonic()
            self._exited.set()
        elif word == "killed":
            self.leftovers = int(number)


async def _read_lines(reader: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
    pending = b""
    while chunk := await reader.read(65536):
        *lines, pending = (pending + chunk).split(b"\n")
        if len(pending) > _LONGEST_LINE:
            lines, pending = [*lines, pending], b""
        for line in lines:
            on_line(line.decode(errors="replace"))
    if pending:
        on_line(pending.decode(errors="replace"))
