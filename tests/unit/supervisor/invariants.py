"""What must hold after every step of every test, whatever happened before.

`check` replays the actions of a step one by one over the facts, so that each is judged against the very state in which it was
decided on; then it judges the state that is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from supervisor import core
from supervisor import messages as m
from supervisor.observation import observe, see
from supervisor.state import State, begin
from supervisor.succession import others_waiting
from supervisor.workers_plan import MOST_WORKERS


@dataclass(slots=True)
class History:
    """What the facts of one moment do not show."""

    leads: set[int] = field(default_factory=set)
    terms_led: set[str] = field(default_factory=set)
    last_id: int = 0
    deleted_under: str | None = None
    none_accepts_since: float | None = None
    steps: int = 0


def check(
    before: State, event: m.Event, after: State, actions: tuple[m.Action, ...], now: float, history: History
) -> None:
    """Judge one step.

    Raises:
        AssertionError: something that must never happen did.
    """
    if isinstance(event, m.WebhookAsserted) and isinstance(before.call, m.DeleteWebhook):
        history.deleted_under = before.call.term
    state = observe(see(before, now), event) if actions else after
    if any(w.accepting for w in state.workers):
        history.none_accepts_since = None
    for action in actions:
        _check_action(state, action, now, history)
        state = begin(state, action, now)
        assert len(state.workers) <= MOST_WORKERS
        assert sum(w.led is not None for w in state.workers) <= 1, "two workers that led live at once"
    assert state == after, "step() did something other than what it said"
    # Without actions, step() ended on this very question.
    assert not actions or core.plan(after, now) == (), "not a fixed point"
    _check_health(after, now, history)
    history.steps += 1


def _check_action(state: State, action: m.Action, now: float, history: History) -> None:
    assert state.exiting is None, f"{action} after ExitProcess"
    if isinstance(action, m.SessionAction | m.CallAction):
        assert action.id > history.last_id, f"id used again: {action}"
        history.last_id = action.id
    if isinstance(action, m.SpawnWorker):
        assert action.worker > history.last_id, f"id used again: {action}"
        history.last_id = action.worker
    for kind, judge in _RULES:
        if isinstance(action, kind):
            judge(state, action, now, history)


def _live_term(state: State, term: str, now: float) -> None:
    assert state.term is not None
    assert state.term.uuid == term, "for a term that is not the present one"
    assert state.session.open
    assert state.term.session == state.session.id, "for a term of an earlier session"
    assert now < state.term.deadline, "past the deadline"


def _nobody_led(state: State, action: m.Action) -> None:
    assert all(w.led is None for w in state.workers), f"{action} while a worker that led lives"


def _statement(state: State, action: m.SessionAction, now: float, history: History) -> None:
    assert state.session.busy is None, f"{action} while {state.session.busy} is under way"
    assert state.session.open is not isinstance(action, m.OpenSession)


def _begin_term(state: State, action: m.BeginTerm, now: float, history: History) -> None:
    _nobody_led(state, action)
    assert state.session.lock_held
    assert state.term is None
    assert state.stopping_since is None
    assert any(w.accepting and not w.leaving for w in state.workers), "a term that nobody could lead"


def _wait(state: State, action: m.WaitForLock, now: float, history: History) -> None:
    assert not state.session.lock_held
    if action.then is not None:
        assert action.then.id == action.id, "its answer would not be known for what it is"
        # But for the lock, which comes with it.
        held = replace(state, session=replace(state.session, lock_held=True))
        _begin_term(held, action.then, now, history)


def _close_term(state: State, action: m.CloseTerm, now: float, history: History) -> None:
    _nobody_led(state, action)
    _live_term(state, action.term, now)


def _release(state: State, action: m.ReleaseLock, now: float, history: History) -> None:
    _nobody_led(state, action)
    assert state.session.lock_held
    assert state.term is None, "the lock is freed under a term"


def _lead(state: State, action: m.Lead, now: float, history: History) -> None:
    _live_term(state, action.term, now)
    _nobody_led(state, action)
    worker, term = state.worker(action.worker), state.term
    assert worker is not None
    assert worker.accepting
    assert not worker.leaving
    assert term is not None
    assert term.ended is None
    assert state.stopping_since is None
    assert action.worker not in history.leads, "a worker leads twice"
    assert action.term not in history.terms_led, "a term is led twice"
    assert action.deadline == term.deadline
    history.leads.add(action.worker)
    history.terms_led.add(action.term)
    assert action.poll is state.settings.polls
    if action.poll:
        assert history.deleted_under == action.term, "polls before deleteWebhook was confirmed"


def _extend(state: State, action: m.Extend, now: float, history: History) -> None:
    worker = state.worker(action.worker)
    assert worker is not None
    assert worker.led == action.term, "another's term is extended"


def _call(state: State, action: m.CallAction, now: float, history: History) -> None:
    assert state.call is None, f"{action} while {state.call} is under way"
    if isinstance(action, m.VerifyIdentity) and action.term is None:
        assert state.term is None
        assert state.stopping_since is None
        return
    assert action.term is not None
    _live_term(state, action.term, now)
    assert core.may_call(state, action, now)


def _set_webhook(state: State, action: m.SetWebhook, now: float, history: History) -> None:
    assert not state.settings.polls
    assert state.term is not None
    assert state.term.registration.recorded, "not recorded before"
    assert state.term.ended is None
    assert state.stopping_since is None


def _delete_webhook(state: State, action: m.DeleteWebhook, now: float, history: History) -> None:
    assert state.term is not None
    if state.settings.polls:
        assert state.term.registration.recorded, "not recorded before"
        assert state.term.ended is None
        return
    assert state.settings.delete_on_exit, "deleted without being asked to"
    assert state.stopping_since is not None
    _nobody_led(state, action)
    me = state.settings.instance_id
    assert not any(p.waiting and p.silent_seconds < 6 for p in state.peers if p.instance_id != me)


def _stop_accepting(state: State, action: m.StopAccepting, now: float, history: History) -> None:
    worker = state.worker(action.worker)
    assert worker is not None
    assert worker.receives, "told twice, or never accepted"
    if state.stopping_since is not None or worker.end_term_at is not None:
        return
    if worker.term_ended and (
        not state.session.lock_held or others_waiting(state.peers, state.settings.instance_id)
    ):
        return
    assert any(w.accepting for w in state.workers if w.id != worker.id), "nobody accepts any more"


def _end_term(state: State, action: m.EndTerm, now: float, history: History) -> None:
    worker = state.worker(action.worker)
    assert worker is not None
    assert worker.led is not None
    if worker.end_term_at is not None:
        assert state.stopping_since is not None, "told twice"
        assert now + action.drain_seconds < worker.end_term_at + worker.drain_seconds, (
            "told again, and not less"
        )


def _exit(state: State, action: m.ExitProcess, now: float, history: History) -> None:
    assert not state.workers, "exits beside its worker"
    assert not state.session.lock_held
    assert state.term is None


_RULES: tuple[tuple[type[m.Action | m.SessionAction | m.CallAction], Callable[..., None]], ...] = (
    (m.SessionAction, _statement),
    (m.BeginTerm, _begin_term),
    (m.WaitForLock, _wait),
    (m.CloseTerm, _close_term),
    (m.ReleaseLock, _release),
    (m.Lead, _lead),
    (m.Extend, _extend),
    (m.CallAction, _call),
    (m.SetWebhook, _set_webhook),
    (m.DeleteWebhook, _delete_webhook),
    (m.StopAccepting, _stop_accepting),
    (m.EndTerm, _end_term),
    (m.ExitProcess, _exit),
)


def check_role(said: m.Health, state: State, now: float) -> None:
    """Judge what health says of ownership.

    Raises:
        AssertionError: it says what is not so.
    """
    if said.role == "ACTIVE":
        term = state.term
        assert term is not None
        assert now < term.deadline, "claims ownership past the deadline"
        assert term.ended is None
        assert state.session.open
        assert state.session.id == term.session, "claims ownership after the session was lost"


def _check_health(state: State, now: float, history: History) -> None:
    if state.exiting is not None:
        return
    said = core.health(state, now)
    accepting = [w for w in state.workers if w.accepting]
    check_role(said, state, now)
    history.none_accepts_since = (
        None if accepting else now if history.none_accepts_since is None else history.none_accepts_since
    )
    since = history.none_accepts_since
    hung = accepting and all(w.last_beat_at is not None and now - w.last_beat_at >= 10 for w in accepting)
    if state.stopping_since is not None:
        assert not said.ok, "healthy while stopping"
    elif since is not None and (now - since >= 1 or not state.ever_accepted):
        assert not said.ok, "healthy although nobody accepts"
    elif hung:
        assert not said.ok, "healthy although its worker hangs"
    elif accepting and not (
        state.token_refused
        or state.session.lead_failed
        or (state.session.schema_failed and not state.session.ever_open)
        or all(w.term_ended for w in accepting)
    ):
        fresh = any(w.last_beat_at is not None and now - w.last_beat_at < 5 for w in accepting)
        assert said.ok or not fresh, f"{said.reason}: unhealthy although a worker accepts and beats"
    assert said.ok is (said.reason is None)
