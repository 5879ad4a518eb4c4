"""All decisions of the supervisor. Pure: facts and the time in, actions out.

        events ──► observe ──► State ──► plan(state, now) ──► actions ──► shells ──► events
              (observation.py,              │                    │
               call_observation.py)         └──── begin ◄────────┘   (state.py)

Level-triggered: `plan` compares what should be with what is known to be, and never asks how it came to be so. "The webhook is
asserted" is wanted of every term that has no assertion yet, whichever way led into it: the lock was free at the first boot, or
came after an hour, or was lost and taken again. There is no transition to miss.

A term's life, with the facts that carry it from line to line:

    lock held, an accepting worker that never led, nobody left who led     ► BeginTerm (or with the lock: WaitForLock)
    term begun                                                             ► Lead(worker), RecordRegistration
    registration recorded, not asserted                                    ► SetWebhook
    a reason to end (`end_reason`), the leader still accepts alone         ► SpawnWorker: a successor on the socket
    ... the successor accepts                                              ► StopAccepting(leader)
    ... the leader's connections are closed                                ► EndTerm(leader), ExitWorker(leader)
    the leader is reaped                                                   ► CloseTerm, then ReleaseLock or BeginTerm

The decisions are in nine files, which are one; but for the facts themselves, and a constant, nobody enters by another door:

    state                             the facts
    observation, call_observation     how events change them. Some things can be told only in that moment, and are decided
                                      there: a pause, a conflict, that this process cannot run at all (`State.fatal`)
    readings                          the questions: who owns, what may be called, why a term should end
    session_plan, workers_plan        what to do: on the lock's session and at Telegram; with the workers
    succession, restart               who should own next; when a worker is started again
    core                              the whole, and the ends that concern all of them

`plan` is a fixed point of itself: once every action it gave is begun, it gives none until a fact or the time changes (tested
over all reachable states). It does not promise that an action succeeds, nor that it is carried out before the next event.
"""

from __future__ import annotations

from collections.abc import Iterator

from supervisor import messages as m
from supervisor import restart
from supervisor.observation import observe, see
from supervisor.readings import (
    FAREWELL_SECONDS,
    STOP_SECONDS,
    asks_for_itself,
    end_reason,
    health,
    holder,
    may_call,
    owns,
    ready,
    says_farewell,
    webhook_kept_for,
    why_not_storing,
)
from supervisor.session_plan import Ids, may_own_now, plan_call, plan_session
from supervisor.state import State, begin
from supervisor.workers_plan import plan_tellings, plan_workers

__all__ = [
    "asks_for_itself",
    "end_reason",
    "health",
    "holder",
    "may_call",
    "may_own_now",
    "owns",
    "plan",
    "ready",
    "step",
    "webhook_kept_for",
    "why_not_storing",
]


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
    if (exit_process := _finished(state, now)) is not None:
        return (exit_process,)
    ids = Ids(state.next_id)
    actions: list[m.Action] = []
    session = plan_session(state, now, ids)
    if session is not None:
        actions.append(session)
    if isinstance(session, m.CloseSession):
        return tuple(actions)
    call = plan_call(state, now, ids)
    if call is not None:
        actions.append(call)
    actions.extend(plan_workers(state, now, ids))
    actions.extend(plan_tellings(state, now))
    return tuple(actions)


def _fatal(state: State, now: float) -> m.ExitProcess | None:
    """Why everything ends at once, if so."""
    if state.fatal is not None:
        return state.fatal
    if state.stop_immediately:
        return m.ExitProcess(code=0)
    if state.stopping_since is not None:
        return m.ExitProcess(code=0) if now - state.stopping_since >= STOP_SECONDS else None
    ended = state.restarts.counted
    if not state.ever_accepted and ended >= restart.CRASHES_BEFORE_NEVER_UP:
        fault = f"BOT_APP never came up: the worker ended {ended} times, last with: {state.last_crash}"
        return m.ExitProcess(code=2, faults=(fault,))
    crashes = state.restarts.count(now)
    fails = state.session.lead_failed or not any(w.accepting for w in state.workers)
    if crashes >= restart.CRASHES_BEFORE_EXIT and fails:
        if not state.ever_accepted:
            # For want of a process, most of these: what began has its own limit above.
            remedy = "raise the limit of processes (ulimit -u, or pids.max of the container) or of memory"
            fault = f"no worker could be started, {crashes} times, last with: {state.last_crash}; {remedy}"
            return m.ExitProcess(code=2, faults=(fault,))
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


def _finished(state: State, now: float) -> m.ExitProcess | None:
    """The end of an orderly stop: nothing runs, nothing is held, and others know."""
    if state.stopping_since is None or state.workers or state.term is not None or state.call is not None:
        return None
    if state.session.lock_held or says_farewell(state, now):
        return None
    # An opening may be cut off: it leaves nothing behind. So may an announcement, once its time is over. A wait for the lock
    # may not, since the server could still grant it before it notices that we are gone.
    if isinstance(state.session.busy, m.Announce):
        return m.ExitProcess(code=0) if now - state.stopping_since >= FAREWELL_SECONDS else None
    if not (state.session.busy is None or isinstance(state.session.busy, m.OpenSession)):
        return None
    return m.ExitProcess(code=0)
