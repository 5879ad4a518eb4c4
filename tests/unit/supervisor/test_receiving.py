"""A worker that takes updates in before its bot is built: what the core makes of it, and of what befalls it meanwhile."""

from __future__ import annotations

from supervisor import messages as m
from tests.unit.supervisor.courses import settle
from tests.unit.supervisor.world import World


def test_b02_b21_updates_are_taken_in_before_the_bot_is_built() -> None:
    """Only where nobody else does; nobody is told that the instance is up, and none of ours says 503 in the worker's place."""
    world = World()
    instance = world.boot("a", start_seconds=20.0)
    world.run(19.0)
    [first] = [action for _, action in instance.actions if isinstance(action, m.SpawnWorker)]
    assert first.receives_at_once
    assert not instance.serving_unavailable
    assert instance.health == m.Health(ok=False, role="PASSIVE", reason="starting: the worker is not up yet")
    assert not instance.state.session.lock_tried
    settle(world)
    instance.start_seconds = 0.4
    instance.replace_worker()
    world.run_until(lambda: instance.count(m.SpawnWorker) == 2)
    second = [action for _, action in instance.actions if isinstance(action, m.SpawnWorker)][-1]
    assert not second.receives_at_once, "the one that leaves still accepts"


def test_b06_a_worker_that_hangs_while_its_bot_is_imported_is_stood_in_for() -> None:
    """It may be an import that lets nobody else run, so it is not killed; but what comes meanwhile is told to come back."""
    world = World()
    instance = world.boot("a", start_seconds=40.0)
    world.run_until(lambda: any(w.receives for w in instance.state.workers), 30.0)
    [worker] = instance.workers.values()
    worker.hung = True
    assert world.run_until(lambda: instance.serving_unavailable, 20.0) <= 10.0
    worker.hung = False
    world.run_until(lambda: not instance.serving_unavailable, 2.0)
    settle(world)
    assert instance.count(m.KillWorker) == 0


def test_b21_a_bot_that_cannot_be_built_while_it_is_stopped_or_replaced_is_not_the_end() -> None:
    """Asked to stop it did: 0. And SIGHUP asks for another worker, which may be of mended code."""
    world = World()
    stopped = world.boot("a", start_seconds=4.0, linger=5.0)
    stopped.spawn_fault = "faults"
    world.run(3.0)
    stopped.stop()
    world.run_until(lambda: stopped.exit_code is not None, 20.0)
    assert stopped.exit_code == 0
    replaced = world.boot("b", start_seconds=4.0)
    replaced.spawn_fault = "faults"
    world.run(3.0)
    replaced.replace_worker()
    settle(world)
    assert replaced.exit_code is None
    assert world.owners() == [replaced]


def test_b20_a_worker_that_is_stopped_before_its_bot_is_built_is_led_out() -> None:
    """It has taken updates in: it lingers, its connections close, it exits; it is not killed with requests in its hands."""
    world = World()
    instance = world.boot("a", start_seconds=60.0, linger=2.0)
    world.run_until(lambda: any(w.receives for w in instance.state.workers), 40.0)
    instance.stop()
    assert world.run_until(lambda: instance.exit_code is not None, 20.0) >= 2.0
    assert instance.exit_code == 0
    assert instance.count(m.KillWorker) == 0
    assert instance.count(m.StopAccepting) == instance.count(m.ExitWorker) == 1
