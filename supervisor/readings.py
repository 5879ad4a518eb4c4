"""What the facts amount to: who owns, what may be called, what health says, why a term should end. Pure.

Questions only; what follows from the answers is in `core`, `session_plan` and `workers_plan`.
"""

from __future__ import annotations

from shared.answers import Role
from shared.wire import LEAD_SECONDS
from supervisor import messages as m
from supervisor import restart
from supervisor.state import State, Term, Worker
from supervisor.succession import (
    bearer_of_another_token,
    is_alive,
    other_code_waiting,
    other_there,
    others_there,
    others_waiting,
    successor,
    successor_of_any_deploy,
)

BEAT_LATE_SECONDS = 8.0
"""A worker's event loop beats every second. Health fails before the kill (HUNG_SECONDS in workers_plan.py)."""

LEAD_GRACE_SECONDS = 5.0
"""A bot that hangs while it starts is given up by its worker after LEAD_SECONDS, by cancelling it. One that swallows that is
ours, this much later."""

UNACCEPTED_SECONDS = 1.0
"""How long connections may wait in the backlog of the listening socket before we answer 503 ourselves. A restarted worker
usually accepts within this; a probe must learn within 2 s that none does."""

STOP_SECONDS = 24.0
"""Everything after the first signal: a second less than shared.config.SHUTDOWN_SECONDS (a test compares them: that
module is not pure)."""

DELETE_SECONDS = 5.0
"""WEBHOOK_ON_EXIT=delete: how long the exit waits for it, once nothing runs under the term any more."""

FAREWELL_SECONDS = 5.0
"""How long, from the signal on, an end waits until our row says that we are not ready any more: a wait for the lock, and two
answers at a latency of 2 s (b09). Where the database is away the row's age tells, after ALIVE_SECONDS."""

FOREIGN_ASSERTION_SECONDS = 60.0
"""Requests with a foreign secret cause at most one assertion in this time: setWebhook has a rate limit, forgers have none."""

DOUBT_SECONDS = 30.0
"""Where handlers are refused again and again, Telegram is asked at most this often whether it still knows our token."""

UNUSED_LOCK_SECONDS = 15.0
"""How long we keep the lock without a worker that leads or could lead, while others wait for it: restarts usually take less. As
long as that is also kept for a bot that was told to wait before it starts, and for a leader that cannot reach the database."""

OTHER_STORES_SECONDS = 4.0
"""For how long another instance must have stored, without a break, before we give up to it because our worker does not reach
the database. Where an outage of all workers ends, ours may be the last to be back: its session is tried every second, its
dispatcher tries again a second after a failure, and the next beat comes within a second. One more is for the statements."""

UNABLE_SECONDS = 160.0
"""How long no worker leads or could, nor another instance, before health says so although one stores: the longest pause before
a start (36 s) and all the time that it may take (START_SECONDS in workers_plan.py), so that a bot whose start is put off never
fails it."""

CLOSE_SECONDS = 1.0
"""The end of STOP_SECONDS is kept for closing the term and freeing the lock. A deletion of the webhook is over before, however
late it began."""


def owns(state: State, now: float) -> bool:
    """Whether this instance may act as owner: a term that has not ended, on a living session, before its deadline."""
    term = state.term
    return term is not None and term.ended is None and now < term.deadline


def holder(state: State) -> str | None:
    """Who holds the lock, as far as is known; to be told to people, and nothing is decided by it.

    The term's row (`State.holder`) names an owner that was killed until another begins a term, and us where we have lost the
    lock. Of others the latest that is known may be told, while the database cannot be asked.
    """
    me = state.settings.instance_id
    if state.session.lock_held:
        return me
    lives = any(p.instance_id == state.holder and is_alive(p) for p in state.peers)
    return state.holder if lives and state.holder != me else None


def may_call(state: State, call: m.CallAction, now: float) -> bool:
    """Whether that Bot API call may still be made, by the facts of this moment.

    While stopping, only the deletion that WEBHOOK_ON_EXIT asks for: another that waits for Telegram would be in its way.
    So would be a read that waits, for an hour after a 429, where the registration is to be asserted; and whatever waits so,
    where it is doubted that Telegram knows our token.
    Without a term, only the question that changes nothing, for as long as its answer matters.
    """
    if call.term is None:
        return isinstance(call, m.VerifyIdentity) and asks_for_itself(state)
    term = state.term
    if term is None or term.uuid != call.term or now >= term.deadline:
        return False
    if term.session != state.session.id or not state.session.open:
        return False
    if isinstance(call, m.DeleteWebhook) and not state.settings.polls:
        return wants_delete(state, now)
    # Neither is due within a limit of its own, so nothing gives way to its like.
    waits = now < _waits_until(state, call)
    if waits and (is_assertion_due(state, term, now) or is_doubt_due(state, term, now)):
        return False
    return term.ended is None and state.stopping_since is None


def _waits_until(state: State, call: m.CallAction) -> float:
    match call:
        case m.VerifyIdentity():
            return state.identity_from
        case m.Read():
            return state.reads_from
        case _:
            return state.writes_from


def is_doubt_due(state: State, term: Term, now: float) -> bool:
    """Whether Telegram should be asked now if it still knows our token. A limit of getMe's own holds, no other call's."""
    registration = term.registration
    if now < state.identity_from or (state.token_refused and now < state.token_retry_at):
        return False
    return registration.doubted and now - registration.doubt_asked_at >= DOUBT_SECONDS


def is_assertion_due(state: State, term: Term, now: float) -> bool:
    """Whether what is to be registered should be asserted now. The pause of a rejection or a conflict holds for any reason,
    and a flood limit beyond the term that met it."""
    registration = term.registration
    if not registration.recorded or (state.token_refused and now < state.token_retry_at):
        return False
    if now < state.writes_from:
        return False
    foreign = (
        registration.foreign_at > registration.asserted_at
        and now - registration.asserted_at >= FOREIGN_ASSERTION_SECONDS
    )
    return now >= registration.next_set_at and (not registration.asserted or foreign)


def able(state: State) -> bool:
    """Whether this instance could own: it may, its worker accepts, and nobody asked it to stop."""
    return state.settings.may_own and state.stopping_since is None and any(w.accepting for w in state.workers)


def ready(state: State, now: float) -> bool:
    """Whether an owner may hand over to this instance. A lock that is free it takes all the same, if it is able.

    What does not reach the database to store would not reach it to dispatch either, and the owner would end for nothing.
    """
    return able(state) and not token_unproven(state) and why_not_storing(state, now) is None


def token_unproven(state: State) -> bool:
    """Whether the present owner has another token, and ours is not known to be good: no owner that works is to end for it."""
    known = state.telegram_answered or state.token_vouched
    if state.term is not None or (known and not state.token_refused):
        return False
    me = state.settings
    owner = next((p for p in state.peers if p.instance_id == state.holder), None)
    return (
        owner is not None
        and owner.instance_id != me.instance_id
        and owner.token_fingerprint != me.token_fingerprint
    )


def health(state: State, now: float) -> m.Health:
    """What /healthz says, on both ports, from memory. PORT is open to everybody: nothing in it is of the bot's own words."""
    role: Role = "ACTIVE" if owns(state, now) else "PASSIVE"
    reason = _failing_reason(state, now)
    return m.Health(ok=reason is None, role=role, reason=reason)


def _failing_reason(state: State, now: float) -> str | None:
    if state.stopping_since is not None:
        return "stopping"
    if state.token_refused:
        return "Telegram refuses the bot token (401): set the current one"
    if state.session.schema_failed and not state.session.ever_open:
        return "the tables cannot be made or brought up to date: the log says why"
    accepting = [w for w in state.workers if w.accepting]
    if not accepting:
        if not state.ever_accepted:
            return "starting: the worker is not up yet"
        since = state.unaccepted_since
        if since is None or now - since < UNACCEPTED_SECONDS:
            return None
        return f"the worker is gone: {state.last_crash_kind or 'unknown'}"
    if all(_beat_is_late(w, now) for w in accepting):
        return "the worker's event loop is blocked"
    if _does_not_start(state, now):
        return f"the bot does not start: {state.last_crash_kind or 'unknown'}; the log says more"
    return None


def _does_not_start(state: State, now: float) -> bool:
    """Whether the bot failed again and again, or no worker comes up that could lead. One that was told to wait has time."""
    if state.session.lead_failed and state.restarts.count(now) >= restart.CRASHES_BEFORE_GIVING_UP:
        return True
    if state.unable_since is None or others_there(state.peers, state.settings.instance_id):
        return False
    return now - max(state.unable_since, state.restarts.next_lead_at) >= UNABLE_SECONDS


def receives(state: State, now: float) -> bool:
    """Whether somebody takes updates in, with a bot or without one yet, and has lately been heard of."""
    return any(w.receives and not _beat_is_late(w, now) for w in state.workers)


def why_not_storing(state: State, now: float) -> str | None:
    """Why an update sent now would not be stored; None if it would."""
    receiving = [w for w in state.workers if w.receives]
    if not receiving:
        return "no worker accepts"
    if all(_beat_is_late(w, now) for w in receiving):
        return "the worker's event loop is blocked"
    # The last worker accepts in place of its predecessors, which have been told to leave by then. Before its own first beat
    # there is only theirs to go by.
    said = [w for w in state.workers if w.beat is not None and not _beat_is_late(w, now)]
    worker = max(said, key=lambda w: (w.receives, w.id), default=None)
    if worker is None or worker.beat is None:
        return "the worker has not reported yet"
    return None if worker.beat.storing else worker.beat.storing_reason or "the database is away"


def _beat_is_late(worker: Worker, now: float) -> bool:
    return worker.last_beat_at is not None and now - worker.last_beat_at >= BEAT_LATE_SECONDS


def end_reason(state: State, now: float) -> m.EndReason | None:
    """Why the present term should end, or None. Once its worker was told, the reason stays."""
    term = state.term
    if term is None:
        return None
    if term.ended is not None:
        return term.ended
    if term.worker is None and not accepts(state):
        # The worker was lost while the term was being begun. The term ends; with the lock alone we wait for another worker, and
        # give up if none comes.
        return m.EndReason.WORKER_LOST
    leader = state.worker(term.worker)
    if leader is not None and leader.lead_failure is not None:
        return m.EndReason.NOT_STARTED
    if now >= term.deadline or (leader is not None and leader.term_ended):
        return m.EndReason.DEADLINE
    if state.stopping_since is not None:
        return m.EndReason.STOPPING
    if leader is not None and _hangs_at_start(leader, term, now):
        return m.EndReason.NOT_STARTED
    if leader is not None and leader.generation != state.generation:
        return m.EndReason.REPLACED
    # Once the leader's replacement is on the way, a successor stays one also between two of its waits.
    under_way = leader is not None and wanted_worker(state) is not None
    if state.token_refused and bearer(state, waiting=not under_way) is not None:
        return m.EndReason.TOKEN_REFUSED
    in_vain = leader is not None and _is_in_vain(state, leader, now)
    # In the same step the leader is told to end its term, and the reason stays. The others wait for its replacement before.
    if in_vain and _another_stores(state, now) and who_stores(state) is not None:
        return m.EndReason.DATABASE_AWAY
    if successor(state.peers, state.settings.instance_id, waiting=not under_way) is not None:
        return m.EndReason.HANDED_OVER
    if asked_successor(state, waiting=not under_way) is not None:
        return m.EndReason.HANDED_OVER_ON_REQUEST
    if term.worker is None and other_code(state, now) is not None:
        return m.EndReason.NOT_STARTED
    if term.worker is None and _may_be_answered_elsewhere(state, term, now):
        return m.EndReason.NOT_STARTED
    return None


def asked_successor(state: State, *, waiting: bool = True) -> str | None:
    """To whom the ownership goes because somebody asked for it. `waiting`: see `succession.successor`."""
    if not state.session.handover_requested:
        return None
    return successor_of_any_deploy(state.peers, state.settings.instance_id, waiting=waiting)


def who_stores(state: State, *, waiting: bool = True) -> str | None:
    """The instance that gets the ownership while our worker does not reach the database; `waiting`: see `succession.successor`.

    It announces that it stores. One that gave up is none: where nobody's dispatcher reaches the database, the lock would go
    round.
    """
    return successor_of_any_deploy(state.peers, state.settings.instance_id, waiting=waiting)


def other_code(state: State, now: float) -> str | None:
    """The instance of another deploy that gets the ownership while our bot must wait long before it may start.

    Other code may do without the call that ours was refused. An instance of our own deploy would be told the same, since a
    flood limit is the bot's, whichever instance calls.
    """
    if state.restarts.next_lead_at - now < UNUSED_LOCK_SECONDS:
        return None
    return other_code_waiting(state.peers, state.settings.instance_id)


def _is_in_vain(state: State, leader: Worker, now: float) -> bool:
    """Whether the leader has not reached the database for as long as we keep the lock for nobody.

    The lock's session did reach it meanwhile, or the term's deadline, which is shorter, would have passed.
    """
    since = leader.database_away_since
    return since is not None and now - max(since, state.resumed_at) >= UNUSED_LOCK_SECONDS


def _another_stores(state: State, now: float) -> bool:
    """Whether another instance has stored for so long that the outage is not one of all workers that has just ended."""
    since = state.other_stores_since
    return since is not None and now - since >= OTHER_STORES_SECONDS


def _hangs_at_start(leader: Worker, term: Term, now: float) -> bool:
    """Whether its bot does not start, and the worker does not say so; a persistence is loaded at `recover_at`."""
    began_at = max(leader.led_at, term.recover_at)
    return not leader.dispatching and now - began_at >= LEAD_SECONDS + LEAD_GRACE_SECONDS


def _may_be_answered_elsewhere(state: State, term: Term, now: float) -> bool:
    """BOT_MODE=polling: whether deleteWebhook, before which nobody leads, was not answered for as long as a start may take,
    while others wait. Where Telegram has answered (a limit, a refusal), they would hear the same."""
    registration = term.registration
    if not state.settings.polls or registration.asserted or state.token_refused:
        return False
    since = max(term.began_at, state.writes_from, registration.next_set_at, state.restarts.next_lead_at)
    return now - since >= LEAD_SECONDS and others_waiting(state.peers, state.settings.instance_id)


def asks_for_itself(state: State) -> bool:
    """Whether Telegram is asked about our token before anything is handed over to us; sooner than a worker is up."""
    return state.settings.may_own and state.stopping_since is None and token_unproven(state)


def bearer(state: State, *, waiting: bool = True) -> str | None:
    """The instance with another token that gets the ownership where Telegram refuses ours."""
    me = state.settings
    return bearer_of_another_token(state.peers, me.instance_id, me.token_fingerprint, waiting=waiting)


def says_farewell(state: State, now: float) -> bool:
    """Whether an instance that stops has yet to write that it is not ready, and time for it: whoever reads its row as it stands
    would count on it. With a linger of 0 its worker may end within one wait for the lock."""
    since, session = state.stopping_since, state.session
    return since is not None and session.open and session.announced_ready and now - since < FAREWELL_SECONDS


def wants_delete(state: State, now: float) -> bool:
    """WEBHOOK_ON_EXIT=delete: the owner's last act, when nobody is there to take over."""
    return _has_time_to_delete(state, now) and _is_to_delete(state) and webhook_kept_for(state) is None


def looks_once_more(state: State, now: float) -> bool:
    """Whether the webhook would be kept for an instance that was seen ready before our last act could begin.

    If both were asked to stop, it may have left since, or have left the lock to us. One look, so that a hand-over hardly waits.
    """
    began_at = _deletable_since(state)
    if began_at is None or state.peers_at >= began_at:
        return False
    return _has_time_to_delete(state, now) and webhook_kept_for(state) is not None


def webhook_kept_for(state: State) -> str | None:
    """The instance for which an owner that stops does not delete the webhook, although it is to be deleted."""
    return other_there(state.peers, state.settings.instance_id) if _is_to_delete(state) else None


def _is_to_delete(state: State) -> bool:
    """Whether an owner stops that is to delete the webhook if nobody is there to take over, and has not done so."""
    if state.stopping_since is None or state.term is None or state.term.registration.deleted:
        return False
    return state.settings.delete_on_exit and not state.settings.polls


def _has_time_to_delete(state: State, now: float) -> bool:
    if state.stopping_since is None or now - state.stopping_since >= STOP_SECONDS - CLOSE_SECONDS:
        return False
    began_at = _deletable_since(state)
    return began_at is None or now - began_at < DELETE_SECONDS


def _deletable_since(state: State) -> float | None:
    """Since when nothing runs under the term of an owner that stops; None: something does, or it does not stop."""
    term, stopping_since = state.term, state.stopping_since
    if stopping_since is None or term is None:
        return None
    return term.worker_gone_at if term.worker is not None else max(stopping_since, term.began_at)


def wanted_worker(state: State) -> Worker | None:
    """The worker that should lead next: of the wanted generation, never led, told nothing. An accepting one first."""
    wanted = [w for w in _unused_workers(state) if w.generation == state.generation]
    return max(wanted, key=lambda w: (w.accepting, w.id), default=None)


def fresh_worker(state: State) -> Worker | None:
    """The worker that could lead next. Until the wanted one accepts that may be one of before, which nobody has led yet: it is
    replaced then, like any other."""
    wanted = wanted_worker(state)
    if wanted is not None and wanted.accepting:
        return wanted
    return max((w for w in _unused_workers(state) if w.accepting), key=lambda w: w.id, default=wanted)


def _unused_workers(state: State) -> list[Worker]:
    return [w for w in state.workers if not w.leaving and w.led is None]


def accepts(state: State) -> bool:
    """Whether there is a worker that could lead at once."""
    fresh = fresh_worker(state)
    return fresh is not None and fresh.accepting
