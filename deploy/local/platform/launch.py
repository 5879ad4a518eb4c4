"""How the process of an instance is started: under the guard (../guard.py), as in a container; a log file for each name."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from deploy.local.guarded import GuardedProcess, inherited_environment
from deploy.local.platform.records import OutputLine, Slot

Launch = Callable[[Slot, Mapping[str, str]], Awaitable[GuardedProcess]]
"""Starts the next process of an instance, with these variables of the platform's beside what a shell gives."""


def launch_under_guard(
    command: Sequence[str], *, folder: Path, log_folder: Path, tell: Callable[[OutputLine], None]
) -> Launch:
    """The way in which instances are started unless somebody has a better one.

    Args:
        command: what an instance is.
        folder: where it is started: the project.
        log_folder: gets a file `<instance>.log` for each; it exists.
        tell: called with every line that an instance writes.
    """

    async def launch(slot: Slot, environment: Mapping[str, str]) -> GuardedProcess:
        path = log_folder / f"{slot.name}.log"

        def take(text: str) -> None:
            # Opened for each line: the last lines of a process may come after the first of its successor.
            with path.open("a") as log:
                log.write(f"{text}\n")
            tell(OutputLine(time.monotonic(), slot.name, text))

        return await GuardedProcess.spawn(
            command, environment={**inherited_environment(), **environment}, folder=folder, on_line=take
        )

    return launch
