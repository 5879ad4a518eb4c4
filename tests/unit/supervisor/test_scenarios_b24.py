"""b24: a token that Telegram refuses, and deploys with another one: who owns, who does not, what Telegram is asked for it."""

from __future__ import annotations

import pytest

from shared import wire
from supervisor import messages as m
from supervisor.readings import DOUBT_SECONDS
from tests.unit.supervisor.courses import owner_and_standby, revoke, settle
from tests.unit.supervisor.modelled_calls import PAUSES
from tests.unit.supervisor.world import Instance, World


def told_to_wait(world: World, call: type[m.BotCall]) -> Instance:
    """An owner without a deploy, one call of which sleeps out 300 s."""
    owner = world.boot("a", deploy=None, reconcile=10.0)
    settle(world)
    world.run_until(lambda: owner.state.call is None)
    if call is m.SetWebhook:
        world.telegram.url = "elsewhere"
    if call is m.VerifyIdentity:
        owner.hear(wire.TokenRefused())
    world.run_until(lambda: isinstance(owner.state.call, call))
    owner.call_fault = "wait long"
    world.run_until(lambda: owner.state.webhook_error == "503")
    return owner


def in_sync(owner: Instance) -> bool:
    """What it last saw of its registration."""
    return owner.state.webhook is not None and owner.state.webhook.in_sync


def test_b24_a_first_answer_of_401_is_exit_3() -> None:
    """The token is not valid, and never was."""
    world = World()
    world.telegram.refused_tokens.add("t")
    owner = world.boot("a")
    world.run_until(lambda: owner.exit_code is not None)
    assert owner.exit_code == 3
    assert owner.faults[0].startswith("TELEGRAM_BOT_TOKEN is not valid")


def test_b24_a_first_answer_of_401_to_the_worker_is_exit_3_too() -> None:
    """The worker's getMe may be answered before our setWebhook is; that one finds the same."""
    world = World()
    owner = world.boot("a")
    world.run_until(lambda: owner.count(m.Lead) == 1)
    revoke(world, owner)
    world.run_until(lambda: owner.exit_code is not None, 1.0)
    assert owner.exit_code == 3


def test_b24_a_rejection_is_an_answer_too() -> None:
    """Telegram looks at the token first: a 401 after a 400 is a state, not an exit."""
    world = World()
    owner = world.boot("a")
    owner.call_fault = "reject"
    world.run_until(lambda: owner.state.webhook_error is not None)
    revoke(world, owner)
    world.run(5.0)
    assert owner.exit_code is None
    assert not owner.health.ok


def test_b24_a_bot_that_came_up_had_an_answer_too() -> None:
    """Its worker asked getMe before it dispatched: a 401 later is a state, also where setWebhook was never answered."""
    world = World()
    owner = world.boot("a")
    owner.call_fault = "retry"
    world.run_until(lambda: any(worker.dispatching for worker in owner.state.workers))
    assert owner.state.term is not None
    assert not owner.state.term.registration.asserted
    revoke(world, owner)
    world.run(60.0)
    assert owner.exit_code is None
    assert "401" in str(owner.health.reason)


def test_b24_a_token_revoked_later_is_a_state_and_loud() -> None:
    """No exit, health says so, and the API is asked again once in five minutes."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    settle(world)
    revoke(world, owner)
    assert "401" in str(owner.health.reason)
    loud = [line for line in owner.lines if line.event.startswith("Telegram refuses the bot token (401)")]
    assert [line.level for line in loud] == ["error"]
    calls = sum(isinstance(action, m.CallAction) for _, action in owner.actions)
    world.run(1200.0)
    assert owner.exit_code is None
    assert sum(isinstance(action, m.CallAction) for _, action in owner.actions) - calls <= 5


def test_b24_delete_on_exit_is_tried_once_with_a_refused_token() -> None:
    """A 401 is its end, like any other refusal: no hammering, and the exit does not wait for what cannot be done."""
    world = World()
    owner = world.boot("a", delete_on_exit=True)
    settle(world)
    world.telegram.refused_tokens.add("t")
    owner.stop()
    assert world.run_until(lambda: owner.exit_code is not None) < 8.0
    assert owner.exit_code == 0
    assert owner.count(m.DeleteWebhook) == 1


def test_b24_ownership_goes_to_the_instance_with_the_new_token() -> None:
    """And to nobody else for nothing."""
    world = World()
    owner, same_token = owner_and_standby(world)
    revoke(world, owner)
    world.run(30.0)
    assert world.database.holder == owner.session
    bearer = world.boot("c", token="t2", deploy="d1")
    world.run_until(lambda: world.owners() == [bearer] and world.telegram.url == "ours-t2")
    world.run(90.0)
    assert world.owners() == [bearer]
    assert same_token.name not in [name for _, name, _ in world.database.terms_begun]


@pytest.mark.parametrize("after", [number / 10 for number in range(0, 40, 2)])
def test_b24_b09_the_bearer_of_the_new_token_is_that_also_between_two_waits(after: float) -> None:
    """Each look at the queue may miss it. The old owner begins no other term meanwhile, and starts no worker in vain."""
    world = World(statement_seconds=0.5, narrates=False)
    owner = world.boot("a", start_seconds=2.0)
    world.run(25.0)
    bearer = world.boot("c", token="t2", deploy="d1", start_seconds=2.0)
    world.run(25.0 + after)
    spawned = owner.count(m.SpawnWorker)
    revoke(world, owner)
    world.run_until(lambda: world.owners() == [bearer] and world.telegram.url == "ours-t2", 60.0)
    assert owner.count(m.SpawnWorker) == spawned + 1
    assert [name for _, name, _ in world.database.terms_begun] == ["a", "c"]


def test_b24_an_owner_whose_replacement_does_not_come_up_lets_go_too() -> None:
    """A bot that asks Telegram while it is built cannot be built any more; the one with the new token must not wait for it."""
    world = World()
    owner = world.boot("a")
    settle(world)
    revoke(world, owner)
    owner.always_spawn_fault = "crash"
    bearer = world.boot("c", token="t2", deploy="d1")
    world.run_until(lambda: world.owners() == [bearer] and world.telegram.url == "ours-t2", 60.0)


def test_b24_any_good_answer_shows_that_the_token_is_good() -> None:
    """A 401 in the middle of an outage of Telegram's is forgotten at the next call that succeeds, whichever it is."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.call_fault = "refuse"
    owner.hear(wire.TokenRefused())
    world.run(1.0)
    assert not owner.health.ok
    settle(world, 310.0)
    assert owner.health.ok


def test_b24_a_401_to_another_token_that_a_handler_uses_costs_nothing() -> None:
    """We ask about our own at once, and hear that it is good: health, ownership and the care of the webhook stay."""
    world = World()
    owner = world.boot("a")
    settle(world)
    world.boot("c", token="t2", deploy="d1")
    settle(world)
    term = owner.state.term
    owner.hear(wire.TokenRefused())
    for _ in range(100):
        assert owner.health.ok
        world.run(0.01)
    assert isinstance(owner.actions[-1][1], m.VerifyIdentity)
    world.telegram.url = "elsewhere"
    assert world.run_until(lambda: world.telegram.url == "ours-t", 61.0) <= 61.0
    assert world.owners() == [owner]
    assert term is not None
    assert owner.state.term is not None
    assert owner.state.term.uuid == term.uuid
    assert not any(line.event.startswith("Telegram refuses the bot token") for line in owner.lines)


def test_b24_handlers_that_are_refused_again_and_again_do_not_hammer() -> None:
    """getMe is asked about at most every 30 s, whatever comes of it."""
    for fault in (None, "reject"):
        world = World()
        owner = world.boot("a", reconcile=3600.0)
        settle(world)
        before = owner.count(m.VerifyIdentity)
        for _ in range(600):
            owner.call_fault = fault
            owner.hear(wire.TokenRefused())
            world.run(0.5)
        assert 10 <= owner.count(m.VerifyIdentity) - before <= 11


def test_b24_a_token_revoked_before_a_new_worker_leads_is_no_crash_loop() -> None:
    """Its bot does not start, once: our own call finds out why, and nobody is told to lead until the token is good again."""
    world = World()
    owner = world.boot("a")
    settle(world)
    world.telegram.refused_tokens.add("t")
    owner.replace_worker()
    world.run(60.0)
    assert "401" in str(owner.health.reason)
    assert owner.state.restarts.count(world.now) <= 1
    assert owner.count(m.Lead) <= 3
    world.telegram.refused_tokens.clear()
    settle(world, 310.0)


def test_b24_a_standby_trusts_an_owner_with_the_same_token() -> None:
    """It makes no call, so it would never learn that its token is good."""
    world = World()
    old = world.boot("a", deploy="d1")
    settle(world)
    old.call_fault = "refuse"
    old.hear(wire.TokenRefused())
    world.run_until(lambda: old.state.token_refused, 1.0)
    new = world.boot("b", deploy="d2")
    world.run_until(lambda: world.owners() == [new])
    settle(world)
    assert old.health.ok


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


@pytest.mark.parametrize("call", [m.SetWebhook, m.CompareWebhook])
def test_b23_b24_a_call_that_waits_gives_way_to_a_doubt_of_the_token(call: type[m.BotCall]) -> None:
    """A flood limit may last for an hour, and getMe has none: health says it, and the bearer of the new token owns."""
    world = World()
    owner = told_to_wait(world, call)
    bearer = world.boot("c", token="t2", deploy=None)
    world.run_until(lambda: bearer.state.session.lock_tried and bearer.state.telegram_answered)
    revoke(world, owner)
    world.run(1.0)
    assert "401" in str(owner.health.reason)
    world.run_until(lambda: world.owners() == [bearer], DOUBT_SECONDS + 10.0)


@pytest.mark.parametrize("call", [m.SetWebhook, m.CompareWebhook])
def test_b23_b24_a_doubt_for_nothing_does_not_shorten_what_the_call_was_told(call: type[m.BotCall]) -> None:
    """Another bot's token, which a handler uses, is refused again and again: getMe is asked, at its rate, and nothing else."""
    world = World()
    owner = told_to_wait(world, call)
    start, told_until = world.now, world.now + PAUSES["wait long"]
    while world.now < told_until - 1.0:
        owner.hear(wire.TokenRefused())
        world.run(1.0)
        assert owner.health.ok
    calls = [action for at, action in owner.actions if at > start and isinstance(action, m.CallAction)]
    assert {type(action) for action in calls} == {m.VerifyIdentity}
    assert 9 <= len(calls) <= 11
    world.run_until(lambda: owner.count(call) == 2 + (call is m.SetWebhook), 15.0)
    world.run_until(lambda: in_sync(owner), 5.0)


def test_b23_b24_a_limit_of_getmes_own_is_not_shortened_by_a_doubt() -> None:
    """Neither while it is slept out, nor when an assertion has come between."""
    world = World()
    owner = told_to_wait(world, m.VerifyIdentity)
    asked, told_until = owner.count(m.VerifyIdentity), world.now + PAUSES["wait long"]
    world.run(61.0)
    owner.hear(wire.ForeignRegistration())
    world.run_until(lambda: not isinstance(owner.state.call, m.VerifyIdentity), 5.0)
    while world.now < told_until - 1.0:
        owner.hear(wire.TokenRefused())
        world.run(1.0)
    assert owner.count(m.VerifyIdentity) == asked
    world.run_until(lambda: owner.count(m.VerifyIdentity) > asked, 5.0)
