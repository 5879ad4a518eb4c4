"""The faults of SCENARIOS.md's second table, as far as the core decides what comes of them."""

from __future__ import annotations

import itertools

import pytest

from shared.wire import LEAD_SECONDS
from supervisor import messages as m
from supervisor import restart
from supervisor.observation import conflict_pause_seconds
from tests.models.ownership import TermRow
from tests.unit.supervisor.courses import assertions, owner_and_standby, revoke, settle
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


# ------------------------------------------------------------------------------------------------------------------- b21


def test_b21_a_bot_that_never_comes_up_is_exit_2() -> None:
    """Crashing at import, without a word: a handful of tries with backoff."""
    world = World()
    instance = world.boot("a")
    instance.always_spawn_fault = "crash"
    world.run_until(lambda: instance.exit_code is not None, 60.0)
    assert instance.exit_code == 2
    assert instance.count(m.SpawnWorker) == restart.CRASHES_BEFORE_NEVER_UP
    assert "BOT_APP never came up" in instance.faults[0]


def test_b21_a_bot_that_hangs_at_its_import_is_exit_2_too() -> None:
    """Each start is given two minutes, so five of them are further apart than crashes are remembered."""
    world = World(tick_seconds=1.0)
    instance = world.boot("a")
    instance.always_spawn_fault = "hang"
    world.run_until(lambda: instance.exit_code is not None, 900.0)
    assert instance.exit_code == 2
    assert f"the worker ended {restart.CRASHES_BEFORE_NEVER_UP} times" in instance.faults[0]


def test_b21_a_worker_that_says_why_it_cannot_start_is_exit_2_at_once() -> None:
    """Its faults are the operator's."""
    world = World()
    instance = world.boot("a")
    instance.spawn_fault = "faults"
    world.run_until(lambda: instance.exit_code is not None)
    assert (instance.exit_code, instance.faults) == (2, ("BOT_APP does not import",))
    assert instance.count(m.SpawnWorker) == 1


def test_b21_a_process_that_never_could_be_started_is_exit_2_and_names_the_limit() -> None:
    """4 is for a worker that once was healthy. What is in the way is for the operator to raise, and not BOT_APP's fault."""
    world = World()
    instance = world.boot("a")
    instance.always_spawn_fault = "no process"
    world.run_until(lambda: instance.exit_code is not None, 200.0)
    assert instance.exit_code == 2
    assert instance.count(m.SpawnWorker) == restart.CRASHES_BEFORE_EXIT
    assert "limit of processes" in instance.faults[0]
    assert "no room" in instance.faults[0]


def test_b21_a_process_that_cannot_be_started_again_is_exit_4() -> None:
    """It once was healthy: the platform's own restart may place it elsewhere."""
    world = World()
    owner = world.boot("a")
    world.run_until(lambda: owner.dispatching is not None)
    owner.always_spawn_fault = "no process"
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "exit status 1")
    world.run_until(lambda: owner.exit_code is not None, 200.0)
    assert owner.exit_code == 4


@pytest.mark.parametrize("fault", ["crash", "fail", "away"])
def test_b21_a_crash_loop_gives_up_to_a_healthy_instance(fault: str) -> None:
    """After backoff, and it says that it is not healthy while no worker accepts."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.always_lead_fault = fault
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "exit status 1")
    took = world.run_until(lambda: world.owners() == [standby] and standby.dispatching is not None)
    assert 1.0 < took < 15.0
    world.run(30.0)
    assert world.owners() == [standby]
    assert sum(isinstance(a, m.ReleaseLock) and a.gave_up for _, a in owner.actions) == 1


@pytest.mark.parametrize("fault", ["crash", "fail"])
def test_b21_alone_it_backs_off_and_is_exit_4_in_the_end(fault: str) -> None:
    """A worker that once was healthy cannot be kept up; nobody is there to give up to."""
    world = World()
    owner = world.boot("a")
    owner.always_lead_fault = fault
    world.run_until(lambda: owner.exit_code is not None, 200.0)
    assert owner.exit_code == 4
    spawned = [at for at, action in owner.actions if isinstance(action, m.SpawnWorker)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(spawned)]
    # Where the bot does not start, the worker before goes when its replacement accepts.
    assert len(spawned) == restart.CRASHES_BEFORE_EXIT + (fault == "fail")
    assert pauses[-1] > 10 * pauses[0]
    assert {"crash": "exit status 1", "fail": "post_init raised"}[fault] in owner.faults[0]


def test_b21_an_owner_whose_new_worker_hangs_at_its_start_gives_up_too() -> None:
    """Others wait, and nobody dispatches: the lock is not kept for a start that takes minutes."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.always_spawn_fault = "hang"
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "exit status 1")
    assert world.run_until(lambda: world.owners() == [standby]) < 20.0
    assert not owner.health.ok


def test_b17_b21_a_bot_that_does_not_start_costs_no_answer_and_is_told_by_health() -> None:
    """Its worker goes on accepting until the next one does; alone, health fails once it is no longer a single failure."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.always_lead_fault = "fail"
    assert owner.dispatching is not None
    owner.post(m.WorkerLeadFailed, worker=owner.dispatching.id, reason="RuntimeError: post_init raised")
    while owner.health.ok:
        assert any(worker.accepting for worker in owner.workers.values())
        world.next()
    assert owner.health.reason == "the bot does not start: RuntimeError; the log says more"
    assert owner.state.restarts.count(world.now) >= restart.CRASHES_BEFORE_GIVING_UP
    assert any(worker.accepting for worker in owner.workers.values())
    owner.always_lead_fault = None
    world.run_until(lambda: owner.dispatching is not None)
    settle(world)
    assert not owner.state.session.lead_failed
    assert owner.health.ok


def test_b31_a_bot_that_waits_for_something_outside_is_no_crash_loop() -> None:
    """Telegram is away for ten minutes, and post_init raises that: tried again ever more slowly, while updates are stored."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    owner.always_lead_fault = "away"
    settled_at = world.now + 5.0
    while world.now < settled_at + 600.0:
        world.next()
        assert owner.exit_code is None
        assert world.now < settled_at or owner.health.ok
        assert world.now < settled_at or any(worker.accepting for worker in owner.workers.values())
    spawned = [at for at, action in owner.actions if isinstance(action, m.SpawnWorker)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(spawned)]
    assert min(pauses[10:]) > 20.0
    assert max(pauses) < 45.0
    owner.always_lead_fault = None
    settle(world, 45.0)
    assert owner.dispatching is not None


@pytest.mark.parametrize("fault", ["hang", "swallow", "outage"])
def test_b21_a_bot_that_hangs_while_it_starts_gives_up_to_a_healthy_instance(fault: str) -> None:
    """It accepts, beats, is healthy, and handles nothing: the old deploy owns again before the platform stops it (60 s)."""
    world = World()
    old = world.boot("a", deploy="old")
    settle(world)
    new = world.boot("b", deploy="new")
    new.always_lead_fault = fault
    world.run_until(lambda: world.owners() == [new])
    began = world.now
    while world.owners() != [old] or old.dispatching is None:
        world.next()
        assert world.now - began < 59.0
        assert any(worker.accepting for worker in new.workers.values())
    assert world.now - began > LEAD_SECONDS
    assert not any(worker.alive and worker.term is not None for worker in new.workers.values())
    world.run(30.0)
    assert world.owners() == [old]


@pytest.mark.parametrize("fault", ["hang", "swallow"])
def test_b21_a_bot_that_always_hangs_while_it_starts_is_told_by_health(fault: str) -> None:
    """Alone: its worker is replaced, one accepts all the time, and health says why nothing is handled."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.always_lead_fault = fault
    owner.replace_worker()
    began = world.now
    while owner.health.ok:
        assert any(worker.accepting for worker in owner.workers.values())
        assert world.now - began < 300.0
        world.next()
    assert owner.health.reason == "the bot does not start: StartTimedOut; the log says more"
    assert any(line.event == "application did not start" for line in owner.lines)
    for _ in range(400):
        world.run(1.0)
        assert not owner.health.ok
    owner.always_lead_fault = None
    world.run_until(lambda: owner.dispatching is not None, 120.0)
    settle(world)


def test_b31_a_bot_that_cannot_start_in_an_outage_is_put_off() -> None:
    """An hour without Telegram, alone: no crash is counted, health stays, the process too; then it starts."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    settle(world)
    owner.always_lead_fault = "outage"
    owner.replace_worker()
    for _ in range(3600):
        world.run(1.0)
        assert owner.exit_code is None
        assert owner.health.ok
        assert owner.state.restarts.count(world.now) == 0
    assert owner.count(m.Lead) > 40
    owner.always_lead_fault = None
    world.run_until(lambda: owner.dispatching is not None, 90.0)


def test_a_start_counts_from_when_an_earlier_owner_is_surely_done() -> None:
    """A persistence is not loaded before: the wait for it is no part of the bot's start."""
    world = World()
    world.database.term = TermRow(1, "term-1", "b", 30.0, ended=False)
    owner = world.boot("a")
    owner.always_lead_fault = "swallow"
    world.run_until(lambda: owner.count(m.Lead) == 1)
    began = world.now
    world.run_until(lambda: owner.count(m.EndTerm) == 1, 120.0)
    assert 30.0 + LEAD_SECONDS < world.now - began < 30.0 + 60.0


def test_b31_a_worker_that_dies_after_it_was_put_off_is_a_crash() -> None:
    """It died of something else."""
    world = World()
    owner = world.boot("a")
    owner.always_lead_fault = "away"
    for crashes in range(1, restart.CRASHES_BEFORE_EXIT + 1):
        world.run_until(lambda: any(w.lead_put_off for w in owner.state.workers), 60.0)
        leader = owner.leader_or_any()
        assert leader is not None
        owner.end_worker(leader.id, "killed by SIGSEGV")
        world.run(0.1)
        assert owner.state.restarts.count(world.now) == crashes
    assert owner.exit_code == 4


def test_a21_health_does_not_quote_the_bot() -> None:
    """PORT is open to everybody, and what a bot raises can hold another service's key. The log quotes it, and /status."""
    world = World()
    owner = world.boot("a")
    owner.always_lead_fault = "fail"
    world.run_until(lambda: "the bot does not start: RuntimeError" in str(owner.health.reason))
    assert owner.state.last_crash == "RuntimeError: post_init raised"
    assert "post_init" not in str(owner.health.reason)
    owner.always_spawn_fault = "hang"
    for worker in owner.workers.values():
        owner.end_worker(worker.id, "killed by SIGKILL")
    world.run_until(lambda: "the worker is gone" in str(owner.health.reason))
    assert "post_init" not in str(owner.health.reason)


def test_b25_crashes_of_a_suspect_update_do_not_count() -> None:
    """They are that update's doing, and its own limit ends them."""
    world = World()
    owner = world.boot("a")
    for _ in range(restart.EXCUSED_CRASHES):
        settle(world)
        crash_beside_a_suspect(world, owner)
    settle(world)
    assert owner.exit_code is None
    assert owner.state.restarts.count(world.now) == 0


def test_b21_a_worker_that_dies_whatever_it_runs_gives_up_too() -> None:
    """Each death leaves updates in flight, so that one of them runs at the next: that excuses only so many."""
    world = World()
    owner, standby = owner_and_standby(world)
    crashes = 0
    while owner.dispatching is not None or world.owners() != [standby]:
        if owner.dispatching is not None:
            crash_beside_a_suspect(world, owner)
            crashes += 1
        world.run(0.1)
        assert crashes <= restart.EXCUSED_CRASHES + restart.CRASHES_BEFORE_GIVING_UP
    assert crashes == restart.EXCUSED_CRASHES + restart.CRASHES_BEFORE_GIVING_UP


def crash_beside_a_suspect(world: World, owner: Instance) -> None:
    """Its worker dies while an update that was in flight at an earlier crash runs."""
    worker = owner.dispatching
    assert worker is not None
    owner.post(m.WorkerSuspect, worker=worker.id, running=True)
    world.run(0.1)
    owner.end_worker(worker.id, "killed by SIGSEGV")
    world.run(0.1)


def test_sighup_with_a_broken_bot_keeps_the_worker_that_works() -> None:
    """The replacement cannot come up: tried once, and the old one leads on, its term unbroken."""
    world = World()
    owner = world.boot("a")
    settle(world)
    worker = owner.dispatching
    owner.always_spawn_fault = "faults"
    owner.replace_worker()
    world.run(20.0)
    settle(world)
    assert owner.dispatching is worker
    assert owner.count(m.SpawnWorker) == 2


# -------------------------------------------------------------------------------------------------------- b23, b24, b30


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


def test_b24_any_good_answer_shows_that_the_token_is_good() -> None:
    """A 401 in the middle of an outage of Telegram's is forgotten at the next call that succeeds, whichever it is."""
    world = World()
    owner = world.boot("a")
    settle(world)
    owner.call_fault = "refuse"
    owner.post(m.WorkerTokenRefused)
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
    owner.post(m.WorkerTokenRefused)
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
            owner.post(m.WorkerTokenRefused)
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
    old.post(m.WorkerTokenRefused)
    world.run_until(lambda: old.state.token_refused, 1.0)
    new = world.boot("b", deploy="d2")
    world.run_until(lambda: world.owners() == [new])
    settle(world)
    assert old.health.ok


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
    world.run(0.1)
    owner.statement_fault = "refuse"
    later.run(5.0)
    later.run_until(lambda: unsettled(later) is None)
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
