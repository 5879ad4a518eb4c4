"""Rolling deploys with one and several instances: one change of owner, no ping-pong (b17 of SCENARIOS.md)."""

from __future__ import annotations

import itertools

import pytest

from shared.wire import LEAD_SECONDS
from supervisor import messages as m
from tests.unit.supervisor.courses import settle
from tests.unit.supervisor.world import Instance, World


def deploy(world: World, names: str, deploy_id: str, **options: float) -> list[Instance]:
    """Boot instances a quarter of a second apart."""
    instances = []
    for name in names:
        instances.append(world.boot(name, deploy=deploy_id, **options))
        world.run(0.25)
    return instances


@pytest.mark.parametrize(("old", "new"), [("a", "b"), ("ab", "cd"), ("abc", "de"), ("a", "bcd")])
def test_b17_a_rolling_deploy_changes_the_owner_once(old: str, new: str) -> None:
    """New healthy, 60 s, SIGTERM to the old: the new deploy owns long before, and nothing goes to and fro."""
    world = World()
    olds = deploy(world, old, "d1")
    settle(world)
    news = deploy(world, new, "d2")
    took = world.run_until(lambda: bool(world.owners()) and world.owners()[0] in news)
    assert took < 10.0
    world.run(60.0)
    for instance in olds:
        instance.stop()
    world.run(30.0)
    settle(world)
    assert all(instance.exit_code == 0 for instance in olds)
    assert len(world.database.terms_begun) == 2


@pytest.mark.parametrize("phase_seconds", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_b17_a_standby_that_is_told_to_stop_owns_no_more(phase_seconds: float) -> None:
    """Also in the middle of a wait: a platform tells all of a deploy at once, and another of it would own for a moment."""
    world = World()
    instances = deploy(world, "abc", "d1", linger=0.0)
    settle(world)
    world.run(phase_seconds)
    for instance in instances:
        instance.stop()
    world.run(30.0)
    assert all(instance.exit_code == 0 for instance in instances)
    assert len(world.database.terms_begun) == 1


@pytest.mark.parametrize("phase_seconds", [n / 50 for n in range(30)])
@pytest.mark.parametrize("bystander", ["d1", "d2"])
@pytest.mark.parametrize("cuts_hit_begin", [False, True])
def test_b17_a_named_successor_that_is_told_to_stop_is_not_waited_for(
    bystander: str, phase_seconds: float, *, cuts_hit_begin: bool
) -> None:
    """Whether it has just left the queue, got the lock, or begun: another owns as soon as it has said that it is not ready,
    and not after the 5 s that are kept for it."""
    world = World(statement_seconds=0.02)
    world.cuts_hit_begin = cuts_hit_begin
    (owner,) = deploy(world, "a", "d1", linger=0.0)
    settle(world)
    successor = world.boot("b", deploy="d2", linger=0.0)
    world.boot("c", deploy=bystander, linger=0.0)
    world.run_until(lambda: owner.count(m.EndTerm) > 0)
    world.run(phase_seconds)
    successor.stop()
    waited = world.run_until(lambda: any(i is not successor for i in world.owners()), limit=60.0)
    assert waited < 1.0


def test_b17_a_rollback_is_a_deploy_like_any_other() -> None:
    """Old code that comes back after more than a minute is young again."""
    world = World()
    first = deploy(world, "a", "d1")[0]
    settle(world)
    second = deploy(world, "b", "d2")[0]
    world.run(60.0)
    first.stop()
    world.run(90.0)
    third = deploy(world, "c", "d1")[0]
    settle(world)
    assert world.run_until(lambda: world.owners() == [third]) < 10.0
    world.run(60.0)
    second.stop()
    world.run(30.0)
    settle(world)
    assert [name for _, name, _ in world.database.terms_begun] == ["a", "b", "c"]


def test_b17_a_rollback_at_places_that_keep_their_names_owns_before_the_last_is_replaced() -> None:
    """Pods of a StatefulSet, machines that are updated in place: the code that was there before is young again."""
    world = World()
    pods = [world.boot(f"{place}-1", deploy="d1", platform_id=place) for place in ("web-1", "web-0")]
    settle(world)
    for deploy_id, number in (("d2", 2), ("d1", 3)):
        world.run(120.0)
        for index, place in enumerate(("web-1", "web-0")):
            pods[index].stop()
            world.run(30.0)
            assert pods[index].exit_code == 0
            pods[index] = world.boot(f"{place}-{number}", deploy=deploy_id, platform_id=place)
            world.run(20.0)
            assert world.owners() == [pods[0]], f"{deploy_id} owns as soon as it is there"


def test_b17_the_old_instance_restarted_meanwhile_is_no_younger() -> None:
    """Its platform's instance id shows that it is the same."""
    world = World()
    old = world.boot("a", deploy="d1", platform_id="web-1")
    settle(world)
    new = deploy(world, "b", "d2")[0]
    world.run_until(lambda: world.owners() == [new])
    settle(world)
    old.kill_9()
    world.run(5.0)
    world.boot("a2", deploy="d1", platform_id="web-1")
    world.run(120.0)
    settle(world)
    assert world.owners() == [new]
    assert len(world.database.terms_begun) == 2


@pytest.mark.parametrize("set_by", [-3600.0, 3600.0])
def test_b16_b17_a_deploy_after_the_clock_was_set_owns_as_ever(set_by: float) -> None:
    """The database's: the old code is from an hour later, and older all the same; and nothing is handed back to it."""
    world = World()
    old = deploy(world, "ab", "d1")
    settle(world)
    world.run(60.0)
    world.database_clock_seconds = set_by
    world.run(5.0)
    new = deploy(world, "cd", "d2")
    assert world.run_until(lambda: bool(world.owners()) and world.owners()[0] in new) < 10.0
    world.run(60.0)
    for instance in old:
        instance.stop()
    world.run(120.0)
    settle(world)
    assert len(world.database.terms_begun) == 2


@pytest.mark.parametrize("set_by", [-3600.0, 3600.0])
@pytest.mark.parametrize("old_age", [60.0, 86400.0])
def test_b16_b17_a_clock_that_is_set_in_the_middle_of_a_deploy_changes_nothing(
    set_by: float, old_age: float
) -> None:
    """Whether or not the old code is old enough to be from before it by its age."""
    world = World()
    old = deploy(world, "a", "d1")[0]
    world.run(1.0)
    world.database.rows["a"].first_announced_at -= old_age
    settle(world)
    new = deploy(world, "b", "d2")[0]
    world.run_until(lambda: world.owners() == [new])
    world.run(20.0)
    world.database_clock_seconds = set_by
    world.run(120.0)
    assert world.owners() == [new]
    old.stop()
    world.run(60.0)
    settle(world)
    assert len(world.database.terms_begun) == 2


@pytest.mark.parametrize("fault", ["crash", "fail"])
def test_b17_a_deploy_that_fails_as_owner_gives_back_ever_more_rarely(fault: str) -> None:
    """The old deploy owns again within seconds, and the failing one tries again after 1, 2, 4 ... minutes."""
    world = World(tick_seconds=1.0, narrates=False)
    old = deploy(world, "a", "d1")[0]
    settle(world)
    new = world.boot("b", deploy="d2")
    new.always_lead_fault = fault
    world.run_until(lambda: new.count(m.Lead) > 0)
    took = world.run_until(lambda: world.owners() == [old] and old.dispatching is not None)
    assert took < 15.0
    world.run(1000.0)
    surrenders = [at for at, action in new.actions if isinstance(action, m.ReleaseLock) and action.gave_up]
    pauses = [later - earlier for earlier, later in itertools.pairwise(surrenders)]
    assert 3 <= len(surrenders) <= 5
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(pauses))
    assert new.exit_code is None


@pytest.mark.parametrize("after", [number / 20 for number in range(42)])
def test_b17_a_deploy_that_hangs_as_owner_gives_back_after_one_try(after: float) -> None:
    """Also where the old one is just then between two of its waits for the lock: one moment in a heartbeat's time."""
    world = World(statement_seconds=0.05, narrates=False)
    old = world.boot("old", deploy="d0", start_seconds=1.0)
    world.run(12.0 + after)
    new = world.boot("new", deploy="d1", start_seconds=1.0)
    new.always_lead_fault, new.failing_seconds = "hang", 0.5
    world.run_until(lambda: world.owners() == [new], 60.0)
    took = world.run_until(lambda: world.owners() == [old] and old.dispatching is not None, 400.0)
    assert took < 1.2 * LEAD_SECONDS


def test_b17_a_replacement_that_cannot_come_up_costs_nobody_the_owner() -> None:
    """The old instance has no room for a second worker: it dispatches on, as long as it has to."""
    world = World(tick_seconds=1.0, narrates=False)
    old = deploy(world, "a", "d1")[0]
    settle(world)
    old.always_spawn_fault = "crash"
    deploy(world, "b", "d2")
    world.run(300.0)
    assert old.exit_code is None
    assert old.dispatching is not None
    old.stop()
    world.run_until(lambda: old.exit_code == 0)
    settle(world)


def test_b17_a_successor_between_two_waits_is_a_successor_still() -> None:
    """It leaves the queue for milliseconds every 0.9 s; a look at just that moment must not undo a hand-over."""
    world = World()
    old = world.boot("a", deploy="d1", start_seconds=4.0)
    settle(world)
    new = deploy(world, "b", "d2")[0]
    world.run_until(lambda: old.count(m.SpawnWorker) == 2)
    row = world.database.rows["b"]
    queued = list(world.database.queue)
    world.database.queue.clear()
    row.session = None
    world.run_until(lambda: any(p.instance_id == "b" and not p.waiting for p in old.state.peers))
    assert queued
    world.run_until(lambda: world.owners() == [new])
    assert old.count(m.SpawnWorker) == 2
    assert len(world.database.terms_begun) == 2


def test_b17_two_that_gave_up_do_not_wait_for_each_other() -> None:
    """Whoever abstains is no candidate, and nobody abstains in its favour."""
    world = World()
    owner = world.boot("a")
    settle(world)
    world.ghost_peer("ghost", deploy="d1")
    ghost = world.database.rows["ghost"]

    def announce() -> None:
        ghost.announced_at = world.now
        world.at(2.0, announce)

    announce()
    owner.always_lead_fault = "crash"
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "exit status 1")
    world.run_until(lambda: owner.state.abstain_until > world.now)
    owner.always_lead_fault = None
    world.run(10.0)
    assert not world.owners(), "it gave up in favour of the other"
    ghost.candidate_after, ghost.always_waiting = world.now + 500.0, False
    assert world.run_until(lambda: bool(world.owners())) < 3.0


def test_b17_whoever_prefers_another_does_not_spin() -> None:
    """A lock that is given back is not taken again at once, although the preferred one does not come."""
    world = World()
    instance = world.boot("a", deploy="d1")
    settle(world)
    world.ghost_peer("ghost")
    world.run(6.0)
    assert instance.count(m.ReleaseLock) <= 20


@pytest.mark.parametrize("linger", [0.3, 1.0, 5.0])
def test_b17_an_owner_that_is_stopped_starts_one_worker_and_no_second(linger: float) -> None:
    """The one that accepts while the lock goes to the standby; memory for more is what a small instance has not got."""
    world = World()
    owner, standby = owner_and_standby_lingering(world, linger)
    before = owner.count(m.SpawnWorker)
    owner.stop()
    world.run_until(lambda: owner.exit_code is not None)
    assert owner.exit_code == 0
    assert owner.count(m.SpawnWorker) == before + 1
    world.run_until(lambda: world.owners() == [standby])


def owner_and_standby_lingering(world: World, linger: float) -> tuple[Instance, Instance]:
    owner = world.boot("a", linger=linger)
    settle(world)
    standby = world.boot("b")
    settle(world)
    return owner, standby
