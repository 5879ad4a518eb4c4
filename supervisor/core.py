"""All decisions of the supervisor. Pure: facts and the time in, actions out.

        events ──► observe ──► State ──► plan(state, now) ──► actions ──► shells ──► events
                  (state.py)                │                    │
                                            └──── begin ◄────────┘

Level-triggered: `plan` compares what should be with what is known to be, and never asks how it came to be so. "The webhook is
asserted" is wanted of every term that has no assertion yet, whichever way led into it: the lock was free at the first boot, or
came after an hour, or was lost and taken again. There is no transition to miss.

A term's life, with the facts that carry it from line to line:

    lock held, an accepting worker that never led, nobody left who led     ► BeginTerm
    term begun                                                             ► Lead(worker), RecordRegistration
    registration recorded, not asserted                                    ► SetWebhook
    a reason to end (`end_reason`), the leader still accepts alone         ► SpawnWorker: a successor on the socket
    ... the successor accepts                                              ► StopAccepting(leader)
    ... the leader's connections are closed                                ► EndTerm(leader), ExitWorker(leader)
    the leader is reaped                                                   ► CloseTerm, then ReleaseLock or BeginTerm

`plan` is a fixed point of itself: once every action it gave is begun, it gives none until a fact or the time changes (tested
over all reachable states). It does not promise that an action succeeds, nor that it is carried out before the next event.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from supervisor import messages as m
from supervisor import restart
from supervisor.state import (
    DEADLINE_SECONDS,
    FOREIGN_ASSERTION_SECONDS,
    State,
    Term,
    Worker,
    begin,
    observe,
    see,
)
from supervisor.succession import bearer_of_another_token, is_alive, others_waiting, successor

__all__ = ["end_reason", "health", "may_call", "owns", "plan", "ready", "step"]

HEARTBEAT_SECONDS = 2.0
"""A quarter of the deadline: three may be lost."""

WAIT_SECONDS = 0.9
"""Longest wait inside pg_advisory_lock: a blocked wait pins a snapshot (VACUUM and CREATE INDEX CONCURRENTLY wait for it), and
beyond Postgres's deadlock_timeout of 1 s it is logged."""

STATEMENT_SECONDS = 8.0
OPEN_SECONDS = 20.0
"""Limits on a hang of the lock's session while no term depends on it; connecting may include the schema's migration."""

BEAT_LATE_SECONDS = 8.0
HUNG_SECONDS = 10.0
"""A worker's event loop beats every second. Health fails before the kill, and both are within INTERFACE.md's 10 s."""

START_SECONDS = 120.0
"""A worker that does not accept after two minutes will not: the slowest measured start on a tenth of a core took 15 s."""

UNACCEPTED_SECONDS = 1.0
"""How long connections may wait in the backlog of the listening socket before we answer 503 ourselves. A restarted worker
usually accepts within this; a probe must learn within 2 s that none does."""

HANDOVER_LINGER_SECONDS = 2.0
"""How long a replaced worker serves its open connections, each told `Connection: close`: longer than the pauses of a client
under traffic, so that no request races with the close; it dispatches meanwhile."""

SHORT_LINGER_SECONDS = 0.5
"""The same for a worker that no longer dispatches: a pause in dispatch is worth more than the last idle connection."""

REPLACEMENT_SECONDS = 30.0
"""How long a worker whose term has ended goes on accepting for want of a replacement."""

STOP_REPLACEMENT_SECONDS = 6.0
"""While stopping: how long a leader dispatches on for want of a replacement."""

DRAIN_GRACE_SECONDS = 3.0
EXIT_SECONDS = 3.0
"""What a worker may take beyond its drain for stopping the application and flushing persistence, and for its exit."""

STOP_SECONDS = 24.0
"""Everything after the first signal: within the shortest platform limit that we ask for (25 s; INTERFACE.md)."""

UNUSED_LOCK_SECONDS = 15.0
"""How long the lock is kept for want of an accepting worker while others wait for it: restarts usually take less."""

DELETE_SECONDS = 5.0
"""WEBHOOK_ON_EXIT=delete: how long the exit waits for it."""

MOST_WORKERS = 3
"""At once: one that leaves, one that accepts, and one that is being killed. More would not fit beside a bot in 512 MB."""

_GRACEFUL = frozenset({m.EndReason.REPLACED, m.EndReason.HANDED_OVER, m.EndReason.TOKEN_REFUSED})


# ----------------------------------------------------------------------------------------------------------- readings


def owns(state: State, now: float) -> bool:
    """Whether this instance may act as owner: a term that has not ended, on a living session, before its deadline."""
    term = state.term
    return term is not None and term.ended is None and now < term.deadline


def may_call(state: State, term: str, now: float) -> bool:
    """Whether a Bot API call that changes the registration may still be made for `term` (a UUID)."""
    current = state.term
    if current is None or current.uuid != term or now >= current.deadline:
        return False
    if current.session != state.session.id or not state.session.open:
        return False
    return current.ended is None or _wants_delete(state, now)


def ready(state: State) -> bool:
    """Whether this instance could own: it may, its worker accepts, and nobody asked it to stop."""
    return state.settings.may_own and state.stopping_since is None and any(w.accepting for w in state.workers)


def health(state: State, now: float) -> m.Health:
    """What /healthz says, on both ports, from memory."""
    role = "ACTIVE" if owns(state, now) else "PASSIVE"
    reason = _failing_reason(state, now)
    return m.Health(ok=reason is None, role=role, reason=reason)


def _failing_reason(state: State, now: float) -> str | None:
    if state.stopping_since is not None:
        return "stopping"
    if state.token_refused:
        return "Telegram refuses the bot token (401): set the current one"
    accepting = [w for w in state.workers if w.accepting]
    if not accepting:
        if not state.ever_accepted:
            return "starting: the worker is not up yet"
        since = state.unaccepted_since
        if since is None or now - since < UNACCEPTED_SECONDS:
            return None
        return f"the worker is gone: {state.last_crash or 'unknown'}"
    if all(_beat_is_late(w, now) for w in accepting):
        return "the worker's event loop is blocked"
    return None


def _beat_is_late(worker: Worker, now: float) -> bool:
    return worker.last_beat_at is not None and now - worker.last_beat_at >= BEAT_LATE_SECONDS


def end_reason(state: State, now: float) -> m.EndReason | None:
    """Why the present term should end, or None. Once its worker was told, the reason stays."""
    term = state.term
    if term is None:
        return None
    if term.ended is not None:
        return term.ended
    leader = state.worker(term.worker)
    if now >= term.deadline or (leader is not None and leader.term_ended):
        return m.EndReason.DEADLINE
    if state.stopping_since is not None:
        return m.EndReason.STOPPING
    if leader is not None and leader.generation != state.generation:
        return m.EndReason.REPLACED
    if state.token_refused and _bearer(state) is not None:
        return m.EndReason.TOKEN_REFUSED
    # Once its replacement is on the way, a successor that is between two waits is one still.
    under_way = leader is not None and _fresh(state) is not None
    if successor(state.peers, state.settings.instance_id, waiting=not under_way) is not None:
        return m.EndReason.HANDED_OVER
    return None


def _bearer(state: State) -> str | None:
    return bearer_of_another_token(state.peers, state.settings.instance_id, state.settings.token_fingerprint)


def _wants_delete(state: State, now: float) -> bool:
    """WEBHOOK_ON_EXIT=delete: the owner's last act, when nobody is there to take over."""
    term = state.term
    return (
        state.settings.delete_on_exit
        and state.settings.mode is m.Mode.WEBHOOK
        and state.stopping_since is not None
        and term is not None
        and not term.registration.deleted
        and not others_waiting(state.peers, state.settings.instance_id)
        and now - state.stopping_since < STOP_SECONDS - DELETE_SECONDS
    )


# --------------------------------------------------------------------------------------------------------------- plan


def step(state: State, event: m.Event, now: float) -> tuple[State, tuple[m.Action, ...]]:
    """Take `event` in and begin everything that follows from it.

    Args:
        state: the facts before.
        event: what happened.
        now: seconds on the shared clock; not before the event's `at`.

    Returns:
        The facts after, with all actions begun, and these actions in the order in which to carry them out.
    """
    state = observe(see(state, now), event)
    begun: list[m.Action] = []
    while actions := plan(state, now):
        for action in actions:
            state = begin(state, action, now)
        begun.extend(actions)
    return state, tuple(begun)


def plan(state: State, now: float) -> tuple[m.Action, ...]:
    """What is to be done now that is neither done nor under way. Ids are taken from `state.next_id` on."""
    if state.exiting is not None:
        return ()
    if (fatal := _fatal(state, now)) is not None:
        return tuple(_plan_end_at_once(state, fatal))
    if (exit_process := _finished(state)) is not None:
        return (exit_process,)
    ids = _Ids(state.next_id)
    actions: list[m.Action] = []
    session = _plan_session(state, now, ids)
    if session is not None:
        actions.append(session)
    if isinstance(session, m.CloseSession):
        return tuple(actions)
    call = _plan_call(state, now, ids)
    if call is not None:
        actions.append(call)
    actions.extend(_plan_workers(state, now, ids))
    actions.extend(_plan_tellings(state, now))
    return tuple(actions)


@dataclass(slots=True)
class _Ids:
    """Hands out the ids of one plan."""

    next: int

    def take(self) -> int:
        self.next += 1
        return self.next - 1


def _fatal(state: State, now: float) -> m.ExitProcess | None:
    """Why everything ends at once, if so."""
    if state.fatal is not None:
        return state.fatal
    if state.stop_immediately:
        return m.ExitProcess(code=0)
    if state.stopping_since is not None:
        return m.ExitProcess(code=0) if now - state.stopping_since >= STOP_SECONDS else None
    crashes = state.restarts.count(now)
    if not state.ever_accepted and crashes >= restart.CRASHES_BEFORE_NEVER_UP:
        fault = f"BOT_APP never came up: the worker ended {crashes} times, last with: {state.last_crash}"
        return m.ExitProcess(code=2, faults=(fault,))
    if crashes >= restart.CRASHES_BEFORE_EXIT and not any(w.accepting for w in state.workers):
        fault = f"the worker cannot be kept up: it ended {crashes} times, last with: {state.last_crash}"
        return m.ExitProcess(code=4, faults=(fault,))
    return None


def _plan_end_at_once(state: State, fatal: m.ExitProcess) -> Iterator[m.Action]:
    """Kill what runs; only then free the lock and end."""
    for worker in state.workers:
        if worker.kill_at is None:
            yield m.KillWorker(worker=worker.id, reason="the supervisor ends at once", crash=False)
    if state.workers:
        return
    if state.session.id is not None:
        yield m.CloseSession(
            session=state.session.id, reason="the supervisor ends", ended=m.EndReason.STOPPING
        )
    yield fatal


def _finished(state: State) -> m.ExitProcess | None:
    """The end of an orderly stop: nothing runs, nothing is held."""
    if state.stopping_since is None or state.workers or state.term is not None or state.call is not None:
        return None
    busy = state.session.busy
    # Others leave no trace that matters, but a wait that is cut off may be given the lock before the server notices.
    if state.session.lock_held or not (busy is None or isinstance(busy, m.OpenSession)):
        return None
    return m.ExitProcess(code=0)


# ------------------------------------------------------------------------------------------------------------ session


def _plan_session(state: State, now: float, ids: _Ids) -> m.Action | None:
    session, term = state.session, state.term
    on_session = term if term is not None and session.open and term.session == session.id else None
    if on_session is not None and now >= on_session.deadline and session.id is not None:
        silent = f"no heartbeat was answered for {DEADLINE_SECONDS:g} s"
        return m.CloseSession(session=session.id, reason=silent, ended=m.EndReason.DEADLINE)
    if session.busy is not None:
        return _plan_overdue(state, now, session.busy)
    if not session.open:
        if state.stopping_since is not None or now < session.retry_at:
            return None
        return m.OpenSession(id=ids.take())
    if on_session is not None:
        return _plan_term(state, now, on_session, ids)
    if session.lock_held:
        return _plan_held(state, now, ids)
    return _plan_waiting(state, now, ids)


def _plan_overdue(state: State, now: float, busy: m.SessionAction) -> m.Action | None:
    """A statement without an answer, while no deadline watches over it."""
    limit = OPEN_SECONDS if isinstance(busy, m.OpenSession) else STATEMENT_SECONDS
    if state.session.id is None or now - state.session.busy_since < limit:
        return None
    reason = f"{type(busy).__name__} was not answered within {limit:g} s"
    return m.CloseSession(session=state.session.id, reason=reason)


def _announcement(state: State, now: float, ids: _Ids) -> m.Announce | None:
    """Due every HEARTBEAT_SECONDS, and at once when what it says has changed."""
    is_ready = ready(state)
    if now - state.session.announced_at < HEARTBEAT_SECONDS and state.session.announced_ready == is_ready:
        return None
    return m.Announce(id=ids.take(), ready=is_ready, abstain_seconds=max(0.0, state.abstain_until - now))


def _plan_term(state: State, now: float, term: Term, ids: _Ids) -> m.Action | None:
    reason = end_reason(state, now)
    over = term.worker_gone or (term.worker is None and reason is not None)
    if over and reason is not None:
        waits_for_delete = _wants_delete(state, now) or isinstance(state.call, m.DeleteWebhook)
        if not waits_for_delete:
            return m.CloseTerm(
                id=ids.take(), term=term.uuid, reason=reason, successor=_named_successor(state, reason)
            )
    if term.ended is None and not term.registration.recorded:
        return m.RecordRegistration(id=ids.take())
    if term.ended is None and term.registration.asserted and not term.registration.confirmed:
        return m.ConfirmRegistration(id=ids.take())
    return _announcement(state, now, ids)


def _named_successor(state: State, reason: m.EndReason) -> str | None:
    if reason is m.EndReason.HANDED_OVER:
        me = state.settings.instance_id
        return successor(state.peers, me) or successor(state.peers, me, waiting=False)
    if reason is m.EndReason.TOKEN_REFUSED:
        return _bearer(state)
    return None


def _may_own_now(state: State, now: float) -> bool:
    """Whether to be in the queue: ready, and not abstaining in favour of somebody who is there."""
    if not ready(state) or now < state.session.denied_until or state.fatal is not None:
        return False
    if now >= state.abstain_until:
        return True
    me = state.settings.instance_id
    return not any(p.ready and p.candidate and is_alive(p) for p in state.peers if p.instance_id != me)


def _plan_held(state: State, now: float, ids: _Ids) -> m.Action | None:
    """The lock is ours, and no term runs under it: begin one, wait for our worker, or give the lock back."""
    someone_led = any(w.led is not None for w in state.workers)
    fresh = _fresh(state)
    accepts = fresh is not None and fresh.accepting
    since = state.unaccepted_since
    hopeless = state.restarts.count(now) >= restart.CRASHES_BEFORE_GIVING_UP or (
        since is not None and now - since >= UNUSED_LOCK_SECONDS
    )
    gave_up = not accepts and hopeless and others_waiting(state.peers, state.settings.instance_id)
    gives_back = (
        state.stopping_since is not None
        or now < state.session.denied_until
        or gave_up
        or _prefers_another(state)
        or (accepts and not _may_own_now(state, now))
    )
    # While a worker of an earlier term lives nothing is given back either: another owner must not begin beside it.
    if gives_back and not someone_led:
        return m.ReleaseLock(id=ids.take(), gave_up=gave_up)
    if accepts and not gives_back and not someone_led:
        return m.BeginTerm(id=ids.take(), deadline_seconds=DEADLINE_SECONDS, reaped_term=state.reaped_term)
    return _announcement(state, now, ids)


def _prefers_another(state: State) -> bool:
    """Somebody who waits should own instead of us; a term of ours would end for the same reason at once."""
    if successor(state.peers, state.settings.instance_id) is not None:
        return True
    return state.token_refused and _bearer(state) is not None


def _plan_waiting(state: State, now: float, ids: _Ids) -> m.Action | None:
    if (announcement := _announcement(state, now, ids)) is not None:
        return announcement
    if not _may_own_now(state, now):
        return None
    if not state.session.lock_tried:
        return m.TryLock(id=ids.take())
    return m.WaitForLock(id=ids.take(), seconds=WAIT_SECONDS)


# ------------------------------------------------------------------------------------------------------- registration


def _plan_call(state: State, now: float, ids: _Ids) -> m.CallAction | None:
    term = state.term
    if state.call is not None or term is None or not may_call(state, term.uuid, now):
        return None
    unled = term.worker is None
    if (
        term.ended is not None
        or state.stopping_since is not None
        or (unled and end_reason(state, now) is not None)
    ):
        deletes = (unled or term.worker_gone) and _wants_delete(state, now)
        return m.DeleteWebhook(id=ids.take(), term=term.uuid) if deletes else None
    registration = term.registration
    if not registration.recorded or (state.token_refused and now < state.token_retry_at):
        return None
    foreign = (
        registration.foreign_at > registration.asserted_at
        and now - registration.asserted_at >= FOREIGN_ASSERTION_SECONDS
    )
    if (not registration.asserted and now >= registration.next_set_at) or (registration.asserted and foreign):
        if state.settings.mode is m.Mode.POLLING:
            return m.DeleteWebhook(id=ids.take(), term=term.uuid)
        return m.SetWebhook(id=ids.take(), term=term.uuid)
    if now < registration.next_compare_at:
        return None
    if registration.asserted and not registration.verified:
        return m.VerifyIdentity(id=ids.take(), term=term.uuid)
    if registration.asserted:
        return m.CompareWebhook(id=ids.take(), term=term.uuid)
    return None


# ------------------------------------------------------------------------------------------------------------ workers


def _fresh(state: State) -> Worker | None:
    """The worker that could lead next: of the wanted generation, never led, told nothing. An accepting one first."""
    fresh = [w for w in state.workers if not w.leaving and w.led is None and w.generation == state.generation]
    return max(fresh, key=lambda w: (w.accepting, w.id), default=None)


def _leader(state: State) -> Worker | None:
    return None if state.term is None else state.worker(state.term.worker)


def _takes_over_socket(state: State, now: float) -> bool:
    """While stopping: whether a fresh worker goes on accepting, so that the leader can leave and the lock be free at once."""
    since = state.stopping_since
    return (
        since is not None
        and state.settings.linger_seconds > 0
        and others_waiting(state.peers, state.settings.instance_id)
        and now - since < STOP_REPLACEMENT_SECONDS
    )


def _plan_workers(state: State, now: float, ids: _Ids) -> Iterator[m.Action]:
    reason, leader, fresh = end_reason(state, now), _leader(state), _fresh(state)
    yield from _plan_spawn(state, now, ids, reason, leader, fresh)
    for worker in state.workers:
        if (kill := _plan_kill(state, now, worker)) is not None:
            yield kill
        elif worker.kill_at is None:
            yield from _plan_worker(state, now, worker, reason)
    yield from _plan_lead(state, now, reason, fresh)


def _plan_spawn(
    state: State,
    now: float,
    ids: _Ids,
    reason: m.EndReason | None,
    leader: Worker | None,
    fresh: Worker | None,
) -> Iterator[m.Action]:
    if fresh is not None or len(state.workers) >= MOST_WORKERS or now < state.restarts.next_spawn_at:
        return
    if leader is not None and not leader.leaving and reason is None:
        return
    if state.stopping_since is not None and not (leader is not None and _takes_over_socket(state, now)):
        return
    yield m.SpawnWorker(worker=ids.take())


def _plan_kill(state: State, now: float, worker: Worker) -> m.KillWorker | None:
    if worker.kill_at is not None:
        return None

    def kill(reason: str, *, crash: bool) -> m.KillWorker:
        return m.KillWorker(worker=worker.id, reason=reason, crash=crash)

    term = state.term
    leads = term is not None and term.worker == worker.id
    if (
        worker.last_beat_at is not None
        and worker.exit_at is None
        and now - worker.last_beat_at >= HUNG_SECONDS
    ):
        return kill(f"its event loop has not turned for {HUNG_SECONDS:g} s", crash=True)
    if worker.doomed_at is not None and now - worker.doomed_at >= EXIT_SECONDS:
        return kill(f"it cannot go on, and did not exit within {EXIT_SECONDS:g} s", crash=True)
    if worker.accepting_at is None and now - worker.spawned_at >= START_SECONDS:
        return kill(f"it did not accept within {START_SECONDS:g} s", crash=True)
    if worker.accepting_at is None and (
        state.stopping_since is not None or worker.generation != state.generation
    ):
        takes_over = state.stopping_since is not None and _takes_over_socket(state, now)
        return None if takes_over else kill("it is no longer wanted, and not up yet", crash=False)
    if leads and term is not None and not worker.term_ended and now >= term.deadline:
        return kill("its term's deadline passed", crash=False)
    if worker.end_term_at is not None and not worker.term_ended:
        limit = worker.drain_seconds + DRAIN_GRACE_SECONDS
        if now - worker.end_term_at >= limit:
            return kill(f"its handlers did not end within {limit:g} s", crash=False)
    if worker.exit_at is not None and now - worker.exit_at >= EXIT_SECONDS:
        return kill(f"it did not exit within {EXIT_SECONDS:g} s", crash=False)
    return None


def _plan_worker(state: State, now: float, worker: Worker, reason: m.EndReason | None) -> Iterator[m.Action]:
    """Lead one worker out, step by step, if it is to leave; the steps are in the module's docstring."""
    if worker.accepting_at is None:
        return
    leads = state.term is not None and state.term.worker == worker.id
    if worker.led is None and state.stopping_since is None and not _is_surplus(state, worker, reason):
        return
    if leads and reason is None:
        return
    ended = reason if leads else None
    if worker.stop_accepting_at is None and _may_stop_accepting(state, now, worker):
        serves_on = worker.end_term_at is None and state.stopping_since is None
        linger = HANDOVER_LINGER_SECONDS if serves_on else SHORT_LINGER_SECONDS
        yield m.StopAccepting(worker=worker.id, linger_seconds=linger, reason=ended)
        return
    closed = worker.connections_closed or (
        worker.stop_accepting_at is not None
        and now - worker.stop_accepting_at >= worker.linger_seconds + DRAIN_GRACE_SECONDS
    )
    if leads and worker.end_term_at is None:
        if closed or not _ends_gracefully(state, now, reason):
            yield m.EndTerm(worker=worker.id, drain_seconds=_drain_seconds(state, now), reason=ended)
        return
    over = worker.led is None or worker.term_ended
    if over and closed and worker.exit_at is None:
        yield m.ExitWorker(worker=worker.id)


def _is_surplus(state: State, worker: Worker, reason: m.EndReason | None) -> bool:
    """A worker that never led and is not needed: beside a leader who stays, or beside a better one."""
    fresh, leader = _fresh(state), _leader(state)
    if leader is not None and reason is None and leader.accepting:
        return True
    return fresh is not None and fresh.id != worker.id and fresh.accepting


def _may_stop_accepting(state: State, now: float, worker: Worker) -> bool:
    if any(w.accepting and w.id != worker.id and not w.leaving for w in state.workers):
        return state.stopping_since is None or worker.led is not None
    if state.stopping_since is not None:
        lingered = now - state.stopping_since >= state.settings.linger_seconds
        drained = all(w.led is None or w.term_ended for w in state.workers)
        return lingered and drained
    # Its replacement does not come: leave without it rather than be in the way of a new term for ever.
    return worker.end_term_at is not None and now - worker.end_term_at >= REPLACEMENT_SECONDS


def _ends_gracefully(state: State, now: float, reason: m.EndReason | None) -> bool:
    """Whether the leader goes on dispatching until its connections are closed."""
    if reason in _GRACEFUL:
        return True
    if reason is not m.EndReason.STOPPING:
        return False
    fresh = _fresh(state)
    has_successor = fresh is not None and fresh.accepting
    return has_successor or _takes_over_socket(state, now)


def _drain_seconds(state: State, now: float) -> float:
    """How long handlers may go on: what is configured, what the platform leaves, and never past a deadline that stands."""
    limits = [state.settings.drain_seconds]
    if state.stopping_since is not None:
        reserve = DRAIN_GRACE_SECONDS + EXIT_SECONDS / 3
        limits.append(state.stopping_since + STOP_SECONDS - reserve - now)
    term = state.term
    if term is not None and (term.session != state.session.id or not state.session.open):
        limits.append(term.deadline - 1.0 - now)
    return max(0.0, min(limits))


def _plan_lead(
    state: State, now: float, reason: m.EndReason | None, fresh: Worker | None
) -> Iterator[m.Action]:
    term = state.term
    if term is None or term.worker is not None or reason is not None or not owns(state, now):
        return
    if fresh is None or not fresh.accepting or state.token_refused:
        return
    polls = state.settings.mode is m.Mode.POLLING
    if polls and not term.registration.asserted:
        return
    yield m.Lead(
        worker=fresh.id,
        term=term.uuid,
        number=term.number,
        deadline=term.deadline,
        recover_at=term.recover_at,
        poll=polls,
    )


def _plan_tellings(state: State, now: float) -> Iterator[m.Action]:
    """What workers and the public port should know, where that differs from what they were told."""
    said = health(state, now)
    for worker in state.workers:
        if worker.accepting_at is None or worker.exit_at is not None or worker.kill_at is not None:
            continue
        if worker.told_health != said:
            yield m.TellHealth(worker=worker.id, health=said)
        term = state.term
        leads = term is not None and term.worker == worker.id and not worker.term_ended
        if leads and term is not None and worker.told_deadline < term.deadline:
            yield m.Extend(worker=worker.id, term=term.uuid, deadline=term.deadline)
    since = state.unaccepted_since
    serve = since is not None and now - since >= UNACCEPTED_SECONDS
    if serve != state.serving_unavailable:
        yield m.ServeUnavailable(on=serve)
