"""The database is away for a worker, and not for the session of its lock: who owns, who is handed over to, who waits."""

from __future__ import annotations

import itertools

import pytest

from supervisor import messages as m
from supervisor.readings import OTHER_STORES_SECONDS, UNUSED_LOCK_SECONDS
from tests.unit.supervisor.courses import owner_and_standby, settle
from tests.unit.supervisor.stories import FAULTS, Fault, expected_exit, stop, stop_twice
from tests.unit.supervisor.test_status import seen
from tests.unit.supervisor.world import Instance, World

SOON = UNUSED_LOCK_SECONDS + 3.0
A_LOOK = 2.5  # an owner looks at the others with every announcement
LONG = 600.0


def given_up(instance: Instance) -> list[float]:
    """When it gave up the lock."""
    return [at for at, action in instance.actions if isinstance(action, m.ReleaseLock) and action.gave_up]


def test_b14_an_owner_that_cannot_dispatch_gives_up_to_one_that_stores() -> None:
    """Its lock's session lives, so that nothing else would end its term; and it leaves the lock to the other for a minute."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.dispatch_is_away = True
    world.run(2.0)
    assert seen(owner)["worker"]["dispatch_fault"] == "too many connections"
    assert world.run_until(lambda: standby.dispatching is not None, SOON) > UNUSED_LOCK_SECONDS - 3.0
    assert owner.health.ok
    assert seen(owner)["worker"]["dispatch_fault"] is None
    events = [line.event for line in owner.lines if line.level == "warning"]
    assert "giving up the lock: the worker does not reach the database here" in events
    owner.dispatch_is_away = False
    settle(world, 70.0)  # it abstains
    world.run(LONG)
    assert world.owners() == [standby]
    assert len(world.database.terms_begun) == 2


def test_b14_alone_an_owner_that_cannot_dispatch_waits_in_one_term() -> None:
    """There is nobody to give up to, and no worker is the worse for it; to whoever comes it gives up at once."""
    world = World(tick_seconds=1.0, narrates=False)
    owner = world.boot("a")
    settle(world)
    owner.dispatch_is_away = True
    world.run(LONG)
    assert world.owners() == [owner]
    assert owner.health.ok
    assert len(world.database.terms_begun) == owner.count(m.SpawnWorker) == 1
    standby = world.boot("b")
    world.run_until(lambda: standby.dispatching is not None, 10.0)


def test_b14_a_database_that_is_away_for_a_while_costs_no_ownership() -> None:
    """A restart of it, or a slot that comes back; nor does each of many such times add up."""
    world = World(narrates=False)
    owner, _ = owner_and_standby(world)
    for _ in range(10):
        owner.dispatch_is_away = True
        world.run(UNUSED_LOCK_SECONDS - 3.0)
        owner.dispatch_is_away = False
        world.run(2.0)
    assert len(world.database.terms_begun) == 1
    # What the worker has said before a standstill is not counted on through it.
    owner.dispatch_is_away = True
    world.run(UNUSED_LOCK_SECONDS - 3.0)
    world.run_until(
        lambda: isinstance(owner.events[-1], m.WorkerSaid)
    )  # a beat: a tick comes before the next
    owner.dispatch_is_away = False
    world.now += 5.0
    world.run(30.0)
    assert len(world.database.terms_begun) == 1


def test_b14_nothing_is_given_up_while_the_database_is_away_for_all_workers() -> None:
    """A table that is locked, for one: the lock's sessions are answered, and nobody announces that it stores."""
    world = World(tick_seconds=1.0, narrates=False)
    owner, standby = owner_and_standby(world)
    for instance in (owner, standby):
        instance.ingest_is_away = instance.dispatch_is_away = True
    world.run(LONG)
    assert world.owners() == [owner]
    assert len(world.database.terms_begun) == owner.count(m.SpawnWorker) == 1
    for instance in (owner, standby):
        instance.ingest_is_away = instance.dispatch_is_away = False
    world.run(60.0)
    assert world.owners() == [owner]


@pytest.mark.parametrize("late", [0.0, 1.0, 2.0, 3.0])
def test_b14_an_outage_of_all_workers_that_ends_costs_no_ownership(late: float) -> None:
    """The other one's may be back before ours, and be seen to store."""
    world = World(tick_seconds=0.25, narrates=False)
    owner, standby = owner_and_standby(world)
    for instance in (owner, standby):
        instance.ingest_is_away = instance.dispatch_is_away = True
    world.run(60.0)
    standby.ingest_is_away = standby.dispatch_is_away = False
    world.run(late)
    owner.ingest_is_away = owner.dispatch_is_away = False
    world.run(60.0)
    assert world.owners() == [owner]
    assert len(world.database.terms_begun) == 1


def test_b14_one_that_stores_for_moments_only_is_given_nothing() -> None:
    """After a break it has to store for as long again."""
    world = World(tick_seconds=0.25, narrates=False)
    owner, standby = owner_and_standby(world)
    owner.dispatch_is_away = True
    for _ in range(20):
        standby.ingest_is_away = True
        world.run(A_LOOK + 0.5)
        standby.ingest_is_away = False
        world.run(A_LOOK)
    assert len(world.database.terms_begun) == 1
    took = world.run_until(lambda: owner.count(m.EndTerm) == 1)
    assert took <= OTHER_STORES_SECONDS
    world.run_until(lambda: world.owners() == [standby])


@pytest.mark.parametrize(("configured", "drain_seconds"), [(20.0, 3.0), (2.0, 2.0), (0.0, 0.0)])
def test_b14_giving_up_leaves_the_bot_a_moment_for_its_last_save(
    configured: float, drain_seconds: float
) -> None:
    """What runs could not be committed, however long it had; jobs and persistence need some time all the same."""
    world = World(narrates=False)
    owner = world.boot("a", drain=configured)
    settle(world)
    world.boot("b")
    settle(world)
    owner.dispatch_is_away = True
    _await_moment(world, owner, m.EndTerm)
    [end] = [action for _, action in owner.actions if isinstance(action, m.EndTerm)]
    assert end.drain_seconds == drain_seconds


def test_b14_giving_up_ends_the_term_in_the_step_that_decides_it() -> None:
    """So the other may leave the queue for a moment after that. A hand-over waits for the replacement, and looks beyond it."""
    world = World(narrates=False)
    owner, _ = owner_and_standby(world)
    owner.dispatch_is_away = True
    spawned = owner.count(m.SpawnWorker)
    world.run_until(lambda: owner.count(m.SpawnWorker) > spawned, SOON)
    assert owner.count(m.EndTerm) == 1


def test_b14_two_that_store_and_cannot_dispatch_take_turns_ever_more_rarely() -> None:
    """What they announce is not all. A third one that does not even store gets nothing of it."""
    world = World(tick_seconds=1.0, narrates=False)
    owner, standby = owner_and_standby(world)
    third = world.boot("c")
    settle(world)
    third.ingest_is_away = True
    for instance in (owner, standby, third):
        instance.dispatch_is_away = True
    world.run(2000.0)
    assert "c" not in [name for _, name, _ in world.database.terms_begun]
    assert len(world.database.terms_begun) < 12
    for instance in (owner, standby):
        pauses = [later - earlier for earlier, later in itertools.pairwise(given_up(instance))]
        assert pauses[-1] > 3 * pauses[0] > 300.0
        assert pauses == sorted(pauses)


def test_b14_a_lock_that_is_free_is_taken_by_one_that_does_not_store() -> None:
    """Somebody has to own; it may be for a moment only, and nobody else is there."""
    world = World()
    owner, standby = owner_and_standby(world)
    standby.ingest_is_away = True
    world.run(2.0)
    owner.kill_9()
    world.run_until(lambda: world.owners() == [standby])


@pytest.mark.parametrize("is_asked", [False, True], ids=["younger", "asked for"])
def test_b14_nothing_is_handed_over_to_one_that_does_not_store(is_asked: bool) -> None:
    """A younger deploy whose workers get no session; as soon as they do, it owns."""
    world = World()
    owner = world.boot("a", deploy="old")
    settle(world)
    young = world.boot("b", deploy="old" if is_asked else "young")
    young.ingest_is_away = True
    world.run(30.0)
    if is_asked:
        world.database.request_handover(world.now)
    world.run(30.0)
    assert world.owners() == [owner]
    assert young.health.ok
    young.ingest_is_away = False
    world.run_until(lambda: world.owners() == [young])


def _await_moment(world: World, owner: Instance, kind: type[m.Action]) -> None:
    before = owner.count(kind)
    world.run_until(lambda: owner.count(kind) > before, SOON)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", [m.EndTerm, m.StopAccepting, m.ExitWorker, m.CloseTerm, m.ReleaseLock])
def test_b14_whatever_comes_between_somebody_dispatches(fault: Fault, kind: type[m.Action]) -> None:
    """A fault at each step of giving up: one of the two reaches the database, and it owns in the end."""
    world = World(narrates=False)
    owner, standby = owner_and_standby(world)
    owner.dispatch_is_away = True
    _await_moment(world, owner, kind)
    fault(world, owner)

    def is_well() -> bool:
        return standby.dispatching is not None and world.owners() == [standby]

    world.run_until(is_well, 400.0)
    if fault in (stop, stop_twice):
        world.run_until(lambda: owner.exit_code is not None)
        assert owner.exit_code == expected_exit(owner)
