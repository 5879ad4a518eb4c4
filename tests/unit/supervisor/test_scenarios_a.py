"""The incidents of SCENARIOS.md's first table that are about ownership and the registration: the part of the core."""

from __future__ import annotations

import ast
import inspect
import itertools

import pytest

from shared import wire
from supervisor import call_observation, core, observation, readings, session_plan, state, workers_plan
from supervisor import messages as m
from supervisor.narration import Line
from supervisor.readings import DELETE_SECONDS, FAREWELL_SECONDS, STOP_SECONDS
from tests.unit.supervisor.courses import assertions, first_calls, owner_and_standby, settle
from tests.unit.supervisor.world import Instance, World

# ------------------------------------------------------------------------------------------------------------------- a01


def test_a01_the_webhook_is_set_when_the_lock_is_free_at_the_first_boot() -> None:
    """No transition to ACTIVE is needed for it: the first deploy of a bot is alive."""
    world = World()
    owner = world.boot("a")
    settle(world)
    assert assertions(world, "a") == 1
    assert list(first_calls(owner).values()) == [m.SetWebhook], "left to the repair of drift"
    assert owner.health == m.Health(ok=True, role="ACTIVE", reason=None)


def test_a01_the_webhook_is_set_after_waiting() -> None:
    """A standby that gets the lock asserts, also when the registration looks as it should."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.kill_9()
    settle(world)
    assert assertions(world, "b") == 1
    assert list(first_calls(standby).values()) == [m.SetWebhook]


def test_a01_the_webhook_is_set_again_after_a_loss() -> None:
    """An owner that lost its session and owns again asserts again."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.lose_session()
    world.run_until(lambda: not world.owners())
    settle(world)
    assert assertions(world, "a") == 2
    assert list(first_calls(owner).values()) == [m.SetWebhook, m.SetWebhook]


@pytest.mark.parametrize("way", ["replaced", "worker lost", "deadline", "denied first"])
def test_a01_the_webhook_is_set_on_every_other_way_into_active(way: str) -> None:
    """One term, one assertion, whatever led to the term."""
    world = World()
    owner = world.boot("a")
    if way == "denied first":
        world.name_ghost(3.0)
    settle(world)
    if way == "replaced":
        owner.replace_worker()
    elif way == "worker lost":
        assert owner.dispatching is not None
        owner.end_worker(owner.dispatching.id, "killed by SIGKILL")
    elif way == "deadline":
        owner.statement_fault = "hang"
    world.run(12.0)
    settle(world)
    terms = len(world.database.terms_begun)
    assert terms == (1 if way == "denied first" else 2)
    assert assertions(world, "a") == terms
    assert list(first_calls(owner).values()) == [m.SetWebhook] * terms


# ------------------------------------------------------------------------------------------------------------- a02 to a07


def _names_of(tree: ast.Module) -> set[str]:
    """All that a module names: what it imports, and what it makes use of."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                names.add(name)
            case ast.Import(names=aliases):
                names |= {alias.name.partition(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases):
                names |= {module.partition(".")[0], *(alias.name for alias in aliases)}
    return names


def test_a02_the_core_holds_no_lock_and_waits_for_nothing() -> None:
    """Decisions are plain functions of frozen facts: nothing in them can take a mutex twice."""
    for module in (core, observation, call_observation, readings, session_plan, state, workers_plan):
        tree = ast.parse(inspect.getsource(module))
        assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
        assert not {"threading", "asyncio", "time", "Lock", "RLock", "Semaphore"} & _names_of(tree)
    for part in (state.State, state.Session, state.Term, state.Registration, state.Worker):
        assert part.__struct_config__.frozen


def test_a03_a_standby_never_stops_waiting() -> None:
    """After ten minutes in the queue it takes over as it would have at once."""
    world = World(tick_seconds=5.0, narrates=False)
    owner, standby = owner_and_standby(world)
    world.run(600.0)
    owner.kill_9()
    assert world.run_until(lambda: world.owners() == [standby]) < 1.0
    waits = [at for at, action in standby.actions if isinstance(action, m.WaitForLock)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(waits)]
    assert max(pauses) < 1.0


def test_a03_the_term_of_a_standby_begins_with_the_lock() -> None:
    """By the statement that waited, without another round trip; what follows is as after any other begin."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.kill_9()
    world.run_until(lambda: world.owners() == [standby])
    assert standby.count(m.BeginTerm) == 0
    assert standby.state.session.lock_held
    assert standby.count(m.Lead) == 1


def test_a03_a_standby_whose_worker_ends_during_its_wait_owns_with_the_next_one() -> None:
    """The term that began in the meantime ends unled; the lock is kept for the worker that comes."""
    world = World()
    owner, standby = owner_and_standby(world)
    world.run_until(lambda: isinstance(standby.state.session.busy, m.WaitForLock))
    (worker,) = standby.workers
    standby.end_worker(worker, "exit status 1")
    owner.kill_9()
    world.run_until(lambda: world.owners() == [standby] and standby.dispatching is not None)
    closed = [action.reason for _, action in standby.actions if isinstance(action, m.CloseTerm)]
    assert closed == [m.EndReason.WORKER_LOST]
    assert [name for _, name, _ in world.database.terms_begun] == ["a", "b", "b"]
    assert (standby.count(m.BeginTerm), standby.count(m.Lead), standby.count(m.ReleaseLock)) == (1, 1, 0)


def test_a04_a_passive_instance_is_healthy_while_it_stands_by() -> None:
    """The platform must see a good deploy, or the old instance never gets its SIGTERM."""
    world = World()
    _owner, standby = owner_and_standby(world)
    for _ in range(200):
        world.next()
        assert standby.health == m.Health(ok=True, role="PASSIVE", reason=None)


def test_a04_an_instance_is_healthy_while_the_database_is_away() -> None:
    """PASSIVE and healthy, trying every second."""
    world = World(database_up=False)
    instance = world.boot("a")
    world.run(2.0)
    tried = instance.count(m.OpenSession)
    for _ in range(200):
        world.next()
        assert instance.health == m.Health(ok=True, role="PASSIVE", reason=None)
    world.run(20.0)
    assert instance.count(m.OpenSession) - tried >= 20
    world.database_up = True
    assert world.run_until(lambda: bool(world.owners())) < 2.0


def test_a06_a_lost_session_ends_ownership_in_the_same_step() -> None:
    """Whoever loses the session stops at once: role, dispatch and calls."""
    world = World()
    owner, _ = owner_and_standby(world)
    owner.lose_session()
    world.run_until(lambda: any(isinstance(e, m.SessionLost | m.SessionFailed) for e in owner.events))
    lost_at = world.now
    assert owner.health.role == "PASSIVE"
    assert (lost_at, m.EndTerm) in [(at, type(action)) for at, action in owner.actions]
    assert owner.state.session.open is False


def test_a06_the_heartbeat_is_a_statement_on_the_locks_session() -> None:
    """Every two seconds at most, so that four fit into a deadline."""
    world = World()
    owner = world.boot("a")
    settle(world)
    world.run(60.0)
    beats = [at for at, action in owner.actions if isinstance(action, m.Announce) and at > world.now - 50]
    assert max(later - earlier for earlier, later in itertools.pairwise(beats)) < 2.6


def test_a07_a_lock_whose_answer_was_lost_is_not_held() -> None:
    """The session of an acquire in doubt is closed, so that later tries do not see "another instance": itself."""
    world = World()
    instance = world.boot("a")
    world.run_until(lambda: isinstance(instance.state.session.busy, m.TryLock))
    instance.statement_fault = "lost answer"
    world.run(0.1)
    assert not instance.state.session.lock_held
    assert world.database.holder is None
    settle(world)


def test_a07_a_lock_that_is_granted_late_to_a_closed_session_changes_nothing() -> None:
    """An answer is known by its id; late ones leave the facts as they are."""
    world = World()
    _owner, standby = owner_and_standby(world)
    old = standby.state.session.busy
    assert isinstance(old, m.WaitForLock)
    world.run(3.0)
    late = m.LockAcquired(at=world.now, id=old.id, sent_at=world.now)
    assert observation.observe(standby.state, late) == standby.state


# ------------------------------------------------------------------------------------------------------------ a12 to a19


def test_a12_held_elsewhere_and_database_away_have_different_words() -> None:
    """The two reasons to stand by are told apart in the log."""
    away, held = World(database_up=False), World()
    alone = away.boot("a")
    away.run(5.0)
    _, standby = owner_and_standby(held)
    said_away = [line.event for line in alone.lines if line.tag == "LOCK"]
    said_held = [line.event for line in standby.lines if line.tag == "LOCK"]
    assert said_away == ["database cannot be reached, standing by and trying every second"]
    assert "lock held elsewhere, standing by" in said_held
    assert not set(said_away) & set(said_held)


@pytest.mark.parametrize(("fault", "within"), [("retry", 3.0), ("reject", 65.0), ("refuse", 310.0)])
def test_a13_an_owner_without_its_webhook_keeps_trying(fault: str, within: float) -> None:
    """Failed once, it is tried again, after the pause that the failure asks for, and the reason is in the facts."""
    world = World()
    owner, _ = owner_and_standby(world)
    owner.call_fault = fault
    owner.replace_worker()
    world.run_until(lambda: owner.state.webhook_error is not None)
    took = world.run_until(lambda: assertions(world, "a") == 2, within)
    assert took > within / 10 - 1
    settle(world, 100.0)
    assert owner.state.webhook_error is None


def test_a14_every_term_asserts_once_although_the_registration_looks_right() -> None:
    """The secret cannot be read back: an equal URL proves nothing."""
    world = World()
    world.telegram.url = "ours-t"
    world.boot("a")
    settle(world)
    assert assertions(world, "a") == 1
    world.run(300.0)
    assert assertions(world, "a") == 1


def test_a15_in_webhook_mode_nothing_is_ever_deleted() -> None:
    """Neither in order to set, nor on the way out, unless WEBHOOK_ON_EXIT=delete."""
    world = World()
    owner, standby = owner_and_standby(world)
    world.telegram.url = "elsewhere"
    world.run(70.0)
    owner.hear(wire.ForeignRegistration())
    owner.replace_worker()
    world.run(10.0)
    owner.stop()
    world.run(15.0)
    standby.stop()
    world.run(15.0)
    assert (owner.exit_code, standby.exit_code) == (0, 0)
    assert {method for _, method, _ in world.telegram.changes} == {"SetWebhook"}


def test_a15_delete_on_exit_deletes_once_by_the_owner_when_nobody_waits() -> None:
    """After its worker is gone, and before it frees the lock."""
    world = World()
    owner = world.boot("a", delete_on_exit=True)
    settle(world)
    owner.stop()
    world.run_until(lambda: owner.exit_code is not None)
    assert world.telegram.changes[-1][1:] == ("DeleteWebhook", "a")
    assert owner.count(m.DeleteWebhook) == 1
    kinds = [type(action) for _, action in owner.actions]
    assert kinds.index(m.ExitWorker) < kinds.index(m.DeleteWebhook) < kinds.index(m.CloseTerm)


def one_whose_deletion_hangs(world: World) -> Instance:
    """An owner that was asked to stop, and whose deleteWebhook Telegram does not answer."""
    owner = world.boot("a", delete_on_exit=True)
    settle(world)
    owner.call_fault = "hang"
    owner.stop()
    world.run_until(lambda: isinstance(owner.state.call, m.DeleteWebhook))
    return owner


def test_a15_delete_on_exit_gives_up_in_time_when_telegram_does_not_answer() -> None:
    """It waits DELETE_SECONDS from when nothing ran under the term any more, and no longer."""
    world = World()
    owner = one_whose_deletion_hangs(world)
    took = world.run_until(lambda: owner.exit_code is not None, 25.0)
    assert DELETE_SECONDS - 0.1 < took < DELETE_SECONDS + 1.5
    assert owner.exit_code == 0


@pytest.mark.parametrize("kind", [m.SetWebhook, m.CompareWebhook])
def test_a15_delete_on_exit_does_not_wait_for_a_call_that_waits_for_telegram(
    kind: type[m.CallAction],
) -> None:
    """retry_after may be half a minute: the other call is cut off, and the deletion comes in its turn."""
    world = World()
    owner = world.boot("a", delete_on_exit=True)
    if kind is m.CompareWebhook:
        settle(world)
    owner.call_fault = "wait"
    world.run_until(lambda: owner.call_fault is None, 70.0)
    assert isinstance(owner.state.call, kind)
    world.run(0.5)
    owner.stop()
    assert world.run_until(lambda: owner.exit_code is not None, 25.0) < 8.0
    assert world.telegram.changes[-1][1:] == ("DeleteWebhook", "a")


def test_a15_delete_on_exit_comes_after_a_long_drain_too() -> None:
    """DELETE_SECONDS count from when it can begin, as far as the exit's limit leaves them."""
    world = World()
    owner = world.boot("a", delete_on_exit=True)
    settle(world)
    owner.ending_seconds = 19.5
    owner.stop()
    assert world.run_until(lambda: owner.exit_code is not None, 25.0) < STOP_SECONDS
    assert world.telegram.changes[-1][1:] == ("DeleteWebhook", "a")


def test_a14_deliveries_that_we_refuse_have_the_webhook_asserted_anew() -> None:
    """Requests with another's secret may all come to a standby, which registers nothing: Telegram tells the owner of them."""
    world = World()
    owner, _ = owner_and_standby(world)
    world.run(61.0)
    before = assertions(world, owner.name)
    refused = "Wrong response from the webhook: 401 Unauthorized"
    world.telegram.failure = (refused, 1_000, 5)
    world.run(200.0)
    assert assertions(world, owner.name) == before + 1, "not for the history that it is then"
    world.telegram.failure = ("Wrong response from the webhook: 503 Service Unavailable", 2_000, 5)
    world.run(200.0)
    assert assertions(world, owner.name) == before + 1
    for second in range(3_000, 3_010):
        world.telegram.failure = (refused, second, 5)
        world.run(61.0)
    assert assertions(world, owner.name) == before + 1, (
        "it changed nothing: the 401 is somebody's in front of us"
    )
    world.telegram.foreign_secret = True
    owner.hear(wire.ForeignRegistration())
    world.run(61.0)
    assert assertions(world, owner.name) == before + 2
    world.telegram.failure = (refused, 4_000, 5)
    world.run(400.0)
    assert assertions(world, owner.name) == before + 3, "the last one did change something"


def test_a17_a_standby_makes_no_call() -> None:
    """Only the owner of the present term touches the registration."""
    world = World()
    _, standby = owner_and_standby(world)
    standby.hear(wire.ForeignRegistration())
    world.telegram.url = "elsewhere"
    world.run(30.0)
    assert not any(isinstance(action, m.CallAction) for _, action in standby.actions)


def test_a17_a_call_under_way_when_the_term_ends_is_not_permitted_any_more() -> None:
    """The permit is asked before every attempt."""
    world = World()
    owner = world.boot("a")
    world.run_until(lambda: isinstance(owner.state.call, m.SetWebhook))
    call = owner.state.call
    assert call is not None
    assert core.may_call(owner.state, call, world.now)
    owner.lose_session()
    world.run(0.02)
    assert not core.may_call(owner.state, call, world.now)
    settle(world)
    assert assertions(world, "a") == 1


def test_a18_one_that_is_no_longer_owner_cannot_delete() -> None:
    """WEBHOOK_ON_EXIT=delete and somebody else waiting or owning: the registration stays."""
    world = World()
    owner = world.boot("a", delete_on_exit=True)
    settle(world)
    standby = world.boot("b", delete_on_exit=True)
    settle(world)
    owner.stop()
    world.run_until(lambda: owner.exit_code is not None)
    settle(world)
    third = world.boot("c", delete_on_exit=True)
    settle(world)
    third.stop()
    world.run_until(lambda: third.exit_code is not None)
    assert world.owners() == [standby]
    assert {method for _, method, _ in world.telegram.changes} == {"SetWebhook"}


def deletes(world: World) -> list[str]:
    """Who deleted the webhook."""
    return [by for _, method, by in world.telegram.changes if method == "DeleteWebhook"]


def two_that_delete(
    world: World, *, linger: float, owner_lingers: float | None = None
) -> tuple[Instance, Instance]:
    """Owner and standby, both with WEBHOOK_ON_EXIT=delete."""
    lingers = linger if owner_lingers is None else owner_lingers
    owner = world.boot("a", delete_on_exit=True, linger=lingers)
    settle(world)
    standby = world.boot("b", delete_on_exit=True, linger=linger)
    settle(world)
    return owner, standby


def run_until_ended(world: World, *instances: Instance) -> float:
    """Let time pass until all of them have ended in order; how long it took."""
    return world.run_until(lambda: all(instance.exit_code == 0 for instance in instances))


@pytest.mark.parametrize("linger", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("owner_lingers", [0.0, 5.0])
@pytest.mark.parametrize("later", [0.0, 0.2, 1.0, 3.0])
def test_a18_a_standby_that_has_ended_in_order_holds_no_deletion_up(
    linger: float, owner_lingers: float, later: float
) -> None:
    """Its row says that it could not own any more, also where its worker ends within a wait for the lock."""
    world = World()
    owner, standby = two_that_delete(world, linger=linger, owner_lingers=owner_lingers)
    standby.stop()
    run_until_ended(world, standby)
    assert not world.database.rows["b"].ready
    world.run(later)
    owner.stop()
    run_until_ended(world, owner)
    assert deletes(world) == ["a"]


@pytest.mark.parametrize("linger", [0.0, 5.0])
def test_a18_of_two_that_are_stopped_together_one_deletes(linger: float) -> None:
    """Whoever owns last looks once more at who is there.

    One moment is left: the standby's wait ends, in vain, between the owner's look and the release. Then the log tells.
    """
    kept = 0
    for moment in range(60):
        world = World()
        owner, standby = two_that_delete(world, linger=linger)
        world.run(moment * 0.037)
        owner.stop()
        standby.stop()
        run_until_ended(world, owner, standby)
        if not deletes(world):
            kept += 1
            assert any(line.event.startswith("webhook kept") for line in owner.lines)
        assert len(deletes(world)) <= 1
    assert kept <= 1, "a few milliseconds of every 0.9 s"


def test_a18_a_standby_that_stops_while_the_owner_ends_holds_no_deletion_up() -> None:
    """The owner's last look is after its worker's end, not at the signal."""
    for moment in range(60):
        world = World()
        owner, standby = two_that_delete(world, linger=0.0)
        owner.ending_seconds = 1.5
        owner.stop()
        world.run(moment * 0.02)
        standby.stop()
        run_until_ended(world, owner, standby)
        assert len(deletes(world)) == 1, f"{moment}: {deletes(world)}"


def test_a18_an_end_that_keeps_the_webhook_says_for_whom() -> None:
    """Once, by the owner that was asked to stop; the row of an instance that was killed a moment ago counts, too."""
    world = World()
    owner, standby = two_that_delete(world, linger=0.0)
    standby.kill_9()
    world.run(1.0)
    owner.stop()
    run_until_ended(world, owner)
    assert deletes(world) == []
    assert [line for line in owner.lines if line.event.startswith("webhook kept")] == [
        Line("WEBHOOK", "webhook kept: another instance stands by", {"instance": "b"})
    ]


@pytest.mark.parametrize("comes", [True, False], ids=["for another instance", "without an answer"])
def test_a18_a_deletion_that_is_cut_off_is_told(comes: bool) -> None:
    """Whoever reads that it begins, reads how it ends."""
    world = World()
    owner = one_whose_deletion_hangs(world)
    if comes:
        world.boot("b", delete_on_exit=True)
    begins = len(owner.lines) - 1
    run_until_ended(world, owner)
    assert deletes(world) == []
    assert [line for line in owner.lines[begins:] if line.tag == "WEBHOOK"] == [
        Line("WEBHOOK", "deleting webhook"),
        Line("WEBHOOK", "deletion cut off: another instance stands by", {"instance": "b"})
        if comes
        else Line("WEBHOOK", "deletion cut off: the webhook may be set still", level="warning"),
    ]


def test_a18_a_standby_that_does_not_store_keeps_the_webhook_too() -> None:
    """It is not ready for a hand-over, and waits: the lock is free then, and it takes that."""
    world = World()
    owner, standby = two_that_delete(world, linger=0.0)
    standby.ingest_is_away = True
    world.run(3.0)
    assert not world.database.rows["b"].ready
    owner.stop()
    run_until_ended(world, owner)
    assert deletes(world) == []
    world.run_until(lambda: world.owners() == [standby])


def test_a18_a_hand_over_at_a_stop_waits_for_one_look_more_at_most() -> None:
    """A round trip to the database, and only if there is something to delete: what a stop takes is what users notice."""

    def take_over(*, delete_on_exit: bool) -> float:
        world = World(statement_seconds=0.1)
        owner = world.boot("a", delete_on_exit=delete_on_exit)
        settle(world)
        world.boot("b", delete_on_exit=delete_on_exit)
        settle(world)
        owner.stop()
        took = world.run_until(lambda: world.database.term.instance_id == "b")
        assert deletes(world) == []
        return took

    assert take_over(delete_on_exit=True) - take_over(delete_on_exit=False) < 1.5 * 0.1


@pytest.mark.parametrize("fault", ["hang", "fail"])
def test_a18_a_database_that_is_away_holds_no_standbys_end_up(fault: str) -> None:
    """That it is not ready any more, it says if it can; nobody waits longer than FAREWELL_SECONDS for that."""
    world = World()
    _, standby = two_that_delete(world, linger=0.0)
    world.run_until(lambda: isinstance(standby.state.session.busy, m.WaitForLock))
    standby.stop()
    world.run_until(lambda: isinstance(standby.state.session.busy, m.Announce))
    standby.statement_fault = fault
    assert run_until_ended(world, standby) < FAREWELL_SECONDS + 0.6


def test_a19_drift_is_mended_within_one_reconcile_period_and_named() -> None:
    """Somebody's laptop polled with our token."""
    world = World()
    owner = world.boot("a", reconcile=60.0)
    settle(world)
    world.run(30.0)
    world.telegram.url = None
    assert world.run_until(lambda: world.telegram.url == "ours-t", 61.0) <= 61.0
    assert any(line.event.startswith("registration drifted") for line in owner.lines)


def test_a19_requests_with_a_foreign_secret_cause_one_assertion_a_minute() -> None:
    """Forgers have no rate limit; setWebhook has."""
    world = World()
    owner = world.boot("a")
    settle(world)
    for _ in range(600):
        world.run(0.5)
        owner.hear(wire.ForeignRegistration())
    assert 4 <= assertions(world, "a") <= 6
