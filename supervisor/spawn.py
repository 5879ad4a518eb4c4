"""Starts worker processes. The first one before anything else is done here, so this imports nothing slow itself.

A worker needs most of a second for its own imports, more than ours take, and until it accepts there is nothing to decide. So
the port's process starts it right after it has bound the port (supervisor/__main__.py), and hands it to the core's first
SpawnWorker later (supervisor/worker_process.py). A configuration that turns out to be no good ends both.

The first one is forked, after the imports that both need, which are done once so and whose memory both share. Later ones are
interpreters of their own: by then we have threads, whose locks a fork would copy as they are held.

Not promised: that it comes up.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Protocol

from shared import clock, inherited

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Meant for us alone, and sent to all of us by some platforms: to be withstood until the worker can answer them itself
(webhook_worker/control.py)."""

_FIRST_WORD_SECONDS = 1.0
"""As long as connections may wait without an answer of ours (readings.py, UNACCEPTED_SECONDS), which counts from the spawn."""


class Process(Protocol):
    """The part of `subprocess.Popen` that a child has, however it was made.

    Attributes:
        pid: of the process.
        returncode: as of `os.waitstatus_to_exitcode`; None until somebody has reaped it, and said so here.
    """

    pid: int
    returncode: int | None

    def wait(self) -> int:
        """Reaps it when it ends, unless it has been; returns the code."""


class _Forked:
    """A child that was forked; see `Process`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        if self.returncode is None:
            # Where SIGCHLD is ignored, the system has reaped it, and nobody knows its code; as Popen says then.
            code = 0
            with contextlib.suppress(ChildProcessError):
                code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.returncode = code
        return self.returncode


class Spawned:
    """A worker's process, our end of its control socket, and its lifeline: where the kernel closes that, it kills the group."""

    def __init__(self, process: Process, control: socket.socket, lifeline: int) -> None:
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


class _Ends:
    """Both ends of both connections to a worker.

    Attributes:
        control: our end of its control socket, which never blocks.
        lifeline: our end of its lifeline.
        theirs: its end of the control socket.
        hanging: its end of the lifeline.
    """

    def __init__(self) -> None:
        self.control, self.theirs = socket.socketpair()
        self.control.setblocking(False)
        self.hanging, self.lifeline = os.pipe()

    def close_ours(self) -> None:
        self.control.close()
        os.close(self.lifeline)

    def close_theirs(self) -> None:
        self.theirs.close()
        os.close(self.hanging)

    def environment(
        self, listener: socket.socket, instance_id: str, *, receives_at_once: bool
    ) -> dict[str, str]:
        """The variables that tell the worker of its ends, and of the rest."""
        return {
            inherited.LISTEN_FD_VARIABLE: str(listener.fileno()),
            inherited.CONTROL_FD_VARIABLE: str(self.theirs.fileno()),
            inherited.LIFELINE_FD_VARIABLE: str(self.hanging),
            inherited.INSTANCE_VARIABLE: instance_id,
            inherited.RECEIVE_VARIABLE: "1" if receives_at_once else "",
        }


def start_first_worker(listener: socket.socket, instance_id: str) -> Spawned | None:
    """Starts the worker that receives at once, as a fork of this process if that is safe.

    Args:
        listener: the bound, listening public socket.
        instance_id: as for `spawn_worker`.

    Returns:
        The worker; None in the fork, which is to run it.

    Raises:
        OSError: no process could be made, for want of memory, numbers or descriptors.
    """
    gc.disable()  # it would find nothing in what is imported, and leave gaps in the memory that is shared
    try:
        if _can_fork():
            return _fork_worker(listener, instance_id)
    finally:
        gc.enable()
    return spawn_worker(listener, instance_id, receives_at_once=True)


def _can_fork() -> bool:
    """Imports what both need, and says whether a fork would be as good as an interpreter of its own.

    Libraries of macOS do not survive a fork. Whoever traces or measures processes may have begun a thread. An interpreter that
    began with a stream closed has None in its place for ever. And what is missing, an interpreter of its own tells.
    """
    if sys.platform != "linux" or None in (sys.stdin, sys.stdout, sys.stderr):
        return False
    try:
        import shared.for_both  # noqa: F401 - for its imports

        return len(os.listdir("/proc/self/task")) == 1
    except (ImportError, OSError):
        return False


def _fork_worker(listener: socket.socket, instance_id: str) -> Spawned | None:
    ends = _Ends()
    told = ends.environment(listener, instance_id, receives_at_once=True)
    gc.freeze()  # a collection writes to every object that it looks at, and so would copy all that is shared
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            pid = os.fork()
            if pid == 0:
                _become_worker(ends, listener, told, nothing)
        finally:
            os.close(nothing)
    except OSError:
        ends.close_ours()
        ends.close_theirs()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid == 0:
        return None
    ends.close_theirs()
    with contextlib.suppress(ProcessLookupError):  # dead, and reaped by the system (SIGCHLD is ignored)
        os.setpgid(pid, pid)  # as the worker does: whoever is first, kill_group finds the group
    return Spawned(_Forked(pid), ends.control, ends.lifeline)


def _become_worker(ends: _Ends, listener: socket.socket, told: dict[str, str], nothing: int) -> None:
    """In the fork: everything that is different in an interpreter of its own. Whatever fails here ends the process."""
    try:
        os.setpgid(0, 0)
        ends.close_ours()
        os.dup2(nothing, 0)
        # A lock's, for one: what is not ours the bot's children must not have.
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                with contextlib.suppress(OSError):  # the number of the listing itself
                    os.set_inheritable(int(name), False)
        os.environ.update(told)
        # The worker makes sockets of the numbers: these here must not close them.
        listener.detach()
        ends.theirs.detach()
    except BaseException:  # noqa: BLE001 - the fork must not become a second supervisor
        try:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)


def spawn_worker(listener: socket.socket, instance_id: str, *, receives_at_once: bool) -> Spawned:
    """Starts a worker in an interpreter of its own.

    Args:
        listener: the bound, listening public socket.
        instance_id: told to the worker, since it names this start.
        receives_at_once: it is to take updates in before BOT_APP is built.

    Raises:
        OSError: no process could be made, for want of memory, numbers or descriptors.
    """
    ends = _Ends()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # which is inherited
    try:
        process = subprocess.Popen(
            # With our own options (-O, -W, -X), as a fork has them.
            [sys.executable, *subprocess._args_from_interpreter_flags(), "-m", "webhook_worker"],  # type: ignore[attr-defined]
            env={
                **os.environ,
                **ends.environment(listener, instance_id, receives_at_once=receives_at_once),
            },
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(), ends.theirs.fileno(), ends.hanging),
            process_group=0,
        )
    except OSError:
        ends.close_ours()
        raise
    finally:
        ends.close_theirs()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Spawned(process, ends.control, ends.lifeline)
