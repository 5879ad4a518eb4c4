"""What is to be done with the workers. Pure: a part of `supervisor.core`.

One accepts, and at most one leads. One that is to leave is led out step by step - its replacement accepts, it stops accepting,
its connections close, its term ends, it exits - and whatever hangs at a step is killed.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.wire import ANSWER_SECONDS, DRAIN_GRACE_SECONDS, HANDOVER_LINGER_SECONDS
from supervisor import messages as m
from supervisor.readings import (
    CLOSE_SECONDS,
    STOP_SECONDS,
    UNACCEPTED_SECONDS,
    UNUSED_LOCK_SECONDS,
    end_reason,
    fresh_worker,
    health,
    other_code,
    owns,
    receives,
    wanted_worker,
)
from supervisor.restart import CRASHES_BEFORE_GIVING_UP
from supervisor.session_plan import Ids
from supervisor.state import State, Worker
from supervisor.succession import others_there, others_waiting

HUNG_SECONDS = 9.0
"""A worker's event loop beats every second. On PORT, where the hung worker sits, health fails when we answer in its place, a
tick after the kill: within INTERFACE.md's 10 s. HEALTH_PORT says so before."""

START_SECONDS = 120.0
"""A worker that is not up after two minutes will not be: the slowest measured start on a tenth of a core took 15 s."""

SHORT_LINGER_SECONDS = 0.5
"""In place of HANDOVER_LINGER_SECONDS where the replaced one dispatches no more: a pause in dispatch is worth more than the
last idle connection. While its term is not over yet, it gives them longer of its own accord (webhook_worker/server.py)."""

REPLACEMENT_SECONDS = 30.0
"""How long a worker whose term has ended goes on accepting for want of a replacement."""

STOP_REPLACEMENT_SECONDS = 6.0
"""While stopping: how long a leader dispatches on for want of a replacement."""

EXIT_SECONDS = 3.0
"""What a worker may take for its exit, after its drain and DRAIN_GRACE_SECONDS."""

HEARD_SECONDS = 0.5
"""So long after a standstill this process kills no worker: within two ticks it surely hears the words that came meanwhile. Nor
is a kill needed where a term's deadline has passed: its worker has ended it by itself, or has been killed by its own
lifeline."""

OVERTAKEN_SECONDS = 5.0
"""An overtaken worker is killed so long after the other one accepts. If it comes up before, it is led out like any other, and
answers the requests that it has accepted by then."""

CUT_SECONDS = 0.1
"""A drain that began before the stop is shortened if it would last longer than the stop leaves it, by more than this: a smaller
difference may be mere rounding, and would be told to the worker again and again."""

AWAY_DRAIN_SECONDS = 3.0
"""Where the worker does not reach the database. The end of what runs could not be committed, so it runs again whatever time it
gets; but with no time at all the bot's jobs would be cut, and the last save of its persistence with them."""

MOST_WORKERS = 3
"""At once: one that leaves, one that accepts or is imported, and one that is being killed or receives meanwhile. More
would not fit beside a bot in 512 MB."""

_GRACEFUL = frozenset(
    {
        m.EndReason.REPLACED,
        m.EndReason.HANDED_OVER,
        m.EndReason.HANDED_OVER_ON_REQUEST,
    }
)


def _leader(state: State) -> Worker | None:
    return None if state.term is None else state.worker(state.term.worker)


def takes_over_socket(state: State, now: float) -> bool:
    """While stopping: whether a fresh worker goes on accepting, so that the leader can leave and the lock be free at once."""
    since = state.stopping_since
    return (
        since is not None
        and state.settings.linger_seconds > 0
        and others_there(state.peers, state.settings.instance_id)
        and now - since < STOP_REPLACEMENT_SECONDS
    )


def plan_workers(state: State, now: float, ids: Ids) -> Iterator[m.Action]:
    """Kills alone, where there are any; else spawns, the next step of each worker that is to leave, and Lead."""
    kills = [kill for worker in state.workers if (kill := _plan_kill(state, now, worker)) is not None]
    if kills:
        # All else is planned without those: what is spawned receives at once, if they alone did.
        yield from kills
        return
    reason, leader, fresh = end_reason(state, now), _leader(state), fresh_worker(state)
    yield from _plan_spawn(state, now, ids, reason, leader)
    for worker in state.workers:
        if worker.kill_at is None:
            yield from _plan_worker(state, now, worker, reason)
    yield from _plan_lead(state, now, reason, fresh)


def _plan_spawn(
    state: State,
    now: float,
    ids: Ids,
    reason: m.EndReason | None,
    leader: Worker | None,
) -> Iterator[m.Action]:
    if len(state.workers) >= MOST_WORKERS or now < state.restarts.next_spawn_at:
        return
    wanted = wanted_worker(state)
    if wanted is not None and not _lets_all_wait(state, wanted):
        return
    if leader is not None and not leader.leaving and reason is None:
        return
    if state.stopping_since is not None and not (
        # Once the leader has ended its term the lock is free, and no other is needed to accept in its place.
        leader is not None and not leader.term_ended and takes_over_socket(state, now)
    ):
        return
    # Beside a worker that receives, the new one may build its bot first. Alone it receives first, or all requests would wait.
    yield m.SpawnWorker(worker=ids.take(), receives_at_once=not any(w.receives for w in state.workers))


def _lets_all_wait(state: State, fresh: Worker) -> bool:
    """Whether no worker receives, and none is about to before its bot is built: the one that did has ended, beside a fresh
    worker that was spawned to build its bot first. Then another one is spawned, and receives until either of them accepts."""
    receives = any(w.receives or (w.receives_at_once and not w.leaving) for w in state.workers)
    # Only once. If that one crashes too, there may be no memory for two, and each further crash would count toward the limits.
    crashes = sum(at >= fresh.spawned_at for at in state.restarts.crashes)
    return state.stopping_since is None and not receives and crashes <= 1


def _plan_kill(state: State, now: float, worker: Worker) -> m.KillWorker | None:
    if worker.kill_at is not None or now - state.resumed_at < HEARD_SECONDS:
        return None

    def kill(reason: str, *, crash: bool) -> m.KillWorker:
        return m.KillWorker(worker=worker.id, reason=reason, crash=crash)

    term = state.term
    leads = term is not None and term.worker == worker.id
    # While a bot is imported, whatever it does to the interpreter meanwhile, START_SECONDS alone are the limit.
    if (
        worker.last_beat_at is not None
        and worker.accepting_at is not None
        and worker.exit_at is None
        and now - worker.last_beat_at >= HUNG_SECONDS
    ):
        return kill(f"its event loop has been blocked for {HUNG_SECONDS:g} s", crash=True)
    if worker.doomed_at is not None and now - worker.doomed_at >= EXIT_SECONDS:
        return kill(f"it cannot go on, and did not exit within {EXIT_SECONDS:g} s", crash=True)
    # A standstill is no time of a start, whether the worker stood still as well or not.
    if worker.accepting_at is None and now - max(worker.spawned_at, state.resumed_at) >= START_SECONDS:
        return kill(f"it was not up within {START_SECONDS:g} s", crash=True)
    if not worker.reached and (state.stopping_since is not None or worker.generation != state.generation):
        takes_over = state.stopping_since is not None and takes_over_socket(state, now)
        return None if takes_over else kill("it is no longer wanted, and not up yet", crash=False)
    if not worker.reached and _is_overtaken(state, now, worker):
        return kill("one that was spawned later is up", crash=False)
    if leads and term is not None and not worker.term_ended and now >= term.deadline:
        return kill("its term's deadline passed", crash=False)
    if worker.end_term_at is not None and not worker.term_ended:
        limit = worker.drain_seconds + DRAIN_GRACE_SECONDS
        if now - worker.end_term_at >= limit:
            return kill(f"its handlers did not end within {limit:g} s", crash=False)
    if worker.exit_at is not None and now - worker.exit_at >= EXIT_SECONDS:
        return kill(f"it did not exit within {EXIT_SECONDS:g} s", crash=False)
    return None


def _is_overtaken(state: State, now: float, worker: Worker) -> bool:
    """Whether another was up sooner, which was spawned to receive meanwhile: a hand-over would wait for this one instead."""
    later = (
        w for w in state.workers if w.id > worker.id and w.generation == worker.generation and not w.leaving
    )
    return any(
        w.accepting and w.accepting_at is not None and now - w.accepting_at >= OVERTAKEN_SECONDS
        for w in later
    )


def _plan_worker(state: State, now: float, worker: Worker, reason: m.EndReason | None) -> Iterator[m.Action]:
    """Lead one worker out, step by step, if it is to leave; the steps are in the module's docstring."""
    if not worker.reached:
        return
    leads = state.term is not None and state.term.worker == worker.id
    if worker.led is None and state.stopping_since is None and not _is_surplus(state, worker, reason):
        return
    if leads and reason is None:
        return
    ended = reason if leads else None
    if worker.stop_accepting_at is None and _may_stop_accepting(state, now, worker):
        serves_on = worker.end_term_at is None and not worker.term_ended and state.stopping_since is None
        linger = HANDOVER_LINGER_SECONDS if serves_on else SHORT_LINGER_SECONDS
        yield m.StopAccepting(worker=worker.id, linger_seconds=linger, reason=ended)
        return
    closed = worker.connections_closed or (
        worker.stop_accepting_at is not None
        and now - worker.stop_accepting_at >= worker.linger_seconds + _answer_seconds(state, worker)
    )
    if leads and worker.end_term_at is None and worker.lead_failure is None:
        if closed or not _ends_gracefully(state, now, reason):
            yield m.EndTerm(worker=worker.id, drain_seconds=_drain_seconds(state, now, reason), reason=ended)
        return
    if (
        leads
        and state.stopping_since is not None
        and not worker.term_ended
        and worker.end_term_at is not None
    ):
        # Its drain began before we were asked to stop, and may be longer than what is left now.
        left_seconds = _drain_seconds(state, now, reason)
        if worker.end_term_at + worker.drain_seconds - now > left_seconds + CUT_SECONDS:
            yield m.EndTerm(worker=worker.id, drain_seconds=left_seconds, reason=ended)
            return
    over = worker.led is None or worker.term_ended
    if over and closed and worker.exit_at is None:
        yield m.ExitWorker(worker=worker.id)


def _answer_seconds(state: State, worker: Worker) -> float:
    """How long it may take, beyond its linger, to answer what came before; at a stop, as long as term and lock can be freed."""
    if state.stopping_since is None or worker.stop_accepting_at is None:
        return ANSWER_SECONDS
    until = state.stopping_since + STOP_SECONDS - CLOSE_SECONDS
    left_seconds = until - worker.stop_accepting_at - worker.linger_seconds
    return max(0.0, min(ANSWER_SECONDS, left_seconds))


def _is_surplus(state: State, worker: Worker, reason: m.EndReason | None) -> bool:
    """A worker that never led and is not needed: beside a leader who stays, or beside a better one."""
    wanted, leader = wanted_worker(state), _leader(state)
    if leader is not None and reason is None and leader.accepting:
        return True
    return wanted is not None and wanted.id != worker.id and wanted.accepting


def _may_stop_accepting(state: State, now: float, worker: Worker) -> bool:
    others = [w for w in state.workers if w.accepting and w.id != worker.id and not w.leaving]
    if others:
        # An instance that stops accepts for as long as it lingers. The last of the workers that never led does that.
        is_last = not any(w.led is None and w.id > worker.id for w in others)
        return state.stopping_since is None or worker.led is not None or not is_last
    if state.stopping_since is not None:
        lingered = now - state.stopping_since >= state.settings.linger_seconds
        drained = all(w.led is None or w.term_ended for w in state.workers)
        return lingered and drained
    # Its replacement does not come: leave without it rather than be in the way of a new term for ever.
    told_long_ago = worker.end_term_at is not None and now - worker.end_term_at >= REPLACEMENT_SECONDS
    # Where the lock is gone too, it stores for whoever has it, and its memory may be what its replacement lacks.
    is_in_the_way = not state.session.lock_held and _has_no_replacement(
        state, now, worker, REPLACEMENT_SECONDS
    )
    return told_long_ago or is_in_the_way or _keeps_others_waiting(state, now, worker)


def _has_no_replacement(state: State, now: float, worker: Worker, limit_seconds: float) -> bool:
    """Whether nothing has come up since the end of the worker's term: its replacements crashed, or have had that time."""
    if worker.term_ended_at is None:
        return False
    # While it lives all crashes are its replacements'.
    crashes = sum(at >= worker.term_ended_at for at in state.restarts.crashes)
    # The pause before a spawn is none of that time: it is longer where starts are put off.
    since = max(worker.term_ended_at, state.restarts.next_spawn_at)
    return crashes >= CRASHES_BEFORE_GIVING_UP or now - since >= limit_seconds


def _keeps_others_waiting(state: State, now: float, worker: Worker) -> bool:
    """Whether others wait for the lock, which we hold only because this worker still accepts after the end of its term.

    Where nobody waits it goes on storing for as long as it takes: its leaving would let no other worker lead sooner.
    """
    if not state.session.lock_held:
        return False
    if not others_waiting(state.peers, state.settings.instance_id):
        return False
    if now < state.restarts.next_lead_at and other_code(state, now) is None:
        return False  # Telegram would tell the others the same
    return _has_no_replacement(state, now, worker, UNUSED_LOCK_SECONDS)


def _ends_gracefully(state: State, now: float, reason: m.EndReason | None) -> bool:
    """Whether the leader goes on dispatching until its connections are closed."""
    fresh = fresh_worker(state)
    has_successor = fresh is not None and fresh.accepting
    if reason is m.EndReason.TOKEN_REFUSED:
        # Its handlers can do nothing at Telegram, the other instance's could. A replacement that does not come up is not waited
        # for: the same token may be the reason.
        is_new = fresh is None or now - fresh.spawned_at < UNUSED_LOCK_SECONDS
        return has_successor or (is_new and state.restarts.count(now) == 0)
    if reason in _GRACEFUL:
        return True
    if reason is not m.EndReason.STOPPING:
        return False
    return has_successor or takes_over_socket(state, now)


def _drain_seconds(state: State, now: float, reason: m.EndReason | None) -> float:
    """How long handlers may go on: what is configured, what the platform leaves, and never past a deadline that stands."""
    if reason is m.EndReason.NOT_STARTED:
        return 0.0
    limits = [state.settings.drain_seconds]
    if reason is m.EndReason.DATABASE_AWAY:
        limits.append(AWAY_DRAIN_SECONDS)
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
    if fresh is None or not fresh.accepting or state.token_refused or now < state.restarts.next_lead_at:
        return
    polls = state.settings.polls
    if polls and not term.registration.asserted:
        return
    yield m.Lead(
        worker=fresh.id,
        term=term.uuid,
        deadline=term.deadline,
        recover_at=term.recover_at,
        poll=polls,
    )


def plan_tellings(state: State, now: float) -> Iterator[m.Action]:
    """What workers and the public port should know, where that differs from what they were told."""
    said = health(state, now)
    one_accepts = any(w.accepting for w in state.workers)
    for worker in state.workers:
        # Beside one that accepts it may answer probes before we hear of it, and until it is told it says that it is starting.
        if not (worker.reached or one_accepts) or worker.exit_at is not None or worker.kill_at is not None:
            continue
        if worker.told_health != said:
            yield m.TellHealth(worker=worker.id, health=said)
        term = state.term
        leads = term is not None and term.worker == worker.id and not worker.term_ended
        if leads and term is not None and worker.told_deadline < term.deadline:
            yield m.Extend(worker=worker.id, term=term.uuid, deadline=term.deadline)
    since = state.unaccepted_since
    serve = since is not None and now - since >= UNACCEPTED_SECONDS and not receives(state, now)
    if serve != state.serving_unavailable:
        yield m.ServeUnavailable(on=serve)
