"""Worker processes: spawn, control socket, kill, reap. The shell for the core's worker actions.

Every worker is the leader of a process group of its own, with a socketpair for control and the listening socket by
inheritance. Whatever ends it, its whole group is killed *before* it is reaped: as long as the zombie holds the pid, no foreign
process can have the group's number. So children that a bot starts end with the worker (b22).

The other direction - the worker ends when we do - is the worker's (webhook_worker/control.py): by the end of its lifeline,
which the kernel sees to where it can, and by that of its control socket.

Not promised: that a message arrives. A worker that does not read is one that does not beat, and is killed for that.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from shared import clock, wire
from shared.errors import WireError
from supervisor import messages as m
from supervisor.spawn import Spawned, spawn_worker

UNSENT_BYTES = 256 * 1024
"""More than this waiting for a worker that does not read: it is hung, and what it is told no longer matters."""

END_OF_FILE_GRACE_SECONDS = 3.0
"""A worker that closed its control socket is ending; if it has not by then, it is killed."""


@dataclass(slots=True, eq=False)
class _Process:
    id: int
    spawned: Spawned
    unsent: bytearray = field(default_factory=bytearray)
    received: wire.Lines = field(default_factory=wire.Lines)

    @property
    def control(self) -> socket.socket:
        return self.spawned.control


class WorkerProcesses:
    """All workers of this supervisor, from spawn to reap. Runs in the event loop's thread."""

    def __init__(
        self,
        listener: socket.socket,
        instance_id: str,
        post: Callable[[m.Event], None],
        *,
        first: Spawned | None = None,
    ) -> None:
        """Does no I/O.

        Args:
            listener: the bound, listening public socket.
            instance_id: told to the worker, since it names this start.
            post: takes every event.
            first: a worker that was started already, and receives at once: taken for the first that is asked for.
        """
        self._first = first
        self._listener = listener
        self._instance_id = instance_id
        self._post = post
        self._processes: dict[int, _Process] = {}

    def spawn(self, worker: int, *, receives_at_once: bool) -> None:
        """Start a worker."""
        first, self._first = self._first, None
        try:
            spawned = first or spawn_worker(
                self._listener, self._instance_id, receives_at_once=receives_at_once
            )
        except OSError as exc:
            # No more processes, or no memory, for the moment: no reason to end those that are there.
            self._post_exit(worker, f"it could not be started: {exc.strerror}", began=False)
            return
        process = _Process(id=worker, spawned=spawned)
        self._processes[worker] = process
        loop = asyncio.get_running_loop()
        loop.add_reader(process.control.fileno(), self._readable, process)
        self._post(m.WorkerSpawned(at=clock.now(), worker=worker, pid=spawned.pid))
        if first is not None:
            # It may have said something, or ended, before anybody looked.
            self._readable(process)
            loop.call_soon(self.reap)

    def send(self, worker: int, message: wire.ToWorker) -> None:
        """Send without waiting; to a worker that is gone, nothing happens."""
        process = self._processes.get(worker)
        if process is None or process.control.fileno() < 0:
            return
        process.unsent += wire.encode(message)
        if len(process.unsent) > UNSENT_BYTES:
            self.kill(worker)
            return
        self._flush(process)

    def kill(self, worker: int) -> None:
        """SIGKILL to the worker and everything it started."""
        process = self._processes.get(worker)
        if process is not None:
            process.spawned.kill_group()

    def reap(self) -> None:
        """Take in every child that ended: ours, and, as PID 1 of a container, anybody's. Called on SIGCHLD."""
        if self._first is not None:
            return  # it would be reaped before it is known; `spawn` looks again
        while (dead := _reap_one(self._before_reaping)) is not None:
            pid, code = dead
            process = self._of_pid(pid)
            if process is None:
                continue
            # Reaped: Popen must not wait for a number that may be another's by now.
            process.spawned.process.returncode = code
            self._forget(process)
            self._post_exit(process.id, describe_exit(code))

    def _post_exit(self, worker: int, status: str, *, began: bool = True) -> None:
        chance = random.random()  # noqa: S311 - spreads a pause
        self._post(m.WorkerExited(at=clock.now(), worker=worker, status=status, chance=chance, began=began))

    def _of_pid(self, pid: int) -> _Process | None:
        return next((p for p in self._processes.values() if p.spawned.pid == pid), None)

    def _before_reaping(self, pid: int) -> None:
        process = self._of_pid(pid)
        if process is not None:
            process.spawned.kill_group()
            self._drain(process)  # its last words

    def kill_all(self) -> None:
        """For the end of the supervisor: kill and reap whatever is left."""
        if self._first is not None:
            self._first.end()
        for process in list(self._processes.values()):
            process.spawned.kill_group()
            process.spawned.process.wait()
            self._forget(process)

    # ------------------------------------------------------------------------------------------------- control socket

    def _forget(self, process: _Process) -> None:
        self._close_control(process)
        process.spawned.let_go()
        self._processes.pop(process.id, None)

    def _close_control(self, process: _Process) -> None:
        if process.control.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(process.control.fileno())
        loop.remove_writer(process.control.fileno())
        process.control.close()

    def _flush(self, process: _Process) -> None:
        loop = asyncio.get_running_loop()
        try:
            while process.unsent:
                sent = process.control.send(process.unsent)
                del process.unsent[:sent]
        except BlockingIOError:
            loop.add_writer(process.control.fileno(), self._flush, process)
            return
        except OSError:
            # Its end is gone; SIGCHLD says the rest.
            process.unsent.clear()
        loop.remove_writer(process.control.fileno())

    def _readable(self, process: _Process) -> None:
        if self._drain(process):
            return
        self._close_control(process)
        # It is ending, or has closed what it must not close.
        asyncio.get_running_loop().call_later(END_OF_FILE_GRACE_SECONDS, self._kill_if_alive, process)

    def _kill_if_alive(self, process: _Process) -> None:
        if self._processes.get(process.id) is process:
            process.spawned.kill_group()

    def _drain(self, process: _Process) -> bool:
        """Read and post what is there; False at the end of the file."""
        while process.control.fileno() >= 0:
            try:
                chunk = process.control.recv(65536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not chunk:
                return False
            try:
                for line in process.received.end_in(chunk):
                    message = wire.decode_for_supervisor(line)
                    self._post(m.WorkerSaid(at=clock.now(), worker=process.id, message=message))
            except WireError:
                # Not of our checkout: something else writes there. A worker that cannot be understood is replaced.
                process.spawned.kill_group()
                return False
        return False


def to_wire(action: m.WorkerAction) -> tuple[int, wire.ToWorker]:
    """The worker and the control message that carries `action` out."""
    match action:
        case m.TellHealth(worker=worker, health=health):
            return worker, wire.SetHealth(ok=health.ok, role=health.role, reason=health.reason)
        case m.Lead(worker=worker):
            return worker, wire.Lead(
                term=action.term,
                deadline=action.deadline,
                recover_at=action.recover_at,
                poll=action.poll,
            )
        case m.Extend(worker=worker, term=term, deadline=deadline):
            return worker, wire.Extend(term=term, deadline=deadline)
        case m.StopAccepting(worker=worker, linger_seconds=seconds):
            return worker, wire.StopAccepting(linger_seconds=seconds)
        case m.EndTerm(worker=worker, drain_seconds=seconds):
            return worker, wire.EndTerm(drain_seconds=seconds)
        case m.ExitWorker(worker=worker):
            return worker, wire.Exit()
        case _:
            assert_never(action)


def describe_exit(code: int) -> str:
    """An exit code of `os.waitstatus_to_exitcode`, in words."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"


def _reap_one(before: Callable[[int], None]) -> tuple[int, int] | None:
    """Reap one child that ended: its pid and exit code. `before` is called while its zombie still holds the pid."""
    try:
        if hasattr(os, "waitid"):
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is None or info.si_pid == 0:
                return None
            before(info.si_pid)
            pid, status = os.waitpid(info.si_pid, 0)
        else:  # macOS before Python 3.13; the pid could be reused before `before`, in theory
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return None
            before(pid)
    except ChildProcessError:
        return None
    return pid, os.waitstatus_to_exitcode(status)
