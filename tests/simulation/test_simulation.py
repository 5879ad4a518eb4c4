"""Seeds that break no promise, and the simulation itself: the same each time, and able to make what fails smaller.

`make simulate SEEDS=n` runs many more.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from deploy.local.emulator_process import PROJECT_FOLDER
from tests.models.inbox import Commit
from tests.simulation.checker import judge
from tests.simulation.history import Delivery, Failover, Run
from tests.simulation.plan import Fault, Plan, Step, make_plan
from tests.simulation.sabotage import Safety, without
from tests.simulation.shrink import shrink
from tests.simulation.simulate import simulate
from tests.simulation.world import World
from webhook_worker.lanes import State

AWAY_FOR_MINUTES = (53, 76)
"""Seeds whose database is away for nine or ten minutes."""


@pytest.mark.parametrize("seed", [*range(1, 41), *AWAY_FOR_MINUTES])
def test_a_seed_breaks_no_promise(seed: int) -> None:
    """L O S F X W T P, and A after the last fault."""
    report, story = simulate(make_plan(seed))
    assert report.breaches == (), story[-20_000:]
    assert report.taken > 0
    assert report.terms > 0
    if seed in AWAY_FOR_MINUTES:
        assert any(step.fault is Fault.DATABASE_AWAY and step.amount >= 500 for step in make_plan(seed).steps)


def test_without_faults_everything_is_taken_once_and_done_once() -> None:
    """One deploy, three instances, nothing befalls them: no answer but 200, no run too many."""
    report, story = simulate(Plan(1, seconds=60.0, instances=3, odd_work=0.0))
    assert report.breaches == ()
    assert report.sent == report.taken == report.done > 50
    assert (report.dead, report.innocent, report.forgotten, report.expired, report.terms) == (0, 0, 0, 0, 1)
    assert report.claims > 0
    assert "was answered" not in story


def test_b17_rolling_deploys_cost_no_answer_and_one_change_of_owner_each() -> None:
    """With one instance and with three: 0 answers other than 200 in twenty deploys, rotations and rollbacks among them."""
    kinds = (Fault.DEPLOY, Fault.ROTATE, Fault.DEPLOY, Fault.ROLL_BACK)
    steps = tuple(Step(at=10.0 + 90.0 * index, fault=kinds[index % 4]) for index in range(20))
    for instances in (1, 3):
        plan = Plan(7, seconds=1900.0, instances=instances, odd_work=0.0, old_stays_seconds=65.0, steps=steps)
        report, story = simulate(plan)
        assert report.breaches == ()
        # From the moment at which the first deploy is up.
        assert "was answered" not in story.partition("traffic goes to")[2]
        assert report.terms == 21
        assert report.done == report.sent


def test_b31_an_hour_without_the_database_and_an_hour_without_telegram_kill_no_letter() -> None:
    """Nothing dead-lettered, nothing doubled, everything handled but what expired; 3 s after its return updates are taken."""
    steps = (
        Step(at=30.0, fault=Fault.READ_ONLY, amount=20.0),
        Step(at=100.0, fault=Fault.DATABASE_AWAY, amount=3600.0),
        Step(at=4000.0, fault=Fault.TELEGRAM_AWAY, amount=1200.0),
    )
    plan = Plan(3, seconds=8000.0, updates_per_second=0.2, odd_work=0.0, tick_seconds=1.0, steps=steps)
    report, _ = simulate(plan)
    assert report.breaches == ()
    assert report.done == report.taken == report.sent - report.expired
    # Button presses of the hour, which Telegram forgets after 150 s.
    assert 0 < report.expired < report.sent / 4
    assert len(report.resumed_seconds) == 1
    assert report.resumed_seconds[0] <= 3.0


def test_b14_owners_whose_workers_lose_their_sessions_give_up_to_one_whose_workers_have_them() -> None:
    """Seven times, in the middle of handlers: nothing is lost, and no update is counted out for it."""
    steps = tuple(
        Step(at=20.0 + 90.0 * index, fault=Fault.FEW_SESSIONS, amount=60.0, who=0.0) for index in range(7)
    )
    plan = Plan(1, seconds=700.0, odd_work=0.0, has_deploy_ids=False, steps=steps)
    report, _ = simulate(plan)
    assert report.breaches == ()
    assert report.done == report.taken == report.sent - report.expired
    assert report.rerun > 0
    # Not seven times: who gave up again lately stays out of the queue for longer than the next fault lasts.
    assert report.terms >= 5


def test_b04_a_worker_that_was_not_told_to_lead_does_not_say_that_it_owns() -> None:
    """Its owner waits for a token that is good, and is frozen past its deadline, while others own."""
    steps = (
        Step(at=10.0, fault=Fault.DEPLOY),
        Step(at=20.0, fault=Fault.REVOKE),
        Step(at=45.0, fault=Fault.KILL_WORKER),
        Step(at=52.0, fault=Fault.STOP_SUPERVISOR, amount=25.0),
    )
    plan = Plan(1, seconds=100.0, instances=1, odd_work=0.0, reconcile_seconds=10.0, old_stays_seconds=60.0)
    plan = replace(plan, steps=steps)
    report, _ = simulate(plan)
    assert report.breaches == ()
    with without(Safety.WORKERS_TRUTH):
        report, _ = simulate(plan)
    assert [breach[0] for breach in report.breaches] == ["T"]


def test_recovery_is_counted_from_the_end_of_the_last_fault() -> None:
    """While traffic goes on, and where a fault outlasts the plan."""
    killed = Step(at=20.0, fault=Fault.KILL_SUPERVISOR)
    report, _ = simulate(Plan(1, seconds=90.0, instances=1, odd_work=0.0, steps=(killed,)))
    assert report.breaches == ()
    assert report.recovery_seconds is not None
    # The platform starts it again after 0.5 s at the soonest, its worker is up a second later.
    assert 1.5 <= report.recovery_seconds <= 15.0
    away = Step(at=20.0, fault=Fault.DATABASE_AWAY, amount=120.0)
    report, _ = simulate(Plan(1, seconds=40.0, instances=1, odd_work=0.0, steps=(away,)))
    assert report.breaches == ()
    assert report.recovery_seconds is not None
    assert report.recovery_seconds <= 40.0
    assert report.simulated_seconds >= 140.0


def test_what_a_failover_forgets_is_counted() -> None:
    """Answered 200, and not in the inbox of the replica: neither done nor dead, and no breach."""
    steps = tuple(Step(at=10.0 + 5.0 * index, fault=Fault.FAIL_OVER, variant=3) for index in range(4))
    report, _ = simulate(Plan(1, seconds=40.0, updates_per_second=8.0, odd_work=0.0, steps=steps))
    assert report.breaches == ()
    assert report.forgotten > 0
    assert report.taken == report.done + report.innocent + report.forgotten
    assert report.sent == report.taken + report.expired


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_a_return_that_a_failover_forgets_does_not_make_an_innocent_dead_letter_a_breach(
    is_forgotten: bool,
) -> None:
    """Five starts, one of them given back. If the replica has that, four count, and the update should not be dead."""
    world = World(Plan(1))
    history, store, now = world.history, world.postgres.store, world.agenda.now
    history.deliveries[7] = Delivery(7, 1, "messages", now, now + 100.0, now, [(now, 200)])
    seq = store.insert(7, 1, b"")
    assert seq is not None
    store.rows[seq].state = State.DEAD
    for start in range(5):
        history.runs.append(
            Run(7, 1, "term", "worker", start + 1, now + start, now + start + 0.5, "cancelled")
        )
    history.commits.append((now + 4.6, Commit("term", 7, State.PENDING, now + 4.6, "term")))
    if is_forgotten:
        history.failovers.append(Failover(replicated_at=now + 4.5, promoted_at=now + 5.0))
    report = judge(world)
    world.end()
    assert report.innocent == 1
    found = [breach for breach in report.breaches if breach.startswith("L")]
    assert [breach.partition(":")[0] for breach in found] == (
        [] if is_forgotten else ["L update 7 is dead, and its handler did nothing wrong"]
    )


def test_an_inbox_that_has_an_update_twice_is_more_than_was_sent() -> None:
    """The sum does not come out."""
    with without(Safety.DEDUPE):
        report, _ = simulate(make_plan(4))
    assert any(breach.startswith("L the inbox has") for breach in report.breaches)


def test_some_seeds_have_a_database_that_is_away_for_minutes() -> None:
    """For one to ten of them, within the plan or beyond its end."""
    steps = [step for seed in range(1, 201) for step in make_plan(seed).steps]
    away = [step.amount for step in steps if step.fault is Fault.DATABASE_AWAY]
    assert 5 <= len(away) <= 25
    assert all(60.0 <= seconds <= 600.0 for seconds in away)


def test_the_same_seed_is_the_same_story_in_another_process() -> None:
    """Hash seeds and addresses differ there."""
    program = (
        "from tests.simulation.simulate import simulate; from tests.simulation.plan import make_plan;"
        "print(*[simulate(make_plan(seed))[0].digest for seed in (4, 12, 31)])"
    )
    digests = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_FOLDER, check=True, capture_output=True, text=True
    ).stdout.split()
    assert digests == [simulate(make_plan(seed))[0].digest for seed in (4, 12, 31)]


def test_what_fails_is_made_smaller() -> None:
    """To the steps that it takes, and no more."""
    with without(Safety.DEDUPE):
        plan = replace(make_plan(4), seed=4)
        small = shrink(plan, "O")
        breaches = [simulate(small)[0].breaches]
        for left_out in small.steps:
            smaller = replace(small, steps=tuple(step for step in small.steps if step is not left_out))
            breaches.append(simulate(smaller)[0].breaches)
    assert [any(breach.startswith("O") for breach in found) for found in breaches] == [
        True,
        *(False for _ in small.steps),
    ]
    assert 0 < len(small.steps) < len(plan.steps)
