"""How an owner keeps its registration where somebody else changes it, or Telegram does not play along."""

from __future__ import annotations

from supervisor import messages as m
from tests.unit.supervisor.courses import settle
from tests.unit.supervisor.world import Instance, World


def settled_for_a_minute(world: World, reconcile: float = 10.0) -> Instance:
    """An owner whose assertion is so old that a foreign secret causes another."""
    owner = world.boot("a", reconcile=reconcile)
    settle(world)
    world.run(61.0)
    return owner


def calls_since(owner: Instance, start: float) -> list[type[m.CallAction]]:
    """The kinds of its Bot API calls from a moment on."""
    return [type(action) for at, action in owner.actions if at >= start and isinstance(action, m.CallAction)]


def test_a13_a_rejected_assertion_after_a_foreign_secret_is_repeated_after_its_pause() -> None:
    """Telegram's 400 would come again at once, and again, twenty times a second."""
    world = World()
    owner = settled_for_a_minute(world)
    owner.post(m.ForeignSecretSeen)
    start = world.now
    owner.always_call_fault = "reject"
    world.run(59.0)
    assert calls_since(owner, start).count(m.SetWebhook) == 1
    owner.always_call_fault = None
    world.run(5.0)
    assert calls_since(owner, start).count(m.SetWebhook) == 2


def test_a19_what_was_mended_is_compared_at_once() -> None:
    """Not a period later: until then health and status would call a registration that stands out of sync."""
    world = World()
    owner = settled_for_a_minute(world, reconcile=60.0)
    world.telegram.url = "elsewhere"
    world.run_until(lambda: world.telegram.url == "ours-t", 61.0)
    world.run(1.0)
    assert owner.state.webhook is not None
    assert owner.state.webhook.in_sync
    assert owner.state.webhook_error is None
