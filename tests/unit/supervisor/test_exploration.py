"""States that no story leads to: every order of answers to a depth, and long random walks.

Here the world is not honest. From any state, whatever a shell could say next is tried: every answer to what is under way, every
word and end of every worker, signals, and time. Only the invariants are judged, not what comes of it in the end.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from types import UnionType
from typing import assert_never

import pytest
from msgspec.structs import replace

from shared import wire
from supervisor import core
from supervisor import messages as m
from supervisor.observation import observe
from supervisor.state import Settings, State, Worker, initial
from tests.unit.supervisor import invariants
from tests.unit.supervisor.modelled_process import DISPATCHING, TERM_ENDED, lead_failed
from tests.unit.supervisor.world import beat

ME = "me"
DEPTH = 7
WALKS = 150
WALK_STEPS = 100


def settings(*, polls: bool = False, delete_on_exit: bool = False) -> Settings:
    """An instance that may own."""
    return Settings(
        instance_id=ME,
        token_fingerprint="t",
        polls=polls,
        may_own=True,
        delete_on_exit=delete_on_exit,
        linger_seconds=5.0,
        drain_seconds=20.0,
        reconcile_seconds=60.0,
    )


def peer(name: str = "other", **changes: object) -> m.Peer:
    """A live, ready, waiting instance of a younger deploy."""
    made = m.Peer(
        instance_id=name,
        deploy_id="young",
        token_fingerprint="t",
        ready=True,
        waiting=True,
        candidate=True,
        age_seconds=1.0,
        silent_seconds=0.0,
        handed_over_seconds=None,
    )
    return replace(made, **changes)


MYSELF = peer(ME, deploy_id="mine", waiting=False, age_seconds=100.0)
COMPANY: tuple[tuple[tuple[m.Peer, ...], float | None], ...] = (
    ((MYSELF,), None),
    ((MYSELF, peer()), None),
    ((MYSELF, peer(deploy_id="mine")), None),
    ((MYSELF, peer(deploy_id="mine")), 1.0),
    ((MYSELF, peer(token_fingerprint="t2", deploy_id="mine")), None),
)
"""Who is there, and how long ago the owner was asked to hand over."""


def session_events(state: State, now: float) -> Iterator[m.Event]:
    """What the lease could say."""
    session, sent = state.session, state.session.busy_since
    if session.open and session.id is not None:
        yield m.SessionLost(at=now, session=session.id, reason="gone")
    busy = session.busy
    if busy is None:
        return
    yield m.SessionFailed(at=now, id=busy.id, reason="broken")
    match busy:
        case m.OpenSession(id=id_):
            yield m.SessionOpened(at=now, id=id_)
        case m.Announce(id=id_):
            for peers, asked in COMPANY:
                yield m.Announced(
                    at=now,
                    id=id_,
                    sent_at=sent,
                    peers=peers,
                    holder=None,
                    handover_requested_seconds=asked,
                )
            yield m.Announced(
                at=now,
                id=id_,
                sent_at=sent,
                peers=COMPANY[-1][0],
                holder="other",
                handover_requested_seconds=None,
            )
        case m.TryLock(id=id_) | m.WaitForLock(id=id_, then=None):
            yield m.LockAcquired(at=now, id=id_, sent_at=sent)
            yield m.LockBusy(at=now, id=id_, sent_at=sent)
        case m.BeginTerm(id=id_) | m.WaitForLock(id=id_):
            if isinstance(busy, m.WaitForLock):
                yield m.LockBusy(at=now, id=id_, sent_at=sent)
            uuid = f"term-{id_}"
            yield m.TermBegun(at=now, id=id_, sent_at=sent, term=uuid, number=id_, recover_after_seconds=8.0)
            yield m.TermDenied(at=now, id=id_, sent_at=sent, successor="other")
        case m.CloseTerm(id=id_):
            yield m.TermClosed(at=now, id=id_, sent_at=sent)
        case m.ReleaseLock(id=id_):
            yield m.LockReleased(at=now, id=id_, sent_at=sent)
        case m.RecordRegistration(id=id_):
            yield m.RegistrationRecorded(at=now, id=id_, sent_at=sent)
        case m.ConfirmRegistration(id=id_):
            yield m.RegistrationConfirmed(at=now, id=id_, sent_at=sent)
        case _:
            assert_never(busy)


def call_events(state: State, now: float) -> Iterator[m.Event]:
    """What the registrar could say."""
    call = state.call
    if call is None:
        return
    for is_told in (False, True):
        yield m.CallRetrying(at=now, id=call.id, reason="429", retry_seconds=30.0, is_told=is_told)
    for fault in m.CallFault:
        yield m.CallFailed(at=now, id=call.id, fault=fault, reason="refused")
    match call:
        case m.SetWebhook(id=id_) | m.DeleteWebhook(id=id_):
            yield m.WebhookAsserted(at=now, id=id_, changed=True)
        case m.VerifyIdentity(id=id_):
            yield m.IdentityVerified(at=now, id=id_, bot_id=7, username="menu_bot")
        case m.CompareWebhook(id=id_):
            for drift in (None, "another URL is registered"):
                facts = m.WebhookFacts(drift is None, drift, 0, None)
                yield m.WebhookCompared(at=now, id=id_, facts=facts)
        case _:
            assert_never(call)


def worker_events(state: State, now: float) -> Iterator[m.Event]:
    """What the workers could say, or do."""
    for worker in state.workers:
        yield m.WorkerExited(at=now, worker=worker.id, status="exit status 1", chance=0.5)
        for message in words(worker):
            yield m.WorkerSaid(at=now, worker=worker.id, message=message)


def words(worker: Worker) -> Iterator[wire.ToSupervisor]:
    """What that one could say."""
    if worker.faults:
        return
    if not worker.reached:
        yield wire.Receiving()
    if worker.accepting_at is None:
        if worker.stop_accepting_at is not None and not worker.connections_closed:
            yield wire.ConnectionsClosed()
        yield wire.Accepting()
        yield wire.StartFailed(faults=("no",))
        return
    yield beat()
    if worker.dispatching:
        yield beat(storing=False, dispatch_fault="too many connections")
    if worker.led is not None and not worker.dispatching and worker.lead_failure is None:
        yield DISPATCHING
        for transient, told_seconds, of_get_me in (
            (False, None, False),
            (True, None, False),
            (True, 30.0, False),
            (True, 30.0, True),
        ):
            yield lead_failed(
                "RuntimeError: post_init raised",
                transient=transient,
                retry_after_seconds=told_seconds,
                of_get_me=of_get_me,
            )
    if worker.stop_accepting_at is not None and not worker.connections_closed:
        yield wire.ConnectionsClosed()
    if worker.led is not None and not worker.term_ended:
        yield TERM_ENDED
        yield wire.SuspectRunning(running=not worker.suspect)


def possible_events(state: State, now: float) -> list[m.Event]:
    """Everything that could happen next."""
    events = [*session_events(state, now), *call_events(state, now), *worker_events(state, now)]
    if state.term is not None:
        of_telegram: tuple[wire.ToSupervisor, ...] = (wire.ForeignRegistration(), wire.TokenRefused())
        events += [m.WorkerSaid(at=now, worker=0, message=message) for message in of_telegram]
    return [*events, m.StopRequested(at=now), m.ReplacementRequested(at=now), m.Ticked(at=now)]


def owning(configuration: Settings) -> tuple[State, float, invariants.History]:
    """A state in which a worker leads and its webhook is asserted, to explore from."""
    state, now, history = initial(configuration, 0.0), 0.0, invariants.History()
    while state.term is None or not state.term.registration.confirmed or state.term.worker is None:
        now += 0.01
        events = possible_events(state, now)
        good = [e for e in events if not (is_bad(e) or isinstance(e, _ASKED) or says(e, wire.Beat))]
        event = good[0]
        before = state
        state, actions = core.step(before, event, now)
        invariants.check(before, event, state, actions, now, history)
        assert now < 5.0, "does not come to own"
    return state, now, history


def says(event: m.Event, kind: UnionType | type[wire.Message]) -> bool:
    """Whether a worker said such a thing."""
    return isinstance(event, m.WorkerSaid) and isinstance(event.message, kind)


def is_bad(event: m.Event) -> bool:
    """Whether no good life has it."""
    return isinstance(event, _BAD) or says(event, _BAD_WORDS)


_BAD = m.SessionLost | m.SessionFailed | m.CallFailed | m.CallRetrying | m.WorkerExited
_BAD_WORDS = (
    wire.StartFailed
    | wire.LeadFailed
    | wire.TermEnded
    | wire.SuspectRunning
    | wire.ForeignRegistration
    | wire.TokenRefused
)
_ASKED = m.StopRequested | m.ReplacementRequested

CONFIGURATIONS = [settings(), settings(delete_on_exit=True), settings(polls=True)]


@pytest.mark.parametrize("from_owning", [False, True], ids=["from the start", "from owning"])
def test_every_order_of_events_to_a_depth_keeps_the_invariants(from_owning: bool) -> None:
    """All that could happen, in every order, without regard to likelihood."""
    configuration = settings()
    start = owning(configuration) if from_owning else (initial(configuration, 0.0), 0.0, invariants.History())
    frontier = [start]
    seen: set[State] = set()
    for _ in range(DEPTH):
        following = []
        for state, now, history in frontier:
            later = now + 0.3
            for event in possible_events(state, later):
                after, actions = core.step(state, event, later)
                if after in seen:
                    continue
                seen.add(after)
                branch = dataclasses.replace(
                    history, leads=set(history.leads), terms_led=set(history.terms_led)
                )
                invariants.check(state, event, after, actions, later, branch)
                if after.exiting is None:
                    following.append((after, later, branch))
        # All of the first levels; of the later ones, too many to visit all, a fixed sample.
        sample = random.Random(7)
        frontier = following if len(following) <= 120 else sample.sample(following, 120)
    assert len(seen) > 2000


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=["webhook", "delete on exit", "polling"])
def test_random_walks_keep_the_invariants(configuration: Settings) -> None:
    """Hundreds of long lives in which anything can happen at any time; every seed is the same life each time."""
    for seed in range(WALKS):
        chance = random.Random(seed)
        state, now, history = initial(configuration, 0.0), 0.0, invariants.History()
        try:
            for _ in range(WALK_STEPS):
                now += chance.choice((0.01, 0.01, 0.25, 1.0, 4.0)) if chance.random() < 0.97 else 30.0
                events = possible_events(state, now)
                good = [e for e in events if not (is_bad(e) or isinstance(e, _ASKED))]
                event = chance.choice(good if chance.random() < 0.85 else events)
                before = state
                state, actions = core.step(before, event, now)
                invariants.check(before, event, state, actions, now, history)
                if state.exiting is not None:
                    break
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc


def test_late_answers_change_nothing() -> None:
    """Every answer of a life, told once more at every later moment, leaves the facts as they are."""
    state, now, history = initial(settings(), 0.0), 0.0, invariants.History()
    chance = random.Random(3)
    answers: list[m.Event] = []
    for _ in range(320):
        now += 0.4
        events = possible_events(state, now)
        good = [e for e in events if not (is_bad(e) or isinstance(e, m.StopRequested))]
        lost = [e for e in events if isinstance(e, m.SessionLost | m.CallFailed)]
        event = chance.choice(good if chance.random() < 0.95 or not lost else lost)
        if chance.random() < 0.5:
            event = good[0]
        before = state
        state, actions = core.step(before, event, now)
        invariants.check(before, event, state, actions, now, history)
        if hasattr(event, "id"):
            answers.append(event)
        assert state.exiting is None
        for late in answers[-40:]:
            assert observe(state, replace(late, at=now)) == state, f"{late} changes something"
    assert len(answers) > 60


def test_words_of_a_reaped_worker_change_nothing() -> None:
    """Its socket may still have held some."""
    state, now, _ = owning(settings())
    worker = state.workers[0].id
    state, _ = core.step(
        state, m.WorkerExited(at=now, worker=worker, status="exit status 1", chance=0.5), now
    )
    for event in (
        m.WorkerSaid(at=now, worker=worker, message=wire.Accepting()),
        m.WorkerSaid(at=now, worker=worker, message=beat(completed=1)),
        m.WorkerSaid(at=now, worker=worker, message=TERM_ENDED),
        m.WorkerExited(at=now, worker=worker, status="exit status 1", chance=0.5),
    ):
        assert observe(state, event) == state
