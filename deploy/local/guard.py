"""A small process that runs one command and never leaves it, or a child of it, behind.

    starter ── stdin (a pipe: commands, and its end) ──► guard ── PDEATHSIG ──► command ──► its children
                                                          └ subreaper: adopts and ends what outlives it

It is run by its path, isolated and without `site` (12 ms instead of 40), and therefore imports nothing of
ours: `python -I -S guard.py <json>`. Postgres is one reason for it: its children leave the process group, so
nobody could end them by a signal to a group, and it refuses to run as root, so somebody must change the user
without touching /etc/passwd or the mode of a folder. The instances of the platform simulator are the other: a
real platform's container ends with its first process, and takes everything in it along.

The JSON: `command`, `privilege` (as_is, namespace, drop), `starter` (the pid that must live), `orphan_signal`
(sent to the command if the starter dies), `remove` (folders deleted then), `grace_seconds` (what its children have
when it has ended). The command gets our environment, which other users cannot read as they can our arguments; its
output goes to our stderr. On stdin, a line
`signal <n>` is sent to the command; the end of the file means that the starter is gone. We write to stdout:
`started <pid>`, `exited <status>` when the command has ended (in the shell's manner, 128 and more for a
signal), and, if children of it had to be killed, `killed <count>`.

Not promised: that the command ends when guard and starter are killed in the same instant on a system without
PDEATHSIG (macOS).
"""

import ctypes
import json
import os
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWUSER = 0x10000000
# Debian's and most others' "nobody"; initdb wants a uid that /etc/passwd knows.
UNPRIVILEGED_ID = 65534
# How long the command has after `orphan_signal`: the rule is that all is over within about a second.
_ORPHANED_GRACE_SECONDS = 0.6
# A kernel without CONFIG_PROC_CHILDREN does not name them; then we leave them to init in the end.
_LEFTOVER_LIMIT_SECONDS = 5.0
# A starter that left its end of the pipe to a forked child is seen to be gone by our parent's pid instead.
_PARENT_CHECK_SECONDS = 0.25

_IS_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True)


def enter_user_namespace() -> None:
    """Becomes "nobody" to itself and stays who it was to the file system: root's files remain root's.

    Raises:
        OSError: user namespaces are forbidden here.
    """
    uid, gid = os.geteuid(), os.getegid()
    if not _IS_LINUX or _libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER) was refused")
    for name, text in (
        # The kernel wants this before an unprivileged gid_map.
        ("setgroups", "deny"),
        ("uid_map", f"{UNPRIVILEGED_ID} {uid} 1"),
        ("gid_map", f"{UNPRIVILEGED_ID} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def drop_to_unprivileged() -> None:
    """Gives root up for good: for a child that is about to exec."""
    os.setgroups([])
    os.setgid(UNPRIVILEGED_ID)
    os.setuid(UNPRIVILEGED_ID)


def _tell(text: str) -> None:
    try:
        os.write(1, f"{text}\n".encode())
    except BrokenPipeError:
        # The starter is gone: the end of our stdin says so too, and is acted upon.
        return


def _spawn(command: list[str], privilege: str, orphan_signal: int) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        # Python ignores it, and what is ignored stays so in the command.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if privilege == "drop":
            drop_to_unprivileged()
        if _IS_LINUX:
            # Last, since a change of the user clears it.
            _libc.prctl(_PR_SET_PDEATHSIG, orphan_signal, 0, 0, 0)
            if os.getppid() != guard:
                os._exit(1)
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error}\n".encode())
    os._exit(127)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _reap_until_nobody_is_left(limit_seconds: float) -> int:
    """Waits for the adopted children, kills those that outlive the limit; returns how many these were."""
    deadline = time.monotonic() + limit_seconds
    killed: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return len(killed)
        if pid:
            continue
        if time.monotonic() >= deadline + _LEFTOVER_LIMIT_SECONDS:
            return len(killed)
        if time.monotonic() >= deadline:
            for child in _children():
                os.kill(child, signal.SIGKILL)
                killed.add(child)
        time.sleep(0.005)


def _remove_shared_memory(data_folder: str) -> None:
    """A killed Postgres leaves a System V segment, named only by its pid file still (line 7: key, id)."""
    try:
        with open(os.path.join(data_folder, "postmaster.pid")) as file:
            lines = file.read().splitlines()
        _libc.shmctl(int(lines[6].split()[1]), 0, None)
        os.unlink(os.path.join(data_folder, "postmaster.pid"))
    except (OSError, IndexError, ValueError):
        # An orderly end, or a command that is not Postgres: there is nothing to remove.
        return


class Guard:
    """The loop: ends when the command and everything below it has ended."""

    def __init__(self, specification: dict[str, object]) -> None:
        self._specification = specification
        orphan_signal = specification["orphan_signal"]
        assert isinstance(orphan_signal, int)
        self._orphan_signal = orphan_signal
        grace_seconds = specification["grace_seconds"]
        assert isinstance(grace_seconds, float)
        self._grace_seconds = grace_seconds
        self._pid = 0
        self._status: int | None = None
        self._kill_at: float | None = None
        self._orphaned = False
        self._buffer = b""

    def run(self) -> int:
        """Runs the command to its end; returns an exit status in the shell's manner."""
        specification = self._specification
        wakeup_read, wakeup_write = os.pipe()
        os.set_blocking(wakeup_write, False)
        signal.set_wakeup_fd(wakeup_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._signal(signal.SIGINT))
        if _IS_LINUX:
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        command = specification["command"]
        assert isinstance(command, list)
        self._pid = _spawn(command, str(specification["privilege"]), self._orphan_signal)
        _tell(f"started {self._pid}")

        watched = [0, wakeup_read]
        while self._status is None:
            ready, _, _ = select.select(watched, [], [], _PARENT_CHECK_SECONDS)
            if wakeup_read in ready:
                os.read(wakeup_read, 4096)
            if 0 in ready and not self._obey():
                watched.remove(0)
            if os.getppid() != specification["starter"]:
                self._become_orphan()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._signal(signal.SIGKILL)
            self._reap()
        status = self._status if self._status >= 0 else 128 - self._status
        _tell(f"exited {status}")
        killed = _reap_until_nobody_is_left(0.0 if self._orphaned else self._grace_seconds)
        if killed:
            _tell(f"killed {killed}")
        if "-D" in command:
            _remove_shared_memory(command[command.index("-D") + 1])
        if self._orphaned:
            self._remove_folders()
        return status

    def _obey(self) -> bool:
        chunk = os.read(0, 4096)
        if not chunk:
            self._become_orphan()
            return False
        self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._signal(int(line.split()[1]))
        return True

    def _become_orphan(self) -> None:
        if self._orphaned:
            return
        self._orphaned = True
        self._kill_at = time.monotonic() + _ORPHANED_GRACE_SECONDS
        self._signal(self._orphan_signal)

    def _signal(self, number: int) -> None:
        # Only while it is not reaped: until then the pid is its own, and nobody else's.
        if self._pid and self._status is None:
            os.kill(self._pid, number)

    def _reap(self) -> None:
        while self._status is None:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid == self._pid:
                self._status = os.waitstatus_to_exitcode(status)

    def _remove_folders(self) -> None:
        import shutil  # Late: 5 ms that only this rare path needs.

        folders = self._specification["remove"]
        assert isinstance(folders, list)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Reads the specification, takes the user that it asks for, and guards."""
    specification = json.loads(sys.argv[1])
    if specification["privilege"] == "namespace":
        enter_user_namespace()
    return Guard(specification).run()


if __name__ == "__main__":
    sys.exit(main())
