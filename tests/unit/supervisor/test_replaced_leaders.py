"""Workers that are replaced, where the leader ends meanwhile: who receives, and who leads, until the wanted one is up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from supervisor import messages as m
from supervisor.workers_plan import START_SECONDS
from tests.unit.supervisor.courses import fail_to_start, owner_and_standby, settle
from tests.unit.supervisor.modelled_instance import FLOOD_SECONDS, LEAD_FAILURES
from tests.unit.supervisor.world import Instance, World


def spawns(owner: Instance) -> list[bool]:
    """Of every worker, whether it was to receive at once."""
    return [action.receives_at_once for _, action in owner.actions if isinstance(action, m.SpawnWorker)]


def sighup(world: World, owner: Instance) -> None:
    owner.replace_worker()


def hand_over(world: World, owner: Instance) -> None:
    world.boot("b", deploy="d2")


@pytest.mark.parametrize("course", [sighup, hand_over])
def test_b02_updates_are_taken_in_when_the_leader_dies_while_its_replacement_is_imported(
    course: Callable[[World, Instance], None],
) -> None:
    """That was to take its time, since another received; one more does now, and goes when either has its bot."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.start_seconds = 20.0
    course(world, owner)
    world.run_until(lambda: spawns(owner) == [True, False])
    owner.start_seconds = 2.0  # of the next, half of which it takes to receive
    leader = owner.dispatching
    assert leader is not None
    owner.end_worker(leader.id, "killed by SIGKILL")
    world.run_until(lambda: not any(w.receives for w in owner.state.workers), 0.1)
    assert world.run_until(lambda: any(w.receives for w in owner.state.workers)) < 1.5
    while len(owner.state.workers) > 1:
        assert any(w.receives for w in owner.state.workers)
        world.next()
    settle(world)
    assert spawns(owner) == [True, False, True]
    [overtaken] = [action for _, action in owner.actions if isinstance(action, m.KillWorker)]
    assert overtaken.reason == "one that was spawned later is up"


def test_b02_the_one_that_was_to_take_its_time_leads_if_it_is_up_first() -> None:
    """The one that receives meanwhile is then led out, with the requests in its hands."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.start_seconds = 6.0
    owner.replace_worker()
    world.run(2.0)
    leader = owner.dispatching
    assert leader is not None
    owner.end_worker(leader.id, "killed by SIGKILL")
    world.run_until(lambda: owner.dispatching is not None)
    settle(world)
    assert spawns(owner) == [True, False, True]
    first, second = sorted(owner.workers)[-2:]
    assert owner.dispatching is owner.workers[first]
    assert [a.worker for _, a in owner.actions if isinstance(a, m.ExitWorker)] == [second]
    assert owner.count(m.KillWorker) == 0


def test_b21_where_there_is_no_room_for_two_the_one_that_is_imported_is_waited_for() -> None:
    """Whatever receives beside it dies as well: once, so that it does not add up to a crash loop, and the lock stays."""
    world = World()
    owner, _ = owner_and_standby(world)
    owner.start_seconds = 12.0
    owner.replace_worker()
    world.run_until(lambda: spawns(owner) == [True, False])
    owner.start_seconds, owner.always_spawn_fault = 1.0, "crash"
    leader = owner.dispatching
    assert leader is not None
    owner.end_worker(leader.id, "killed by SIGKILL")
    world.run_until(lambda: owner.dispatching is not None)
    assert spawns(owner) == [True, False, True]
    assert world.owners() == [owner]
    assert owner.count(m.ReleaseLock) == 0


def test_b32_updates_are_taken_in_when_the_leader_is_killed_at_its_deadline() -> None:
    """A handler in a thread holds it up, and the replacement that a lost session asked for is being imported."""
    world = World(tick_seconds=0.25)
    owner, _ = owner_and_standby(world)
    owner.start_seconds = 20.0
    owner.ending_seconds = 60.0
    leader = owner.dispatching
    assert leader is not None
    leader.hung = True
    owner.lose_session()
    world.run_until(lambda: spawns(owner) == [True, False])
    world.run_until(lambda: not leader.alive, 9.0)
    assert spawns(owner) == [True, False, True]
    settle(world, 40.0)


def test_b21_where_the_bot_does_not_start_and_its_replacement_hangs_updates_are_taken_in() -> None:
    """The worker that stored has left for those who waited: another one receives, however long the import takes."""
    world = World()
    owner, standby = owner_and_standby(world)
    fail_to_start(owner, "fail", "hang")
    world.run_until(lambda: world.owners() == [standby])
    world.run(1.0)
    assert spawns(owner) == [True, False, True]
    assert any(w.receives for w in owner.state.workers)


def test_b02_one_that_dies_with_it_is_restarted_after_the_usual_pauses() -> None:
    """The death of several at once, for want of memory, is no reason to start ever more."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.start_seconds = 30.0
    owner.replace_worker()
    for _ in range(3):
        world.run_until(lambda: any(w.alive for w in owner.workers.values()))
        for worker in list(owner.workers.values()):
            owner.end_worker(worker.id, "killed by SIGKILL")
        world.run(0.1)
    assert len(spawns(owner)) <= 4
    settle(world, 60.0)


def test_b20_while_it_is_stopped_nothing_is_spawned_for_it() -> None:
    """What comes gets 503, and the others take it."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.start_seconds = 20.0
    owner.replace_worker()
    world.run_until(lambda: spawns(owner) == [True, False])
    owner.stop()
    leader = owner.dispatching
    assert leader is not None
    owner.end_worker(leader.id, "killed by SIGKILL")
    world.run_until(lambda: owner.exit_code == 0, 24.0)
    assert spawns(owner) == [True, False]


def test_b20_of_two_that_never_led_one_leaves_and_then_the_other() -> None:
    """A standby that is stopped while a worker replaces another: neither waits for the other to go first."""
    world = World()
    _, standby = owner_and_standby(world)
    standby.start_seconds = 3.0
    standby.replace_worker()
    world.run(1.0)
    standby.stop()
    world.run_until(lambda: standby.exit_code == 0, 12.0)
    assert standby.count(m.KillWorker) == 0


def test_b20_somebody_takes_updates_for_as_long_as_a_stop_lingers() -> None:
    """Also where two accept, neither of which is wanted any more, and the one that is wanted is not up."""
    world = World(tick_seconds=0.25)
    _, standby = owner_and_standby(world)
    standby.start_seconds = 3.8
    standby.replace_worker()
    world.run(0.5)
    standby.freeze(3.0)
    world.run(3.05)
    standby.start_seconds = 20.0
    standby.replace_worker()
    world.run_until(lambda: sum(w.accepting for w in standby.state.workers) == 2, 0.4)
    standby.stop()
    world.run(0.02)
    until = world.now + standby.state.settings.linger_seconds - 0.1
    while world.now < until:
        assert any(w.accepting and w.stop_accepting_at is None for w in standby.state.workers)
        world.next()
    world.run_until(lambda: standby.exit_code == 0, 20.0)


def test_b17_one_that_was_overtaken_keeps_no_hand_over_waiting() -> None:
    """It hangs at its import, and the worker that received meanwhile leads by now."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.always_spawn_fault = "hang"
    owner.replace_worker()
    world.run_until(lambda: spawns(owner) == [True, False])
    owner.always_spawn_fault = None
    leader = owner.dispatching
    assert leader is not None
    owner.end_worker(leader.id, "killed by SIGKILL")
    world.run_until(lambda: owner.dispatching is not None)
    newer = world.boot("b", deploy="d2")
    world.run_until(lambda: world.owners() == [newer], START_SECONDS / 4)
    assert len(owner.state.restarts.crashes) == 1  # the leader's


def test_b04_a_replacement_that_was_imported_meanwhile_is_not_late() -> None:
    """The supervisor stood still for longer than an import may take, and its worker's word is unread yet."""
    world = World(tick_seconds=0.25)
    owner = world.boot("a")
    settle(world)
    owner.start_seconds = 5.0
    owner.replace_worker()
    world.run_until(lambda: spawns(owner) == [True, False])
    owner.freeze(START_SECONDS + 10.0)
    world.run(START_SECONDS + 10.0)
    settle(world)
    assert spawns(owner)[:2] == [True, False]
    assert not [action for _, action in owner.actions if isinstance(action, m.KillWorker) and action.crash]


# ------------------------------------------------------------------------ a worker of before, until the wanted one is up


@pytest.mark.parametrize("hangs", [False, True])
def test_b21_a_replacement_that_is_to_be_replaced_leads_until_its_own_one_is_up(hangs: bool) -> None:
    """SIGHUP twice: the leader drains for the first one, which accepts; the second one is imported for long, or for good."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.replace_worker()
    world.run_until(lambda: sum(w.accepting_at is not None for w in owner.state.workers) == 2)
    first = owner.state.workers[-1].id
    owner.start_seconds, owner.always_spawn_fault = 20.0, "hang" if hangs else None
    owner.replace_worker()
    world.run_until(lambda: owner.workers[first].dispatching, 5.0)
    assert [w.generation for w in owner.state.workers] == [1, 2]
    world.run(START_SECONDS if hangs else 25.0)
    settle(world)
    assert owner.dispatching is not None
    assert (owner.dispatching.id == first) == hangs, "as ever, where the wanted one cannot come up"
    assert hangs or len(spawns(owner)) == 3
    assert owner.count(m.ReleaseLock) == 0


def test_b01_a_standby_whose_worker_is_being_replaced_takes_over_as_ever() -> None:
    """By the worker that is there; the wanted one follows when it is up, as at any replacement."""
    world = World()
    owner, standby = owner_and_standby(world)
    standby.start_seconds = 20.0
    standby.replace_worker()
    world.run(1.0)
    assert len(spawns(standby)) == 2
    owner.kill_9()
    world.run_until(lambda: world.owners() == [standby] and standby.dispatching is not None, 2.0)
    world.run(25.0)
    settle(world)
    assert standby.dispatching is standby.workers[max(standby.workers)]
    assert [a.reason for _, a in standby.actions if isinstance(a, m.CloseTerm)] == [m.EndReason.REPLACED]
    assert len(spawns(standby)) == 2


def test_b23_one_that_waits_until_it_may_lead_is_not_given_up_for_a_replacement_that_hangs() -> None:
    """Its term goes on, and it leads when the time is over."""
    world = World()
    owner = world.boot("a")
    owner.lead_fault = "flood"
    world.run_until(
        lambda: LEAD_FAILURES["flood"] in (e.message for e in owner.events if isinstance(e, m.WorkerSaid))
    )
    world.run(FLOOD_SECONDS - 60.0)
    owner.always_spawn_fault = "hang"
    owner.replace_worker()
    world.run_until(lambda: owner.dispatching is not None, 62.0)
    assert len(world.database.terms_begun) == 2
