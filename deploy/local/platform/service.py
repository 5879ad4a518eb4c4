"""What the platform knows, what can happen to it, and what it can do: values only.

How they hang together is told in sequence.py.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the platform is, in seconds.

    Attributes:
        overlap_seconds: from the traffic switch to SIGTERM for the old instances.
        no_traffic_seconds: an instance failing its probes this long gets no requests.
        restart_seconds: and this long, is restarted.
        cancel_seconds: a deploy that is not healthy by then is cancelled.
        respawn_seconds: the first pause before a process that did not live long is started again.
        shutdown_delay_seconds: `maxShutdownDelaySeconds`, from SIGTERM to SIGKILL.
        probe_limit_seconds: a probe without an answer by then has failed.
        probe_interval_seconds: between two probes. Render does not say.
    """

    overlap_seconds: float = 60
    no_traffic_seconds: float = 15
    restart_seconds: float = 60
    cancel_seconds: float = 900
    respawn_seconds: float = 1
    shutdown_delay_seconds: float = 30
    probe_limit_seconds: float = 5
    probe_interval_seconds: float = 1

    def scaled(self, factor: float) -> Timing:
        """The same platform in a hurry.

        What limits an instance (its answer to a probe, its shutdown) is not scaled: the instance is not
        faster.
        """
        return replace(
            self,
            overlap_seconds=self.overlap_seconds * factor,
            no_traffic_seconds=self.no_traffic_seconds * factor,
            restart_seconds=self.restart_seconds * factor,
            cancel_seconds=self.cancel_seconds * factor,
            respawn_seconds=self.respawn_seconds * factor,
            probe_interval_seconds=self.probe_interval_seconds * factor,
        )


class DeployStatus(enum.Enum):
    """Where a deploy stands."""

    BOOTING = "booting"  # Its instances start; traffic goes to the deploy before.
    LIVE = "live"  # Gets the traffic. At most one.
    RETIRED = "retired"  # Was live; its instances end after the overlap.
    CANCELLED = "cancelled"  # Never was.


@dataclass(frozen=True, slots=True)
class Deploy:
    """One deploy; the number grows."""

    number: int
    count: int
    status: DeployStatus
    requested_at: float


@dataclass(frozen=True, slots=True)
class Instance:
    """One place for a process, under one name for as long as the platform keeps it.

    Attributes:
        life: which process of that name, from 1; a report about an earlier one means nothing.
        spawn_at: when the next process is to be started; None while one is there.
        spawned_at: when the present process was started.
        has_passed: whether the present process ever passed a probe.
        failing_since: when it stopped passing, None while it passes.
        retire_at: when it ends for good; None for never.
        is_restart_wanted: the present process is to end, and another to take its place.
        terminated_at: when the present process got SIGTERM.
        is_killed: whether it got SIGKILL.
        short_lives: processes in a row that ended soon.
    """

    name: str
    deploy: int
    spawn_at: float | None
    life: int = 0
    spawned_at: float = 0
    has_passed: bool = False
    failing_since: float | None = None
    retire_at: float | None = None
    is_restart_wanted: bool = False
    terminated_at: float | None = None
    is_killed: bool = False
    short_lives: int = 0

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self.life > 0 and self.spawn_at is None

    @property
    def is_passing(self) -> bool:
        """Whether the last probe of the present process passed."""
        return self.is_running and self.has_passed and self.failing_since is None

    def is_over(self, now: float) -> bool:
        """Whether its time has come: no process of it is started any more."""
        return self.retire_at is not None and now >= self.retire_at

    def is_routable(self, now: float, timing: Timing) -> bool:
        """Whether it may get requests, if its deploy is live."""
        if not self.is_running or not self.has_passed or self.terminated_at is not None:
            return False
        return self.failing_since is None or now < self.failing_since + timing.no_traffic_seconds


@dataclass(frozen=True, slots=True)
class Service:
    """All that the platform knows."""

    deploys: tuple[Deploy, ...] = ()
    instances: tuple[Instance, ...] = ()
    routed: tuple[str, ...] = ()
    names: int = field(default=0)

    def deploy(self, number: int) -> Deploy:
        """The deploy of that number."""
        return self.deploys[number - 1]

    def with_status(self, status: DeployStatus) -> Deploy | None:
        """The newest deploy of that status."""
        return next((deploy for deploy in reversed(self.deploys) if deploy.status is status), None)

    def instances_of(self, number: int) -> tuple[Instance, ...]:
        """The instances of a deploy that are to stay."""
        return tuple(item for item in self.instances if item.deploy == number and item.retire_at is None)


# Events.


@dataclass(frozen=True, slots=True)
class DeployRequested:
    """Somebody wants a new deploy of so many instances."""

    count: int


@dataclass(frozen=True, slots=True)
class ScaleRequested:
    """Somebody wants that many instances of what is live."""

    count: int


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """Somebody wants this process ended and another started in its place."""

    name: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody wants this instance ended, and no other in its place."""

    name: str


@dataclass(frozen=True, slots=True)
class ProbePassed:
    """This process answered a probe as it should."""

    name: str
    life: int


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """This process did not."""

    name: str
    life: int


@dataclass(frozen=True, slots=True)
class Exited:
    """This process is gone."""

    name: str
    life: int


Event = (
    DeployRequested | ScaleRequested | RestartRequested | StopRequested | ProbePassed | ProbeFailed | Exited
)


# Actions.


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for this instance."""

    name: str
    deploy: int
    life: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Send SIGTERM."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL."""

    name: str


@dataclass(frozen=True, slots=True)
class Route:
    """Send requests to these from now on."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell whoever asks that the deploy now stands there."""

    deploy: int
    status: DeployStatus


Action = Spawn | Terminate | Kill | Route | Announce
