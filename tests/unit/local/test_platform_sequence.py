"""The platform's decisions, step by step on a clock of the test's own."""

from __future__ import annotations

import pytest

from deploy.local.platform.sequence import next_deadline, observe, plan
from deploy.local.platform.service import (
    Action,
    Announce,
    DeployRequested,
    DeployStatus,
    Event,
    Exited,
    Kill,
    ProbeFailed,
    ProbePassed,
    RestartRequested,
    Route,
    ScaleRequested,
    Service,
    Spawn,
    StopRequested,
    Terminate,
    Timing,
)

TIMING = Timing()


class World:
    """A service, its clock, and all that it did."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.service = Service()
        self.done: list[tuple[float, Action]] = []

    def tell(self, *events: Event) -> list[Action]:
        """Reports events; what the platform does at once."""
        for event in events:
            self.service = observe(self.service, event, self.now, TIMING)
        self.service, actions = plan(self.service, self.now, TIMING)
        self.done += [(self.now, action) for action in actions]
        return list(actions)

    def pass_time(self, seconds: float) -> list[Action]:
        """Wakes the platform at its own deadlines only; what it does until then."""
        end = self.now + seconds
        actions: list[Action] = []
        while (at := next_deadline(self.service, self.now, TIMING)) is not None and at <= end:
            self.now = at
            actions += self.tell()
        self.now = end
        return actions + self.tell()

    def first_deploy(self, count: int = 1) -> list[str]:
        """A live deploy; the names of its instances."""
        self.tell(DeployRequested(count))
        names = [instance.name for instance in self.service.instances]
        self.tell(*(ProbePassed(name, 1) for name in names))
        return names


def test_first_deploy_is_routed_when_healthy() -> None:
    """Spawned at once; no traffic before the first passed probe, all of it after."""
    world = World()
    assert world.tell(DeployRequested(1)) == [Spawn("srv-local-1-1", 1, 1)]
    assert world.tell(ProbeFailed("srv-local-1-1", 1)) == []
    assert world.tell(ProbePassed("srv-local-1-1", 1)) == [
        Announce(1, DeployStatus.LIVE),
        Route(("srv-local-1-1",)),
    ]


def test_rolling_deploy_in_renders_order() -> None:
    """New healthy, traffic switched, 60 s later SIGTERM to the old, 30 s later SIGKILL."""
    world = World()
    [old] = world.first_deploy()
    [spawn] = world.tell(DeployRequested(1))
    assert isinstance(spawn, Spawn)
    assert world.service.routed == (old,)
    assert world.tell(ProbePassed(spawn.name, 1)) == [
        Announce(2, DeployStatus.LIVE),
        Announce(1, DeployStatus.RETIRED),
        Route((spawn.name,)),
    ]
    assert world.pass_time(59.9) == []
    assert world.pass_time(0.1) == [Terminate(old)]
    assert world.pass_time(29.9) == []
    assert world.pass_time(0.1) == [Kill(old)]
    assert world.tell(Exited(old, 1)) == []
    assert [instance.name for instance in world.service.instances] == [spawn.name]
    assert world.pass_time(10_000) == []


def test_several_instances_switch_together() -> None:
    """Traffic moves when the last of the new ones is healthy, and then all of it."""
    world = World()
    old = world.first_deploy(2)
    assert world.service.routed == tuple(old)
    first, second = (action.name for action in world.tell(DeployRequested(2)) if isinstance(action, Spawn))
    assert world.tell(ProbePassed(first, 1)) == []
    assert Route((first, second)) in world.tell(ProbePassed(second, 1))
    assert world.pass_time(60) == [Terminate(name) for name in old]


def test_a_deploy_that_is_never_healthy_is_cancelled() -> None:
    """After 15 min its instances end; the one before keeps its traffic throughout."""
    world = World()
    [old] = world.first_deploy()
    world.tell(DeployRequested(1))
    new = world.service.instances[-1].name
    world.tell(ProbeFailed(new, 1))
    assert world.pass_time(899.9) == []
    assert world.pass_time(0.1) == [Announce(2, DeployStatus.CANCELLED), Terminate(new)]
    world.tell(Exited(new, 1))
    assert world.service.routed == (old,)
    assert world.pass_time(10_000) == []


def test_a_later_deploy_overrides_one_that_boots() -> None:
    """Only the newest may become live; the one in between ends at once."""
    world = World()
    world.first_deploy()
    world.tell(DeployRequested(1))
    middle = world.service.instances[-1].name
    actions = world.tell(DeployRequested(1))
    assert Announce(2, DeployStatus.CANCELLED) in actions
    assert Terminate(middle) in actions
    assert world.tell(ProbePassed(middle, 1)) == []


def test_a_failing_instance_loses_traffic_then_its_process() -> None:
    """15 s: no requests; 60 s: SIGTERM and a new process of the same name, which gets traffic when it passes."""
    world = World()
    [name] = world.first_deploy()
    world.tell(ProbeFailed(name, 1))
    assert world.pass_time(14.9) == []
    assert world.pass_time(0.1) == [Route(())]
    assert world.pass_time(44.9) == []
    assert world.pass_time(0.1) == [Terminate(name)]
    assert world.tell(Exited(name, 1)) == [Spawn(name, 1, 2)]
    assert world.tell(ProbePassed(name, 2)) == [Route((name,))]


def test_a_probe_that_passes_again_is_forgiven() -> None:
    """Only an unbroken row of failures counts."""
    world = World()
    [name] = world.first_deploy()
    for _ in range(10):
        world.tell(ProbeFailed(name, 1))
        assert world.pass_time(14) == []
        world.tell(ProbePassed(name, 1))
    assert world.service.routed == (name,)


def test_a_process_that_dies_is_replaced_in_place() -> None:
    """At once after a long life, under the same name, and without traffic until it is healthy."""
    world = World()
    [name] = world.first_deploy()
    world.pass_time(20)
    assert world.tell(Exited(name, 1)) == [Route(()), Spawn(name, 1, 2)]
    # A late report about the process that died.
    assert world.tell(ProbePassed(name, 1)) == []
    assert world.tell(ProbePassed(name, 2)) == [Route((name,))]


def test_a_crash_loop_is_slowed_down() -> None:
    """1 s, 2 s, 4 s ... and never more than 30 s between two short lives."""
    world = World()
    [name] = world.first_deploy()
    pauses = []
    for life in range(1, 9):
        world.tell(Exited(name, life))
        begin = world.now
        while not world.service.instances[0].is_running:
            world.pass_time(0.5)
        pauses.append(world.now - begin)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_restart_keeps_the_name_and_stop_does_not_come_back() -> None:
    """The two things that an operator does to one instance."""
    world = World()
    first, second = world.first_deploy(2)
    assert world.tell(RestartRequested(first)) == [Route((second,)), Terminate(first)]
    assert world.tell(Exited(first, 1)) == [Spawn(first, 1, 2)]
    assert world.tell(ProbePassed(first, 2)) == [Route((first, second))]
    assert world.tell(StopRequested(first)) == [Route((second,)), Terminate(first)]
    assert world.tell(Exited(first, 2)) == []
    # The next deploy has as many as are left.
    assert len([a for a in world.tell(DeployRequested(1)) if isinstance(a, Spawn)]) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_scale_changes_the_number_of_the_live_deploy(count: int) -> None:
    """More are spawned and routed when healthy; fewer means SIGTERM to the newest."""
    world = World()
    names = world.first_deploy(2)
    actions = world.tell(ScaleRequested(count))
    if count == 1:
        assert actions == [Route((names[0],)), Terminate(names[1])]
        assert world.tell(Exited(names[1], 1)) == []
    else:
        [spawn] = actions
        assert isinstance(spawn, Spawn)
        assert world.tell(ProbePassed(spawn.name, 1)) == [Route((*names, spawn.name))]
    assert len(world.service.routed) == count


def test_a_retired_instance_that_crashes_comes_back_until_its_time() -> None:
    """During the overlap it is still the platform's; after it, nobody's."""
    world = World()
    [old] = world.first_deploy()
    world.pass_time(20)
    world.tell(DeployRequested(1))
    new = world.service.instances[-1].name
    world.tell(ProbePassed(new, 1))
    assert world.tell(Exited(old, 1)) == [Spawn(old, 1, 2)]
    assert world.tell(ProbePassed(old, 2)) == []
    assert world.service.routed == (new,)
    assert world.pass_time(60) == [Terminate(old)]
    world.tell(Exited(old, 2))
    assert [instance.name for instance in world.service.instances] == [new]


def test_a_retired_instance_may_be_restarted_until_its_time() -> None:
    """In its place, without traffic; a restart that is under way when its time comes is its end."""
    world = World()
    first, second = world.first_deploy(2)
    world.tell(DeployRequested(2))
    new = world.service.instances[-2].name, world.service.instances[-1].name
    world.tell(*(ProbePassed(name, 1) for name in new))
    assert world.tell(RestartRequested(first)) == [Terminate(first)]
    assert world.tell(Exited(first, 1)) == [Spawn(first, 1, 2)]
    assert world.tell(ProbePassed(first, 2)) == []
    assert world.service.routed == new
    assert world.tell(RestartRequested(second)) == [Terminate(second)]
    assert world.pass_time(60) == [Kill(second), Terminate(first)]
    assert world.tell(Exited(first, 2), Exited(second, 1)) == []
    assert tuple(instance.name for instance in world.service.instances) == new


def test_scaling_makes_the_platform_impatient_and_nobody_else() -> None:
    """The instance's own limits stay: its answer to a probe, its shutdown."""
    timing = TIMING.scaled(0.1)
    assert timing.overlap_seconds == 6
    assert timing.cancel_seconds == 90
    assert timing.shutdown_delay_seconds == TIMING.shutdown_delay_seconds
    assert timing.probe_limit_seconds == TIMING.probe_limit_seconds
