"""What is to be done on the lock's session and at Telegram. Pure: a part of `supervisor.core`.

One statement and one call at a time. The session is opened, announced on, queued on; a term is begun on it, recorded, confirmed
and closed; the lock is freed. Telegram is called for a term only while that term is good; without one, it is asked who we are.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor import messages as m
from supervisor import restart
from supervisor.readings import (
    UNUSED_LOCK_SECONDS,
    able,
    accepts,
    asked_successor,
    asks_for_itself,
    bearer,
    end_reason,
    is_assertion_due,
    is_doubt_due,
    looks_once_more,
    may_call,
    other_code,
    ready,
    wants_delete,
    who_stores,
)
from supervisor.state import DEADLINE_SECONDS, State, Term
from supervisor.succession import is_alive, others_waiting, successor, successor_of_any_deploy

HEARTBEAT_SECONDS = 2.0
"""A quarter of the deadline: three may be lost."""

WAIT_SECONDS = 0.9
"""Longest wait inside pg_advisory_lock: a blocked wait pins a snapshot (VACUUM and CREATE INDEX CONCURRENTLY wait for it), and
beyond Postgres's deadlock_timeout of 1 s it is logged."""

STATEMENT_SECONDS = 8.0
OPEN_SECONDS = 20.0
"""Limits on a hang of the lock's session while no term depends on it; connecting may include the schema's migration."""


@dataclass(slots=True)
class Ids:
    """Hands out the ids of one plan."""

    next: int

    def take(self) -> int:
        self.next += 1
        return self.next - 1


def plan_session(state: State, now: float, ids: Ids) -> m.Action | None:
    """The next statement on the lock's session, or its end; None while one is under way, and where none is due."""
    session, term = state.session, state.term
    on_session = term if term is not None and session.open and term.session == session.id else None
    if on_session is not None and now >= on_session.deadline and session.id is not None:
        silent = f"no heartbeat was answered for {DEADLINE_SECONDS:g} s"
        return m.CloseSession(session=session.id, reason=silent, ended=m.EndReason.DEADLINE)
    if session.busy is not None:
        return _plan_busy(state, now, session.busy)
    if not session.open:
        if state.stopping_since is not None or now < session.retry_at:
            return None
        return m.OpenSession(id=ids.take())
    if on_session is not None:
        return _plan_term(state, now, on_session, ids)
    if session.lock_held:
        return _plan_held(state, now, ids)
    return _plan_waiting(state, now, ids)


def _plan_busy(state: State, now: float, busy: m.SessionAction) -> m.Action | None:
    """While a statement is under way: a wait in which we are told to stop is cut; one without an answer ends the session."""
    if state.stopping_since is not None and isinstance(busy, m.WaitForLock) and not state.session.wait_cut:
        return m.CutWait()
    limit = OPEN_SECONDS if isinstance(busy, m.OpenSession) else STATEMENT_SECONDS
    if state.session.id is None or now - state.session.busy_since < limit:
        return None
    reason = f"{type(busy).__name__} was not answered within {limit:g} s"
    return m.CloseSession(session=state.session.id, reason=reason)


def _announcement(state: State, now: float, ids: Ids, last_at: float) -> m.Announce | None:
    """Due every HEARTBEAT_SECONDS, and at once when what it says has changed."""
    is_ready = ready(state, now)
    if now - last_at < HEARTBEAT_SECONDS and state.session.announced_ready == is_ready:
        return None
    # An instance whose bot must wait long before it may start is no candidate for a hand-over.
    told_seconds = state.restarts.next_lead_at - now
    abstains = max(
        0.0, state.abstain_until - now, told_seconds if told_seconds >= UNUSED_LOCK_SECONDS else 0.0
    )
    return m.Announce(id=ids.take(), ready=is_ready, abstain_seconds=abstains)


def _plan_term(state: State, now: float, term: Term, ids: Ids) -> m.Action | None:
    reason = end_reason(state, now)
    over = term.worker_gone or (term.worker is None and reason is not None)
    if over and reason is not None:
        # To a polling owner deleteWebhook is no last act but its first one: it is cut off.
        deletes_last = not state.settings.polls and isinstance(state.call, m.DeleteWebhook)
        if looks_once_more(state, now):
            return _announcement(state, now, ids, float("-inf"))
        if not wants_delete(state, now) and not deletes_last:
            return m.CloseTerm(
                id=ids.take(),
                term=term.uuid,
                reason=reason,
                successor=_named_successor(state, reason, now),
                recovered=now >= term.recover_at,
            )
    if term.ended is None and not term.registration.recorded:
        return m.RecordRegistration(id=ids.take())
    if term.ended is None and term.registration.asserted and not term.registration.confirmed:
        return m.ConfirmRegistration(id=ids.take())
    return _announcement(state, now, ids, state.session.announced_at)


def _named_successor(state: State, reason: m.EndReason, now: float) -> str | None:
    if reason is m.EndReason.HANDED_OVER:
        me = state.settings.instance_id
        return successor(state.peers, me) or successor(state.peers, me, waiting=False)
    if reason is m.EndReason.HANDED_OVER_ON_REQUEST:
        return asked_successor(state) or asked_successor(state, waiting=False)
    if reason is m.EndReason.TOKEN_REFUSED:
        return bearer(state) or bearer(state, waiting=False)
    if reason is m.EndReason.DATABASE_AWAY:
        return who_stores(state) or who_stores(state, waiting=False)
    if reason is m.EndReason.NOT_STARTED:
        return other_code(state, now)
    return None


def may_own_now(state: State, now: float) -> bool:
    """Whether to be in the queue: with a worker that could lead at once, not abstaining in favour of somebody who is there."""
    if not able(state) or now < state.session.denied_until or state.fatal is not None:
        return False
    # A worker that accepts may have led already. Then we would wait for its replacement with the lock in our hands, and all
    # others would wait for us.
    if not accepts(state):
        return False
    if now >= state.abstain_until:
        return True
    me = state.settings.instance_id
    return not any(p.ready and p.candidate and is_alive(p) for p in state.peers if p.instance_id != me)


def _plan_held(state: State, now: float, ids: Ids) -> m.Action | None:
    """The lock is ours, and no term runs under it: begin one, wait for our worker, or give the lock back."""
    # While a worker of an earlier term lives nothing is given back either: another owner must not begin beside it.
    if _gives_back(state, now) and not _someone_led(state):
        return m.ReleaseLock(id=ids.take(), gave_up=_gives_up(state, now))
    if _begins(state, now):
        return _begin_term(state, ids.take())
    return _announcement(state, now, ids, state.session.announcement_answered_at)


def _begins(state: State, now: float) -> bool:
    """Whether a term begins as soon as the lock is ours."""
    return accepts(state) and not _gives_back(state, now) and not _someone_led(state)


def _begin_term(state: State, id_: int) -> m.BeginTerm:
    return m.BeginTerm(id=id_, deadline_seconds=DEADLINE_SECONDS, reaped_term=state.reaped_term)


def _someone_led(state: State) -> bool:
    return any(w.led is not None for w in state.workers)


def _gives_back(state: State, now: float) -> bool:
    """Whether the lock is for others, with no term of ours under it."""
    return (
        state.stopping_since is not None
        or now < state.session.denied_until
        or _gives_up(state, now)
        or _prefers_another(state)
        or (accepts(state) and not may_own_now(state, now))
    )


def _gives_up(state: State, now: float) -> bool:
    # Set by the end of a term, which names the next owner. Nobody else can: with the lock alone it might go to an instance of
    # our own code that has waited longer, and would be told to wait as we were; or does not reach the database either.
    if state.session.left_to_other_code or state.session.left_for_database:
        return True
    since = state.unable_since
    hopeless = (
        state.restarts.count_all(now) >= restart.CRASHES_BEFORE_GIVING_UP
        or (since is not None and now - since >= UNUSED_LOCK_SECONDS)
        # Others have waited for as long as a start may take. After three more tries the platform would have stopped them.
        or state.session.lead_timed_out
    )
    # Whoever has a worker tries once each time the lock comes round, or two that gave up would only hand it to and fro.
    failed = not accepts(state) or state.session.lead_failed
    found_no_way = (failed and hopeless) or state.session.unanswered
    # Who could own is there, also where it was seen between two of its waits.
    me = state.settings.instance_id
    return found_no_way and (
        others_waiting(state.peers, me) or successor_of_any_deploy(state.peers, me, waiting=False) is not None
    )


def _prefers_another(state: State) -> bool:
    """Somebody who waits should own instead of us; a term of ours would end for the same reason at once."""
    if successor(state.peers, state.settings.instance_id) is not None or asked_successor(state) is not None:
        return True
    return state.token_refused and bearer(state) is not None


def _plan_waiting(state: State, now: float, ids: Ids) -> m.Action | None:
    # Counted from the answer. Counted from the sending, the next one would be due as soon as this one is answered where a round
    # trip takes 2 s (b09), and the lock would never be tried.
    last_at = state.session.announcement_answered_at
    if (announcement := _announcement(state, now, ids, last_at)) is not None:
        return announcement
    if not may_own_now(state, now):
        return None
    if not state.session.lock_tried:
        return m.TryLock(id=ids.take())
    # The term begins in the server, in the moment in which it gives us the lock. What speaks against one can hardly come up
    # within a wait; where it does (the end of our worker, a signal that was not in time to cut the wait), the term is ended as
    # it would be at any other time.
    id_ = ids.take()
    then = _begin_term(state, id_) if _begins(state, now) else None
    return m.WaitForLock(id=id_, seconds=WAIT_SECONDS, then=then)


# ------------------------------------------------------------------------------------------------------- registration


def plan_call(state: State, now: float, ids: Ids) -> m.BotCall | None:
    """The next call to Telegram; None while one is under way, and where none is due or may be made."""
    if state.call is not None:
        return None
    if state.term is None:
        is_early = now < state.reads_from or (state.token_refused and now < state.token_retry_at)
        asks = asks_for_itself(state) and not is_early
        return m.VerifyIdentity(id=ids.take(), term=None) if asks else None
    call = _wanted_call(state, state.term, now, ids)
    return call if call is not None and may_call(state, call, now) else None


def _wanted_call(state: State, term: Term, now: float, ids: Ids) -> m.BotCall | None:
    unled = term.worker is None
    if (
        term.ended is not None
        or state.stopping_since is not None
        or (unled and end_reason(state, now) is not None)
    ):
        deletes = (unled or term.worker_gone) and wants_delete(state, now)
        return m.DeleteWebhook(id=ids.take(), term=term.uuid) if deletes else None
    registration = term.registration
    if not registration.recorded or (state.token_refused and now < state.token_retry_at):
        return None
    if is_assertion_due(state, term, now):
        if state.settings.polls:
            return m.DeleteWebhook(id=ids.take(), term=term.uuid)
        return m.SetWebhook(id=ids.take(), term=term.uuid)
    if is_doubt_due(state, term, now):
        return m.VerifyIdentity(id=ids.take(), term=term.uuid)
    if now < state.reads_from or now < registration.next_compare_at:
        return None
    if registration.asserted and not registration.verified:
        return m.VerifyIdentity(id=ids.take(), term=term.uuid)
    if registration.asserted:
        return m.CompareWebhook(id=ids.take(), term=term.uuid)
    return None
