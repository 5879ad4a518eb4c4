"""b23: what Telegram tells to wait is waited, whatever ends in between."""

from __future__ import annotations

import pytest

from supervisor import messages as m
from tests.unit.supervisor.courses import assertions, settle
from tests.unit.supervisor.world import World


@pytest.mark.parametrize(("fault", "seconds"), [("wait long", 300.0), ("retry late", 0.0)])
@pytest.mark.parametrize("mode", list(m.Mode))
def test_b23_a_new_term_obeys_a_flood_limit_on_the_registration(
    fault: str, seconds: float, mode: m.Mode
) -> None:
    """Telegram prolongs it for who calls within. After a mere failure a new term calls at once."""
    world = World()
    owner = world.boot("a", mode=mode)
    owner.call_fault = fault
    world.run_until(lambda: owner.state.webhook_error is not None)
    told_at, calls = world.now, len(world.telegram.changes)
    owner.lose_session()
    world.run_until(lambda: len(world.telegram.changes) > calls, 310.0)
    assert seconds <= world.now - told_at <= seconds + 5.0
    settle(world)
    assert owner.state.webhook_error is None


def test_b23_a_flood_limit_does_not_keep_the_webhook_from_being_deleted_at_the_exit() -> None:
    """It is this process's last chance, and another method."""
    world = World()
    owner = world.boot("a", delete_on_exit=True)
    owner.call_fault = "wait long"
    world.run_until(lambda: owner.state.webhook_error is not None)
    owner.stop()
    world.run_until(lambda: owner.exit_code is not None)
    assert assertions(world, "a") == 0
    assert owner.count(m.DeleteWebhook) == 1
