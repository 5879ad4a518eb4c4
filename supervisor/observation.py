"""How events change the facts. Pure.

An answer is taken in only where its id is the one that is waited for, and what it changes is what it shows, nothing more: an
answered statement proves that the session lived when it was sent. What Telegram answered is in `call_observation`.

`supervisor.core` decides what to do. Some things can only be told in the moment of an event, and are decided here: whether a
signal is a second one; how long whoever gave the lock back leaves it to others; whether the end of a worker is a crash; that a
replacement which cannot come up is given up; and that this process cannot run at all (`State.fatal`, exit code 2), because the
first server that was reached is unsuitable, or the first worker said that this deploy has faults.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from shared import wire
from supervisor import messages as m
from supervisor.call_observation import observe_call
from supervisor.readings import who_stores
from supervisor.state import (
    DEADLINE_SECONDS,
    State,
    Term,
    Worker,
    forget_lost_term,
    note_accepting,
    note_late_failure,
    note_lead_failure,
    with_end,
    with_registration,
    with_session,
    with_worker,
    without_replacement,
    without_session,
)
from supervisor.succession import as_known, is_request_young

ONE_SIGNAL_SECONDS = 3.0
"""Platforms signal a process more than once for one stop (Heroku does); a person at a terminal means each."""

DENIED_SECONDS = 0.25
"""How long an instance that is not the named successor stays out of the queue: less than the successor's 5 s by far, long
enough that two such instances do not hand the lock to and fro in a busy loop."""

ABSENT_SECONDS = 2.0
"""A gap between two steps from which on this process must have stood still (the runner ticks four times a second). It did not
hear its workers meanwhile, so their silence is not held against them."""


def see(state: State, now: float) -> State:
    """Take in that time went on. After a gap, in which this process stood still, every worker has a fresh chance to beat."""
    if now - state.seen_at < ABSENT_SECONDS:
        return replace(state, seen_at=now)
    workers = tuple(w if w.last_beat_at is None else replace(w, last_beat_at=now) for w in state.workers)
    return replace(state, seen_at=now, resumed_at=now, workers=workers)


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
        case m.ReplacementRequested(at=at):
            if state.stopping_since is not None:
                return state
            if state.settings.at_terminal:
                # The terminal has closed, and nobody could end us any more. It may be told twice, and hastens nothing.
                return replace(state, stopping_since=at)
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
            return observe_call(state, event)
        case m.WorkerSpawned(worker=id_, pid=pid):
            return with_worker(state, id_, pid=pid)
        case m.WorkerSaid():
            return _observe_words(state, event.worker, event.message, event.at)
        case m.WorkerExited():
            return _observe_exit(state, event)
        case _:
            assert_never(event)


# ----------------------------------------------------------------------------------------------------------- session


def _observe_session(
    state: State, event: m.SessionOpened | m.SessionFailed | m.SessionLost | m.SessionAnswer
) -> State:
    session = state.session
    match event:
        case m.SessionLost(session=lost, reason=reason):
            return without_session(state, event.at, reason) if session.id == lost else state
        case m.SessionOpened(id=id_):
            if session.busy is None or session.busy.id != id_:
                return state
            return with_session(state, open=True, busy=None, ever_open=True, schema_failed=False)
        case m.SessionFailed(id=id_, reason=reason, refused=refused, schema=schema):
            if session.busy is None or session.busy.id != id_:
                return state
            if refused and not session.ever_open:
                fault = f"DATABASE_URL {reason}"
                return replace(
                    without_session(state, event.at, reason), fatal=m.ExitProcess(code=2, faults=(fault,))
                )
            state = without_session(state, event.at, reason)
            return with_session(state, schema_failed=True) if schema else state
        case m.Answered():
            if session.busy is None or session.busy.id != event.id:
                return state
            return _observe_answer(with_session(state, busy=None, reason=None), session.busy, event)
        case _:
            assert_never(event)


def _observe_answer(state: State, action: m.SessionAction, event: m.SessionAnswer) -> State:
    from_deadline = _confirm(state, event.sent_at)
    match event:
        case m.Announced(peers=peers, holder=holder, handover_requested_seconds=asked):
            assert isinstance(action, m.Announce)
            state = with_session(
                from_deadline,
                announced_at=event.sent_at,
                announcement_answered_at=event.at,
                announced_ready=action.ready,
            )
            # Once the end of the term has begun, the request stands: the drain may take longer than a request counts.
            if state.term is not None and state.term.ended is None:
                state = with_session(state, handover_requested=is_request_young(asked))
            peers = as_known(peers, state.peers, event.sent_at - state.peers_at)
            state = replace(state, peers=peers, peers_at=event.sent_at, holder=holder)
            return _trust_holder(_note_who_stores(state, event.at))
        case m.LockAcquired():
            return with_session(from_deadline, lock_held=True, lock_tried=True)
        case m.LockBusy():
            since = event.at if state.passive_since is None else state.passive_since
            return replace(with_session(state, lock_tried=True), passive_since=since)
        case m.TermBegun(term=uuid, number=number, recover_after_seconds=after):
            begin = action.then if isinstance(action, m.WaitForLock) else action
            assert isinstance(begin, m.BeginTerm)
            state = with_session(
                state, lock_held=True, lock_tried=True, handover_requested=False, unanswered=False
            )
            assert state.session.id is not None
            term = Term(
                uuid=uuid,
                number=number,
                session=state.session.id,
                began_at=event.at,
                deadline=event.sent_at + begin.deadline_seconds,
                # What an earlier owner left in flight does not become safe by our beginning another term.
                recover_at=max(event.at + after, state.recover_at),
            )
            return replace(state, term=term, recover_at=term.recover_at, reaped_term=None, passive_since=None)
        case m.TermDenied():
            return with_session(
                state, lock_held=True, lock_tried=True, denied_until=event.at + DENIED_SECONDS
            )
        case m.TermClosed():
            return replace(state, term=None)
        case m.LockReleased():
            # Whoever gave it back looks around, and lets others go first: two who each prefer the other must not spin.
            denied = max(state.session.denied_until, event.at + DENIED_SECONDS)
            return with_session(
                state,
                lock_held=False,
                lock_tried=False,
                lead_failed=False,
                handover_requested=False,
                lead_timed_out=False,
                leading_since=None,
                left_to_other_code=False,
                left_for_database=False,
                unanswered=False,
                denied_until=denied,
                announced_at=float("-inf"),
                announcement_answered_at=float("-inf"),
            )
        case m.RegistrationRecorded():
            return with_registration(from_deadline, recorded=True)
        case m.RegistrationConfirmed():
            return with_registration(from_deadline, confirmed=True)
        case _:
            assert_never(event)


def _note_who_stores(state: State, at: float) -> State:
    """Keep `other_stores_since`, since when there is somebody to give up to if our worker did not reach the database."""
    # Between two of its waits it stands there as well.
    if who_stores(state, waiting=False) is None:
        return replace(state, other_stores_since=None)
    since = state.other_stores_since
    return replace(state, other_stores_since=at if since is None else since)


def _trust_holder(state: State) -> State:
    """A standby makes no calls: whether its token is good is for the owner to find out, if that has the same one."""
    me = state.settings
    others = (p for p in state.peers if p.instance_id == state.holder and p.instance_id != me.instance_id)
    if state.term is None and any(p.token_fingerprint == me.token_fingerprint for p in others):
        return replace(state, token_refused=False, token_vouched=True)
    return state


def _confirm(state: State, sent_at: float) -> State:
    """An answered statement shows that the session, and so the lock, was ours when it was *sent*."""
    term = state.term
    if term is None or term.session != state.session.id:
        return state
    return replace(state, term=replace(term, deadline=max(term.deadline, sent_at + DEADLINE_SECONDS)))


# ----------------------------------------------------------------------------------------------------------- workers


def _observe_words(state: State, id_: int, message: wire.ToSupervisor, at: float) -> State:
    match message:
        case wire.Receiving():
            return with_worker(state, id_, receiving_at=at, last_beat_at=at)
        case wire.Accepting():
            state = with_worker(state, id_, accepting_at=at, last_beat_at=at)
            worker = state.worker(id_)
            ever = state.ever_accepted or (worker is not None and worker.accepting)
            return note_accepting(replace(state, ever_accepted=ever), at)
        case wire.StartFailed(faults=faults):
            return with_worker(state, id_, faults=faults, doomed_at=at)
        case wire.Beat(storing=storing, completed=completed, dispatch_fault=fault):
            worker = state.worker(id_)
            stored = storing or (worker is not None and worker.ever_stored)
            if completed and worker is not None:
                state = replace(state, restarts=state.restarts.completed())
            since = None if worker is None else worker.database_away_since
            away_since = None if fault is None else at if since is None else since
            return with_worker(
                state,
                id_,
                last_beat_at=at,
                beat=message,
                ever_stored=stored,
                database_away_since=away_since,
            )
        case wire.Dispatching():
            # Its bot has asked getMe: Telegram knew the token.
            state = with_session(state, lead_failed=False, lead_timed_out=False, leading_since=None)
            state = replace(state, telegram_answered=True)
            return with_worker(state, id_, dispatching=True)
        case wire.LeadFailed(reason=reason, transient=transient, retry_after_seconds=seconds):
            state = note_lead_failure(state, id_, at, reason, seconds, of_get_me=message.of_get_me)
            state = with_worker(state, id_, lead_put_off=transient, term_ended_at=at, dispatching=False)
            return note_accepting(state, at)
        case wire.SuspectRunning(running=running):
            return with_worker(state, id_, suspect=running)
        case wire.ForeignRegistration():
            if state.settings.polls:
                # By Telegram's word, not by a request that anybody can make; and what is set can be read.
                return with_registration(state, next_compare_at=at)
            return with_registration(state, foreign_at=at)
        case wire.TokenRefused():
            # What follows from it is drastic, so it is not taken on another's word. Whether our token is refused, our own next
            # call finds out: this term's, or the first one of our next term.
            return with_registration(state, doubted_at=at)
        case wire.ConnectionsClosed():
            return with_worker(state, id_, connections_closed=True)
        case wire.TermEnded():
            state = with_worker(state, id_, term_ended_at=at, dispatching=False, suspect=False)
            return note_accepting(state, at)
        case _:
            assert_never(message)


def _observe_exit(state: State, event: m.WorkerExited) -> State:
    worker = state.worker(event.worker)
    if worker is None:
        return state
    rest = tuple(w for w in state.workers if w.id != worker.id)
    state = note_accepting(replace(state, workers=rest), event.at)
    if worker.killed_as_crash or not worker.leaving or worker.lead_failure is not None:
        state = _observe_crash(state, worker, event)
    if state.term is not None and state.term.worker == worker.id:
        state = with_end(state, m.EndReason.WORKER_LOST)
        assert state.term is not None
        term = replace(state.term, worker_gone_at=event.at)
        state = replace(state, term=term, reaped_term=term.uuid)
    return forget_lost_term(state)


def _exception_type(reason: str) -> str:
    """What comes before the bot's own words, which can hold anything: another service's key in a URL."""
    name, colon, _ = reason.partition(":")
    return name if colon else "an exception"


def _observe_crash(state: State, worker: Worker, event: m.WorkerExited) -> State:
    if worker.lead_put_off and worker.leaving and not worker.killed_as_crash:
        restarts = state.restarts.put_off(event.at, event.chance)
    else:
        restarts = state.restarts.crashed(
            event.at,
            event.chance,
            suspect=worker.suspect,
            began=event.began,
            dispatching=worker.dispatching,
        )
    if worker.lead_failure is None:
        state = note_late_failure(state, worker, event.at)
    reason, kind = event.status, event.status
    if worker.lead_failure is not None:
        reason, kind = worker.lead_failure, _exception_type(worker.lead_failure)
    state = replace(state, restarts=restarts, last_crash=reason, last_crash_kind=kind)
    survivors = [w for w in state.workers if w.accepting]
    if worker.accepting_at is None:
        if survivors:
            # One that was killed was given up then, and SIGHUP may have asked for another since.
            state = state if worker.killed_as_crash else without_replacement(state, worker)
        elif (
            # A fault of this deploy, unless it is to end anyway, or a worker is on its way that was asked for since.
            not state.ever_accepted
            and worker.faults
            and state.stopping_since is None
            and worker.generation == state.generation
        ):
            state = replace(state, fatal=m.ExitProcess(code=2, faults=worker.faults))
    return state
