"""One modelled supervisor process without its shells: what it is, what befalls it, and the one loop around core.step()."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared import wire
from shared.wire import Beat, PoolUse
from supervisor import core, narration
from supervisor import messages as m
from supervisor.state import Settings, State, initial
from tests.models.ownership import SessionKey
from tests.unit.supervisor import invariants

if TYPE_CHECKING:
    from tests.unit.supervisor.world import World

ENDING = 0.2
URL = "https://host/webhook/***"

SETTINGS = Settings(
    instance_id="a",
    token_fingerprint="t",
    polls=False,
    may_own=True,
    delete_on_exit=False,
    linger_seconds=5.0,
    drain_seconds=20.0,
    reconcile_seconds=60.0,
)
"""Of one instance, as an environment without settings of its own gives them."""


def beat(*, storing: bool = True, completed: int = 0, dispatch_fault: str | None = None) -> Beat:
    """A worker's heartbeat."""
    reason = None if storing else "the database is away"
    return Beat(
        loop_lag_ms=0.5,
        storing=storing,
        storing_reason=reason,
        inbox=None,
        pool=PoolUse(),
        completed=completed,
        dispatch_fault=dispatch_fault,
    )


DISPATCHING = wire.Dispatching()
TERM_ENDED = wire.TermEnded()


def lead_failed(reason: str, **details: Any) -> wire.LeadFailed:
    """A bot did not start."""
    return wire.LeadFailed(reason=reason, **details)


@dataclass(slots=True)
class ModelledWorker:
    """The truth about a worker process, of which the core knows what it is told."""

    id: int
    alive: bool = True
    hung: bool = False
    accepting: bool = False
    told_to_leave: bool = False
    term: str | None = None
    dispatching: bool = False
    completed: int = 0
    polls_from: float | None = None
    deadline: float = 0.0
    ignores_cancellation: bool = False  # of its bot, which hangs while it starts


class ModelledProcess:
    """The core, its loop, its clock. What carries actions out is in the classes that follow."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        deploy: str | None = "d1",
        token: str = "t",
        platform_id: str | None = None,
        polls: bool = False,
        may_own: bool = True,
        delete_on_exit: bool = False,
        linger: float = 5.0,
        drain: float = 20.0,
        reconcile: float = 60.0,
        at_terminal: bool = False,
        start_seconds: float = 0.4,
    ) -> None:
        self.world, self.name, self.deploy, self.token = world, name, deploy, token
        self.platform_id = platform_id or name
        settings = Settings(
            instance_id=name,
            token_fingerprint=token,
            polls=polls,
            may_own=may_own,
            delete_on_exit=delete_on_exit,
            linger_seconds=linger,
            drain_seconds=drain,
            reconcile_seconds=reconcile,
            at_terminal=at_terminal,
        )
        self.state: State = initial(settings, world.now)
        self.history = invariants.History()
        self.workers: dict[int, ModelledWorker] = {}
        self.session: SessionKey | None = None
        self.pending_call: int | None = None
        self.queued_answer: int | None = None  # of a call
        self.exit_code: int | None = None
        self.faults: tuple[str, ...] = ()
        self.killed = False
        self.frozen_until = float("-inf")
        self.serving_unavailable = False
        self.actions: list[tuple[float, m.Action]] = []
        self.events: list[m.Event] = []
        self.lines: list[narration.Line] = []
        self.start_seconds = start_seconds
        self.ending_seconds = ENDING  # of handlers, at the end of a term
        self.bot_stop_seconds = 0.0  # of the application, after them
        self.answering_seconds = 0.0  # of the requests that are under way when a linger is over
        self.failing_seconds = 0.0  # of a bot that does not start, until it says so or dies
        self.turns = 0  # of the loop in which something happened
        # Faults; each is used up by the first thing that it can fall on, "always_*" never.
        self.statement_fault: str | None = None  # "fail" | "lost answer" | "hang"
        # "retry" | "retry late" (60 s) | "wait" (told: 30 s) | "wait long" (told: 300 s)
        # | "reject" | "refuse" | "hang" | "late"
        self.call_fault: str | None = None
        self.spawn_fault: str | None = None  # "faults" | "crash" | "hang" | "no process"
        # "fail" | "away" | "flood", "flood of getMe" (told to wait FLOOD_SECONDS) | "crash" | "hang" | "outage" | "swallow"
        self.lead_fault: str | None = None
        self.always_spawn_fault: str | None = None
        self.always_lead_fault: str | None = None
        self.always_call_fault: str | None = None
        self.ingest_is_away = False  # the database, for its workers' sessions of either kind
        self.dispatch_is_away = False

    # -------------------------------------------------------------------------------------------------------- the loop

    @property
    def lives(self) -> bool:
        """Whether the process is there."""
        return self.exit_code is None and not self.killed

    @property
    def health(self) -> m.Health:
        """What it says now."""
        return core.health(self.state, self.world.now)

    @property
    def dispatching(self) -> ModelledWorker | None:
        """The worker that runs updates, in truth."""
        return next((w for w in self.workers.values() if w.alive and w.dispatching), None)

    def count(self, kind: type[m.Action | m.CallAction]) -> int:
        """How many actions of a kind there were."""
        return sum(isinstance(action, kind) for _, action in self.actions)

    def post(self, make: Callable[..., m.Event], delay: float = 0.0, **fields: Any) -> None:
        """An event will come to the loop."""

        def deliver() -> None:
            if not self.lives:
                return
            if self.world.now < self.frozen_until:
                self.world.at(self.frozen_until - self.world.now, deliver)
                return
            self.take(make(at=self.world.now, **fields))

        self.world.at(delay, deliver)

    def hear(self, message: wire.ToSupervisor, worker: int = 0, delay: float = 0.0) -> None:
        """A worker will be heard to say that; which one, matters where it speaks of itself."""
        self.post(m.WorkerSaid, delay, worker=worker, message=message)

    def take(self, event: m.Event) -> None:
        """One turn of the loop, as in runner.py."""
        now, before = self.world.now, self.state
        self.state, actions = core.step(before, event, now)
        self.events.append(event)
        is_beat = isinstance(event, m.WorkerSaid) and isinstance(event.message, Beat)
        self.turns += bool(actions) or not (is_beat or isinstance(event, m.Ticked))
        invariants.check(before, event, self.state, actions, now, self.history)
        if self.world.narrates:
            self.lines.extend(narration.narrate(before, event, self.state, actions, URL))
        for action in actions:
            self.actions.append((now, action))
            self._carry_out(action)
        call = self.state.call
        if self.lives and call is not None and not core.may_call(self.state, call, now):
            self._cut_off(call)

    def tick(self) -> None:
        """The runner's ticker."""
        if self.lives:
            self.post(m.Ticked)
            self.world.at(self.world.tick_seconds, self.tick)

    def beat(self) -> None:
        """Every worker's heartbeat."""
        if not self.lives:
            return
        for worker in self.workers.values():
            if worker.alive and not worker.hung and worker.id in self._up:
                self.hear_beat(worker)
        self.world.at(self.world.beat_seconds, self.beat)

    def hear_beat(self, worker: ModelledWorker, delay: float = 0.0) -> None:
        """That worker's heartbeat will come; the first one of each when it has looked whether it could store."""
        fault = "too many connections" if self.dispatch_is_away and worker.dispatching else None
        storing = not self.ingest_is_away
        message = beat(storing=storing, completed=worker.completed, dispatch_fault=fault)
        self.hear(message, worker.id, delay)

    @property
    def _up(self) -> set[int]:
        return {w.id for w in self.state.workers if w.reached}

    def _carry_out(self, action: m.Action) -> None:
        raise NotImplementedError

    def _cut_off(self, call: m.CallAction) -> None:
        raise NotImplementedError
