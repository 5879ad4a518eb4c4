"""BOT_MODE=polling while Telegram does not answer: the owner cannot delete the webhook, so that nobody leads."""

from __future__ import annotations

import itertools

import pytest

from supervisor import messages as m
from tests.unit.supervisor.courses import settle
from tests.unit.supervisor.world import Instance, World


def boot(world: World, name: str, deploy: str) -> Instance:
    return world.boot(name, polls=True, deploy=deploy)


def given_up(instance: Instance) -> list[float]:
    """When it gave up the lock."""
    return [at for at, action in instance.actions if isinstance(action, m.ReleaseLock) and action.gave_up]


def test_b17_a_polling_deploy_that_telegram_does_not_answer_gives_the_bot_back() -> None:
    """Within the minute after which the platform stops the old one, which works; and it tries again ever more rarely."""
    world = World(tick_seconds=1.0, narrates=True)
    old = boot(world, "a", "old")
    settle(world)
    new = boot(world, "b", "new")
    new.always_call_fault = "retry"  # its way to Telegram is shut
    world.run_until(lambda: world.owners() == [new])
    assert world.run_until(lambda: old.dispatching is not None, 60.0) < 50.0
    assert new.health.ok, "it stores"
    [line] = [line for line in new.lines if line.event.startswith("giving up the lock")]
    assert line.event == "giving up the lock: Telegram does not answer here"
    assert line.fields == {"last": "503"}
    world.run(1000.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(given_up(new))]
    assert len(pauses) >= 2
    assert all(later > earlier + 50.0 for earlier, later in itertools.pairwise(pauses))
    assert new.count(m.SpawnWorker) == 1
    new.always_call_fault = None
    world.run_until(lambda: world.owners() == [new] and new.dispatching is not None, 1000.0)
    assert world.most_pollers == 1


def test_b31_alone_a_polling_owner_waits_for_telegram_in_one_term_and_goes_on_at_once() -> None:
    """An hour: there is nobody to give up to, and no worker is the worse for it."""
    world = World(tick_seconds=1.0, narrates=False)
    world.telegram.is_away = True
    owner = boot(world, "a", "d1")
    world.run(3600.0)
    assert world.owners() == [owner]
    assert owner.health.ok
    assert len(world.database.terms_begun) == 1
    assert owner.count(m.SpawnWorker) == 1
    world.telegram.is_away = False
    assert world.run_until(lambda: owner.dispatching is not None) < 3.0


def test_b31_two_that_telegram_does_not_answer_take_turns_and_the_owner_goes_on_at_once() -> None:
    """Which of the two it answers first nobody knows. No worker is started anew for it, and turns become rare."""
    world = World(tick_seconds=1.0, narrates=False)
    one = boot(world, "a", "d1")
    settle(world)
    two = boot(world, "b", "d1")
    settle(world)
    world.telegram.is_away = True
    one.kill_9()
    world.run_until(lambda: world.owners() == [two], 30.0)
    three = boot(world, "c", "d1")
    world.run(3600.0)
    assert given_up(two)
    assert given_up(three)
    assert len(world.database.terms_begun) < 20
    assert two.count(m.SpawnWorker) == three.count(m.SpawnWorker) == 1
    world.run_until(lambda: bool(world.owners()))
    world.telegram.is_away = False
    assert world.run_until(lambda: bool(two.dispatching or three.dispatching)) < 3.0
    world.run(30.0)
    assert world.most_pollers == 1


def test_b31_a_polling_owner_gives_up_as_soon_as_somebody_comes_who_may_be_answered() -> None:
    """It has waited for long enough when the other one comes."""
    world = World(tick_seconds=1.0, narrates=False)
    alone = boot(world, "a", "d1")
    alone.always_call_fault = "retry"
    world.run(600.0)
    other = boot(world, "b", "d1")
    assert world.run_until(lambda: other.dispatching is not None) < 10.0
    world.run(30.0)
    assert world.owners() == [other]


def test_b17_a_younger_deploy_is_handed_over_to_while_telegram_does_not_answer() -> None:
    """The call that is under way is the begin of the term, not its last act: it is cut off."""
    world = World(tick_seconds=1.0, narrates=False)
    old = boot(world, "a", "old")
    old.always_call_fault = "retry"
    world.run(5.0)
    new = boot(world, "b", "new")
    assert world.run_until(lambda: new.dispatching is not None) < 10.0
    assert not given_up(old)


@pytest.mark.parametrize("fault", ["wait long", "reject"])
def test_b23_what_telegram_has_answered_to_one_it_would_answer_to_the_other(fault: str) -> None:
    """A flood limit is the bot's, and who calls within it prolongs it."""
    world = World(tick_seconds=1.0, narrates=False)
    owner = boot(world, "a", "d1")
    owner.always_call_fault = fault
    world.run(2.0)
    standby = boot(world, "b", "d1")
    world.run(200.0)
    assert world.owners() == [owner]
    assert standby.count(m.DeleteWebhook) == 0
    owner.always_call_fault = None
    world.run_until(lambda: owner.dispatching is not None, 300.0)
