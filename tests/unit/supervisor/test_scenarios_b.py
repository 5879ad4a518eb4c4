"""The faults of SCENARIOS.md's second table, as far as the core decides what comes of them."""

from __future__ import annotations

import itertools

import pytest

from supervisor import messages as m
from supervisor.call_observation import conflict_pause_seconds
from supervisor.workers_plan import HEARD_SECONDS
from tests.unit.supervisor.courses import assertions, owner_and_standby, settle
from tests.unit.supervisor.stories import unsettled
from tests.unit.supervisor.world import Instance, World

# -------------------------------------------------------------------------------------------------------------- b04, b05


def test_b04_an_owner_that_stood_still_past_its_deadline_steps_down() -> None:
    """Its worker stopped by itself; on resume it claims nothing; another owns meanwhile."""
    world = World()
    owner, standby = owner_and_standby(world)
    worker = owner.dispatching
    assert worker is not None
    owner.freeze(30.0)
    world.run_until(lambda: not worker.dispatching)
    assert world.now >= worker.deadline
    world.run_until(lambda: world.owners() == [standby], 30.0)
    world.run(20.0)
    settle(world)
    assert world.owners() == [standby]


@pytest.mark.parametrize("frozen_seconds", [10.0, 30.0])
def test_b04_a_worker_that_stopped_by_itself_accepts_on(frozen_seconds: float) -> None:
    """Its beats are heard before its word that the term is over: it is not killed for want of that, and connections live."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.start_seconds = 4.0
    owner.freeze(frozen_seconds)
    world.run(frozen_seconds - 0.01)
    while world.owners() != [standby] or len([w for w in owner.workers.values() if w.alive]) != 1:
        assert any(w.accepting for w in owner.workers.values())
        world.next()
    settle(world)
    assert world.owners() == [standby]
    assert owner.count(m.KillWorker) == 0


def test_b04_b32_a_worker_that_could_not_stop_is_killed_a_moment_later() -> None:
    """A handler in a thread held it up, and it says nothing: not for longer than what it said might be unheard."""
    world = World(tick_seconds=0.25)
    owner, standby = owner_and_standby(world)
    worker = owner.dispatching
    assert worker is not None
    worker.hung = True
    owner.freeze(12.0)
    world.run(11.99)
    assert world.run_until(lambda: not worker.alive, 5.0) < HEARD_SECONDS + 0.5
    settle(world)
    assert world.owners() == [standby]
    replacement = [action for _, action in owner.actions if isinstance(action, m.SpawnWorker)][-1]
    assert replacement.worker != worker.id


def test_b02_b32_what_replaces_a_worker_killed_at_its_deadline_receives_at_once() -> None:
    """Spawned in the moment of the kill, it counts on nobody who dies of it."""
    world = World(tick_seconds=0.25)
    owner, _ = owner_and_standby(world)
    worker = owner.dispatching
    assert worker is not None
    owner.statement_fault = "hang"
    world.run_until(lambda: owner.statement_fault is None)
    worker.hung = True
    world.run_until(lambda: not worker.alive, 9.0)
    [kill] = [action for _, action in owner.actions if isinstance(action, m.KillWorker)]
    assert kill.reason == "its term's deadline passed"
    spawned = [action for _, action in owner.actions if isinstance(action, m.SpawnWorker)][1:]
    assert [action.receives_at_once for action in spawned] == [True]


def test_b05_a_short_stop_changes_nothing() -> None:
    """Shorter than the deadline: same owner, same term, same worker."""
    world = World()
    owner, _ = owner_and_standby(world)
    worker = owner.dispatching
    owner.freeze(5.0)
    world.run(10.0)
    settle(world)
    assert world.owners() == [owner]
    assert owner.dispatching is worker


# ------------------------------------------------------------------------------------------------------------------- b09


@pytest.mark.parametrize("round_trip", [2.0, 2.5])
def test_b09_a_slow_network_keeps_nobody_out_of_the_queue(round_trip: float) -> None:
    """An announcement takes as long as the time between two of them, or longer: one owns, and one stands by, all the same."""
    world = World(tick_seconds=0.25, statement_seconds=round_trip)
    owner = world.boot("a")
    world.run_until(lambda: world.owners() == [owner])
    standby = world.boot("b")
    world.run_until(lambda: standby.session in world.database.queue)
    world.run(60.0)
    assert world.owners() == [owner]
    sent = [type(a) for _, a in standby.actions if isinstance(a, m.SessionAction)]
    first = sent.index(m.TryLock)
    assert all(not (a is b is m.Announce) for a, b in itertools.pairwise(sent[first:]))
    owner.kill_9()
    world.run_until(lambda: world.owners() == [standby])


# ------------------------------------------------------------------------------------------------------------- b23, b30


def test_b23_a_call_without_an_answer_ends_with_its_owner_and_the_next_term_asserts() -> None:
    """W: it converges to the owner's registration."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.call_fault = "hang"
    owner.replace_worker()
    world.run_until(lambda: owner.call_fault is None)
    owner.kill_9()
    settle(world)
    assert world.owners() == [standby]
    assert assertions(world, "b") == 1


def lose_session_before_the_answer(world: World, owner: Instance) -> None:
    """Telegram has set the webhook, the term ends, and only then does the owner come to the answer."""
    owner.replace_worker()
    world.run_until(lambda: isinstance(owner.state.call, m.SetWebhook))
    call = owner.state.call
    assert call is not None
    owner.call_fault = "late"
    world.run_until(lambda: owner.queued_answer == call.id)
    owner.lose_session()
    world.run_until(lambda: owner.state.call != call)
    answer = owner.events[-1]
    assert isinstance(answer, m.WebhookAsserted)
    assert answer.id == call.id
    assert owner.state.term is None or owner.state.term.uuid != call.term


def in_service(instance: Instance) -> int:
    """How often it said that it is in service as the owner."""
    return sum(line.event.startswith("active services initialized") for line in instance.lines)


def test_b23_an_answer_after_the_term_ended_changes_nothing_at_a_standby() -> None:
    """Another owns meanwhile and has asserted its own: nothing is recorded of the answer, nor said as by an owner."""
    world = World()
    owner, standby = owner_and_standby(world)
    confirmed = owner.count(m.ConfirmRegistration)
    said = in_service(owner)
    lose_session_before_the_answer(world, owner)
    assert world.owners() == [standby]
    assert assertions(world, "b") == 1
    settle(world)
    assert world.owners() == [standby]
    assert owner.state.term is None
    assert owner.count(m.ConfirmRegistration) == confirmed
    assert in_service(owner) == said


def test_b23_an_answer_after_the_term_ended_is_none_for_the_next_term() -> None:
    """The same instance owns again by then: its new term is not taken to have asserted what an earlier one did."""
    world = World()
    owner = world.boot("a")
    settle(world)
    before = assertions(world, "a")
    lose_session_before_the_answer(world, owner)
    assert world.owners() == [owner]
    assert owner.state.term is not None
    assert not owner.state.term.registration.asserted
    settle(world)
    # The one that was answered late, and the new term's.
    assert assertions(world, "a") == before + 2


def test_b23_a_failing_call_is_in_the_facts_until_one_succeeds() -> None:
    """health's /status names it."""
    world = World()
    owner = world.boot("a")
    owner.call_fault = "retry"
    world.run_until(lambda: owner.state.webhook_error == "503")
    settle(world)
    assert owner.state.webhook_error is None


def test_b30_a_conflict_is_mended_then_backed_off_and_named() -> None:
    """Twice at once, then after 1, 2, 4 ... reconcile periods, with a line that says what it is."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a", reconcile=10.0)
    settle(world)
    mended: list[float] = []
    for _ in range(1200):
        if world.telegram.url == "ours-t":
            mended.append(world.now)
            world.telegram.url = "elsewhere"
        world.run(1.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(mended)]
    assert pauses[0] <= 12.0
    assert pauses[1] <= 12.0
    assert all(later > earlier for earlier, later in itertools.pairwise(pauses[1:]))
    named = sum(line.event.startswith("conflict: something else") for line in owner.lines)
    assert len(mended) - 3 <= named <= len(mended) - 2
    settle(world, 1000.0)


def test_b30_pauses_of_a_conflict() -> None:
    """Ever longer, and never longer than a quarter of an hour."""
    pauses = [conflict_pause_seconds(n, 60.0) for n in range(1, 40)]
    assert pauses[:6] == [0.0, 0.0, 60.0, 120.0, 240.0, 480.0]
    assert max(pauses) == 900.0
    assert pauses == sorted(pauses)


def test_b13_an_unsuitable_database_is_exit_2_at_the_first_look_only() -> None:
    """Found when the database is first reached; later it is an outage like any other."""
    world = World()
    refused = world.boot("a")
    refused.statement_fault = "refuse"
    world.run_until(lambda: refused.exit_code is not None)
    assert refused.exit_code == 2
    later = World()
    owner = later.boot("a")
    settle(later)
    owner.lose_session()
    later.run(0.1)
    owner.statement_fault = "refuse"
    later.run(5.0)
    later.run_until(lambda: unsettled(later) is None)
    assert owner.statement_fault is None, "it was never refused"
    assert owner.exit_code is None


def test_b10_a_lost_session_is_reopened_within_two_seconds() -> None:
    """One try a second, without a growing pause."""
    world = World()
    owner = world.boot("a")
    settle(world)
    world.stop_database(30.0)
    world.run(29.0)
    assert 18 <= owner.count(m.OpenSession) <= 31  # the ticks are 0.5 s
    assert world.run_until(lambda: bool(world.owners())) < 3.0


def test_b11_of_two_that_start_together_one_begins_a_term() -> None:
    """Exactly one, whoever is first."""
    for offset in range(8):
        world = World()
        world.boot("a")
        world.run(offset / 1000)
        world.boot("b")
        settle(world)
        world.run(5.0)
        assert len(world.database.terms_begun) == 1
