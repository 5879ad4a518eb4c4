"""Starts worker processes. The first one before anything slow is imported here, so this imports nothing slow itself.

A worker needs most of a second for its own imports, more than ours take, and until it accepts there is nothing to decide. So
the port's process starts it right after it has bound the port (supervisor/__main__.py), and hands it to the core's first
SpawnWorker later (supervisor/worker_process.py). A configuration that turns out to be no good ends both.

Not promised: that it comes up.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys

from shared import clock, inherited

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Meant for us alone, and sent to all of us by some platforms: to be withstood until the worker can answer them itself
(webhook_worker/control.py)."""

_FIRST_WORD_SECONDS = 1.0
"""As long as connections may wait without an answer of ours (readings.py, UNACCEPTED_SECONDS), which counts from the spawn."""


class Spawned:
    """A worker's process, our end of its control socket, and its lifeline: where the kernel closes that, it kills the group."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, lifeline: int) -> None:
        """Of a process that leads a group of its own; `lifeline` is our end of a pipe."""
        self.process = process
        self.control = control
        self._lifeline = lifeline
        self.at = clock.now()

    @property
    def pid(self) -> int:
        """Of the process and of its group."""
        return self.process.pid

    def wait_for_first_word(self) -> None:
        """Returns when it has said that it accepts, or why it cannot; or has ended; or a second is over.

        Where there is one core, what we import meanwhile would take it from the worker.
        """
        select.select([self.control], [], [], _FIRST_WORD_SECONDS)

    def kill_group(self) -> None:
        """SIGKILL to the worker and everything it started. It must not have been reaped."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        except PermissionError:
            # macOS answers this for a group of which only the zombie is left.
            return

    def end(self) -> None:
        """Kills and reaps it."""
        self.kill_group()
        self.process.wait()
        self.control.close()
        self.let_go()

    def let_go(self) -> None:
        """Closes the lifeline, once it has been reaped."""
        os.close(self._lifeline)


def spawn_worker(listener: socket.socket, instance_id: str, *, receives_at_once: bool) -> Spawned:
    """Starts a worker.

    Args:
        listener: the bound, listening public socket.
        instance_id: told to the worker, since it names this start.
        receives_at_once: it is to take updates in before BOT_APP is built.

    Raises:
        OSError: no process could be made, for want of memory, numbers or descriptors.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    hanging, holding = os.pipe()
    environment = {
        **os.environ,
        inherited.LISTEN_FD_VARIABLE: str(listener.fileno()),
        inherited.CONTROL_FD_VARIABLE: str(theirs.fileno()),
        inherited.LIFELINE_FD_VARIABLE: str(hanging),
        inherited.INSTANCE_VARIABLE: instance_id,
        inherited.RECEIVE_VARIABLE: "1" if receives_at_once else "",
    }
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # which is inherited
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "webhook_worker"],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(listener.fileno(), theirs.fileno(), hanging),
                process_group=0,
            )
    except OSError:
        ours.close()
        os.close(holding)
        raise
    finally:
        os.close(hanging)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Spawned(process, ours, holding)
