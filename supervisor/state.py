"""The facts that decisions are made from. Pure.

    event ──► observe(state, event) ──► state          what is known to have happened: observation.py
    action ─► begin(state, action, now) ──► state      what is known to be under way: here

`supervisor.core` decides what to do. Decided here is only what an event alone tells: how long an owner that gives up stays out
of the queue, whether another try to start the bot would come to its end too late, and that a replacement which is killed
before it is up is given up.

Two structures do much of the work by their shape alone. A `Term` carries its own `Registration`, so every term begins with the
webhook not asserted, whichever way led into it. And an answer is taken in only where its id is the one that is waited for, so
an answer out of an earlier session or term changes nothing.
"""

from __future__ import annotations

from typing import assert_never

from msgspec import Struct, field
from msgspec.structs import replace

from shared.wire import LEAD_SECONDS, Beat
from supervisor import messages as m
from supervisor.restart import CRASHES_BEFORE_GIVING_UP, WINDOW_SECONDS, Restarts

DEADLINE_SECONDS = 8.0
"""How long ownership is good after the *sending* of the last answered heartbeat: four heartbeats of 2 s. Every server-side
time-out that frees the lock is longer (supervisor/lease.py), so a cut-off owner has stopped before another one can start."""

RETRY_SESSION_SECONDS = 1.0
"""A database that is away is tried every second, without a growing backoff: its return must be seen at once, and one
connection attempt a second costs it nothing."""

TOLD_AGAIN_SECONDS = 60.0
"""While the same reason keeps the session away, the log says so this often. Its last minutes tell of it then, and a line a
second would bury all others."""

ABSTAIN_SECONDS = 60.0
LONGEST_ABSTAIN_SECONDS = 960.0
"""An owner that gave up stays out of the queue so long, while another candidate is there; twice as long each time that it
gives up again soon after, or without having completed an update. Otherwise a deploy that fails as owner and one that works
would pass the lock to and fro every minute."""


class Settings(Struct, frozen=True):
    """The part of the configuration that decisions depend on."""

    instance_id: str
    token_fingerprint: str
    polls: bool  # BOT_MODE=polling: the owner's worker fetches the updates, and no webhook is registered
    may_own: bool  # False: a preview deploy
    delete_on_exit: bool
    linger_seconds: float
    drain_seconds: float
    reconcile_seconds: float
    at_terminal: bool = False


class Session(Struct, frozen=True):
    """The lock's session. `busy` is the one statement under way."""

    id: int | None = None
    open: bool = False
    busy: m.OpenSession | m.SessionStatement | None = None
    busy_since: float = float("-inf")
    retry_at: float = float("-inf")
    # Why it is not open. Kept until the next one gives its first answer, since a server with a full disk opens sessions all the
    # same, and refuses every write.
    reason: str | None = None
    told_at: float = float("-inf")  # when that reason was news, for the first time or again
    ever_open: bool = False
    schema_failed: bool = False  # none could be opened for want of tables, and none has been since
    lock_held: bool = False
    lock_tried: bool = False  # in this session
    wait_cut: bool = False  # the server was asked to end the wait that is under way
    lead_failed: bool = False  # a bot of ours did not start, since the lock is held
    # ... or its process died; and another try would end too late for whoever waits.
    lead_timed_out: bool = False
    # The first start of a bot under this lock, if none has come to its end since.
    leading_since: float | None = None
    left_to_other_code: bool = False  # our bot was told to wait: the term's end names other code
    left_for_database: bool = False  # our worker did not reach it: the term's end names one that does
    unanswered: bool = False  # BOT_MODE=polling: nobody led our last term, for want of Telegram's answer
    handover_requested: bool = False  # of our term; stands until the lock is freed or the next term begins
    announced_at: float = float("-inf")  # sent
    announcement_answered_at: float = float("-inf")
    announced_ready: bool = False
    denied_until: float = float("-inf")


class Registration(Struct, frozen=True):
    """The webhook's registration within one term. A new term has a new one: nothing asserted, nothing compared."""

    recorded: bool = False
    asserted: bool = False
    asserted_at: float = float("-inf")
    confirmed: bool = False
    verified: bool = False  # getMe answered
    identity_asked_at: float = float("-inf")  # getMe was begun
    doubted_at: float = float("-inf")  # Telegram answered 401 to the worker, by its word about our token
    doubt_asked_at: float = float("-inf")  # getMe was begun for that
    compared_at: float | None = None
    next_set_at: float = float("-inf")
    next_compare_at: float = float("-inf")
    foreign_at: float = float("-inf")
    refusal_asserted: bool = False  # for a delivery that got a 401; again only if that changed something
    deleted: bool = False  # WEBHOOK_ON_EXIT=delete is done, or was tried in vain

    @property
    def doubted(self) -> bool:
        """Whether Telegram has answered 401 to the worker, and was not asked about our token since."""
        return self.doubted_at > self.identity_asked_at


class Term(Struct, frozen=True):
    """A term of ours: the row is written, and until it is closed or lost we may own."""

    uuid: str
    number: int
    session: int
    began_at: float
    deadline: float
    recover_at: float
    worker: int | None = None  # who leads under it; set once
    worker_gone_at: float | None = None
    ended: m.EndReason | None = None  # irrevocable: its worker was told, and cannot lead again
    registration: Registration = field(default_factory=Registration)

    @property
    def worker_gone(self) -> bool:
        """Whether somebody led under it and is reaped."""
        return self.worker_gone_at is not None


class Worker(Struct, frozen=True):
    """A worker process, from its spawn until it is reaped."""

    id: int
    generation: int
    spawned_at: float
    receives_at_once: bool = False  # it is to take updates in before its bot is built
    pid: int | None = None
    receiving_at: float | None = None  # it takes updates in, before its bot is built
    accepting_at: float | None = None
    faults: tuple[str, ...] = ()
    lead_failure: str | None = None  # why its bot did not start
    lead_put_off: bool = False  # ... which was that something outside is away
    doomed_at: float | None = None  # it said that it cannot go on, and exits next
    led: str | None = None
    led_at: float = float("inf")
    dispatching: bool = False
    told_deadline: float = float("-inf")
    told_health: m.Health | None = None
    last_beat_at: float | None = None
    beat: Beat | None = None
    database_away_since: float | None = None  # for its dispatcher, by its beats
    ever_stored: bool = False
    suspect: bool = False
    stop_accepting_at: float | None = None
    linger_seconds: float = 0.0
    connections_closed: bool = False
    end_term_at: float | None = None
    drain_seconds: float = 0.0
    term_ended_at: float | None = None  # it said that nothing runs under its term any more
    exit_at: float | None = None
    kill_at: float | None = None
    killed_as_crash: bool = False

    @property
    def accepting(self) -> bool:
        """Whether new connections are accepted by it, and its bot is built."""
        return self.accepting_at is not None and self.receives

    @property
    def reached(self) -> bool:
        """Whether it has said that it accepts connections, with a bot or without one yet."""
        return self.receiving_at is not None or self.accepting_at is not None

    @property
    def receives(self) -> bool:
        """Whether new connections are accepted by it, with a bot or without one yet."""
        return self.reached and self.stop_accepting_at is None and self.kill_at is None

    @property
    def term_ended(self) -> bool:
        """Whether it led, and nothing runs under its term any more."""
        return self.term_ended_at is not None

    @property
    def leaving(self) -> bool:
        """Whether it was told to end its work, in whatever step; it never leads (again)."""
        return (
            self.stop_accepting_at is not None
            or self.end_term_at is not None
            or self.exit_at is not None
            or self.kill_at is not None
        )


class State(Struct, frozen=True):
    """All that is known."""

    settings: Settings
    started_at: float
    next_id: int = 1
    seen_at: float = float("-inf")  # the last step
    resumed_at: float = float("-inf")  # the last one before which this process stood still
    session: Session = field(default_factory=Session)
    peers: tuple[m.Peer, ...] = ()
    peers_at: float = float("-inf")  # when the question that they answer was sent
    other_stores_since: float | None = None  # by what they announce; waiting, or between two waits
    holder: str | None = None
    passive_since: float | None = None  # when the lock was first tried in vain
    term: Term | None = None
    recover_at: float = float("-inf")  # until then an earlier owner may still be at work
    reaped_term: str | None = None  # our last term, once its worker is gone
    workers: tuple[Worker, ...] = ()
    restarts: Restarts = field(default_factory=Restarts)
    generation: int = 0
    ever_accepted: bool = False
    fatal: m.ExitProcess | None = None  # found out to be unable to run at all
    last_crash: str | None = None  # may hold the bot's own words
    last_crash_kind: str | None = None  # the part of it that anybody may know
    unaccepted_since: float | None = None
    # The same, counting only workers that lead or could lead: after its term a worker only stores.
    unable_since: float | None = None
    serving_unavailable: bool = False
    call: m.BotCall | None = None
    reads_from: float = float("-inf")  # getMe or getWebhookInfo failed, and neither is asked again before
    # The same of getMe alone: about a token in doubt it is asked in spite of getWebhookInfo's limit.
    identity_from: float = float("-inf")
    writes_from: float = float("-inf")  # no assertion before: the last one met a flood limit
    telegram_answered: bool = False
    token_refused: bool = False
    token_vouched: bool = False  # another instance owned with the same one
    token_retry_at: float = float("-inf")
    webhook_error: str | None = None
    webhook: m.WebhookFacts | None = None
    webhook_compared_at: float | None = None
    delivery_error: str | None = None  # why deliveries fail, while updates wait at Telegram
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
    return State(settings=settings, started_at=now, seen_at=now, unaccepted_since=now, unable_since=now)


# ----------------------------------------------------------------------------------------------------------- changes

# `changes` are fields by their names. mypy does not see a misspelt one; tests/unit/supervisor/test_state_changes.py does.


def with_session(state: State, **changes: object) -> State:
    """Its session has changed in these fields."""
    return replace(state, session=replace(state.session, **changes))


def without_session(
    state: State, at: float, reason: str, ended: m.EndReason = m.EndReason.SESSION_LOST
) -> State:
    """The session is gone, and with it the lock. A term that ran on it ends, and is forgotten once its worker is gone."""
    before = state.session
    session = Session(
        retry_at=at + RETRY_SESSION_SECONDS,
        reason=reason,
        told_at=at if is_news(before, reason, at) else before.told_at,
        ever_open=before.ever_open,
        schema_failed=before.schema_failed,
    )
    return forget_lost_term(with_end(replace(state, session=session), ended))


def is_news(session: Session, reason: str, at: float) -> bool:
    """Whether a failure of the session for that reason is to be told: it is another one, or was told long ago."""
    return reason != session.reason or at - session.told_at >= TOLD_AGAIN_SECONDS


def with_end(state: State, reason: m.EndReason | None) -> State:
    """The term ends, for good, for the first reason that was given."""
    if state.term is None or state.term.ended is not None or reason is None:
        return state
    return replace(state, term=replace(state.term, ended=reason))


def forget_lost_term(state: State) -> State:
    """A term whose session is gone cannot be closed in the database; it is over once nothing runs under it."""
    term = state.term
    if term is None or (state.session.open and term.session == state.session.id):
        return state
    return replace(state, term=None) if term.worker is None or term.worker_gone else state


def with_registration(state: State, **changes: object) -> State:
    """The registration of its term has changed in these fields; without a term there is none, and nothing changes."""
    if state.term is None:
        return state
    registration = replace(state.term.registration, **changes)
    return replace(state, term=replace(state.term, registration=registration))


def with_worker(state: State, worker_id: int, **changes: object) -> State:
    """That worker has changed in these fields; where it is reaped already, nothing changes."""
    workers = tuple(replace(w, **changes) if w.id == worker_id else w for w in state.workers)
    return replace(state, workers=workers)


def without_replacement(state: State, worker: Worker) -> State:
    """A replacement that cannot come up (SIGHUP after a broken change) is given up: it must not cost the one that works."""
    survivors = [w for w in state.workers if w.accepting]
    if worker.accepting_at is not None or worker.generation != state.generation or not survivors:
        return state
    return replace(state, generation=max(w.generation for w in survivors))


def note_lead_failure(
    state: State,
    worker_id: int,
    at: float,
    reason: str,
    retry_after_seconds: float | None = None,
    *,
    of_get_me: bool = False,
) -> State:
    """The bot of a worker that was told to lead did not start. A time that it was told to wait holds for its successors too."""
    worker, held = state.worker(worker_id), state.session.lock_held
    state = with_session(state, lead_failed=held)
    if retry_after_seconds is None:
        state = state if worker is None else note_late_failure(state, worker, at)
    else:
        # What it waits is no time of a start, and whoever waits for the lock would be told the same.
        state = with_session(state, leading_since=None)
        until = at + retry_after_seconds
        next_lead_at = max(state.restarts.next_lead_at, until)
        # Our own calls wait only for a limit of getMe: otherwise nobody would compare the registration for up to a day.
        if of_get_me:
            state = not_read_before(state, until, of_get_me=True)
        state = replace(state, restarts=replace(state.restarts, next_lead_at=next_lead_at))
    return with_worker(state, worker_id, lead_failure=reason)


def not_read_before(state: State, until: float, *, of_get_me: bool) -> State:
    """Nothing is read at Telegram before; where that was said of getMe, our token is not asked about either."""
    identity_from = max(state.identity_from, until) if of_get_me else state.identity_from
    return replace(state, reads_from=max(state.reads_from, until), identity_from=identity_from)


def note_late_failure(state: State, worker: Worker, at: float) -> State:
    """A start of the bot came to nothing, and others may have waited since the first one under this lock. Whether another that
    takes as long would end after the time that one start has."""
    since = state.session.leading_since
    if since is None or not state.session.lock_held:
        return state
    late = (at - since) + (at - worker.led_at) >= LEAD_SECONDS
    return with_session(state, lead_timed_out=late or state.session.lead_timed_out)


def note_accepting(state: State, at: float) -> State:
    """Keep `unaccepted_since`, since when no worker accepts, and `unable_since`; None while one does."""
    accepting = [w for w in state.workers if w.accepting]
    unaccepted = at if state.unaccepted_since is None else state.unaccepted_since
    unable = at if state.unable_since is None else state.unable_since
    return replace(
        state,
        unaccepted_since=None if accepting else unaccepted,
        unable_since=None if any(not w.term_ended for w in accepting) else unable,
    )


# ----------------------------------------------------------------------------------------------------------- actions


def begin(state: State, action: m.Action, now: float) -> State:
    """The state once `action` is handed to its shell."""
    match action:
        case m.OpenSession(id=id_):
            state = with_session(state, id=id_, busy=action, busy_since=now)
            return replace(state, next_id=max(state.next_id, id_ + 1))
        case m.SessionAction(id=id_):
            state = replace(
                with_session(state, busy=action, busy_since=now, wait_cut=False),
                next_id=max(state.next_id, id_ + 1),
            )
            if isinstance(action, m.CloseTerm):
                left = action.reason is m.EndReason.NOT_STARTED and action.successor is not None
                unled = state.term is not None and state.term.worker is None
                unanswered = action.reason is m.EndReason.NOT_STARTED and unled and not left
                away = action.reason is m.EndReason.DATABASE_AWAY and action.successor is not None
                state = with_session(
                    state, left_to_other_code=left, left_for_database=away, unanswered=unanswered
                )
                return with_end(state, action.reason)
            if isinstance(action, m.ReleaseLock) and action.gave_up:
                return _abstain(state, now)
            return state
        case m.CutWait():
            return with_session(state, wait_cut=True)
        case m.CloseSession(reason=reason, ended=ended):
            return without_session(state, now, reason, ended)
        case m.CallAction(id=id_):
            if isinstance(action, m.DeleteWebhook) and state.settings.polls:
                state = replace(state, webhook_error=None)  # of an earlier term: this one's is told again
            if isinstance(action, m.VerifyIdentity):
                state = _note_question(state, now)
            return replace(state, call=action, next_id=max(state.next_id, id_ + 1))
        case m.SpawnWorker(worker=id_, receives_at_once=at_once):
            worker = Worker(id_, state.generation, spawned_at=now, receives_at_once=at_once)
            return replace(state, workers=(*state.workers, worker), next_id=max(state.next_id, id_ + 1))
        case m.TellHealth(worker=id_, health=health):
            return with_worker(state, id_, told_health=health)
        case m.Lead(worker=id_, term=term, deadline=deadline):
            assert state.term is not None
            assert state.term.uuid == term
            state = replace(state, term=replace(state.term, worker=id_))
            if state.session.leading_since is None:
                state = with_session(state, leading_since=now)
            return with_worker(state, id_, led=term, led_at=now, told_deadline=deadline)
        case m.Extend(worker=id_, deadline=deadline):
            return with_worker(state, id_, told_deadline=deadline)
        case m.StopAccepting(worker=id_, linger_seconds=linger, reason=ended):
            if state.term is not None and state.term.worker == id_:
                state = with_end(state, ended)
            state = with_worker(state, id_, stop_accepting_at=now, linger_seconds=linger)
            return note_accepting(state, now)
        case m.EndTerm(worker=id_, drain_seconds=drain, reason=ended):
            if state.term is not None and state.term.worker == id_:
                state = with_end(state, ended)
            if ended is m.EndReason.NOT_STARTED:
                state = note_lead_failure(state, id_, now, m.LEAD_TIMED_OUT)
            return with_worker(state, id_, end_term_at=now, drain_seconds=drain)
        case m.ExitWorker(worker=id_):
            return with_worker(state, id_, exit_at=now)
        case m.KillWorker(worker=id_, crash=crash):
            killed = state.worker(id_)
            # A hung worker has answered nobody since it last beat.
            silent = killed.last_beat_at if crash and killed is not None else None
            state = with_worker(state, id_, kill_at=now, killed_as_crash=crash)
            if crash and killed is not None:
                # Now: until it is reaped another would be spawned, which would not be wanted then.
                state = without_replacement(state, killed)
            return note_accepting(state, now if silent is None else silent)
        case m.ServeUnavailable(on=on):
            return replace(state, serving_unavailable=on)
        case m.ExitProcess():
            return replace(state, exiting=action)
        case _:
            assert_never(action)


def _note_question(state: State, now: float) -> State:
    """getMe is asked; where the token was in doubt, for that."""
    if state.term is not None and state.term.registration.doubted:
        state = with_registration(state, doubt_asked_at=now)
    return with_registration(state, identity_asked_at=now)


def _abstain(state: State, now: float) -> State:
    fruitless = state.restarts.fruitless > CRASHES_BEFORE_GIVING_UP
    again = now - state.abstain_until < WINDOW_SECONDS or fruitless
    longer = min(2 * state.abstain_seconds, LONGEST_ABSTAIN_SECONDS)
    length = max(longer, ABSTAIN_SECONDS) if again else ABSTAIN_SECONDS
    until = max(now + length, state.restarts.next_lead_at)
    return replace(state, abstain_until=until, abstain_seconds=length)
