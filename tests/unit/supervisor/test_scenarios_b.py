"""The faults of SCENARIOS.md's second table, as far as the core decides what comes of them."""

from __future__ import annotations

import pytest

from supervisor import messages as m
from supervisor import restart
from supervisor.state import conflict_pause_seconds
from tests.unit.supervisor.stories import unsettled
from tests.unit.supervisor.test_scenarios_a import assertions, owner_and_standby, settle
from tests.unit.supervisor.world import Instance, World

# ------------------------------------------------------------------------------------------------------------------- b17


def deploy(world: World, names: str, deploy_id: str) -> list[Instance]:
    """Boot instances a quarter of a second apart."""
    instances = []
    for name in names:
        instances.append(world.boot(name, deploy=deploy_id))
        world.run(0.25)
    return instances


@pytest.mark.parametrize(("old", "new"), [("a", "b"), ("ab", "cd"), ("abc", "de"), ("a", "bcd")])
def test_b17_a_rolling_deploy_changes_the_owner_once(old: str, new: str) -> None:
    """New healthy, 60 s, SIGTERM to the old: the new deploy owns long before, and nothing goes to and fro."""
    world = World()
    olds = deploy(world, old, "d1")
    settle(world)
    news = deploy(world, new, "d2")
    took = world.run_until(lambda: bool(world.owners()) and world.owners()[0] in news)
    assert took < 10.0
    world.run(60.0)
    for instance in olds:
        instance.stop()
    world.run(30.0)
    settle(world)
    assert all(instance.exit_code == 0 for instance in olds)
    assert len(world.database.terms_begun) == 2


def test_b17_a_rollback_is_a_deploy_like_any_other() -> None:
    """Old code that comes back after more than a minute is young again."""
    world = World()
    first = deploy(world, "a", "d1")[0]
    settle(world)
    second = deploy(world, "b", "d2")[0]
    world.run(60.0)
    first.stop()
    world.run(90.0)
    third = deploy(world, "c", "d1")[0]
    settle(world)
    assert world.run_until(lambda: world.owners() == [third]) < 10.0
    world.run(60.0)
    second.stop()
    world.run(30.0)
    settle(world)
    assert [name for _, name, _ in world.database.terms_begun] == ["a", "b", "c"]


def test_b17_the_old_instance_restarted_meanwhile_is_no_younger() -> None:
    """Its platform's instance id shows that it is the same."""
    world = World()
    old = world.boot("a", deploy="d1", platform_id="web-1")
    settle(world)
    new = deploy(world, "b", "d2")[0]
    world.run_until(lambda: world.owners() == [new])
    settle(world)
    old.kill_9()
    world.run(5.0)
    world.boot("a2", deploy="d1", platform_id="web-1")
    world.run(120.0)
    settle(world)
    assert world.owners() == [new]
    assert len(world.database.terms_begun) == 2


def test_b17_a_deploy_that_fails_as_owner_gives_back_ever_more_rarely() -> None:
    """The old deploy owns again within seconds, and the failing one tries again after 1, 2, 4 ... minutes."""
    world = World(tick_seconds=1.0, narrates=False)
    old = deploy(world, "a", "d1")[0]
    settle(world)
    new = world.boot("b", deploy="d2")
    new.always_lead_fault = "crash"
    world.run_until(lambda: new.count(m.Lead) > 0)
    took = world.run_until(lambda: world.owners() == [old] and old.dispatching is not None)
    assert took < 15.0
    world.run(1800.0)
    surrenders = [at for at, action in new.actions if isinstance(action, m.ReleaseLock) and action.gave_up]
    pauses = [later - earlier for earlier, later in zip(surrenders, surrenders[1:], strict=False)]
    assert len(surrenders) <= 6
    assert all(later > 1.5 * earlier for earlier, later in zip(pauses, pauses[1:], strict=False))
    assert new.exit_code is None


def test_b17_a_replacement_that_cannot_come_up_costs_nobody_the_owner() -> None:
    """The old instance has no room for a second worker: it dispatches on, as long as it has to."""
    world = World(tick_seconds=1.0, narrates=False)
    old = deploy(world, "a", "d1")[0]
    settle(world)
    old.always_spawn_fault = "crash"
    deploy(world, "b", "d2")
    world.run(300.0)
    assert old.exit_code is None
    assert old.dispatching is not None
    old.stop()
    world.run_until(lambda: old.exit_code == 0)
    settle(world)


def test_b17_a_successor_between_two_waits_is_a_successor_still() -> None:
    """It leaves the queue for milliseconds every 0.9 s; a look at just that moment must not undo a hand-over."""
    world = World()
    old = world.boot("a", deploy="d1", start_seconds=4.0)
    settle(world)
    new = deploy(world, "b", "d2")[0]
    world.run_until(lambda: old.count(m.SpawnWorker) == 2)
    row = world.database.rows["b"]
    queued = list(world.database.queue)
    world.database.queue.clear()
    row.session = None
    world.run_until(lambda: any(p.instance_id == "b" and not p.waiting for p in old.state.peers))
    assert queued
    world.run_until(lambda: world.owners() == [new])
    assert old.count(m.SpawnWorker) == 2
    assert len(world.database.terms_begun) == 2


def test_b17_two_that_gave_up_do_not_wait_for_each_other() -> None:
    """Whoever abstains is no candidate, and nobody abstains in its favour."""
    world = World(narrates=False)
    first, second = owner_and_standby(world)
    third = world.boot("c")
    settle(world)
    for instance in (first, second):
        instance.always_lead_fault = "crash"
    assert first.dispatching is not None
    first.end_worker(first.dispatching.id, "exit status 1")
    world.run_until(lambda: world.owners() == [third] and third.dispatching is not None, 40.0)
    first.always_lead_fault = second.always_lead_fault = None
    third.stop()
    world.run_until(lambda: third.exit_code == 0)
    assert world.run_until(lambda: bool(world.owners())) < 3.0


def test_b17_whoever_prefers_another_does_not_spin() -> None:
    """A lock that is given back is not taken again at once, although the preferred one does not come."""
    world = World()
    instance = world.boot("a", deploy="d1")
    settle(world)
    world.ghost_peer("ghost")
    world.run(6.0)
    assert instance.count(m.ReleaseLock) <= 20


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


def test_b21_a_worker_that_says_why_it_cannot_start_is_exit_2_at_once() -> None:
    """Its faults are the operator's."""
    world = World()
    instance = world.boot("a")
    instance.spawn_fault = "faults"
    world.run_until(lambda: instance.exit_code is not None)
    assert (instance.exit_code, instance.faults) == (2, ("BOT_APP does not import",))
    assert instance.count(m.SpawnWorker) == 1


def test_b21_a_crash_loop_gives_up_to_a_healthy_instance() -> None:
    """After backoff, and it says that it is not healthy while no worker accepts."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.always_lead_fault = "crash"
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "exit status 1")
    took = world.run_until(lambda: world.owners() == [standby] and standby.dispatching is not None)
    assert 1.0 < took < 15.0
    world.run(30.0)
    assert world.owners() == [standby]
    assert sum(isinstance(a, m.ReleaseLock) and a.gave_up for _, a in owner.actions) == 1


def test_b21_alone_it_backs_off_and_is_exit_4_in_the_end() -> None:
    """A worker that once was healthy cannot be kept up; nobody is there to give up to."""
    world = World()
    owner = world.boot("a")
    owner.always_lead_fault = "crash"
    world.run_until(lambda: owner.exit_code is not None, 200.0)
    assert owner.exit_code == 4
    spawned = [at for at, action in owner.actions if isinstance(action, m.SpawnWorker)]
    pauses = [later - earlier for earlier, later in zip(spawned, spawned[1:], strict=False)]
    assert len(spawned) == restart.CRASHES_BEFORE_EXIT
    assert pauses[-1] > 10 * pauses[0]
    assert "exit status 1" in owner.faults[0]


def test_b21_an_owner_whose_new_worker_hangs_at_its_start_gives_up_too() -> None:
    """Others wait, and nobody dispatches: the lock is not kept for a start that takes minutes."""
    world = World()
    owner, standby = owner_and_standby(world)
    owner.always_spawn_fault = "hang"
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "exit status 1")
    assert world.run_until(lambda: world.owners() == [standby]) < 20.0
    assert not owner.health.ok


def test_b21_a_worker_that_gave_up_and_does_not_exit_is_killed() -> None:
    """LeadFailed is followed by the exit, or by a kill that counts as a crash."""
    world = World()
    owner = world.boot("a")
    settle(world)
    worker = owner.dispatching
    assert worker is not None
    owner.post(m.WorkerLeadFailed, worker=worker.id, reason="post_init raised")
    world.run_until(lambda: not worker.alive, 5.0)
    settle(world)
    assert owner.state.last_crash == "post_init raised"


def test_b25_crashes_of_a_suspect_update_do_not_count() -> None:
    """They are that update's doing, and its own limit ends them."""
    world = World()
    owner = world.boot("a")
    for _ in range(12):
        settle(world)
        worker = owner.dispatching
        assert worker is not None
        owner.post(m.WorkerSuspect, worker=worker.id, running=True)
        world.run(0.1)
        owner.end_worker(worker.id, "killed by SIGSEGV")
        world.run(0.1)
    settle(world)
    assert owner.exit_code is None
    assert owner.state.restarts.count(world.now) == 0


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


def test_b23_an_answer_after_the_term_ended_changes_nothing_and_the_next_term_asserts() -> None:
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
    """The worker's getMe may be answered before our setWebhook is."""
    world = World()
    owner = world.boot("a")
    world.run_until(lambda: owner.count(m.Lead) == 1)
    owner.post(m.WorkerTokenRefused)
    world.run_until(lambda: owner.exit_code is not None)
    assert owner.exit_code == 3


def revoke(world: World, owner: Instance) -> None:
    """Telegram refuses the token from now on, and the worker is the first to hear of it."""
    world.telegram.refused_tokens.add(owner.token)
    owner.post(m.WorkerTokenRefused)
    world.run(0.1)


def test_b24_a_token_revoked_later_is_a_state_and_loud() -> None:
    """No exit, health says so, and the API is asked again once in five minutes."""
    world = World(tick_seconds=1.0)
    owner = world.boot("a")
    settle(world)
    revoke(world, owner)
    assert "401" in str(owner.health.reason)
    calls = sum(isinstance(action, m.CallAction) for _, action in owner.actions)
    world.run(1200.0)
    assert owner.exit_code is None
    assert sum(isinstance(action, m.CallAction) for _, action in owner.actions) - calls <= 5


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
    world.run(1.0)
    owner.post(m.WorkerTokenRefused)
    world.run(1.0)
    assert not owner.health.ok
    settle(world, 310.0)
    assert owner.health.ok


def test_b24_a_standby_trusts_an_owner_with_the_same_token() -> None:
    """It makes no call, so it would never learn that its token is good."""
    world = World()
    old = world.boot("a", deploy="d1")
    settle(world)
    new = world.boot("b", deploy="d2")
    world.run(0.5)
    old.post(m.WorkerTokenRefused)
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
    pauses = [later - earlier for earlier, later in zip(mended, mended[1:], strict=False)]
    assert pauses[0] <= 12.0
    assert pauses[1] <= 12.0
    assert all(later > earlier for earlier, later in zip(pauses[1:-1], pauses[2:], strict=False))
    named = sum(line.event.startswith("conflict: something else") for line in owner.lines)
    assert len(mended) - 3 <= named <= len(mended) - 2
    world.telegram.url = "ours-t"
    settle(world)


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
