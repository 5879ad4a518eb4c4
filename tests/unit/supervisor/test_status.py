"""GET /status: what it says of a moment, of another, and of what nobody knows."""

from __future__ import annotations

import datetime
from typing import Any

from supervisor.runner import WallClock, status
from tests.unit.supervisor.courses import owner_and_standby, settle
from tests.unit.supervisor.test_metrics import CONFIG, WALL
from tests.unit.supervisor.world import Instance, World


def seen(instance: Instance) -> Any:
    """The body, of an instance of the world."""
    return status(instance.state, instance.world.now, CONFIG, WallClock(lambda: WALL))


def owner_that_has_checked() -> tuple[World, Instance]:
    """What the webhook is."""
    world = World()
    one = world.boot("a")
    settle(world)
    world.run_until(lambda: one.state.webhook is not None)
    return world, one


def test_a_moment_is_told_as_it_was_told_first() -> None:
    """A reader compares two terms by it; two clocks are never read at once, and one of them is set now and then."""
    world, one = owner_that_has_checked()
    late = datetime.timedelta()
    wall = WallClock(lambda: WALL + datetime.timedelta(seconds=world.now) + late)

    def shown() -> Any:
        return status(one.state, world.now, CONFIG, wall)

    first = shown()
    assert first["term"]["since"] is not None
    assert first["webhook"]["last_checked"] is not None
    late = datetime.timedelta(seconds=0.000_3)
    assert shown() == first
    one.lose_session()
    world.run_until(lambda: one.state.term is not None and one.state.term.number == 2)
    assert shown()["term"]["since"] > first["term"]["since"]


def test_b16_a_moment_is_told_by_the_clock_that_was_set_since() -> None:
    """A machine may start an hour off and be put right later; what was told by then was wrong."""
    world, one = owner_that_has_checked()
    ahead = datetime.timedelta()
    wall = WallClock(lambda: WALL + datetime.timedelta(seconds=world.now) + ahead)

    def shown() -> list[datetime.datetime]:
        body: Any = status(one.state, world.now, CONFIG, wall)
        return [
            datetime.datetime.fromisoformat(text)
            for text in (body["term"]["since"], body["webhook"]["last_checked"])
        ]

    first = shown()
    ahead = datetime.timedelta(hours=-1)
    assert shown() == [moment + ahead for moment in first]


def test_t_nobody_names_himself_the_holder_of_a_lock_that_he_has_lost() -> None:
    """The term's row names him for as long as the database cannot be asked; of others it may be the latest that is known."""
    world = World()
    owner, standby = owner_and_standby(world)
    assert (seen(owner)["lock"]["holder"], seen(standby)["lock"]["holder"]) == ("a", "a")
    world.run_until(lambda: owner.state.holder == "a")
    world.stop_database(30.0)
    world.run(5.0)
    assert seen(owner)["role"] == "PASSIVE"
    assert seen(owner)["lock"]["holder"] is None
    assert seen(standby)["lock"]["holder"] == "a"


def test_what_no_worker_has_told_yet_is_null() -> None:
    """A number would be believed."""
    world = World()
    body = seen(world.boot("a"))
    assert body["inbox"] == dict.fromkeys(("pending", "in_flight", "dead", "oldest_pending_seconds"))
    assert body["pool"] == dict.fromkeys(("size", "in_use", "waiting"))
