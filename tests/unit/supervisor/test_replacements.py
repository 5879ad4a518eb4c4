"""Workers that are to leave, and whose replacement does not come up: who goes on accepting, and who owns in the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from supervisor import messages as m
from supervisor.readings import UNABLE_SECONDS, UNUSED_LOCK_SECONDS
from supervisor.restart import CRASHES_BEFORE_EXIT, LONGEST_PAUSE_SECONDS
from supervisor.workers_plan import START_SECONDS
from tests.unit.supervisor.courses import owner_and_standby, revoke, settle
from tests.unit.supervisor.modelled_instance import FLOOD_SECONDS, LEAD_FAILURES
from tests.unit.supervisor.world import Instance, World


def fail_to_start(owner: Instance, failure: str, replacement: str) -> None:
    """The bot of its worker does not start after all, and no other worker comes up."""
    owner.always_spawn_fault = replacement
    worker = owner.dispatching
    assert worker is not None
    worker.dispatching = False
    owner.hear(LEAD_FAILURES[failure], worker.id)


@pytest.mark.parametrize("failure", ["fail", "away"])
@pytest.mark.parametrize(("replacement", "limit"), [("crash", 6.0), ("hang", UNUSED_LOCK_SECONDS + 2.0)])
def test_b21_b17_a_bot_that_does_not_start_and_has_no_replacement_is_given_up(
    failure: str, replacement: str, limit: float
) -> None:
    """Its worker only stores, under a term that lets nobody else dispatch: whoever waits owns, and the process lives on."""
    world = World()
    owner, standby = owner_and_standby(world)
    fail_to_start(owner, failure, replacement)
    began = world.now
    while world.owners() != [standby]:
        assert world.now - began < limit
        assert owner.count(m.StopAccepting) == 0 or world.now - began > min(3.0, limit / 2)
        world.next()
    world.run_until(lambda: standby.dispatching is not None, 1.0)
    assert sum(isinstance(a, m.ReleaseLock) and a.gave_up for _, a in owner.actions) == 1
    world.run(1.0)
    assert owner.exit_code is None
    assert "the worker is gone" in str(owner.health.reason)
    owner.always_spawn_fault = None
    settle(world, START_SECONDS + 10.0)
    assert world.owners() == [standby]


@pytest.mark.parametrize("replacement", ["crash", "hang"])
def test_b21_alone_a_bot_that_does_not_start_stores_on(replacement: str) -> None:
    """Nobody could own for it: its worker accepts until another does, or the process ends."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    settle(world)
    fail_to_start(owner, "fail", replacement)
    began = world.now
    while owner.state.exiting is None and world.now - began < 300.0:
        assert (
            any(w.accepting for w in owner.workers.values())
            or owner.state.restarts.count(world.now) >= CRASHES_BEFORE_EXIT
        )
        world.next()
    assert owner.exit_code == (4 if replacement == "crash" else None)
    if replacement == "hang":
        owner.always_spawn_fault = None
        settle(world, START_SECONDS + 10.0)


def test_b21_b10_alone_a_bot_that_does_not_start_is_the_end_although_its_session_is_lost() -> None:
    """With the lock goes the word that it failed, and no worker could queue for it: the one that stores is in the way then."""
    world = World()
    owner = world.boot("a")
    settle(world)
    fail_to_start(owner, "fail", "crash")
    world.run(5.0)
    owner.lose_session()
    world.run(300.0)
    assert owner.exit_code == 4


def test_b21_b10_what_its_replacement_lacked_was_the_memory_of_the_worker_that_stores() -> None:
    """Without the lock that leaves, in time for the next one to come up, to queue and to lead."""
    world = World()
    owner = world.boot("a")
    settle(world)
    fail_to_start(owner, "fail", "crash")
    world.run(5.0)
    owner.lose_session()
    world.run_until(lambda: not any(w.accepting for w in owner.state.workers), 40.0)
    assert owner.exit_code is None
    owner.always_spawn_fault = None
    settle(world, 60.0)
    assert world.owners() == [owner]


def test_b21_b31_a_worker_that_stores_stays_for_the_pause_before_its_replacement() -> None:
    """The pause is longer than the time that a replacement has; a database that is away is no reason to refuse probes."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.always_lead_fault, owner.start_seconds = "away", 10.0
    owner.replace_worker()
    world.run(300.0)
    world.run_until(lambda: owner.state.restarts.next_spawn_at > world.now + 20.0, 60.0)
    world.run_until(lambda: all(worker.term_ended_at is not None for worker in owner.state.workers), 5.0)
    world.stop_database(120.0)
    for _ in range(480):
        world.run(0.25)
        assert any(worker.accepting for worker in owner.state.workers)
        assert owner.health.ok


def test_b21_alone_a_bot_whose_workers_hang_at_their_start_is_told_by_health() -> None:
    """There are never crashes enough within the window for that: two minutes each."""
    world = World()
    owner = world.boot("a")
    settle(world)
    fail_to_start(owner, "fail", "hang")
    world.run(START_SECONDS)
    assert owner.health.ok, "one start may take so long"
    world.run(200.0 - START_SECONDS)
    assert owner.health.reason == "the bot does not start: killed by SIGKILL; the log says more"
    for _ in range(300):
        world.run(1.0)
        assert not owner.health.ok
        assert any(w.accepting for w in owner.state.workers)
    owner.always_spawn_fault = None
    settle(world, START_SECONDS + 10.0)


def test_b31_a_bot_that_is_put_off_and_takes_long_to_be_imported_does_not_fail_health() -> None:
    """The pause and the import together are no longer than nobody may lead."""
    assert UNABLE_SECONDS > 1.2 * LONGEST_PAUSE_SECONDS + START_SECONDS
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    settle(world)
    owner.always_lead_fault = "away"
    owner.start_seconds = START_SECONDS - 10.0
    owner.replace_worker()
    for _ in range(1500):
        world.run(1.0)
        assert owner.health.ok
    assert owner.count(m.Lead) > 8


def test_b23_alone_a_bot_that_was_told_to_wait_and_has_no_replacement_does_not_fail_health_before() -> None:
    """A new process would know nothing of the limit; afterwards it counts."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    settle(world)
    fail_to_start(owner, "flood", "hang")
    told_at = world.now
    while world.now < told_at + FLOOD_SECONDS + UNABLE_SECONDS - 1.0:
        world.run(1.0)
        assert owner.health.ok
    world.run(3.0)
    assert not owner.health.ok


def test_b21_somebody_who_comes_later_is_given_up_to_as_well() -> None:
    """It is decided by how things stand, not by how they were when the bot failed."""
    world = World()
    owner = world.boot("a")
    settle(world)
    fail_to_start(owner, "fail", "hang")
    world.run(60.0)
    assert world.owners() == [owner]
    standby = world.boot("b")
    world.run_until(lambda: world.owners() == [standby], 5.0)


def test_b21_a_replacement_that_comes_up_in_time_costs_no_answer_and_no_owner() -> None:
    """It takes a while, and somebody waits: the lock stays, and one accepts all the time."""
    world = World()
    owner, _ = owner_and_standby(world)
    owner.start_seconds = UNUSED_LOCK_SECONDS - 2.0
    worker = owner.dispatching
    assert worker is not None
    worker.dispatching = False
    owner.hear(LEAD_FAILURES["fail"], worker.id)
    world.run(0.1)
    while owner.dispatching is None:
        assert any(w.accepting for w in owner.workers.values())
        world.next()
    assert world.owners() == [owner]
    assert owner.count(m.ReleaseLock) == 0


@pytest.mark.parametrize("replacement", ["crash", "hang"])
def test_b17_a_new_deploy_that_fails_as_owner_and_has_no_replacement_gives_back(replacement: str) -> None:
    """Before the platform stops the old one (60 s); and it stays there: no ping-pong."""
    world = World()
    old = world.boot("a", deploy="old")
    settle(world)
    new = world.boot("b", deploy="new")
    new.always_lead_fault = "fail"
    world.run_until(lambda: any(w.accepting for w in new.workers.values()))
    new.always_spawn_fault = replacement
    world.run_until(lambda: world.owners() == [new])
    world.run_until(lambda: world.owners() == [old] and old.dispatching is not None, 30.0)
    world.run(60.0)
    assert world.owners() == [old]
    assert len(world.database.terms_begun) == 3


def test_b17_two_deploys_that_both_fail_do_not_pass_the_lock_to_and_fro() -> None:
    """Who has no worker that accepts does not wait, so nobody gives up to it: the last one stores on."""
    world = World(tick_seconds=1.0)
    old = world.boot("a", deploy="old")
    settle(world)
    new = world.boot("b", deploy="new")
    for instance in (old, new):
        instance.always_lead_fault = "fail"
    world.run_until(lambda: any(w.accepting for w in new.workers.values()))
    new.always_spawn_fault = "hang"
    world.run_until(lambda: world.owners() == [new])
    old_up = world.run_until(lambda: old.count(m.Lead) == 2, 40.0)
    assert old_up > UNUSED_LOCK_SECONDS
    old.always_spawn_fault = "hang"
    world.run(600.0)
    assert len(world.database.terms_begun) == 3
    assert any(w.accepting for w in old.workers.values())


def test_b23_a_bot_that_was_told_to_wait_is_not_given_up_to_one_that_would_be_told_the_same() -> None:
    """Of the same deploy: its early call would prolong the flood limit. When the time is over, it may have better luck."""
    world = World(tick_seconds=1.0)
    owner, standby = owner_and_standby(world)
    fail_to_start(owner, "flood", "hang")
    world.run(FLOOD_SECONDS - 5.0)
    assert world.owners() == [owner]
    assert owner.count(m.StopAccepting) == 0
    world.run_until(lambda: world.owners() == [standby], 15.0)


def test_b23_a_bot_that_was_told_to_wait_goes_to_other_code_although_no_replacement_comes_up() -> None:
    """That may do without the call; it is named, as ever."""
    world = World()
    other = world.boot("a", deploy="old")
    settle(world)
    owner = world.boot("b", deploy="new")
    world.run_until(lambda: world.owners() == [owner])
    settle(world)
    fail_to_start(owner, "flood", "hang")
    world.run_until(lambda: world.owners() == [other], UNUSED_LOCK_SECONDS + 3.0)


def test_b20_one_whose_bot_does_not_start_is_stopped_as_ever() -> None:
    """Its replacement hangs: that is killed, the worker lingers and leaves, the standby owns."""
    world = World()
    owner, standby = owner_and_standby(world)
    fail_to_start(owner, "fail", "hang")
    world.run(5.0)
    owner.stop()
    world.run_until(lambda: owner.exit_code == 0, 24.0)
    world.run_until(lambda: world.owners() == [standby], 2.0)


def test_b24_the_new_token_does_not_wait_for_a_replacement_that_hangs() -> None:
    """As little as for one that crashes."""
    world = World()
    owner = world.boot("a")
    settle(world)
    bearer = world.boot("c", token="t2", deploy="d1")
    settle(world)
    owner.always_spawn_fault = "hang"
    revoke(world, owner)
    limit = 2 * UNUSED_LOCK_SECONDS + 4.0
    world.run_until(lambda: world.owners() == [bearer] and world.telegram.url == "ours-t2", limit)


# ------------------------------------------------------------------------------------- whoever receives ends meanwhile


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
