"""Short ways to the situations that scenarios begin with."""

from __future__ import annotations

from tests.unit.supervisor.stories import unsettled
from tests.unit.supervisor.world import Instance, World


def settle(world: World, limit: float = 30.0) -> None:
    """Until everybody owns or stands by in full."""
    world.run_until(lambda: unsettled(world) is None, limit)


def owner_and_standby(world: World) -> tuple[Instance, Instance]:
    """Two instances of one deploy, settled."""
    owner = world.boot("a")
    settle(world)
    standby = world.boot("b")
    settle(world)
    assert world.owners() == [owner]
    return owner, standby


def assertions(world: World, name: str) -> int:
    """How often that instance asserted the webhook."""
    return sum(1 for _, method, by in world.telegram.changes if (method, by) == ("SetWebhook", name))
