"""`supervisor handover`: the owner is asked to give up to another ready instance."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from supervisor import messages as m
from tests.unit.supervisor.courses import owner_and_standby, settle
from tests.unit.supervisor.world import Instance, World


def ask(world: World) -> str | None:
    """Somebody asks."""
    return world.database.request_handover(world.now)


def terms(world: World) -> list[str]:
    """Who began them."""
    return [name for _, name, _ in world.database.terms_begun]


def hand_over(world: World, asked: str) -> None:
    """Until another than the one who was asked owns, and all is quiet."""
    assert world.run_until(lambda: [i.name for i in world.owners()] not in ([], [asked])) < 10.0
    settle(world)


def ends(instance: Instance) -> list[str]:
    """Why its terms ended, by its log."""
    return [line.event for line in instance.lines if line.event.startswith("ACTIVE -> PASSIVE")]


def test_an_owner_that_is_asked_hands_over_to_who_stands_by() -> None:
    """Once, in order, and without a deploy id; whoever takes over is told by name and stays the owner."""
    world = World()
    owner, standby = owner_and_standby(world)
    told, done = len(owner.lines), len(owner.actions)
    assert ask(world) == "a"
    assert world.run_until(lambda: world.owners() == [standby]) < 10.0
    assert {"reason": "handed over on request", "successor": "b"} in [
        line.fields for line in owner.lines[told:]
    ]
    world.run(180.0)
    settle(world)
    assert world.owners() == [standby]
    assert terms(world) == ["a", "b"]
    assert ends(owner) == ["ACTIVE -> PASSIVE (handed over on request)"]
    steps = (
        m.SpawnWorker,
        m.StopAccepting,
        m.EndTerm,
        m.ExitWorker,
        m.KillWorker,
        m.CloseTerm,
        m.ReleaseLock,
    )
    order = [type(action) for _, action in owner.actions[done:] if isinstance(action, steps)]
    assert order == [kind for kind in steps if kind is not m.KillWorker], (
        "it dispatches until nobody is connected"
    )


def test_who_handed_over_waits_like_any_other() -> None:
    """What it was asked is done: it does not prefer others for it, and its next term begins with the lock."""
    world = World()
    owner, standby = owner_and_standby(world)
    world.boot("c")
    settle(world)
    ask(world)
    world.run_until(lambda: world.owners() == [standby])
    world.run(10.0)
    waits = [action for _, action in owner.actions if isinstance(action, m.WaitForLock)]
    assert waits
    assert all(wait.then is not None for wait in waits)


def test_a_request_is_of_one_term() -> None:
    """With the next of ours, by a new worker, it is gone, before any heartbeat says so."""
    world = World()
    owner = world.boot("a")
    settle(world)
    ask(world)
    world.run_until(lambda: owner.state.session.handover_requested)
    owner.replace_worker()
    world.run_until(lambda: owner.state.term is not None and owner.state.term.number == 2)
    assert not owner.state.session.handover_requested


def test_who_stands_first_in_the_queue_gives_the_lock_to_the_named_one() -> None:
    """The instance of the owner's own deploy, since older code would only hand the bot back."""
    world = World()
    old = world.boot("a", deploy="d1")
    settle(world)
    new, newer = world.boot("b", deploy="d2"), world.boot("c", deploy="d2")
    world.run_until(lambda: world.owners() in ([new], [newer]))
    settle(world)
    (owner,) = world.owners()
    sibling = newer if owner is new else new
    ask(world)
    world.run_until(lambda: world.owners() == [sibling])
    world.run(180.0)
    assert terms(world) == ["a", owner.name, sibling.name]
    assert ends(old) == ["ACTIVE -> PASSIVE (handed over to a newer deploy)"]


def test_who_is_asked_and_alone_stays_and_forgets_it() -> None:
    """Whoever comes after a minute is handed nothing; a term is not ended for nobody."""
    world = World()
    owner = world.boot("a")
    settle(world)
    ask(world)
    world.run(61.0)
    world.boot("b")
    world.run(60.0)
    assert world.owners() == [owner]
    assert terms(world) == ["a"]
    assert owner.count(m.SpawnWorker) == 1


def test_who_is_asked_hands_over_to_one_that_becomes_ready_within_the_minute() -> None:
    """The request stands while whoever asked may be waiting."""
    world = World()
    world.boot("a")
    settle(world)
    ask(world)
    world.run(20.0)
    late = world.boot("b")
    assert world.run_until(lambda: world.owners() == [late]) < 15.0


@pytest.mark.parametrize("age", [61.0, 3600.0, -3600.0], ids=["stale", "old", "the clock was set back"])
def test_a_request_of_another_time_does_not_count(age: float) -> None:
    """By the database's clock, which may have been set."""
    world = World()
    owner, _ = owner_and_standby(world)
    world.database.term.handover_requested_at = world.now - age
    world.run(30.0)
    assert world.owners() == [owner]
    assert terms(world) == ["a"]


def test_asked_beside_a_newer_deploy_the_newer_deploy_owns() -> None:
    """One change of owner, for the usual reason, though another stood in the queue before."""
    world = World()
    owner = world.boot("a", deploy="d1")
    settle(world)
    world.boot("b", deploy="d1")
    settle(world)
    new = world.boot("c", deploy="d2")
    world.run_until(lambda: any(name == "c" for name, _ in world.database.queue))
    assert not any(p.waiting and p.instance_id == "c" for p in owner.state.peers), "it sees both at one look"
    ask(world)
    world.run_until(lambda: world.owners() == [new])
    world.run(180.0)
    assert terms(world) == ["a", "c"]
    assert ends(owner) == ["ACTIVE -> PASSIVE (handed over to a newer deploy)"]


def test_older_code_keeps_for_a_minute_what_it_was_given_on_request() -> None:
    """Then the newer deploy owns again, and that is the end of it."""
    world = World()
    old = world.boot("a", deploy="d1")
    settle(world)
    new = world.boot("b", deploy="d2")
    world.run_until(lambda: world.owners() == [new])
    world.run(120.0)
    asked_at = world.now
    ask(world)
    world.run_until(lambda: world.owners() == [old])
    world.run(asked_at + 59.0 - world.now)
    assert world.owners() == [old]
    world.run_until(lambda: world.owners() == [new])
    world.run(300.0)
    assert terms(world) == ["a", "b", "a", "b"]


def test_two_requests_in_one_term_move_the_ownership_once() -> None:
    """The second, while the hand-over is under way, is of the same term."""
    world = World()
    owner, standby = owner_and_standby(world)
    ask(world)
    world.run_until(lambda: owner.count(m.SpawnWorker) == 2)
    assert ask(world) == "a"
    world.run(180.0)
    assert world.owners() == [standby]
    assert terms(world) == ["a", "b"]


@pytest.mark.parametrize("deploy", [None, "d1"])
def test_what_was_handed_over_can_be_asked_back_at_once(deploy: str | None) -> None:
    """A hand-over that is remembered is no hindrance to the next that somebody asks for."""
    world = World()
    for name in ("a", "b"):
        world.boot(name, deploy=deploy)
        settle(world)
    for _ in range(3):
        asked = ask(world)
        assert asked is not None
        hand_over(world, asked)
    world.run(180.0)
    assert terms(world) == ["a", "b", "a", "b"]


def test_asked_and_stopped_at_once_it_stops() -> None:
    """The standby owns, and the exit is the usual one."""
    world = World()
    owner, standby = owner_and_standby(world)
    ask(world)
    world.run_until(lambda: owner.state.session.handover_requested)
    owner.stop()
    world.run_until(lambda: owner.exit_code == 0)
    world.run_until(lambda: world.owners() == [standby])
    assert ends(owner) == ["ACTIVE -> PASSIVE (stopping)"]


def test_stopped_while_it_hands_over_it_goes_on_handing_over() -> None:
    """To the named one, once."""
    world = World()
    owner, standby = owner_and_standby(world)
    ask(world)
    world.run_until(lambda: bool(ends(owner)))
    owner.stop()
    world.run_until(lambda: owner.exit_code == 0)
    world.run_until(lambda: world.owners() == [standby])
    assert ends(owner) == ["ACTIVE -> PASSIVE (handed over on request)"]
    assert terms(world) == ["a", "b"]


def test_a_request_outlives_a_drain_that_is_longer_than_it() -> None:
    """Once the worker is told, the term's end is settled: the lock is freed, and no term of its own is tried."""
    world = World()
    owner = world.boot("a", drain=200.0)
    settle(world)
    standby = world.boot("b")
    settle(world)
    owner.ending_seconds = 150.0
    ask(world)
    world.run_until(lambda: world.owners() == [standby], limit=200.0)
    assert owner.count(m.BeginTerm) <= 1
    assert not any("lock goes back" in line.event for line in owner.lines)
    assert terms(world) == ["a", "b"]


def test_nothing_is_handed_to_one_that_gave_up() -> None:
    """While its backoff lasts, the owner is as good as alone."""
    world = World()
    owner, standby = owner_and_standby(world)
    standby.state = replace(standby.state, abstain_until=world.now + 500.0)
    world.run(3.0)
    ask(world)
    world.run(90.0)
    assert world.owners() == [owner]
    assert terms(world) == ["a"]


def test_sighup_and_a_request_at_once_lead_to_the_standby() -> None:
    """The end for another reason that was first is followed by no term of ours."""
    world = World()
    owner, standby = owner_and_standby(world)
    ask(world)
    world.run_until(lambda: owner.state.session.handover_requested)
    owner.replace_worker()
    world.run_until(lambda: world.owners() == [standby])
    settle(world)
    assert terms(world) == ["a", "b"]
