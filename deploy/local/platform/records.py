"""What can be seen of the platform from outside: its history, its instances' output, their ports and processes; values only."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from deploy.local.guarded import GuardedProcess


class Occurrence(enum.Enum):
    """What can be read in the platform's history; the value is the text for a timeline."""

    DEPLOY_REQUESTED = "deploy requested"
    DEPLOY_LIVE = "deploy live"
    DEPLOY_RETIRED = "deploy retired"
    DEPLOY_CANCELLED = "deploy cancelled"
    SPAWNED = "process spawned"
    BOUND = "port bound"
    HEALTHY = "healthy"
    FAILING = "failing its probes"
    ROUTED = "traffic switched"
    SIGTERM_SENT = "SIGTERM"
    SIGKILL_SENT = "SIGKILL"
    EXITED = "exit"
    LEFTOVERS = "processes left behind"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the platform's history; `at` is `time.monotonic()`, `instance` may be empty."""

    at: float
    what: Occurrence
    instance: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line that an instance wrote; `at` is `time.monotonic()` of its arrival here."""

    at: float
    instance: str
    text: str


@dataclass(frozen=True, slots=True)
class Release:
    """What is deployed: a name for the code, and the variables that differ from the service's own."""

    commit: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Slot:
    """An instance as seen from outside: its ports, and its present process."""

    name: str
    deploy: int
    port: int
    health_port: int
    life: int = 0
    process: GuardedProcess | None = None

    @property
    def pid(self) -> int:
        """Of the supervisor; 0 while there is none."""
        return self.process.pid if self.process is not None and self.process.is_running else 0
