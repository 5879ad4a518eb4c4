"""Postgres' programs as processes: as whom they run, tied to our life, and what an earlier life of ours left.

Postgres refuses to run as root, and initdb wants a uid that /etc/passwd knows. Three ways, the first that works:

    as_is      an ordinary user: nothing to do
    namespace  a user namespace in which root (or a uid without a name) looks like "nobody"; files stay root's
    drop       the uid becomes 65534, and what it cannot reach must be put elsewhere
"""

from __future__ import annotations

import enum
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.local.errors import PostgresUnavailable
from deploy.local.guarded import guard_command

_POLL_SECONDS = 0.01
# A fast shutdown needs a second or so; a server that is still there afterwards hangs.
_PREVIOUS_SERVER_SECONDS = 10.0


class Privilege(enum.Enum):
    """As whom Postgres runs; see the module's docstring."""

    AS_IS = "as_is"
    NAMESPACE = "namespace"
    DROP = "drop"


def choose_privilege(*, uid: int, has_name: bool, namespace_works: bool) -> Privilege:
    """As whom Postgres should run.

    Args:
        uid: the effective uid of this process.
        has_name: whether the passwd database knows that uid.
        namespace_works: whether a user namespace can be entered and reaches binaries and data from within.

    Raises:
        PostgresUnavailable: there is no way; only a uid without a name and without namespaces comes to that.
    """
    if uid != 0 and has_name:
        return Privilege.AS_IS
    if namespace_works:
        return Privilege.NAMESPACE
    if uid == 0:
        return Privilege.DROP
    raise PostgresUnavailable(
        f"initdb wants a user that /etc/passwd knows, uid {uid} is not there, and user namespaces are not "
        "available: run as a user that has a name"
    )


def _namespace_reaches(binaries: Path, folder: Path) -> bool:
    """Whether Postgres runs in a user namespace and could write into the folder from there."""
    script = 'test -w "$1" && exec "$2" --version'
    try:
        run(
            ["/bin/sh", "-c", script, "sh", str(folder), str(binaries / "postgres")],
            Privilege.NAMESPACE,
            limit_seconds=30,
        )
    except PostgresUnavailable:
        return False
    return True


def everybody_reaches(folder: Path) -> bool:
    """Whether any user may enter the folder."""
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))


def find_privilege(binaries: Path, folder: Path) -> Privilege:
    """As whom Postgres can run here with these binaries and its data below that folder."""
    uid = os.geteuid()
    try:
        pwd.getpwuid(uid)
        is_named = True
    except KeyError:
        is_named = False
    return choose_privilege(
        uid=uid,
        has_name=is_named,
        # Asked only where it matters: the probe costs a process or two.
        namespace_works=(uid == 0 or not is_named) and _namespace_reaches(binaries, folder),
    )


def start_guarded(
    command: Sequence[str],
    privilege: Privilege,
    log: int,
    *,
    orphan_signal: signal.Signals,
    remove: Sequence[Path] = (),
    starter: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Starts a program under the guard, and the guard by `starter`; what it prints goes to the descriptor `log`."""
    guard = guard_command(command, privilege=privilege.value, orphan_signal=orphan_signal, remove=remove)
    return subprocess.Popen(
        [*starter, *guard],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        # A signal that could not be written must not be tried again at the close.
        bufsize=0,
        # Not ours: PGDATA, PGPORT and a preloaded library would all be obeyed.
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        # A Ctrl-C at the terminal is for us; we end the server when its clients have ended.
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for a guard that has been told, or is about, to end."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()


def run(
    command: Sequence[str], privilege: Privilege, *, limit_seconds: float, remove: Sequence[Path] = ()
) -> str:
    """Runs a command under the guard; its output, or PostgresUnavailable with it.

    Args:
        command: what to run.
        privilege: as whom.
        limit_seconds: after that it is killed.
        remove: folders that are worth nothing if we die meanwhile.
    """
    with tempfile.TemporaryFile() as output:
        process = start_guarded(
            command, privilege, output.fileno(), orphan_signal=signal.SIGKILL, remove=remove
        )
        try:
            status = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            finish(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status != 0:
        raise PostgresUnavailable(f"{command[0]} failed (status {status}):\n{text.strip()}")
    return text


def end_previous_server(data: Path) -> None:
    """Makes a data folder free: ends a server left in it by an earlier process, forgets a pid file that lies.

    Its pid may by now belong to somebody else: a process is touched only if it is a postgres with this data
    folder.

    Raises:
        PostgresUnavailable: the server is there and does not end.
    """
    pid_file = data / "postmaster.pid"
    deadline = time.monotonic() + _PREVIOUS_SERVER_SECONDS
    told = False
    while True:
        try:
            pid = int(pid_file.read_text().splitlines()[0])
        except (OSError, IndexError, ValueError):
            return
        if not _is_server_of(pid, data):
            pid_file.unlink(missing_ok=True)
            return
        if not told:
            told = True
            os.kill(pid, signal.SIGINT)
        if time.monotonic() >= deadline:
            raise PostgresUnavailable(f"an earlier Postgres (pid {pid}) still uses {data} and does not end")
        time.sleep(_POLL_SECONDS)


def _is_server_of(pid: int, data: Path) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except FileNotFoundError:
        if sys.platform == "linux":
            return False
        # No /proc: `ps` is part of the system there, which it need not be in a container.
        command = subprocess.run(
            ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
    return "postgres" in command and f"-D {data} " in command
