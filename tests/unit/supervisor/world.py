"""A small deterministic world: it takes the actions that core.step() gives, and answers them, under a simulated clock.

One or several instances share a modelled Postgres and a modelled Telegram. Every statement is carried out half-way through its
round trip and answered at the end of it, so a fault can fall on either side of its effect. Workers obey the control protocol
and, like the real ones, their deadline by themselves. After every step `invariants.check` is asked.

Faults are plain attributes (`instance.statement_fault = ...`) and methods (`instance.lose_session()`).

Not modelled: the inbox, the sockets, the time that Python takes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.wire import Beat, InboxDepth, PoolUse
from supervisor import core, narration
from supervisor import messages as m
from supervisor.state import Settings, State, initial
from tests.unit.supervisor import invariants
from tests.unit.supervisor.modelled_database import ModelledDatabase, Row, SessionKey

STATEMENT = 0.004
CALL = 0.05
START = 0.4
CLOSING = 0.3
ENDING = 0.2
EXITING = 0.05
URL = "https://host/webhook/***"
IDLE_SESSION = 15.0


def beat(*, storing: bool = True) -> Beat:
    """A worker's heartbeat."""
    reason = None if storing else "the database is away"
    return Beat(
        loop_lag_ms=0.5, storing=storing, storing_reason=reason, connections=1, inbox=InboxDepth(), pool=PoolUse()
    )


@dataclass(slots=True)
class ModelledTelegram:
    """The registration, and every call that changed it."""

    url: str | None = None
    refused_tokens: set[str] = field(default_factory=set)
    changes: list[tuple[float, str, str]] = field(default_factory=list)  # when, method, by which instance


@dataclass(slots=True)
class ModelledWorker:
    """The truth about a worker process, of which the core knows what it is told."""

    id: int
    alive: bool = True
    hung: bool = False
    accepting: bool = False
    term: str | None = None
    dispatching: bool = False
    polls_from: float | None = None
    deadline: float = 0.0


@dataclass(slots=True)
class World:
    """Clock, queue of what will happen, Postgres, Telegram, instances."""

    tick_seconds: float = 0.5
    beat_seconds: float = 1.0
    narrates: bool = True
    now: float = 1000.0
    database: ModelledDatabase = field(default_factory=ModelledDatabase)
    telegram: ModelledTelegram = field(default_factory=ModelledTelegram)
    instances: dict[str, Instance] = field(default_factory=dict)
    database_up: bool = True
    most_pollers: int = 0
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def boot(self, name: str = "a", **options: object) -> Instance:
        """Start a process."""
        instance = Instance(self, name, **options)  # type: ignore[arg-type]
        self.instances[name] = instance
        instance.tick()
        instance.beat()
        return instance

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen in so many seconds."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._numbers), action))

    def next(self) -> None:
        """Let the next thing happen."""
        at, _, action = heapq.heappop(self._heap)
        self.now = max(self.now, at)
        action()
        self.most_pollers = max(self.most_pollers, self._count_pollers())

    def _count_pollers(self) -> int:
        workers = [w for i in self.instances.values() for w in i.workers.values()]
        return sum(
            w.alive and w.dispatching and w.polls_from is not None and w.polls_from <= self.now < w.deadline
            for w in workers
        )

    def run(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.next()
        self.now = max(self.now, end)

    def run_until(self, condition: Callable[[], bool], limit: float = 30.0) -> float:
        """Let time pass until the condition holds.

        Returns:
            How long it took, in simulated seconds.

        Raises:
            AssertionError: it did not within `limit` simulated seconds.
        """
        start = self.now
        while not condition():
            if self.now - start > limit or not self._heap:
                states = "\n".join(f"{i.name}: {i.state}" for i in self.instances.values())
                raise AssertionError(f"not within {limit} s of simulated time\n{states}")
            self.next()
        return self.now - start

    def grant(self) -> None:
        """Tell those who got the lock from the queue."""
        while self.database.granted:
            name, session = self.database.granted.pop(0)
            if name in self.instances:
                self.instances[name].lock_granted(session)
            else:
                self._ghost_holds((name, session))

    def ghost_takes_lock(self) -> None:
        """Something else takes the lock as soon as it is free, for three seconds."""
        key = ("ghost", next(self._numbers))
        if self.database.holder is None:
            self.database.holder = key
            self._ghost_holds(key)
        else:
            self.database.queue.insert(0, key)

    def _ghost_holds(self, key: SessionKey) -> None:
        def leave() -> None:
            self.database.release(key)
            self.grant()

        self.at(3.0, leave)

    def stop_database(self, seconds: float) -> None:
        """Every session ends, and none can be opened for so long."""
        self.database_up = False

        def up() -> None:
            self.database_up = True

        self.at(seconds, up)
        for instance in self.instances.values():
            if instance.lives:
                instance.lose_session()

    def owners(self) -> list[Instance]:
        """Who believes to own."""
        return [i for i in self.instances.values() if i.lives and core.owns(i.state, self.now)]

    def ghost_peer(self, name: str, *, deploy: str | None = "young", token: str = "t", age: float = 0.0) -> None:
        """A row of an instance that is not there: ready, waiting, just announced."""
        self.database.rows[name] = Row(
            name, name, deploy, token, None, True, 0.0, self.now - age, self.now, always_waiting=True
        )


class Instance:
    """One supervisor process: the core, with modelled shells."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        deploy: str | None = "d1",
        token: str = "t",
        platform_id: str | None = None,
        mode: m.Mode = m.Mode.WEBHOOK,
        may_own: bool = True,
        delete_on_exit: bool = False,
        linger: float = 5.0,
        drain: float = 20.0,
        reconcile: float = 60.0,
        at_terminal: bool = False,
        start_seconds: float = START,
    ) -> None:
        self.world, self.name, self.deploy, self.token = world, name, deploy, token
        self.platform_id = platform_id or name
        settings = Settings(
            instance_id=name,
            token_fingerprint=token,
            mode=mode,
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
        self.exit_code: int | None = None
        self.faults: tuple[str, ...] = ()
        self.killed = False
        self.frozen_until = float("-inf")
        self.serving_unavailable = False
        self.actions: list[tuple[float, m.Action]] = []
        self.events: list[m.Event] = []
        self.lines: list[narration.Line] = []
        self.start_seconds = start_seconds
        self.turns = 0  # of the loop in which something happened
        # Faults; each is used up by the first thing that it can fall on, "always_*" never.
        self.statement_fault: str | None = None  # "fail" | "lost answer" | "hang"
        self.call_fault: str | None = None  # "retry" | "reject" | "refuse" | "hang"
        self.spawn_fault: str | None = None  # "faults" | "crash" | "hang"
        self.lead_fault: str | None = None  # "fail" | "crash"
        self.always_spawn_fault: str | None = None
        self.always_lead_fault: str | None = None

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

    def count(self, kind: type[m.Action]) -> int:
        """How many actions of a kind there were."""
        return sum(isinstance(action, kind) for _, action in self.actions)

    def post(self, make: Callable[..., m.Event], delay: float = 0.0, **fields: object) -> None:
        """An event will come to the loop."""

        def deliver() -> None:
            if not self.lives:
                return
            if self.world.now < self.frozen_until:
                self.world.at(self.frozen_until - self.world.now, deliver)
                return
            self.take(make(at=self.world.now, **fields))

        self.world.at(delay, deliver)

    def take(self, event: m.Event) -> None:
        """One turn of the loop, as in runner.py."""
        now, before = self.world.now, self.state
        self.state, actions = core.step(before, event, now)
        self.events.append(event)
        self.turns += bool(actions) or not isinstance(event, m.Ticked | m.WorkerBeat)
        invariants.check(before, event, self.state, actions, now, self.history)
        if self.world.narrates:
            self.lines.extend(narration.narrate(before, event, self.state, actions, URL))
        for action in actions:
            self.actions.append((now, action))
            self._carry_out(action)
        call = self.state.call
        if self.lives and call is not None and not core.may_call(self.state, call.term, now):
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
                self.post(m.WorkerBeat, worker=worker.id, beat=beat())
        self.world.at(self.world.beat_seconds, self.beat)

    @property
    def _up(self) -> set[int]:
        return {w.id for w in self.state.workers if w.accepting_at is not None}

    def _carry_out(self, action: m.Action) -> None:
        match action:
            case m.SessionAction():
                self._begin_statement(action)
            case m.CloseSession():
                self._end_server_session()
            case m.CallAction():
                self._begin_call(action)
            case m.SpawnWorker(worker=id_):
                self._spawn(id_)
            case m.KillWorker(worker=id_):
                self.end_worker(id_, "killed by SIGKILL", 0.02)
            case m.ServeUnavailable(on=on):
                self.serving_unavailable = on
            case m.ExitProcess(code=code, faults=faults):
                self._end_server_session()
                self.exit_code, self.faults = code, faults
            case _:
                self._tell_worker(action)

    # --------------------------------------------------------------------------------------------------------- session

    def _end_server_session(self) -> None:
        if self.session is not None:
            self.world.database.end_session(self.session)
            self.session = None
            self.world.grant()

    def lose_session(self, reason: str = "terminated by administrator") -> None:
        """The server ends the session."""
        if self.session is None:
            return
        busy, id_ = self.state.session.busy, self.state.session.id
        self._end_server_session()
        if busy is not None:
            self.post(m.SessionFailed, STATEMENT, id=busy.id, reason=reason)
        else:
            self.post(m.SessionLost, STATEMENT, session=id_, reason=reason)

    def _begin_statement(self, action: m.SessionAction) -> None:
        sent_at = self.world.now
        if isinstance(action, m.OpenSession):
            self.world.at(STATEMENT, lambda: self._open(action))
        else:
            self.world.at(STATEMENT / 2, lambda: self._execute(action, sent_at))

    def _open(self, action: m.OpenSession) -> None:
        busy = self.state.session.busy
        if not self.lives or busy is None or busy.id != action.id:
            return
        fault, self.statement_fault = self.statement_fault, None
        if fault == "refuse":
            self.post(m.SessionFailed, id=action.id, reason="leads through a pooler", refused=True)
        elif fault == "hang":
            return
        elif fault is not None or not self.world.database_up:
            self.post(m.SessionFailed, id=action.id, reason="connection refused")
        else:
            self.session = (self.name, action.id)
            self.world.database.sessions.add(self.session)
            self.post(m.SessionOpened, id=action.id)

    def _execute(self, action: m.SessionAction, sent_at: float) -> None:
        key = self.session
        if not self.lives or key is None or self.state.session.busy != action:
            return
        fault, self.statement_fault = self.statement_fault, None
        if fault == "fail":
            self.lose_session("server closed the connection")
            return
        answer = self._effect(action, key, sent_at)
        if fault == "hang":
            # Nothing comes back; the server ends the session by its own time-out.
            self.world.at(IDLE_SESSION, lambda: self._server_gives_up(key))
        elif fault == "lost answer":
            self.lose_session("connection reset")
        elif answer is not None:
            make, fields = answer
            self._answer(action, make, fields, sent_at)

    def _answer(
        self, action: m.SessionAction, make: type[m.Answered], fields: dict[str, object], sent_at: float
    ) -> None:
        key = self.session

        def deliver() -> None:
            if self.session == key:
                self.take(make(at=self.world.now, id=action.id, sent_at=sent_at, **fields))  # type: ignore[arg-type]

        def when_awake() -> None:
            if not self.lives:
                return
            if self.world.now < self.frozen_until:
                self.world.at(self.frozen_until - self.world.now, when_awake)
            else:
                deliver()

        self.world.at(STATEMENT / 2, when_awake)

    def _server_gives_up(self, key: SessionKey) -> None:
        if key in self.world.database.sessions:
            self.world.database.end_session(key)
            self.world.grant()

    def _effect(
        self, action: m.SessionAction, key: SessionKey, sent_at: float
    ) -> tuple[type[m.Answered], dict[str, object]] | None:
        database, now = self.world.database, self.world.now
        match action:
            case m.Announce(ready=ready, abstain_seconds=abstain):
                row = Row(self.name, self.platform_id, self.deploy, self.token, key, ready, now + abstain, now, now)
                peers, holder = database.announce(row, now)
                return m.Announced, {"peers": peers, "holder": holder}
            case m.TryLock():
                return (m.LockAcquired if database.try_lock(key) else m.LockBusy), {}
            case m.WaitForLock(seconds=seconds):
                if database.wait(key):
                    return m.LockAcquired, {}
                self.world.at(seconds, lambda: self._wait_is_over(action, key))
                return None
            case m.BeginTerm(deadline_seconds=deadline, reaped_term=reaped):
                begun = database.begin_term(self.name, deadline, reaped, now)
                if isinstance(begun, str):
                    return m.TermDenied, {"successor": begun}
                number, uuid, recover = begun
                return m.TermBegun, {"term": uuid, "number": number, "recover_after_seconds": recover}
            case m.CloseTerm(term=term, successor=successor):
                assert not any(w.alive and w.term == term for w in self.workers.values())
                database.close_term(self.name, term, successor, now)
                return m.TermClosed, {}
            case m.ReleaseLock():
                database.release(key)
                self.world.grant()
                return m.LockReleased, {}
            case m.RecordRegistration():
                return m.RegistrationRecorded, {}
            case m.ConfirmRegistration():
                return m.RegistrationConfirmed, {}
            case _:
                raise TypeError(f"unknown action {action!r}")

    def _wait_is_over(self, action: m.WaitForLock, key: SessionKey) -> None:
        if key in self.world.database.queue:
            self.world.database.leave_queue(key)
            if self.lives and self.state.session.busy == action:
                self._answer(action, m.LockBusy, {}, self.world.now)

    def lock_granted(self, session: int) -> None:
        """Our wait in the queue has ended well."""
        busy = self.state.session.busy
        if self.lives and isinstance(busy, m.WaitForLock) and self.session == (self.name, session):
            self._answer(busy, m.LockAcquired, {}, self.world.now)

    # ----------------------------------------------------------------------------------------------------------- calls

    def _begin_call(self, action: m.CallAction) -> None:
        self.pending_call = action.id
        self.world.at(CALL / 2, lambda: self._attempt(action))

    def _cut_off(self, call: m.CallAction) -> None:
        if self.pending_call == call.id:
            self.pending_call = None
            self.post(m.CallFailed, 0.001, id=call.id, fault=m.CallFault.TERM_OVER, reason="the term is over")

    def _attempt(self, action: m.CallAction) -> None:
        if not self.lives or self.pending_call != action.id:
            return
        if not core.may_call(self.state, action.term, self.world.now):
            self._cut_off(action)
            return
        fault, self.call_fault = self.call_fault, None
        if fault == "hang":
            return
        if fault == "retry":
            self.post(m.CallRetrying, id=action.id, reason="503", retry_seconds=1.0)
            self.world.at(1.0, lambda: self._attempt(action))
            return
        self._apply(action, fault)

    def _apply(self, action: m.CallAction, fault: str | None) -> None:
        telegram, delay = self.world.telegram, CALL / 2
        if fault == "refuse" or self.token in telegram.refused_tokens:
            self._end_call(
                m.CallFailed, delay, action, fault=m.CallFault.TOKEN_REFUSED, reason="Unauthorized"
            )
            return
        if fault == "reject":
            self._end_call(m.CallFailed, delay, action, fault=m.CallFault.REJECTED, reason="bad webhook")
            return
        wanted = None if self.state.settings.mode is m.Mode.POLLING else f"ours-{self.token}"
        match action:
            case m.SetWebhook() | m.DeleteWebhook():
                url = wanted if isinstance(action, m.SetWebhook) else None
                changed, telegram.url = telegram.url != url, url
                telegram.changes.append((self.world.now, type(action).__name__, self.name))
                self._end_call(m.WebhookAsserted, delay, action, changed=changed)
            case m.VerifyIdentity():
                self._end_call(m.IdentityVerified, delay, action, bot_id=7, username="menu_bot")
            case m.CompareWebhook():
                in_sync = telegram.url == wanted
                facts = m.WebhookFacts(in_sync, None if in_sync else "another URL is registered", 0, None)
                self._end_call(m.WebhookCompared, delay, action, facts=facts)
            case _:
                raise TypeError(f"unknown action {action!r}")

    def _end_call(self, make: Callable[..., m.Event], delay: float, action: m.CallAction, **fields: object) -> None:
        def deliver() -> None:
            if self.pending_call == action.id:
                self.pending_call = None
                self.post(make, id=action.id, **fields)

        self.world.at(delay, deliver)

    # --------------------------------------------------------------------------------------------------------- workers

    def _spawn(self, id_: int) -> None:
        worker = ModelledWorker(id_)
        self.workers[id_] = worker
        self.post(m.WorkerSpawned, worker=id_, pid=100 + id_)
        fault, self.spawn_fault = self.always_spawn_fault or self.spawn_fault, None

        def up() -> None:
            if not worker.alive or worker.hung:
                return
            if fault == "faults":
                self.post(m.WorkerStartFailed, worker=id_, faults=("BOT_APP does not import",))
            if fault in ("faults", "crash"):
                self.end_worker(id_, "exit status 1", 0.01)
            elif fault != "hang":
                worker.accepting = True
                self.post(m.WorkerAccepting, worker=id_)

        self.world.at(self.start_seconds, up)

    def end_worker(self, id_: int, status: str, delay: float = 0.0) -> None:
        """The process ends, is reaped, and the core hears of it."""
        worker = self.workers[id_]
        if not worker.alive:
            return
        worker.alive = worker.dispatching = worker.accepting = False
        self.post(m.WorkerExited, delay + 0.002, worker=id_, status=status, chance=0.5)

    def _tell_worker(self, action: m.Action) -> None:
        worker = self.workers[getattr(action, "worker")]  # noqa: B009
        self.world.at(0.001, lambda: self._obey(worker, action))

    def _obey(self, worker: ModelledWorker, action: m.Action) -> None:
        if not worker.alive or worker.hung:
            return
        match action:
            case m.Lead(term=term, deadline=deadline, recover_at=recover_at, poll=poll):
                fault, self.lead_fault = self.always_lead_fault or self.lead_fault, None
                if fault is not None:
                    if fault == "fail":
                        self.post(m.WorkerLeadFailed, worker=worker.id, reason="post_init raised")
                    self.end_worker(worker.id, "exit status 1", 0.01)
                    return
                worker.term, worker.deadline, worker.dispatching = term, deadline, True
                worker.polls_from = max(recover_at, self.world.now) if poll else None
                self.post(m.WorkerDispatching, 0.01, worker=worker.id)
                self.world.at(deadline - self.world.now, lambda: self._past_deadline(worker))
            case m.Extend(deadline=deadline):
                worker.deadline = max(worker.deadline, deadline)
                self.world.at(deadline - self.world.now, lambda: self._past_deadline(worker))
            case m.StopAccepting(linger_seconds=linger):
                worker.accepting = False
                self.post(m.WorkerConnectionsClosed, min(CLOSING, linger), worker=worker.id)
            case m.EndTerm(drain_seconds=drain):
                self.world.at(min(ENDING, drain), lambda: self._end_dispatch(worker))
            case m.ExitWorker():
                self.world.at(EXITING, lambda: self.end_worker(worker.id, "exit status 0"))
            case _:
                return

    def _past_deadline(self, worker: ModelledWorker) -> None:
        if worker.dispatching and self.world.now >= worker.deadline:
            self._end_dispatch(worker)

    def _end_dispatch(self, worker: ModelledWorker) -> None:
        if worker.alive and not worker.hung:
            worker.dispatching = False
            self.post(m.WorkerTermEnded, worker=worker.id)

    # ---------------------------------------------------------------------------------------------------------- faults

    def stop(self) -> None:
        """SIGTERM."""
        self.post(m.StopRequested)

    def replace_worker(self) -> None:
        """SIGHUP."""
        self.post(m.ReplacementRequested)

    def kill_9(self) -> None:
        """The supervisor dies, and its workers within milliseconds."""
        self.killed = True
        for worker in self.workers.values():
            worker.alive = worker.dispatching = worker.accepting = False
        self._end_server_session()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long; the server gives up on the session as it does."""
        self.frozen_until = self.world.now + seconds
        key = self.session

        def idle_out() -> None:
            if key is not None and self.session == key and self.world.now < self.frozen_until:
                self.lose_session("idle-session timeout")

        self.world.at(IDLE_SESSION, idle_out)

    def leader_or_any(self) -> ModelledWorker | None:
        """The worker that a fault falls on."""
        alive = [w for w in self.workers.values() if w.alive]
        return next((w for w in alive if w.term is not None), alive[-1] if alive else None)
