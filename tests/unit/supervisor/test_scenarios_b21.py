"""b21 and its kin: bots that do not come up, do not start, crash, or hang, and what their supervisor makes of them."""

from __future__ import annotations

import itertools

import pytest

from shared import wire
from shared.wire import LEAD_SECONDS
from supervisor import messages as m
from supervisor import restart
from tests.models.ownership import TermRow
from tests.unit.supervisor.courses import owner_and_standby, settle
from tests.unit.supervisor.modelled_instance import FLOOD_SECONDS, LEAD_FAILURES
from tests.unit.supervisor.world import Instance, World


def given_up_lines(instance: Instance) -> list[str]:
    """What it said of it each time that it gave up the lock."""
    return [line.event for line in instance.lines if line.event.startswith("giving up the lock")]


def failures(instance: Instance) -> list[m.Event]:
    """The starts of its bot that came to nothing, by its workers' word."""
    return [
        event
        for event in instance.events
        if isinstance(event, m.WorkerSaid) and isinstance(event.message, wire.LeadFailed)
    ]


def test_b21_a_bot_that_never_comes_up_is_exit_2() -> None:
    """Crashing at import, without a word: a handful of tries with backoff."""
    world = World()
    instance = world.boot("a")
    instance.always_spawn_fault = "crash"
    world.run_until(lambda: instance.exit_code is not None, 60.0)
    assert instance.exit_code == 2
    assert instance.count(m.SpawnWorker) == restart.CRASHES_BEFORE_NEVER_UP
    assert "BOT_APP never came up" in instance.faults[0]


def test_b21_a_bot_that_hangs_at_its_import_is_exit_2_too() -> None:
    """Each start is given two minutes, so five of them are further apart than crashes are remembered."""
    world = World(tick_seconds=1.0)
    instance = world.boot("a")
    instance.always_spawn_fault = "hang"
    world.run_until(lambda: instance.exit_code is not None, 900.0)
    assert instance.exit_code == 2
    assert f"the worker ended {restart.CRASHES_BEFORE_NEVER_UP} times" in instance.faults[0]


def test_b21_a_worker_that_says_why_it_cannot_start_is_exit_2_at_once() -> None:
    """Its faults are the operator's."""
    world = World()
    instance = world.boot("a")
    instance.spawn_fault = "faults"
    world.run_until(lambda: instance.exit_code is not None)
    assert (instance.exit_code, instance.faults) == (2, ("BOT_APP does not import",))
    assert instance.count(m.SpawnWorker) == 1


def test_b21_a_process_that_never_could_be_started_is_exit_2_and_names_the_limit() -> None:
    """4 is for a worker that once was healthy. What is in the way is for the operator to raise, and not BOT_APP's fault."""
    world = World()
    instance = world.boot("a")
    instance.always_spawn_fault = "no process"
    world.run_until(lambda: instance.exit_code is not None, 200.0)
    assert instance.exit_code == 2
    assert instance.count(m.SpawnWorker) == restart.CRASHES_BEFORE_EXIT
    assert "limit of processes" in instance.faults[0]
    assert "no room" in instance.faults[0]


def test_b21_a_process_that_cannot_be_started_again_is_exit_4() -> None:
    """It once was healthy: the platform's own restart may place it elsewhere."""
    world = World()
    owner = world.boot("a")
    world.run_until(lambda: owner.dispatching is not None)
    owner.always_spawn_fault = "no process"
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "exit status 1")
    world.run_until(lambda: owner.exit_code is not None, 200.0)
    assert owner.exit_code == 4


@pytest.mark.parametrize("fault", ["crash", "fail", "away"])
def test_b21_a_crash_loop_gives_up_to_a_healthy_instance(fault: str) -> None:
    """After backoff, and it says that it is not healthy while no worker accepts."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.always_lead_fault = fault
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "exit status 1")
    took = world.run_until(lambda: world.owners() == [standby] and standby.dispatching is not None)
    assert 1.0 < took < 15.0
    world.run(30.0)
    assert world.owners() == [standby]
    assert sum(isinstance(a, m.ReleaseLock) and a.gave_up for _, a in owner.actions) == 1
    why = "the worker does not stay up" if fault == "crash" else "the bot does not start here"
    assert given_up_lines(owner) == [f"giving up the lock: {why}"]


@pytest.mark.parametrize("fault", ["crash", "fail"])
def test_b21_alone_it_backs_off_and_is_exit_4_in_the_end(fault: str) -> None:
    """A worker that once was healthy cannot be kept up; nobody is there to give up to."""
    world = World()
    owner = world.boot("a")
    owner.always_lead_fault = fault
    world.run_until(lambda: owner.exit_code is not None, 200.0)
    assert owner.exit_code == 4
    spawned = [at for at, action in owner.actions if isinstance(action, m.SpawnWorker)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(spawned)]
    # Where the bot does not start, the worker before goes when its replacement accepts.
    assert len(spawned) == restart.CRASHES_BEFORE_EXIT + (fault == "fail")
    assert pauses[-1] > 10 * pauses[0]
    assert {"crash": "exit status 1", "fail": "post_init raised"}[fault] in owner.faults[0]


def test_b21_an_owner_whose_new_worker_hangs_at_its_start_gives_up_too() -> None:
    """Others wait, and nobody dispatches: the lock is not kept for a start that takes minutes."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.always_spawn_fault = "hang"
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "exit status 1")
    assert world.run_until(lambda: world.owners() == [standby]) < 20.0
    assert not owner.health.ok
    assert given_up_lines(owner) == ["giving up the lock: the worker does not stay up"]


def test_b17_b21_a_bot_that_does_not_start_costs_no_answer_and_is_told_by_health() -> None:
    """Its worker goes on accepting until the next one does; alone, health fails once it is no longer a single failure."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.always_lead_fault = "fail"
    assert owner.dispatching is not None
    owner.hear(LEAD_FAILURES["fail"], owner.dispatching.id)
    while owner.health.ok:
        assert any(worker.accepting for worker in owner.workers.values())
        world.next()
    assert owner.health.reason == "the bot does not start: RuntimeError; the log says more"
    assert owner.state.restarts.count(world.now) >= restart.CRASHES_BEFORE_GIVING_UP
    assert any(worker.accepting for worker in owner.workers.values())
    owner.always_lead_fault = None
    world.run_until(lambda: owner.dispatching is not None)
    settle(world)
    assert not owner.state.session.lead_failed
    assert owner.health.ok


def test_b31_a_bot_that_waits_for_something_outside_is_no_crash_loop() -> None:
    """Telegram is away for ten minutes, and post_init raises that: tried again ever more slowly, while updates are stored."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    owner.always_lead_fault = "away"
    settled_at = world.now + 5.0
    while world.now < settled_at + 600.0:
        world.next()
        assert owner.exit_code is None
        assert world.now < settled_at or owner.health.ok
        assert world.now < settled_at or any(worker.accepting for worker in owner.workers.values())
    spawned = [at for at, action in owner.actions if isinstance(action, m.SpawnWorker)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(spawned)]
    assert min(pauses[10:]) > 20.0
    assert max(pauses) < 45.0
    owner.always_lead_fault = None
    settle(world, 45.0)
    assert owner.dispatching is not None


@pytest.mark.parametrize("fault", ["hang", "swallow", "outage"])
def test_b21_a_bot_that_hangs_while_it_starts_gives_up_to_a_healthy_instance(fault: str) -> None:
    """It accepts, beats, is healthy, and handles nothing: the old deploy owns again before the platform stops it (60 s)."""
    world = World()
    old = world.boot("a", deploy="old")
    settle(world)
    new = world.boot("b", deploy="new")
    new.always_lead_fault = fault
    world.run_until(lambda: world.owners() == [new])
    began = world.now
    while world.owners() != [old] or old.dispatching is None:
        world.next()
        assert world.now - began < 59.0
        assert any(worker.accepting for worker in new.workers.values())
    assert world.now - began > LEAD_SECONDS
    assert not any(worker.alive and worker.term is not None for worker in new.workers.values())
    assert given_up_lines(new) == ["giving up the lock: the bot does not start here"]
    world.run(30.0)
    assert world.owners() == [old]


@pytest.mark.parametrize("seconds", [12.0, 30.0, 44.0])
@pytest.mark.parametrize("fault", ["fail", "away", "crash"])
def test_b17_b21_a_bot_whose_start_fails_late_is_given_up_in_the_time_of_one_start(
    fault: str, seconds: float
) -> None:
    """The old deploy owns again before the platform stops it (60 s), however the new one fails; and not at the first failure,
    where another try has the time."""
    world = World()
    old = world.boot("a", deploy="old")
    settle(world)
    new = world.boot("b", deploy="new")
    new.always_lead_fault, new.failing_seconds = fault, seconds
    world.run_until(lambda: world.owners() == [new])
    world.run_until(lambda: world.owners() == [old] and old.dispatching is not None, 59.0)
    assert new.count(m.Lead) == (3 if seconds == 12.0 else 1)


@pytest.mark.parametrize("fault", ["fail", "away"])
def test_b21_a_bot_whose_start_fails_soon_has_four_tries(fault: str) -> None:
    """A start that came to its end between counts for none of the others."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.always_lead_fault, owner.failing_seconds = fault, 2.0
    owner.replace_worker()
    world.run_until(lambda: len(failures(owner)) == 2)
    owner.always_lead_fault = None
    settle(world, 60.0)
    assert world.owners() == [owner]
    world.run(400.0)
    owner.always_lead_fault = fault
    owner.replace_worker()
    led = owner.count(m.Lead)
    world.run_until(lambda: world.owners() == [standby], 40.0)
    assert owner.count(m.Lead) - led == restart.CRASHES_BEFORE_GIVING_UP


def test_b23_a_late_flood_limit_is_no_reason_to_give_up_to_one_that_would_meet_it_too() -> None:
    """It was slow, and may not start before its time; then it has all the time that a start has."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.lead_fault, owner.failing_seconds = "flood", 40.0
    owner.replace_worker()
    world.run_until(lambda: bool(failures(owner)), 60.0)
    owner.lead_fault, owner.failing_seconds = "fail", 5.0
    world.run_until(lambda: len(failures(owner)) == 2, FLOOD_SECONDS + 10.0)
    world.run_until(lambda: owner.dispatching is not None, 5.0)
    assert standby.count(m.Lead) == 0


@pytest.mark.parametrize("fault", ["hang", "swallow"])
def test_b21_a_bot_that_always_hangs_while_it_starts_is_told_by_health(fault: str) -> None:
    """Alone: its worker is replaced, one accepts all the time, and health says why nothing is handled."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.always_lead_fault = fault
    owner.replace_worker()
    began = world.now
    while owner.health.ok:
        assert any(worker.accepting for worker in owner.workers.values())
        assert world.now - began < 300.0
        world.next()
    assert owner.health.reason == "the bot does not start: StartTimedOut; the log says more"
    assert any(line.event == "application did not start" for line in owner.lines)
    for _ in range(400):
        world.run(1.0)
        assert not owner.health.ok
    owner.always_lead_fault = None
    world.run_until(lambda: owner.dispatching is not None, 120.0)
    settle(world)


def test_b31_a_bot_that_cannot_start_in_an_outage_is_put_off() -> None:
    """An hour without Telegram, alone: no crash is counted, health stays, the process too; then it starts."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    settle(world)
    owner.always_lead_fault = "outage"
    owner.replace_worker()
    for _ in range(3600):
        world.run(1.0)
        assert owner.exit_code is None
        assert owner.health.ok
        assert owner.state.restarts.count(world.now) == 0
    assert owner.count(m.Lead) > 40
    owner.always_lead_fault = None
    world.run_until(lambda: owner.dispatching is not None, 90.0)


def test_a_start_counts_from_when_an_earlier_owner_is_surely_done() -> None:
    """A persistence is not loaded before: the wait for it is no part of the bot's start."""
    world = World()
    world.database.term = TermRow(1, "term-1", "b", 30.0, ended=False)
    owner = world.boot("a")
    owner.always_lead_fault = "swallow"
    world.run_until(lambda: owner.count(m.Lead) == 1)
    began = world.now
    world.run_until(lambda: owner.count(m.EndTerm) == 1, 120.0)
    assert 30.0 + LEAD_SECONDS < world.now - began < 30.0 + 60.0


def test_b31_a_worker_that_dies_after_it_was_put_off_is_a_crash() -> None:
    """It died of something else."""
    world = World()
    owner = world.boot("a")
    owner.always_lead_fault = "away"
    for crashes in range(1, restart.CRASHES_BEFORE_EXIT + 1):
        world.run_until(lambda: any(w.lead_put_off for w in owner.state.workers), 60.0)
        leader = owner.leader_or_any()
        assert leader is not None
        owner.end_worker(leader.id, "killed by SIGSEGV")
        world.run(0.1)
        assert owner.state.restarts.count(world.now) == crashes
    assert owner.exit_code == 4


def test_a21_health_does_not_quote_the_bot() -> None:
    """PORT is open to everybody, and what a bot raises can hold another service's key. The log quotes it, and /status."""
    world = World()
    owner = world.boot("a")
    owner.always_lead_fault = "fail"
    world.run_until(lambda: "the bot does not start: RuntimeError" in str(owner.health.reason))
    assert owner.state.last_crash == "RuntimeError: post_init raised"
    assert "post_init" not in str(owner.health.reason)
    owner.always_spawn_fault = "hang"
    for worker in owner.workers.values():
        owner.end_worker(worker.id, "killed by SIGKILL")
    world.run_until(lambda: "the worker is gone" in str(owner.health.reason))
    assert "post_init" not in str(owner.health.reason)


def test_b25_crashes_of_a_suspect_update_do_not_count() -> None:
    """They are that update's doing, and its own limit ends them."""
    world = World()
    owner = world.boot("a")
    for _ in range(restart.EXCUSED_CRASHES):
        settle(world)
        crash_beside_a_suspect(world, owner)
    settle(world)
    assert owner.exit_code is None
    assert owner.state.restarts.count(world.now) == 0


def test_b21_a_worker_that_dies_whatever_it_runs_gives_up_too() -> None:
    """Each death leaves updates in flight, so that one of them runs at the next: that excuses only so many."""
    world = World()
    owner, standby = owner_and_standby(world)
    crashes = 0
    while owner.dispatching is not None or world.owners() != [standby]:
        if owner.dispatching is not None:
            crash_beside_a_suspect(world, owner)
            crashes += 1
        world.run(0.1)
        assert crashes <= restart.EXCUSED_CRASHES + restart.CRASHES_BEFORE_GIVING_UP
    assert crashes == restart.EXCUSED_CRASHES + restart.CRASHES_BEFORE_GIVING_UP


MAX_ATTEMPTS = 5
"""Starts of an update that kills each of them."""


def kill_by_an_update(world: World, owner: Instance) -> bool:
    """An update comes that kills its worker, and runs again by itself, until it is a dead letter or somebody else owns.

    Returns:
        Whether it became a dead letter.
    """
    for start in range(MAX_ATTEMPTS):
        world.run_until(lambda: owner.dispatching is not None or world.owners() not in ([], [owner]), 60.0)
        worker = owner.dispatching
        if worker is None:
            return False
        if start == 0:
            owner.end_worker(worker.id, "killed by SIGSEGV")
            world.run(0.2)
        else:
            crash_beside_a_suspect(world, owner)
    return True


@pytest.mark.parametrize("pause_seconds", [120.0, 900.0])
def test_b21_a_worker_that_dies_at_every_update_is_given_up_however_rare_they_are(
    pause_seconds: float,
) -> None:
    """Its crashes are further apart than they are remembered, but nothing was completed in between: three are dead letters."""
    world = World(tick_seconds=1.0)
    owner, standby = owner_and_standby(world)
    dead = 0
    while kill_by_an_update(world, owner):
        dead += 1
        assert dead < restart.CRASHES_BEFORE_GIVING_UP
        world.run(pause_seconds)
    world.run_until(lambda: world.owners() == [standby])
    assert dead == restart.CRASHES_BEFORE_GIVING_UP - 1
    world.run(120.0)
    assert world.owners() == [standby]


def test_b21_a_bot_that_completes_updates_between_is_not_given_up() -> None:
    """Only one user's updates kill it."""
    world = World(tick_seconds=1.0)
    owner, _ = owner_and_standby(world)
    for _ in range(3 * restart.CRASHES_BEFORE_GIVING_UP):
        assert kill_by_an_update(world, owner)
        world.run_until(lambda: owner.dispatching is not None, 60.0)
        assert owner.dispatching is not None
        owner.dispatching.completed += 1
        world.run(restart.WINDOW_SECONDS)
        assert world.owners() == [owner]
    assert not any(isinstance(a, m.ReleaseLock) for _, a in owner.actions)


def test_b21_alone_crashes_that_are_far_apart_end_no_process() -> None:
    """It stores and answers in between, and a new process would fare no better. To whoever comes it gives up at the next."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    settle(world)
    for _ in range(restart.CRASHES_BEFORE_EXIT + 2):
        assert kill_by_an_update(world, owner)
        world.run(restart.WINDOW_SECONDS)
        assert world.owners() == [owner]
        assert owner.health.ok
    standby = world.boot("b")
    settle(world)
    assert world.owners() == [owner]
    assert not kill_by_an_update(world, owner)
    world.run_until(lambda: world.owners() == [standby])


def test_b21_a_younger_deploy_that_completes_nothing_is_given_the_bot_ever_more_rarely() -> None:
    """It is the successor again when its abstention is over: with rare updates, that was a minute each time."""
    world = World(tick_seconds=1.0)
    old = world.boot("a", deploy="old")
    settle(world)
    new = world.boot("b", deploy="new")
    world.run_until(lambda: world.owners() == [new])
    settle(world)
    abstentions: list[float] = []
    while len(abstentions) < 4:
        if not kill_by_an_update(world, new):
            world.run_until(lambda: world.owners() == [old] and old.dispatching is not None)
            given_up_at = world.now
            world.run_until(lambda: world.owners() == [new], 2000.0)
            abstentions.append(round(world.now - given_up_at, -1))
        world.run(600.0)
        assert new.count(m.SpawnWorker) < 30
    assert abstentions == [60.0, 120.0, 240.0, 480.0]


def crash_beside_a_suspect(world: World, owner: Instance) -> None:
    """Its worker dies while an update that was in flight at an earlier crash runs."""
    worker = owner.dispatching
    assert worker is not None
    owner.hear(wire.SuspectRunning(running=True), worker.id)
    world.run(0.1)
    owner.end_worker(worker.id, "killed by SIGSEGV")
    world.run(0.1)


def test_sighup_with_a_broken_bot_keeps_the_worker_that_works() -> None:
    """The replacement cannot come up: tried once, and the old one leads on, its term unbroken."""
    world = World()
    owner = world.boot("a")
    settle(world)
    worker = owner.dispatching
    owner.always_spawn_fault = "faults"
    owner.replace_worker()
    world.run(20.0)
    settle(world)
    assert owner.dispatching is worker
    assert owner.count(m.SpawnWorker) == 2
