"""Short ways to the situations that scenarios begin with."""

from __future__ import annotations

from shared import wire
from supervisor import messages as m
from tests.unit.supervisor.modelled_instance import LEAD_FAILURES
from tests.unit.supervisor.stories import unsettled
from tests.unit.supervisor.world import Instance, World


def settle(world: World, limit: float = 30.0) -> None:
    """Until everybody owns or stands by in full."""
    world.run_until(lambda: unsettled(world) is None, limit)


def first_calls(instance: Instance) -> dict[str, type[m.CallAction]]:
    """The first Bot API call of each of its terms."""
    calls: dict[str, type[m.CallAction]] = {}
    for _, action in instance.actions:
        if isinstance(action, m.CallAction) and action.term is not None:
            calls.setdefault(action.term, type(action))
    return calls


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


def revoke(world: World, owner: Instance) -> None:
    """Telegram refuses the token from now on, and the worker is the first to hear of it."""
    world.telegram.refused_tokens.add(owner.token)
    owner.hear(wire.TokenRefused())
    world.run(0.1)


def fail_to_start(owner: Instance, failure: str, replacement: str) -> None:
    """The bot of its worker does not start after all, and no other worker comes up."""
    owner.always_spawn_fault = replacement
    worker = owner.dispatching
    assert worker is not None
    worker.dispatching = False
    owner.hear(LEAD_FAILURES[failure], worker.id)
