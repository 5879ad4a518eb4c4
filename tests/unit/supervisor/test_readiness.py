"""Readiness and health through a start and a replacement: what workers say of the database, and what they are told."""

from __future__ import annotations

from shared import wire
from supervisor import core
from supervisor import messages as m
from supervisor.narration import narrate
from supervisor.state import State, initial
from tests.unit.supervisor.modelled_process import SETTINGS, beat

STORES, AWAY = beat(), beat(storing=False)


class Course:
    """One instance, and what befalls its workers; the database is asked for nothing."""

    def __init__(self) -> None:
        self.state: State = initial(SETTINGS, 0.0)
        self.warnings: list[str] = []
        self.actions: list[m.Action] = []
        self.do(m.Ticked(at=0.0))

    def do(self, event: m.Event) -> None:
        before, self.now = self.state, event.at
        self.state, actions = core.step(before, event, event.at)
        self.actions = list(actions)
        lines = narrate(before, event, self.state, actions, "https://host/webhook/***")
        self.warnings += [line.event for line in lines if line.level == "warning"]

    def hear(self, message: wire.ToSupervisor, *, at: float, worker: int) -> None:
        self.do(m.WorkerSaid(at=at, worker=worker, message=message))

    @property
    def fault(self) -> str | None:
        return core.why_not_storing(self.state, self.now)

    def spawned(self, at: float) -> int:
        """The last one, whose process is there now."""
        worker = self.state.workers[-1].id
        self.do(m.WorkerSpawned(at=at, worker=worker, pid=worker))
        return worker


def test_a26_a_worker_that_has_not_looked_yet_says_nothing() -> None:
    """Nobody else has: not ready; and ready by its first beat, which says so."""
    course = Course()
    worker = course.spawned(0.1)
    assert course.fault == "no worker accepts"
    course.hear(wire.Receiving(), at=0.2, worker=worker)
    assert course.fault == "the worker has not reported yet"
    course.hear(STORES, at=0.3, worker=worker)
    assert course.fault is None
    # The bot is built: another ingest, of the same worker, which has not looked yet either.
    course.hear(wire.Accepting(), at=0.9, worker=worker)
    assert course.fault is None
    course.hear(STORES, at=1.0, worker=worker)
    assert (course.fault, course.warnings) == (None, [])


def replaced(course: Course) -> tuple[int, int]:
    """One that accepts and stores, and another, wanted by SIGHUP, that accepts now."""
    old = course.spawned(0.1)
    course.hear(wire.Accepting(), at=0.2, worker=old)
    course.hear(STORES, at=0.3, worker=old)
    course.do(m.ReplacementRequested(at=0.4))
    new = course.spawned(0.5)
    assert new != old
    course.hear(STORES, at=1.3, worker=old)
    course.hear(wire.Accepting(), at=1.4, worker=new)
    return old, new


def test_b17_an_instance_stays_ready_while_its_worker_is_replaced() -> None:
    """The old one has been told to leave, and stores; the new one has not looked yet."""
    course = Course()
    old, new = replaced(course)
    assert [w.receives for w in course.state.workers] == [False, True]
    assert course.fault is None
    course.hear(STORES, at=2.3, worker=old)
    assert course.fault is None
    course.hear(STORES, at=2.4, worker=new)
    assert (course.fault, course.warnings) == (None, [])


def test_a26_who_accepts_has_the_last_word_about_the_database() -> None:
    """As soon as it has said one: the others take nothing in any more."""
    for first, second, expected in ((STORES, AWAY, "the database is away"), (AWAY, STORES, None)):
        course = Course()
        old, new = replaced(course)
        course.hear(second, at=1.5, worker=new)
        course.hear(first, at=1.6, worker=old)
        assert course.fault == expected


def test_b06_what_a_worker_said_before_its_loop_stood_still_does_not_count() -> None:
    """And where nobody else has said anything, nobody is ready."""
    course = Course()
    replaced(course)
    for tick in range(32):
        course.do(m.Ticked(at=1.5 + tick / 4))
        assert course.fault is None
    course.do(m.Ticked(at=9.35))  # 8 s after the last beat of the old one
    assert course.fault == "the worker has not reported yet"
    course.do(m.Ticked(at=9.45))
    assert course.fault == "the worker's event loop is blocked"


def told(course: Course) -> list[tuple[int, bool]]:
    """Who is told now what health is: the worker, and whether it is good."""
    return [
        (action.worker, action.health.ok) for action in course.actions if isinstance(action, m.TellHealth)
    ]


def test_b17_a_replacement_is_told_what_health_is_before_a_probe_can_ask_it() -> None:
    """It accepts before we hear that it does, and would say that it is starting; a platform may take that for the end of us."""
    course = Course()
    old = course.spawned(0.1)
    assert told(course) == [], "nobody accepts: it is starting indeed"
    course.hear(wire.Accepting(), at=0.2, worker=old)
    assert told(course) == [(old, True)]
    course.do(m.ReplacementRequested(at=0.4))
    [spawned] = [action for action in course.actions if isinstance(action, m.SpawnWorker)]
    assert told(course) == [(spawned.worker, True)]
    assert course.actions.index(spawned) < len(course.actions) - 1, "there must be a process to be told"
    new = course.spawned(0.5)
    course.hear(wire.Accepting(), at=1.4, worker=new)
    assert told(course) == [], "as long as it is what it was told"


def test_b02_a_worker_that_comes_after_one_that_died_is_starting() -> None:
    """Until it accepts nobody does, and the supervisor's own word is for who stands in for it."""
    course = Course()
    old = course.spawned(0.1)
    course.hear(wire.Accepting(), at=0.2, worker=old)
    course.do(m.WorkerExited(at=1.0, worker=old, status="killed by SIGKILL", chance=0.5))
    for tick in range(8):
        course.do(m.Ticked(at=1.25 + tick / 4))
        assert told(course) == []
    new = course.spawned(3.1)
    assert new != old
    course.hear(wire.Receiving(), at=3.2, worker=new)
    assert [worker for worker, _ in told(course)] == [new]
