"""What a running field has of everything that could be left behind: processes, zombies, descriptors, sessions, locks, tables.

Taken twice in the same state of rest, the two must be equal; what differs was left by what happened in between. Processes are
found by the field's folder in their environment, so that an orphan is seen wherever it hangs in the tree.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.field import Field
from tests.campaign.instance import Instance, count_descriptors

_MOST_MEMORY = 1.5
"""Of a supervisor, times what it was after its first steps: an interpreter's memory breathes, and a leak of hours is more."""

_MOST_MEMORY_OF_WORKER = 2.0
"""Of its worker: it dispatches now and then, and imports for a stranger what it needs for nobody else."""

_MORE_BYTES = 512 << 10
"""Of a table, beyond what its rows need: what a row was before it was changed stays until the next vacuum, within a minute."""

_BYTES_OF_INSTANCE = 1024
"""With its indexes; rows of instances are kept for a day."""

TABLES = ("terms", "instances", "registrations", "inbox")
_MORE_DESCRIPTORS = 4
"""A probe under way, a worker's control socket."""

_MORE_OF_WORKER = 16
"""Connections of the router and of strangers, sessions of a pool that is used at the moment."""

_MORE_OF_OURS = 64
"""Connections of probes and of the router, which come and go."""


@dataclass(frozen=True, slots=True)
class Remains:
    """A count of everything, at rest.

    Attributes:
        processes: of instances: guards, supervisors, workers, and whatever these started.
        zombies: among them, and below us.
        descriptors: of the supervisor of the instance that lives through everything.
        worker_descriptors: of its worker, which is a standby's.
        resident_kib: memory of that supervisor.
        worker_resident_kib: of that worker.
        ours: descriptors of this process.
        sessions: of instances, in the database.
        locks: advisory ones that are held; who waits for one leaves the queue now and then, to announce itself.
        rows: of the product's tables.
        bytes: of these tables, with indexes.
        starts: of instances, since the begin.
    """

    processes: int
    zombies: int
    descriptors: int
    worker_descriptors: int
    resident_kib: int
    worker_resident_kib: int
    ours: int
    sessions: int
    locks: int
    rows: Mapping[str, int]
    bytes: Mapping[str, int]
    starts: int

    def __str__(self) -> str:
        tables = ", ".join(f"{name} {self.rows[name]} rows {self.bytes[name] >> 10} KiB" for name in TABLES)
        return (
            f"{self.processes} processes, {self.zombies} zombies, {self.descriptors} descriptors and "
            f"{self.resident_kib} KiB of the eldest supervisor, {self.worker_descriptors} descriptors and "
            f"{self.worker_resident_kib} KiB of its worker, "
            f"{self.sessions} sessions, {self.locks} locks; {tables}; {self.starts} starts"
        )

    def compare(self, before: Remains) -> list[str]:
        """What is more now than it was before, in words.

        Rows of instances are kept for a day: one for each start is all that there may be. The inbox grows with the traffic, and
        what it keeps has its time.
        """
        found = []
        for name, now, then, more in (
            ("processes", self.processes, before.processes, 0),
            ("zombies", self.zombies, before.zombies, 0),
            ("descriptors", self.descriptors, before.descriptors, _MORE_DESCRIPTORS),
            (
                "descriptors of the worker",
                self.worker_descriptors,
                before.worker_descriptors,
                _MORE_OF_WORKER,
            ),
            (
                "KiB of memory",
                self.resident_kib,
                before.resident_kib,
                (_MOST_MEMORY - 1) * before.resident_kib,
            ),
            (
                "KiB of the worker's memory",
                self.worker_resident_kib,
                before.worker_resident_kib,
                (_MOST_MEMORY_OF_WORKER - 1) * before.worker_resident_kib,
            ),
            *(
                (f"bytes of {name}", self.bytes[name], before.bytes[name], _MORE_BYTES)
                for name in ("terms", "registrations")
            ),
            (
                "bytes of instances",
                self.bytes["instances"],
                before.bytes["instances"],
                _BYTES_OF_INSTANCE * self.rows["instances"] + _MORE_BYTES,
            ),
            ("descriptors of the campaign itself", self.ours, before.ours, _MORE_OF_OURS),
            ("database sessions", self.sessions, before.sessions, 0),
            ("advisory locks", self.locks, before.locks, 0),
        ):
            if now > then + more:
                found.append(f"{now} {name}, and there were {then}")
        if self.rows["instances"] > self.starts:
            found.append(f"{self.rows['instances']} rows of instances, of {self.starts} starts")
        return found


async def take_remains(field: Field, eldest: Instance) -> Remains:
    """Counts everything, now; the caller sees to it that it rests."""
    pids = instance_processes(field.history_folder)
    zombies = set(zombies_below(os.getpid()))
    [[sessions, locks]] = await field.recorder.fetch(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND starts_with(application_name, 'webhook-supervisor')), "
        "(SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database())"
    )
    worker = await eldest.worker_pid()
    rows, size = {}, {}
    for table in TABLES:
        [[rows[table], size[table]]] = await field.recorder.fetch(
            f"SELECT count(*), pg_total_relation_size('webhook_supervisor.{table}') FROM webhook_supervisor.{table}"
        )
    return Remains(
        processes=len(pids),
        # Whoever ends in this very moment, a backend of the database's, is reaped by the second look.
        zombies=len(zombies.intersection(zombies_below(os.getpid()))),
        descriptors=count_descriptors(eldest.process.pid),
        worker_descriptors=count_descriptors(worker),
        resident_kib=_resident_kib(eldest.process.pid),
        worker_resident_kib=_resident_kib(worker),
        ours=count_descriptors(os.getpid()),
        sessions=int(sessions),
        locks=int(locks),
        rows=rows,
        bytes=size,
        starts=field.starts,
    )


def instance_processes(history_folder: Path) -> list[int]:
    """Every living process on the machine that was started for an instance of the field with that folder of histories."""
    mark = f"HISTORY_DIR={history_folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue  # it has ended, or is not ours to read
    return found


def zombies_below(root: int) -> list[int]:
    """Processes below this one that have ended and were not reaped."""
    children: dict[int, list[int]] = {}
    states: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        states[int(path.name)] = state
        children.setdefault(int(parent), []).append(int(path.name))
    found, waiting = [], [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            waiting.append(pid)
            if states[pid] == "Z":
                found.append(pid)
    return found


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
