"""The incidents of SCENARIOS.md's first table that are about health, polling and the end, as far as the core decides them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from shared import config
from supervisor import messages as m
from supervisor.readings import STOP_SECONDS
from supervisor.runner import settings_of
from tests.unit.supervisor.courses import owner_and_standby, settle
from tests.unit.supervisor.world import World


def test_a26_health_is_a_function_of_facts_and_false_when_the_worker_is_gone() -> None:
    """Within two seconds of its loss, if no other accepts by then."""
    world = World(tick_seconds=0.25)
    owner = world.boot("a", start_seconds=30.0)
    world.run_until(lambda: owner.health.ok, 40.0)
    settle(world)
    worker = owner.dispatching
    assert worker is not None
    owner.end_worker(worker.id, "killed by SIGKILL")
    took = world.run_until(lambda: not owner.health.ok)
    assert 1.0 <= took <= 2.0
    assert owner.health.reason == "the worker is gone: killed by SIGKILL"
    assert world.run_until(lambda: owner.serving_unavailable) < 0.3


def test_a26_health_stays_true_through_a_quick_restart() -> None:
    """A worker that is back within a second costs no probe."""
    world = World(tick_seconds=0.25)
    owner = world.boot("a")
    settle(world)
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "killed by SIGKILL")
    for _ in range(40):
        world.next()
        assert owner.health.ok


def test_a26_health_is_false_within_ten_seconds_of_a_hang_until_another_accepts() -> None:
    """And does not come back to true for a moment when the hung one is killed."""
    world = World(tick_seconds=0.25)
    owner = world.boot("a", start_seconds=5.0)
    settle(world)
    assert owner.dispatching is not None
    owner.dispatching.hung = True
    assert world.run_until(lambda: not owner.health.ok) <= 10.0
    killed = owner.count(m.KillWorker)
    while not any(w.accepting for w in owner.workers.values() if w.alive and not w.hung):
        assert not owner.health.ok
        world.next()
    assert owner.count(m.KillWorker) == killed + 1
    settle(world)


def test_a26_a_supervisor_that_stood_still_does_not_blame_its_worker() -> None:
    """What the worker said meanwhile was not heard: it gets a fresh chance to beat."""
    world = World()
    owner, standby = owner_and_standby(world)
    standby.freeze(60.0)
    world.run(60.5)
    assert standby.count(m.KillWorker) == 0
    settle(world)
    assert standby.health.ok
    assert world.owners() == [owner]


def test_a28_one_poller_at_a_time_through_a_rolling_deploy() -> None:
    """Polling is the owner's; it is handed over without two pollers, and begins only after deleteWebhook."""
    world = World()
    world.telegram.url = "somebody's webhook"
    old = world.boot("a", polls=True, deploy="d1")
    settle(world)
    new = world.boot("b", polls=True, deploy="d2")
    settle(world)
    world.run_until(lambda: world.owners() == [new])
    old.stop()
    world.run_until(lambda: old.exit_code == 0)
    settle(world)
    assert world.most_pollers == 1
    assert {method for _, method, _ in world.telegram.changes} == {"DeleteWebhook"}


def test_a28_one_poller_at_a_time_after_an_unclean_end() -> None:
    """The new poller waits until the old one's deadline has surely passed."""
    world = World()
    frozen = world.boot("a", polls=True)
    settle(world)
    other = world.boot("b", polls=True)
    world.run(3.0)
    frozen.freeze(40.0)
    world.run_until(lambda: world.owners() == [other], 30.0)
    world.run(60.0)
    settle(world)
    assert world.most_pollers == 1


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("role", ["owner", "standby"])
def test_a29_sigterm_finishes_hands_over_and_exits_0(role: str, waits: bool) -> None:
    """Inside 25 s, whoever waits; the lock is free, and another owns in the end if there is one."""
    world = World()
    owner, standby = owner_and_standby(world)
    stopped, other = (owner, standby) if role == "owner" else (standby, owner)
    if not waits:
        other.kill_9()
        settle(world)
    stopped.stop()
    world.run_until(lambda: stopped.state.stopping_since is not None)
    assert not stopped.health.ok
    assert world.run_until(lambda: stopped.exit_code is not None, 25.0) <= 25.0
    assert stopped.exit_code == 0
    if waits:
        settle(world)
        assert world.owners() == [other]
    else:
        assert world.database.holder is None


def test_a29_the_lock_is_handed_over_before_the_linger_is_over() -> None:
    """A waiting standby owns within two seconds of SIGTERM, while the stopping one goes on accepting."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.stop()
    assert world.run_until(lambda: world.owners() == [standby]) < 2.0
    assert any(w.accepting for w in owner.workers.values() if w.alive)
    assert owner.exit_code is None


def test_a29_sigterm_while_the_database_does_not_answer_does_not_wait_for_it() -> None:
    """A connection attempt under way holds nothing that must be given back."""
    world = World()
    instance = world.boot("a", linger=0.0)
    instance.statement_fault = "hang"
    world.run(2.0)
    assert isinstance(instance.state.session.busy, m.OpenSession)
    instance.stop()
    assert world.run_until(lambda: instance.exit_code == 0) < 3.0


def test_a29_sighup_while_stopping_is_ignored() -> None:
    """No worker is started for the sake of one that is leaving anyway."""
    world = World()
    owner, _ = owner_and_standby(world)
    owner.stop()
    world.run(1.0)
    spawned = owner.count(m.SpawnWorker)
    owner.replace_worker()
    world.run_until(lambda: owner.exit_code == 0)
    assert owner.count(m.SpawnWorker) == spawned


def test_a29_a_standby_leaves_the_queue_first() -> None:
    """After SIGTERM no further wait begins."""
    world = World()
    _, standby = owner_and_standby(world)
    standby.stop()
    world.run_until(lambda: standby.state.stopping_since is not None)
    before = standby.count(m.WaitForLock)
    world.run_until(lambda: standby.exit_code == 0)
    assert standby.count(m.WaitForLock) == before


def test_a29_a_standby_that_is_handed_the_lock_while_it_leaves_passes_it_on() -> None:
    """Its last wait may end well: the term that began with it is led by nobody, and another instance owns at once."""
    world = World()
    owner, leaving = owner_and_standby(world)
    staying = world.boot("c")
    settle(world)
    world.run_until(lambda: world.database.queue[:1] == [leaving.session])
    leaving.stop()
    owner.kill_9()
    assert world.run_until(lambda: world.owners() == [staying]) < 1.0
    assert leaving.count(m.Lead) == 0
    world.run_until(lambda: leaving.exit_code == 0)


@pytest.mark.parametrize(
    ("pause", "at_terminal", "at_once"), [(1.0, False, False), (3.5, False, True), (0.2, True, True)]
)
def test_a29_a_second_signal_ends_everything_at_once(pause: float, at_terminal: bool, at_once: bool) -> None:
    """Three seconds after the first; any second one at a terminal; earlier ones count as one."""
    world = World()
    owner = world.boot("a", at_terminal=at_terminal)
    settle(world)
    owner.stop()
    world.run(pause)
    owner.stop()
    took = world.run_until(lambda: owner.exit_code is not None)
    assert (took < 0.5) is at_once
    assert owner.exit_code == 0


def test_a29_a_terminal_that_closes_stops_in_order() -> None:
    """SIGHUP, more than once: nobody is left to end an owner whose terminal is gone, and another instance stands by."""
    world = World()
    owner = world.boot("a", at_terminal=True, linger=0.0)
    settle(world)
    standby = world.boot("b")
    settle(world)
    owner.replace_worker()
    world.at(0.01, owner.replace_worker)
    world.run_until(lambda: owner.exit_code is not None, 25.0)
    assert owner.exit_code == 0
    assert owner.count(m.EndTerm) == 1, "not in order"
    assert owner.count(m.KillWorker) == 0
    world.run_until(lambda: world.owners() == [standby])
    assert sum(line.event == "stopping: the terminal has closed" for line in owner.lines) == 1


def test_the_longest_drain_and_linger_that_are_promised_are_those_that_there_are() -> None:
    """Whoever asks for more is told of these, at start."""
    environ = {
        "TELEGRAM_BOT_TOKEN": "1:abc",
        "DATABASE_URL": "postgresql://db",
        "BOT_MODE": "polling",
        "LINGER_SECONDS": "60",
    }
    asked = config.load(environ, stdin_is_terminal=False, stdout_is_terminal=False)
    linger_seconds = settings_of(asked, at_terminal=False).linger_seconds
    assert linger_seconds == config.LONGEST_LINGER_SECONDS
    world = World()
    owner = world.boot("a", linger=linger_seconds)
    settle(world)
    owner.stop()
    world.run_until(lambda: owner.exit_code == 0)
    assert owner.count(m.KillWorker) == 0
    assert owner.count(m.CloseTerm) == 1
    world = World()
    owner = world.boot("a")
    owner.state = replace(owner.state, settings=replace(owner.state.settings, drain_seconds=60.0))
    settle(world)
    owner.stop()
    world.run_until(lambda: owner.count(m.EndTerm) > 0)
    (ended,) = [action for _, action in owner.actions if isinstance(action, m.EndTerm)]
    assert ended.drain_seconds == pytest.approx(config.LONGEST_DRAIN_SECONDS, abs=0.1)


def test_a29_a_drain_that_began_before_the_stop_is_cut_to_what_that_leaves() -> None:
    """Handlers of a worker that was being replaced are interrupted in time, and give back what they run; nobody is killed."""
    world = World()
    owner = world.boot("a", linger=0.0)
    owner.state = replace(owner.state, settings=replace(owner.state.settings, drain_seconds=120.0))
    owner.ending_seconds = 200.0
    settle(world)
    owner.replace_worker()
    world.run_until(lambda: owner.count(m.EndTerm) == 1)
    world.run(30.0)
    owner.stop()
    world.run_until(lambda: owner.exit_code == 0)
    first, second = [action for _, action in owner.actions if isinstance(action, m.EndTerm)]
    assert first.drain_seconds == 120.0
    assert second.drain_seconds == pytest.approx(config.LONGEST_DRAIN_SECONDS, abs=0.1)
    assert owner.count(m.KillWorker) == 0
    assert owner.count(m.CloseTerm) == 1


def test_a30_an_instance_whose_tables_cannot_be_made_is_unhealthy() -> None:
    """The platform keeps the deploy before it; a database that is merely away changes nothing."""
    world = World(schema_fault="migration 1 failed")
    instance = world.boot("a")
    world.run(5.0)
    assert not instance.health.ok
    assert instance.health.reason == "the tables cannot be made or brought up to date: the log says why"
    event = "tables cannot be made or brought up to date, trying every second"
    assert [line.event for line in instance.lines].count(event) == 1
    world.schema_fault, world.database_up = None, False
    world.run(5.0)
    assert not instance.health.ok, "nobody knows better yet"
    world.database_up = True
    settle(world)
    assert instance.health.ok
    instance.lose_session()
    world.schema_fault = "migration 2 failed"
    world.run(5.0)
    assert instance.health.ok, "it serves as before, with the tables that there were"


@pytest.mark.parametrize("answering", [0.0, 1.0, 60.0])
@pytest.mark.parametrize("bot_stop", [0.0, 1.0, 2.8])
def test_a29_b09_answers_that_take_long_have_room_in_the_time_of_a_stop(
    bot_stop: float, answering: float
) -> None:
    """After a drain as long as it may be, too, the term is closed and the lock freed before the end."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.ending_seconds, owner.bot_stop_seconds, owner.answering_seconds = 60.0, bot_stop, answering
    owner.stop()
    assert world.run_until(lambda: owner.exit_code is not None, 25.0) < STOP_SECONDS
    assert owner.exit_code == 0
    assert owner.count(m.KillWorker) == 0
    assert owner.count(m.CloseTerm) == 1
    [stopped] = [at for at, action in owner.actions if isinstance(action, m.StopAccepting)]
    [left] = [at for at, action in owner.actions if isinstance(action, m.ExitWorker)]
    if answering:
        assert left - stopped >= 0.5 + min(answering, 3.0, max(0.0, 2.4 - bot_stop))


def test_b17_a_hand_over_waits_for_answers_and_not_for_ever() -> None:
    """Handlers run on meanwhile."""
    world = World()
    old = world.boot("a", deploy="d1")
    settle(world)
    old.answering_seconds = 60.0
    new = world.boot("b", deploy="d2")
    world.run_until(lambda: old.count(m.StopAccepting) > 0)
    stopped = world.now
    assert old.dispatching is not None
    world.run_until(lambda: old.count(m.EndTerm) > 0)
    assert 5.0 <= world.now - stopped < 6.0
    world.run_until(lambda: world.owners() == [new])
