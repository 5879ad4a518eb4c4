"""b23: what Telegram tells to wait is waited, whatever ends in between: the worker, the term, the session."""

from __future__ import annotations

import pytest

from supervisor import core
from supervisor import messages as m
from supervisor.readings import UNUSED_LOCK_SECONDS
from tests.unit.supervisor.courses import assertions, owner_and_standby, settle
from tests.unit.supervisor.modelled_instance import FLOOD_SECONDS, LEAD_FAILURES
from tests.unit.supervisor.test_status import seen
from tests.unit.supervisor.world import Instance, World


def told_to_wait(world: World, owner: Instance, fault: str = "flood") -> float:
    """The bot of the owner's next worker meets a flood limit at its start; when."""
    owner.lead_fault = fault
    world.run_until(
        lambda: LEAD_FAILURES[fault] in (e.message for e in owner.events if isinstance(e, m.WorkerSaid))
    )
    return world.now


def settle_one(world: World, owner: Instance) -> None:
    """Until it owns in full, whatever the others do."""
    world.run_until(lambda: owner.dispatching is not None and in_sync(owner) is True)


def in_sync(owner: Instance) -> bool | None:
    """What /status says of the registration."""
    told: bool | None = seen(owner)["webhook"]["in_sync"]
    return told


def closed_terms(owner: Instance) -> list[tuple[m.EndReason, str | None]]:
    """Why each term of an instance ended, and whom it named."""
    return [(a.reason, a.successor) for _, a in owner.actions if isinstance(a, m.CloseTerm)]


@pytest.mark.parametrize("fault", ["flood", "flood of getMe"])
def test_b23_a_flood_limit_at_the_bots_start_is_waited_out(fault: str) -> None:
    """No start within it, nor a getMe of ours if it is about that; all the while a worker stores, and health is good."""
    world = World()
    owner = world.boot("a")
    told_at = told_to_wait(world, owner, fault)
    while world.now < told_at + FLOOD_SECONDS - 1.0:
        world.next()
        assert owner.health.ok
        assert any(worker.accepting for worker in owner.workers.values())
    assert owner.count(m.Lead) == 1
    assert (owner.count(m.Read) == 0) == (fault == "flood of getMe")
    assert owner.state.term is not None
    assert owner.state.term.registration.asserted, "the webhook does not wait for the bot"
    assert in_sync(owner) is (None if fault == "flood of getMe" else True)
    assert owner.count(m.SpawnWorker) == 2
    announced = [action.abstain_seconds for _, action in owner.actions if isinstance(action, m.Announce)]
    assert max(announced) > FLOOD_SECONDS - 10.0, "none to hand over to"
    assert (announced[0], announced[-1]) == (0.0, 0.0), "neither before nor when it is nearly over"
    assert owner.state.last_crash == "RetryAfter: Flood control exceeded"
    [told] = [line for line in owner.lines if line.event.startswith("application did not start")]
    assert told.fields["retry_in"] == "600.0s"
    world.run_until(lambda: owner.dispatching is not None, 5.0)
    settle(world)


def test_a19_b23_a_limit_of_the_bots_own_does_not_keep_the_registration_from_being_mended() -> None:
    """It may be a backend's of the bot, and last for a day."""
    world = World()
    owner = world.boot("a", reconcile=10.0)
    told_to_wait(world, owner)
    world.run_until(lambda: in_sync(owner) is True)
    world.telegram.url = "https://foreign.example"
    world.run_until(lambda: in_sync(owner) is False, 11.0)
    world.run_until(lambda: in_sync(owner) is True)
    assert world.telegram.url == "ours-t"
    assert owner.count(m.Lead) == 1


def test_b23_b24_getme_is_asked_within_its_limit_by_no_standby_either() -> None:
    """It has lost the lock to an instance with another token, and wants to know whether its own is good."""
    world = World()
    told = world.boot("a", token="other")
    told.call_fault = "wait long"  # so that it has no answer of Telegram's from setWebhook
    told_at = told_to_wait(world, told, "flood of getMe")
    owner = world.boot("b", deploy="d2")
    world.run_until(lambda: owner.state.session.lock_tried)
    told.lose_session()
    world.run_until(lambda: owner.dispatching is not None)
    world.run_until(lambda: core.asks_for_itself(told.state))
    world.run_until(lambda: told.count(m.VerifyIdentity) == 1, FLOOD_SECONDS)
    assert world.now - told_at >= FLOOD_SECONDS


@pytest.mark.parametrize("end", ["worker", "session", "replaced"])
def test_b23_it_is_waited_out_whatever_ends_meanwhile(end: str) -> None:
    """A crash of the worker that waits, the loss of the lock's session, SIGHUP."""
    world = World()
    owner = world.boot("a")
    told_at = told_to_wait(world, owner)
    for _ in range(4):
        world.run(20.0)
        if end == "worker":
            waiting = owner.leader_or_any()
            assert waiting is not None
            owner.end_worker(waiting.id, "killed by SIGSEGV")
        elif end == "session":
            owner.lose_session()
        else:
            owner.replace_worker()
    world.run_until(lambda: owner.dispatching is not None, FLOOD_SECONDS)
    assert world.now - told_at >= FLOOD_SECONDS


def test_b23_a_read_that_is_under_way_does_not_shorten_it() -> None:
    """It backs off by a second, and its next failure comes after the word of the limit."""
    world = World()
    owner = world.boot("a", reconcile=10.0, start_seconds=5.0)
    settle(world)
    owner.always_call_fault = "retry"
    world.run_until(lambda: isinstance(owner.events[-1], m.CallRetrying))
    assert owner.dispatching is not None
    told_at = world.now
    owner.hear(LEAD_FAILURES["flood of getMe"], owner.dispatching.id)
    world.run_until(lambda: owner.state.restarts.next_lead_at > told_at)
    world.run_until(lambda: isinstance(owner.events[-1], m.CallRetrying))
    assert owner.state.reads_from >= told_at + FLOOD_SECONDS
    assert owner.state.identity_from >= told_at + FLOOD_SECONDS, "nor is it asked for a doubt of the token"


def test_b23_another_instance_of_the_deploy_is_not_sent_into_it() -> None:
    """It would make the same call: the limit is the bot's, whichever instance calls."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.replace_worker()
    told_at = told_to_wait(world, owner)
    world.run(FLOOD_SECONDS - 1.0)
    assert standby.count(m.Lead) == 0
    world.run_until(lambda: owner.dispatching is not None)
    assert world.now - told_at >= FLOOD_SECONDS


def test_b17_b23_the_old_deploy_works_on_while_the_new_one_is_told_to_wait() -> None:
    """Its bot may not make that call. It is handed over again when the time is over, and not before."""
    world = World()
    old = world.boot("a", deploy="old")
    settle(world)
    new = world.boot("b", deploy="new")
    told_at = told_to_wait(world, new)
    world.run_until(lambda: old.dispatching is not None, UNUSED_LOCK_SECONDS)
    began = old.count(m.Lead)
    while world.now < told_at + FLOOD_SECONDS:
        world.next()
    assert old.count(m.Lead) == began
    assert new.count(m.Lead) == 1
    world.run_until(lambda: new.dispatching is not None, 15.0)
    world.run(30.0)
    assert world.owners() == [new]


def test_b17_b23_other_code_that_comes_up_meanwhile_works_too() -> None:
    """An older deploy is handed nothing by an owner that works; by one that waits it is."""
    world = World()
    old = world.boot("a", deploy="old", start_seconds=30.0)
    world.run(1.0)
    new = world.boot("b", deploy="new")
    told_to_wait(world, new)
    world.run(20.0)
    assert world.owners() == [new]
    world.run_until(lambda: old.dispatching is not None, 20.0)
    assert closed_terms(new)[-1] == (m.EndReason.NOT_STARTED, "a")
    [given_up] = [line for line in new.lines if line.event.startswith("giving up the lock")]
    assert given_up.event == "giving up the lock to an instance of another deploy: the bot was told to wait"
    assert given_up.level == "warning"
    left_seconds = float(str(given_up.fields["retry_in"]).removesuffix("s"))
    assert FLOOD_SECONDS - 40.0 < left_seconds < FLOOD_SECONDS - 20.0


@pytest.mark.parametrize("comes", ["before", "later", "later, while no worker accepts"])
def test_b17_b23_the_lock_goes_to_other_code_past_an_instance_of_the_same(comes: str) -> None:
    """It waits longer for the lock, and would make the call again, within the limit."""
    world = World()
    old = world.boot("a", deploy="old", start_seconds=10.0 if comes == "before" else 30.0)
    world.run(1.0)
    new = world.boot("b", deploy="new")
    settle_one(world, new)
    same = world.boot("c", deploy="new")
    world.run(11.0)
    assert same.state.session.lock_tried
    assert old.state.session.lock_tried == (comes == "before")
    new.replace_worker()
    told_to_wait(world, new)
    if comes == "later, while no worker accepts":
        world.run(1027.5 - world.now)  # shortly before the other is up
        new.start_seconds = 8.0
        for worker in list(new.workers.values()):
            new.end_worker(worker.id, "killed by SIGSEGV")
    world.run_until(lambda: old.dispatching is not None, 30.0)
    assert closed_terms(new)[-1] == (m.EndReason.NOT_STARTED, "a")
    assert same.count(m.Lead) == 0
    world.run(30.0)
    assert world.owners() == [old]


def test_b17_b23_a_younger_deploy_is_handed_over_to_as_ever() -> None:
    """What it was made for may be this call: the end says so, and the one that was told to wait has not given up."""
    world = World()
    told = world.boot("a", deploy="broken")
    told_to_wait(world, told)
    world.run(30.0)
    mended = world.boot("b", deploy="mended")
    world.run_until(lambda: mended.dispatching is not None, 10.0)
    assert closed_terms(told)[-1] == (m.EndReason.HANDED_OVER, "b")
    assert not [a for _, a in told.actions if isinstance(a, m.ReleaseLock) and a.gave_up]


@pytest.mark.parametrize(("fault", "seconds"), [("wait long", 300.0), ("retry late", 0.0)])
@pytest.mark.parametrize("polls", [False, True])
def test_b23_a_new_term_obeys_a_flood_limit_on_the_registration(
    fault: str, seconds: float, polls: bool
) -> None:
    """Telegram prolongs it for who calls within. After a mere failure a new term calls at once."""
    world = World()
    owner = world.boot("a", polls=polls)
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
