"""A supervisor of a campaign: with a log on disk, a host of its own if need be, and a command in front if need be."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx

from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.guarded import GuardedProcess, inherited_environment
from deploy.local.log_lines import LogLine, parse_line
from deploy.local.platform.router import Target
from tests.campaign.tenure import instance_of
from tests.end_to_end import instance as end_to_end
from tests.end_to_end.instance import GRACE_SECONDS, HANG_SECONDS, PROBE_SECONDS, eventually

SUPERVISOR: tuple[str, ...] = (sys.executable, "-m", "supervisor")


class Instance(end_to_end.Instance):
    """One supervisor with its worker; `start` may be called again when it has ended.

    Attributes:
        host: where it listens, and is probed, and gets its requests.
        command: what is started: a prefix (`ip netns exec ...`) and the supervisor, or a wrapper of it.
        log_path: everything that all its starts wrote.
        on_log: called with every line of its log.
        on_start: called with every start.
        leftovers: children that its deaths left behind for longer than GRACE_SECONDS, over all starts.
    """

    def __init__(
        self, name: str, environment: dict[str, str], *, command: Sequence[str], log_path: Path
    ) -> None:
        """Does nothing yet."""
        super().__init__(name, environment)
        self.on_log: Callable[[LogLine], None] = lambda _: None
        self.on_start: Callable[[], None] = lambda: None
        self.host = environment["HOST"]
        self.command = tuple(command)
        self.log_path = log_path
        self.leftovers = 0
        self._workers = 0

    async def start(self, *arguments: str) -> None:
        """Spawn it; returns before it is up."""
        self._workers = 0
        self.on_start()
        self._process = await GuardedProcess.spawn(
            [*self.command, *arguments],
            environment={**inherited_environment(), **self.environment},
            folder=PROJECT_FOLDER,
            on_line=self._take,
            grace_seconds=GRACE_SECONDS,
        )

    @property
    def is_running(self) -> bool:
        """Whether its supervisor has been started and has not ended."""
        return self._process is not None and self._process.is_running

    @property
    def is_settled(self) -> bool:
        """Whether no worker of it is being replaced, as far as its log tells."""
        return self._workers <= 1

    @property
    def target(self) -> Target:
        """For the router."""
        return Target(self.name, self.port, self.host)

    async def wait_for_exit(self) -> int:
        """Until it has ended and all its output is read; its exit status (128 + n for signal n)."""
        status = await super().wait_for_exit()
        self.leftovers += self.process.leftovers
        self.process.leftovers = 0
        return status

    async def get(
        self, path: str, *, own_port: bool = False, limit_seconds: float = HANG_SECONDS
    ) -> httpx.Response:
        """GET on the public or on the health port."""
        port = self.health_port if own_port else self.port
        host = self.environment["HEALTH_HOST"] if own_port else self.host
        async with httpx.AsyncClient(trust_env=False, timeout=limit_seconds) as client:
            return await client.get(f"http://{host}:{port}{path}")

    async def end_suddenly(self) -> None:
        """kill -9 of the supervisor; returns when everything of it is gone."""
        self.signal(SIGKILL)
        await self.wait_for_exit()

    async def wait_until_owner_again(self) -> None:
        """Until this start of it, which is no worse than the first, dispatches."""
        await self.wait_until_healthy()

        async def owns() -> bool:
            status = await self.try_status()
            return status is not None and status["role"] == "ACTIVE"

        await eventually(owns, f"{self.name} that owns")

    async def try_status(self) -> dict[str, Any] | None:
        """The body of /status; None where nobody answers in time, or somebody else on a port that was free for a moment."""
        try:
            answer = await self.get("/status", own_port=True, limit_seconds=PROBE_SECONDS)
        except httpx.HTTPError:
            return None
        if answer.status_code != 200:
            return None
        try:
            body: dict[str, Any] = answer.json()
        except ValueError:
            return None
        return body if instance_of(str(body.get("instance_id", ""))) == self.name else None

    def _take(self, text: str) -> None:
        with self.log_path.open("a") as log:
            log.write(f"{text}\n")
        line = parse_line(text)
        if line is not None:
            self._workers += line.begins("WORKER", "worker started") - line.begins("WORKER", "worker ended")
            self.on_log(line)
        # One of each for every update: an hour of them would fill the memory.
        if line is not None and (line.tag == "FLOW" or line.begins("WEBHOOK", "received")):
            return
        super()._take(text)


MORE_DESCRIPTORS = 8
"""How many more than at its first look a supervisor may have: a worker that is being replaced, probes under way."""


def count_descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Descriptors:
    """Watches that supervisors do not collect descriptors."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._first: dict[int, int] = {}

    def look(self, instance: Instance) -> str | None:
        """What is wrong with a running supervisor's descriptors; None if nothing is, or it is seen for the first time."""
        pid = instance.process.pid
        try:
            count = count_descriptors(pid)
        except FileNotFoundError:
            return None
        first = self._first.setdefault(pid, count)
        if count <= first + MORE_DESCRIPTORS:
            return None
        return f"the supervisor of {instance.name} had {first} descriptors, and has {count}"


def zombies_of(pid: int) -> list[int]:
    """Children of a process that have ended and that it has not reaped."""
    found = []
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            status = Path(f"/proc/{word}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):  # the latter where it is reaped while it is read
            continue
        if status.rpartition(")")[2].split()[0] == "Z":
            found.append(int(word))
    return found
