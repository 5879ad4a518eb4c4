"""Builds the bot of BOT_APP once, for the diagnosis: in a process group of its own, of which nothing stays.

What a bot starts while it is built inherits its standard error and outlives it. So nobody waits for the end of that file, and
the group is killed before its leader is reaped: as long as the zombie holds the pid, no foreign process can have the group's
number. A terminal's Ctrl-C, or what `timeout` sends to its group, does not come there: whatever ends us ends it too.

Not promised: that what has left the group is found. A child in a session of its own is its maker's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_COMMAND = (sys.executable, "-m", "webhook_worker.trial_build")
_LOOK_SECONDS = 0.02
_READ_BYTES = 64 * 1024
_KEPT_BYTES = 1024 * 1024
"""Of what the bot says, in whole lines, since half a secret is not known for one; faults come last."""


async def build() -> tuple[int, str]:
    """Builds it, in this process's environment, for as long as it takes: whoever has a limit cancels.

    Returns:
        The exit status of `webhook_worker.trial_build`, and the end of what was written to standard error.
    """
    # A pipe and no file: where an instance runs, there may be no place for one.
    reading, writing = os.pipe()
    try:
        os.set_blocking(reading, False)
        try:
            process = _start(writing)
        finally:
            os.close(writing)
        said = b""
        try:
            with _ending_with_us(process):
                while not _has_ended(process):
                    said = _end_of(said + _read(reading))
                    await asyncio.sleep(_LOOK_SECONDS)
        finally:
            _kill_group(process)
            status = process.wait()
        return status, _end_of(said + _read(reading)).decode(errors="replace")
    finally:
        os.close(reading)


def _start(stderr: int) -> subprocess.Popen[bytes]:
    # Not asyncio's, which reaps by itself.
    return subprocess.Popen(
        _COMMAND, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, process_group=0
    )


def _read(pipe: int) -> bytes:
    """What is there by now."""
    try:
        return os.read(pipe, _READ_BYTES)
    except BlockingIOError:
        return b""


def _end_of(said: bytes) -> bytes:
    return said if len(said) <= _KEPT_BYTES else said[-_KEPT_BYTES:].partition(b"\n")[2]


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether there is nothing of it but the zombie, which stays."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None  # macOS before Python 3.13; the pid could be reused by now, in theory


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # macOS answers the latter for a group of which only the zombie is left


@contextmanager
def _ending_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals that would end us without another word end the group first."""
    loop = asyncio.get_running_loop()

    def end_both(number: int) -> None:
        _kill_group(process)
        loop.remove_signal_handler(number)
        os.kill(os.getpid(), number)

    # One that is ignored, as by nohup, is to be ignored on.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        loop.add_signal_handler(number, end_both, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
