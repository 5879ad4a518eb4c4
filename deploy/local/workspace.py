"""The folder of one local system: Postgres' data, the logs, the bot's history of runs.

It belongs to one running system at a time, and holds what the last one left until the next one begins, so
that logs can be read afterwards; a bot of one's own keeps its database.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import WorkspaceInUse
from deploy.local.postgres_process import end_previous_server


@dataclass(frozen=True, slots=True)
class Workspace:
    """The parts of the folder; all exist."""

    postgres: Path
    logs: Path
    history: Path


@contextmanager
def open_workspace(folder: Path, *, keeps_database: bool = False) -> Iterator[Workspace]:
    """Takes a folder for this process, empties it of what an earlier system left, and gives it back at the end.

    Args:
        folder: made where it is not there.
        keeps_database: what an earlier one left of Postgres stays.

    Raises:
        WorkspaceInUse: another process has it.
        PostgresUnavailable: an earlier system's server is still there and does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(folder / "postgres", folder / "logs", folder / "history")
    # Not "w": whoever has it has written there, and is not to be made nameless.
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            pid = lock.read().strip()
            # It may be about to write it.
            process, how = (f" (pid {pid})", f" (kill {pid})") if pid.isdecimal() else ("", "")
            raise WorkspaceInUse(
                f"another local system runs{process} in {folder}: end that one first{how}, or choose another folder "
                f"({shlex.quote(sys.executable)} -m deploy.local --folder ...)"
            ) from error
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        # Of a system that was killed a moment ago the server may be about to end.
        end_previous_server(workspace.postgres / "data")
        for part in (workspace.postgres, workspace.logs, workspace.history):
            if not (keeps_database and part is workspace.postgres):
                shutil.rmtree(part, ignore_errors=True)
            part.mkdir(exist_ok=True)
        yield workspace
