"""Workers that are to leave, and whose replacement does not come up: who goes on accepting, and who owns in the end."""

from __future__ import annotations

import pytest

from supervisor import messages as m
from supervisor.readings import UNABLE_SECONDS, UNUSED_LOCK_SECONDS
from supervisor.restart import CRASHES_BEFORE_EXIT, LONGEST_PAUSE_SECONDS
from supervisor.workers_plan import START_SECONDS
from tests.unit.supervisor.courses import fail_to_start, owner_and_standby, revoke, settle
from tests.unit.supervisor.modelled_instance import FLOOD_SECONDS, LEAD_FAILURES
from tests.unit.supervisor.world import Instance, World


def kills(instance: Instance) -> list[str]:
    """Why its workers were killed."""
    return [action.reason for _, action in instance.actions if isinstance(action, m.KillWorker)]


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


def test_b04_a_standstill_is_no_time_of_a_first_start() -> None:
    """The machine was suspended while the bot was imported: the worker goes on where it was, and nothing has failed."""
    world = World()
    owner = world.boot("a", start_seconds=START_SECONDS + 13.0)
    world.run(1.0)
    world.now += START_SECONDS + 10.0
    settle(world, 5.0)
    assert kills(owner) == []
    assert owner.count(m.SpawnWorker) == 1
    assert owner.state.restarts.ever == 0


def test_b04_a_standstill_is_no_time_of_a_replacements_start() -> None:
    """The lock is lost meanwhile; the worker that was on its way leads."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.start_seconds = START_SECONDS + 13.0
    owner.replace_worker()
    world.run_until(lambda: owner.count(m.SpawnWorker) == 2)
    world.now += START_SECONDS + 10.0
    owner.lose_session("idle-session timeout")
    world.run(20.0)
    settle(world)
    assert kills(owner) == []
    assert owner.count(m.SpawnWorker) == 2


def test_b04_a_worker_that_hangs_at_its_start_is_killed_after_a_standstill_too() -> None:
    """It has the whole time once more, and no longer."""
    world = World()
    owner = world.boot("a", start_seconds=10 * START_SECONDS)
    world.run(1.0)
    world.now += 60.0
    world.run(START_SECONDS - 1.0)
    assert kills(owner) == []
    world.run(2.0)
    assert kills(owner) == ["it was not up within 120 s"]


def test_b10_a_replacement_that_hangs_at_its_start_is_given_up_when_it_is_killed() -> None:
    """The worker that it was to replace works on. No other is spawned before the end is heard of, only to be killed then."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.spawn_fault = "hang"
    owner.replace_worker()
    world.run(START_SECONDS + 30.0)
    assert kills(owner) == ["it was not up within 120 s"]
    assert owner.count(m.SpawnWorker) == 2
    assert owner.count(m.BeginTerm) + owner.count(m.WaitForLock) == 1
    owner.replace_worker()
    world.run_until(lambda: owner.count(m.Lead) == 2, 10.0)
    settle(world)


def test_b10_a_replacement_that_is_asked_for_as_another_dies_is_made() -> None:
    """It was not given up with that one: killed, and not heard of yet."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.spawn_fault = "hang"
    owner.replace_worker()
    world.run_until(lambda: kills(owner) != [], START_SECONDS + 1.0)
    owner.replace_worker()
    world.run_until(lambda: owner.count(m.Lead) == 2, 10.0)
    settle(world)
    assert kills(owner) == ["it was not up within 120 s"]


def test_b04_b10_a_second_request_is_not_given_up_with_the_replacement_of_the_first() -> None:
    """That one crashes, just after a standstill, in which it could not be killed yet for being no longer wanted."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.start_seconds = 10.0
    owner.replace_worker()
    world.run(1.0)
    world.now += 5.0
    world.next()
    first = max(owner.workers)
    owner.replace_worker()
    owner.end_worker(first, "exit status 1", 0.01)
    world.run_until(lambda: owner.count(m.Lead) == 2, 20.0)
    settle(world)
