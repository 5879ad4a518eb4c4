"""Deploys with another token than the owner's: who is handed over to, who is not, and what Telegram is asked for it (b24)."""

from __future__ import annotations

import pytest

from supervisor import messages as m
from tests.unit.supervisor.courses import owner_and_standby, revoke, settle
from tests.unit.supervisor.world import World


def test_b24_a_deploy_with_a_wrong_token_never_owns() -> None:
    """It asks before it is ready for a hand-over: exit 3, at every restart of the platform's, and the owner owns on."""
    world = World()
    owner = world.boot("a", deploy="old")
    settle(world)
    term = owner.state.term
    world.telegram.refused_tokens.add("wrong")
    for start in range(4):
        wrong = world.boot(f"b-{start}", platform_id="b", token="wrong", deploy="new")
        world.run_until(lambda wrong=wrong: wrong.exit_code is not None)  # type: ignore[misc]
        assert wrong.exit_code == 3
        assert wrong.faults[0].startswith("TELEGRAM_BOT_TOKEN is not valid")
        assert wrong.count(m.CallAction) == wrong.count(m.VerifyIdentity) == 1
        world.run(5.0)
    assert owner.state.term is not None
    assert term is not None
    assert owner.state.term.uuid == term.uuid
    assert {name for _, name, _ in world.database.terms_begun} == {"a"}


def test_b24_a_deploy_with_another_good_token_is_handed_over_to() -> None:
    """It asks once; the answer makes it ready."""
    world = World()
    world.boot("a", deploy="old")
    settle(world)
    new = world.boot("b", token="t2", deploy="new")
    world.run_until(lambda: world.owners() == [new] and world.telegram.url == "ours-t2", 10.0)
    settle(world)
    without_term = [a for _, a in new.actions if isinstance(a, m.CallAction) and a.term is None]
    assert [type(action) for action in without_term] == [m.VerifyIdentity]
    assert new.state.webhook_error is None


def test_b24_with_another_token_nothing_is_handed_over_while_telegram_is_away() -> None:
    """Whoever works goes on; what is free is taken all the same; once Telegram answers, the younger deploy owns."""
    world = World()
    owner = world.boot("a", deploy="old")
    settle(world)
    world.telegram.is_away = True
    new = world.boot("b", token="t2", deploy="new")
    world.run(60.0)
    assert world.owners() == [owner]
    assert new.health.ok
    assert new.session in world.database.queue
    world.telegram.is_away = False
    world.run_until(lambda: world.owners() == [new])
    settle(world)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_b24_with_another_token_a_free_lock_is_taken_while_telegram_is_away(end: str) -> None:
    """Nothing is dead because Telegram was; and the question does not stand in the way of the registration."""
    world = World()
    owner = world.boot("a", deploy="old")
    settle(world)
    world.telegram.is_away = True
    new = world.boot("b", token="t2", deploy="new")
    new.lead_fault = "outage"
    world.run(20.0)
    if end == "kill":
        owner.kill_9()
    else:
        owner.stop()
    world.run_until(lambda: world.owners() == [new], 8.0)
    world.run_until(lambda: isinstance(new.state.call, m.SetWebhook), 0.1)
    world.telegram.is_away = False
    world.run_until(lambda: world.telegram.url == "ours-t2", 5.0)
    settle(world, 60.0)


def test_b24_standbys_with_the_old_token_stay_through_a_rotation() -> None:
    """Their token was good, by their owner's word: they do not ask, and go on taking updates until the platform ends them."""
    world = World()
    owner, standby = owner_and_standby(world)
    revoke(world, owner)
    bearer = world.boot("c", token="t2", deploy="d2")
    world.run_until(lambda: world.owners() == [bearer] and world.telegram.url == "ours-t2")
    world.run(120.0)
    assert world.owners() == [bearer]
    assert owner.lives
    assert standby.lives
    assert standby.count(m.CallAction) == 0


def test_b24_an_owner_whose_token_was_refused_is_not_ready_for_a_hand_over() -> None:
    """Also as the younger deploy: it asks again when refused tokens are, and is handed over to once its token is good."""
    world = World(tick_seconds=1.0)
    old = world.boot("a", token="t2", deploy="old")
    settle(world)
    young = world.boot("b", token="t", deploy="young")
    world.run_until(lambda: world.owners() == [young])
    settle(world)
    revoke(world, young)
    world.run_until(lambda: world.owners() == [old])
    world.run(200.0)
    assert world.owners() == [old]
    assert "401" in str(young.health.reason)
    world.telegram.refused_tokens.clear()
    world.run_until(lambda: world.owners() == [young], 310.0)
    settle(world)
