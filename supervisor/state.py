"""The facts that decisions are made from, and how events change them. Pure.

    event ──► observe(state, event) ──► state          what is known to have happened
    action ─► begin(state, action, now) ──► state      what is known to be under way

Nothing here decides: `supervisor.core` does. Two structures do much of the work by their shape alone. A `Term` carries its own
`Registration`, so every term begins with the webhook not asserted, whichever way led into it. And an answer is taken in only
where its id is the one that is waited for, so an answer out of an earlier session or term changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import assert_never

from shared.wire import Beat
from supervisor import messages as m
from supervisor.restart import WINDOW_SECONDS, Restarts

DEADLINE_SECONDS = 8.0
"""How long ownership is good after the *sending* of the last answered heartbeat: four heartbeats of 2 s. Every server-side
time-out that frees the lock is longer (supervisor/lease.py), so a cut-off owner has stopped before another one can start."""

ONE_SIGNAL_SECONDS = 3.0
"""Platforms signal a process more than once for one stop (Heroku does); a person at a terminal means each."""

RETRY_SESSION_SECONDS = 1.0
"""A database that is away is tried every second, without a growing backoff: its return must be seen at once, and one
connection attempt a second costs it nothing."""

DENIED_SECONDS = 0.25
"""How long an instance that is not the named successor stays out of the queue: less than the successor's 5 s by far, long
enough that two such instances do not hand the lock to and fro in a busy loop."""

FOREIGN_ASSERTION_SECONDS = 60.0
"""Requests with a foreign secret cause at most one assertion in this time: setWebhook has a rate limit, forgers have none."""

OVERWRITTEN_FORGOTTEN_SECONDS = 3600.0
"""After an hour without a foreign change of the registration the next one is mended at once again."""

LONGEST_CONFLICT_PAUSE_SECONDS = 900.0
REJECTED_PAUSE_SECONDS = 60.0
"""A registration that Telegram rejects (400) will be rejected again; but hosts come to resolve, and servers are mended."""

ABSTAIN_SECONDS = 60.0
LONGEST_ABSTAIN_SECONDS = 960.0
"""An owner that gave up stays out of the queue so long, while another candidate is there; twice as long each time that it
gives up again soon after, or a deploy that fails as owner and one that works would pass the lock to and fro every minute."""

ABSENT_SECONDS = 2.0
"""Time between two steps from which on this process must have stood still (the runner ticks four times a second). What its
workers said meanwhile was not heard, and is not held against them."""

TOKEN_PAUSE_SECONDS = 300.0
"""A refused token is tried again this often: tokens are not restored, and 401s must not hammer."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The part of the configuration that decisions depend on."""

    instance_id: str
    token_fingerprint: str
    mode: m.Mode
    may_own: bool  # False: a preview deploy
    delete_on_exit: bool
    linger_seconds: float
    drain_seconds: float
    reconcile_seconds: float
    at_terminal: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """The lock's session. `busy` is the one statement under way."""

    id: int | None = None
    open: bool = False
    busy: m.SessionAction | None = None
    busy_since: float = float("-inf")
    retry_at: float = float("-inf")
    reason: str | None = None  # why it is not open
    ever_open: bool = False
    lock_held: bool = False
    lock_tried: bool = False  # in this session
    announced_at: float = float("-inf")
    announced_ready: bool = False
    denied_until: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Registration:
    """The webhook's registration within one term. A new term has a new one: nothing asserted, nothing compared."""

    recorded: bool = False
    asserted: bool = False
    asserted_at: float = float("-inf")
    confirmed: bool = False
    verified: bool = False  # getMe answered
    compared_at: float | None = None
    next_set_at: float = float("-inf")
    next_compare_at: float = float("-inf")
    foreign_at: float = float("-inf")
    deleted: bool = False  # WEBHOOK_ON_EXIT=delete is done, or was tried in vain


@dataclass(frozen=True, slots=True)
class Term:
    """A term of ours: the row is written, and until it is closed or lost we may own."""

    uuid: str
    number: int
    session: int
    began_at: float
    deadline: float
    recover_at: float
    worker: int | None = None  # who leads under it; set once
    worker_gone: bool = False
    ended: m.EndReason | None = None  # irrevocable: its worker was told, and cannot lead again
    registration: Registration = field(default_factory=Registration)


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process, from its spawn until it is reaped."""

    id: int
    generation: int
    spawned_at: float
    pid: int | None = None
    accepting_at: float | None = None
    faults: tuple[str, ...] = ()
    lead_failure: str | None = None
    doomed_at: float | None = None  # it said that it cannot go on, and exits next
    led: str | None = None
    dispatching: bool = False
    told_deadline: float = float("-inf")
    told_health: m.Health | None = None
    last_beat_at: float | None = None
    beat: Beat | None = None
    suspect: bool = False
    stop_accepting_at: float | None = None
    linger_seconds: float = 0.0
    connections_closed: bool = False
    end_term_at: float | None = None
    drain_seconds: float = 0.0
    term_ended: bool = False
    exit_at: float | None = None
    kill_at: float | None = None
    killed_as_crash: bool = False

    @property
    def accepting(self) -> bool:
        """Whether new connections are accepted by it."""
        return self.accepting_at is not None and self.stop_accepting_at is None and self.kill_at is None

    @property
    def leaving(self) -> bool:
        """Whether it was told to end its work, in whatever step; it never leads (again)."""
        return (
            self.stop_accepting_at is not None
            or self.end_term_at is not None
            or self.exit_at is not None
            or self.kill_at is not None
        )


@dataclass(frozen=True, slots=True)
class State:
    """All that is known."""

    settings: Settings
    started_at: float
    next_id: int = 1
    seen_at: float = float("-inf")  # the last step
    session: Session = field(default_factory=Session)
    peers: tuple[m.Peer, ...] = ()
    holder: str | None = None
    passive_since: float | None = None  # when the lock was first tried in vain
    term: Term | None = None
    reaped_term: str | None = None  # our last term, once its worker is gone
    workers: tuple[Worker, ...] = ()
    restarts: Restarts = field(default_factory=Restarts)
    generation: int = 0
    ever_accepted: bool = False
    fatal: m.ExitProcess | None = None  # found out to be unable to run at all
    last_crash: str | None = None
    unaccepted_since: float | None = None
    serving_unavailable: bool = False
    call: m.CallAction | None = None
    telegram_answered: bool = False
    token_refused: bool = False
    token_retry_at: float = float("-inf")
    webhook_error: str | None = None
    webhook: m.WebhookFacts | None = None
    webhook_compared_at: float | None = None
    overwritten: tuple[float, ...] = ()
    abstain_until: float = float("-inf")
    abstain_seconds: float = 0.0  # the last abstention's length
    stopping_since: float | None = None
    stop_immediately: bool = False
    exiting: m.ExitProcess | None = None

    def worker(self, worker_id: int | None) -> Worker | None:
        """The worker with that id, unless it is reaped."""
        return next((w for w in self.workers if w.id == worker_id), None)


def initial(settings: Settings, now: float) -> State:
    """The state of a process that just started."""
    return State(settings=settings, started_at=now, seen_at=now, unaccepted_since=now)


def see(state: State, now: float) -> State:
    """Take in that time went on. After a gap, in which this process stood still, every worker has a fresh chance to beat."""
    if now - state.seen_at < ABSENT_SECONDS:
        return replace(state, seen_at=now)
    workers = tuple(w if w.last_beat_at is None else replace(w, last_beat_at=now) for w in state.workers)
    return replace(state, seen_at=now, workers=workers)


def observe(state: State, event: m.Event) -> State:
    """The state after `event`. An answer that nobody waits for leaves it as it is."""
    match event:
        case m.Ticked():
            return state
        case m.StopRequested(at=at):
            if state.stopping_since is None:
                return replace(state, stopping_since=at)
            again = state.settings.at_terminal or at - state.stopping_since >= ONE_SIGNAL_SECONDS
            return replace(state, stop_immediately=state.stop_immediately or again)
        case m.ReplacementRequested():
            if state.stopping_since is not None:
                return state
            return replace(state, generation=state.generation + 1)
        case m.SessionOpened() | m.SessionFailed() | m.SessionLost() | m.Answered():
            return _observe_session(state, event)
        case (
            m.WebhookAsserted()
            | m.CallFailed()
            | m.IdentityVerified()
            | m.WebhookCompared()
            | m.CallRetrying()
        ):
            return _observe_call(state, event)
        case m.ForeignSecretSeen(at=at):
            return _with_registration(state, foreign_at=at)
        case m.WorkerTokenRefused(at=at):
            return _token_refused(state, at, "Telegram answered 401 to the worker")
        case m.WorkerExited():
            return _observe_exit(state, event)
        case _:
            return _observe_worker(state, event)


# ----------------------------------------------------------------------------------------------------------- session


def _session(state: State, **changes: object) -> State:
    return replace(state, session=replace(state.session, **changes))  # type: ignore[arg-type]


def _lost(state: State, at: float, reason: str, ended: m.EndReason = m.EndReason.SESSION_LOST) -> State:
    """The session is gone, and with it the lock. A term that ran on it ends, and is forgotten once its worker is gone."""
    session = Session(retry_at=at + RETRY_SESSION_SECONDS, reason=reason, ever_open=state.session.ever_open)
    return _forget_lost_term(_ended(replace(state, session=session), ended))


def _ended(state: State, reason: m.EndReason | None) -> State:
    """The term ends, for good, for the first reason that was given."""
    if state.term is None or state.term.ended is not None or reason is None:
        return state
    return replace(state, term=replace(state.term, ended=reason))


def _forget_lost_term(state: State) -> State:
    """A term whose session is gone cannot be closed in the database; it is over once nothing runs under it."""
    term = state.term
    if term is None or (state.session.open and term.session == state.session.id):
        return state
    return replace(state, term=None) if term.worker is None or term.worker_gone else state


def _observe_session(
    state: State, event: m.SessionOpened | m.SessionFailed | m.SessionLost | m.Answered
) -> State:
    session = state.session
    match event:
        case m.SessionLost(session=lost, reason=reason):
            return _lost(state, event.at, reason) if session.id == lost else state
        case m.SessionOpened(id=id_):
            if session.busy is None or session.busy.id != id_:
                return state
            return _session(state, open=True, busy=None, reason=None, ever_open=True)
        case m.SessionFailed(id=id_, reason=reason, refused=refused):
            if session.busy is None or session.busy.id != id_:
                return state
            if refused and not session.ever_open:
                fault = f"DATABASE_URL {reason}"
                return replace(_lost(state, event.at, reason), fatal=m.ExitProcess(code=2, faults=(fault,)))
            return _lost(state, event.at, reason)
        case m.Answered():
            if session.busy is None or session.busy.id != event.id:
                return state
            return _observe_answer(_session(state, busy=None), session.busy, event)
        case _:
            assert_never(event)


def _observe_answer(state: State, action: m.SessionAction, event: m.Answered) -> State:
    from_deadline = _confirm(state, event.sent_at)
    match event:
        case m.Announced(peers=peers, holder=holder):
            assert isinstance(action, m.Announce)
            state = _session(from_deadline, announced_at=event.sent_at, announced_ready=action.ready)
            return _trust_holder(replace(state, peers=peers, holder=holder))
        case m.LockAcquired():
            return _session(from_deadline, lock_held=True, lock_tried=True)
        case m.LockBusy():
            since = event.at if state.passive_since is None else state.passive_since
            return replace(_session(state, lock_tried=True), passive_since=since)
        case m.TermBegun(term=uuid, number=number, recover_after_seconds=after):
            assert isinstance(action, m.BeginTerm)
            assert state.session.id is not None
            term = Term(
                uuid=uuid,
                number=number,
                session=state.session.id,
                began_at=event.at,
                deadline=event.sent_at + action.deadline_seconds,
                recover_at=event.at + after,
            )
            return replace(state, term=term, reaped_term=None, passive_since=None)
        case m.TermDenied():
            return _session(state, denied_until=event.at + DENIED_SECONDS)
        case m.TermClosed():
            return replace(state, term=None)
        case m.LockReleased():
            # Whoever gave it back looks around, and lets others go first: two who each prefer the other must not spin.
            denied = max(state.session.denied_until, event.at + DENIED_SECONDS)
            return _session(
                state, lock_held=False, lock_tried=False, denied_until=denied, announced_at=float("-inf")
            )
        case m.RegistrationRecorded():
            return _with_registration(from_deadline, recorded=True)
        case m.RegistrationConfirmed():
            return _with_registration(from_deadline, confirmed=True)
        case _:
            raise TypeError(f"unknown answer {event!r}")


def _trust_holder(state: State) -> State:
    """A standby makes no calls: whether its token is good is for the owner to find out, if that has the same one."""
    me = state.settings
    others = (p for p in state.peers if p.instance_id == state.holder and p.instance_id != me.instance_id)
    if state.term is None and any(p.token_fingerprint == me.token_fingerprint for p in others):
        return replace(state, token_refused=False)
    return state


def _confirm(state: State, sent_at: float) -> State:
    """An answered statement shows that the session, and so the lock, was ours when it was *sent*."""
    term = state.term
    if term is None or term.session != state.session.id:
        return state
    return replace(state, term=replace(term, deadline=max(term.deadline, sent_at + DEADLINE_SECONDS)))


# ------------------------------------------------------------------------------------------------------ registration


def _with_registration(state: State, **changes: object) -> State:
    if state.term is None:
        return state
    registration = replace(state.term.registration, **changes)  # type: ignore[arg-type]
    return replace(state, term=replace(state.term, registration=registration))


def conflict_pause_seconds(overwritten: int, reconcile_seconds: float) -> float:
    """How long to wait before mending a registration that was overwritten so often within the hour.

    Twice at once, since a laptop that polled is the usual case; then ever more slowly, since two systems that overwrite each
    other close each other's deliveries at every turn.
    """
    if overwritten <= 2:
        return 0.0
    return float(min(reconcile_seconds * 2.0 ** min(overwritten - 3, 16), LONGEST_CONFLICT_PAUSE_SECONDS))


def _observe_call(
    state: State,
    event: m.WebhookAsserted | m.CallFailed | m.IdentityVerified | m.WebhookCompared | m.CallRetrying,
) -> State:
    call = state.call
    if call is None or call.id != event.id:
        return state
    if isinstance(event, m.CallRetrying):
        return replace(state, webhook_error=event.reason)
    state = replace(state, call=None)
    if isinstance(event, m.CallFailed) and event.fault is m.CallFault.TOKEN_REFUSED:
        return _token_refused(state, event.at, event.reason)
    if not (isinstance(event, m.CallFailed) and event.fault is m.CallFault.TERM_OVER):
        # Any other answer, a rejection too, comes after the check of the token.
        state = replace(state, telegram_answered=True, token_refused=False)
    if state.term is None or state.term.uuid != call.term:
        return state
    match event:
        case m.WebhookAsserted():
            state = replace(state, webhook_error=None)
            if isinstance(call, m.DeleteWebhook) and state.settings.mode is m.Mode.WEBHOOK:
                return _with_registration(state, deleted=True)
            return _with_registration(state, asserted=True, asserted_at=event.at, confirmed=False)
        case m.IdentityVerified():
            return _with_registration(state, verified=True)
        case m.WebhookCompared(facts=facts):
            return _observe_comparison(state, event.at, facts)
        case m.CallFailed(reason=reason):
            return _observe_rejection(replace(state, webhook_error=reason), call, event)
        case _:
            assert_never(event)


def _token_refused(state: State, at: float, reason: str) -> State:
    fatal = state.fatal
    if not state.telegram_answered and fatal is None:
        fault = f"TELEGRAM_BOT_TOKEN is not valid: {reason}; take the current one from @BotFather"
        fatal = m.ExitProcess(code=3, faults=(fault,))
    return replace(
        state,
        token_refused=True,
        token_retry_at=at + TOKEN_PAUSE_SECONDS,
        webhook_error=reason,
        fatal=fatal,
    )


def _observe_comparison(state: State, at: float, facts: m.WebhookFacts) -> State:
    reconcile = state.settings.reconcile_seconds
    state = replace(state, webhook=facts, webhook_compared_at=at)
    state = _with_registration(state, compared_at=at, next_compare_at=at + reconcile)
    if facts.in_sync:
        return replace(state, webhook_error=None)
    overwritten = (*(t for t in state.overwritten if at - t < OVERWRITTEN_FORGOTTEN_SECONDS), at)
    state = replace(state, overwritten=overwritten, webhook_error=facts.drift)
    return _with_registration(
        state, asserted=False, next_set_at=at + conflict_pause_seconds(len(overwritten), reconcile)
    )


def _observe_rejection(state: State, call: m.CallAction, event: m.CallFailed) -> State:
    if isinstance(call, m.DeleteWebhook) and state.settings.mode is m.Mode.WEBHOOK:
        return _with_registration(state, deleted=True)
    if event.fault is m.CallFault.TERM_OVER:
        return state
    match call:
        case m.SetWebhook() | m.DeleteWebhook():
            return _with_registration(state, next_set_at=event.at + REJECTED_PAUSE_SECONDS)
        case _:
            return _with_registration(state, next_compare_at=event.at + state.settings.reconcile_seconds)


# ----------------------------------------------------------------------------------------------------------- workers


def _with_worker(state: State, worker_id: int, **changes: object) -> State:
    workers = tuple(
        replace(w, **changes) if w.id == worker_id else w  # type: ignore[arg-type]
        for w in state.workers
    )
    return replace(state, workers=workers)


def _observe_worker(state: State, event: m.Event) -> State:
    match event:
        case m.WorkerSpawned(worker=id_, pid=pid):
            return _with_worker(state, id_, pid=pid)
        case m.WorkerAccepting(worker=id_, at=at):
            state = _with_worker(state, id_, accepting_at=at, last_beat_at=at)
            worker = state.worker(id_)
            ever = state.ever_accepted or (worker is not None and worker.accepting)
            return _note_accepting(replace(state, ever_accepted=ever), at)
        case m.WorkerStartFailed(worker=id_, faults=faults, at=at):
            return _with_worker(state, id_, faults=faults, doomed_at=at)
        case m.WorkerBeat(worker=id_, at=at):
            return _with_worker(state, id_, last_beat_at=at, beat=event.beat)
        case m.WorkerDispatching(worker=id_):
            return _with_worker(state, id_, dispatching=True)
        case m.WorkerLeadFailed(worker=id_, reason=reason, at=at):
            return _with_worker(state, id_, lead_failure=reason, doomed_at=at)
        case m.WorkerSuspect(worker=id_, running=running):
            return _with_worker(state, id_, suspect=running)
        case m.WorkerConnectionsClosed(worker=id_):
            return _with_worker(state, id_, connections_closed=True)
        case m.WorkerTermEnded(worker=id_):
            return _with_worker(state, id_, term_ended=True, dispatching=False, suspect=False)
        case _:
            raise TypeError(f"unknown event {event!r}")


def _note_accepting(state: State, at: float) -> State:
    """Keep `unaccepted_since`: since when no worker accepts, None while one does."""
    if any(w.accepting for w in state.workers):
        return replace(state, unaccepted_since=None)
    return state if state.unaccepted_since is not None else replace(state, unaccepted_since=at)


def _observe_exit(state: State, event: m.WorkerExited) -> State:
    worker = state.worker(event.worker)
    if worker is None:
        return state
    rest = tuple(w for w in state.workers if w.id != worker.id)
    state = _note_accepting(replace(state, workers=rest), event.at)
    if worker.killed_as_crash or not worker.leaving:
        state = _observe_crash(state, worker, event)
    if state.term is not None and state.term.worker == worker.id:
        state = _ended(state, m.EndReason.WORKER_LOST)
        assert state.term is not None
        state = replace(state, term=replace(state.term, worker_gone=True), reaped_term=state.term.uuid)
    return _forget_lost_term(state)


def _observe_crash(state: State, worker: Worker, event: m.WorkerExited) -> State:
    restarts = state.restarts.crashed(event.at, event.chance, counted=not worker.suspect)
    reason = worker.lead_failure or event.status
    state = replace(state, restarts=restarts, last_crash=reason)
    survivors = [w for w in state.workers if w.accepting]
    if worker.accepting_at is None:
        if survivors:
            # A replacement that cannot come up (SIGHUP after a broken change) must not cost the one that works.
            state = replace(state, generation=max(w.generation for w in survivors))
        elif not state.ever_accepted and worker.faults:
            state = replace(state, fatal=m.ExitProcess(code=2, faults=worker.faults))
    return state


# ----------------------------------------------------------------------------------------------------------- actions


def begin(state: State, action: m.Action, now: float) -> State:
    """The state once `action` is handed to its shell."""
    match action:
        case m.OpenSession(id=id_):
            state = _session(state, id=id_, busy=action, busy_since=now)
            return replace(state, next_id=max(state.next_id, id_ + 1))
        case m.SessionAction(id=id_):
            state = replace(_session(state, busy=action, busy_since=now), next_id=max(state.next_id, id_ + 1))
            if isinstance(action, m.CloseTerm):
                return _ended(state, action.reason)
            if isinstance(action, m.ReleaseLock) and action.gave_up:
                return _abstain(state, now)
            return state
        case m.CloseSession(reason=reason, ended=ended):
            return _lost(state, now, reason, ended)
        case m.CallAction(id=id_):
            return replace(state, call=action, next_id=max(state.next_id, id_ + 1))
        case m.SpawnWorker(worker=id_):
            worker = Worker(id=id_, generation=state.generation, spawned_at=now)
            return replace(state, workers=(*state.workers, worker), next_id=max(state.next_id, id_ + 1))
        case m.TellHealth(worker=id_, health=health):
            return _with_worker(state, id_, told_health=health)
        case m.Lead(worker=id_, term=term, deadline=deadline):
            assert state.term is not None
            assert state.term.uuid == term
            state = replace(state, term=replace(state.term, worker=id_))
            return _with_worker(state, id_, led=term, told_deadline=deadline)
        case m.Extend(worker=id_, deadline=deadline):
            return _with_worker(state, id_, told_deadline=deadline)
        case m.StopAccepting(worker=id_, linger_seconds=linger, reason=ended):
            if state.term is not None and state.term.worker == id_:
                state = _ended(state, ended)
            state = _with_worker(state, id_, stop_accepting_at=now, linger_seconds=linger)
            return _note_accepting(state, now)
        case m.EndTerm(worker=id_, drain_seconds=drain, reason=ended):
            if state.term is not None and state.term.worker == id_:
                state = _ended(state, ended)
            return _with_worker(state, id_, end_term_at=now, drain_seconds=drain)
        case m.ExitWorker(worker=id_):
            return _with_worker(state, id_, exit_at=now)
        case m.KillWorker(worker=id_, crash=crash):
            killed = state.worker(id_)
            # A hung worker has answered nobody since it last beat.
            silent = killed.last_beat_at if crash and killed is not None else None
            state = _with_worker(state, id_, kill_at=now, killed_as_crash=crash)
            return _note_accepting(state, now if silent is None else silent)
        case m.ServeUnavailable(on=on):
            return replace(state, serving_unavailable=on)
        case m.ExitProcess():
            return replace(state, exiting=action)
        case _:
            raise TypeError(f"unknown action {action!r}")


def _abstain(state: State, now: float) -> State:
    again = now - state.abstain_until < WINDOW_SECONDS
    length = min(2 * state.abstain_seconds, LONGEST_ABSTAIN_SECONDS) if again else ABSTAIN_SECONDS
    return replace(state, abstain_until=now + length, abstain_seconds=length)
