"""When something is asked for, and what: without an event loop, since the plan has no awaits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from webhook_worker.claim_plan import AHEAD_STEP, POLL_SECONDS, SWEEP_SECONDS, Batch, ClaimPlan, Sweep
from webhook_worker.lanes import DONE, GIVE_BACK, Claimed, State, Verdict

NOW = 100.0
RECOVER_AT = 105.0

CLAIMED = Claimed(
    seq=1, starts=1, update_id=1, lane_key=7, body=b"", attempts=1, retries=0, age_seconds=0.0, is_ahead=False
)
RETRIED = Claimed(
    seq=1, starts=3, update_id=1, lane_key=7, body=b"", attempts=1, retries=2, age_seconds=0.0, is_ahead=True
)
RETRY = Verdict(State.PENDING, refund=1, is_retry=True, retry_seconds=3.0)
TOLD = Verdict(State.PENDING, refund=1, is_retry=True, retry_seconds=3.0, is_told=True)


def make_plan(*, concurrency: int = 8, recover_at: float = RECOVER_AT) -> ClaimPlan:
    return ClaimPlan(concurrency=concurrency, recover_at=recover_at)


def batch(
    claimed: Sequence[Claimed] = (),
    *,
    sweep: Sweep | None = None,
    is_complete: bool = True,
    next_retry_seconds: float | None = None,
    has_suspects: bool = False,
) -> Batch:
    return Batch(tuple(claimed), sweep or Sweep(), is_complete, next_retry_seconds, has_suspects)


def after(answer: Batch) -> ClaimPlan:
    """A plan whose first claim was answered so, NOW."""
    plan = make_plan()
    plan.request(8, [])
    plan.took(answer, NOW)
    return plan


def ahead(plan: ClaimPlan, free: int = 1000) -> int:
    """How many may run ahead of their time."""
    return plan.request(free, []).ahead


# ------------------------------------------------------------------------------------------------------------- claims


def test_at_the_begin_there_may_be_anything() -> None:
    """The inbox is as old as the bot."""
    plan = make_plan()
    assert plan.wants_claim(1, -math.inf)
    assert plan.wants_peek(1, -math.inf)
    assert ahead(plan) == 0


def test_without_a_slot_nothing_is_claimed_nor_asked_for() -> None:
    """Not when we were woken, and not when it is due; the wake is kept until there is one."""
    plan = after(batch(next_retry_seconds=0.0))
    plan.wake()
    for now in (NOW, NOW + 3600):
        assert not plan.wants_claim(0, now)
        assert not plan.wants_peek(0, now)
    assert plan.wants_claim(1, NOW)


def test_one_claim_answers_all_wakes_before_it_and_none_after_it() -> None:
    """What comes while it is on its way may have come after it looked."""
    plan = after(batch())
    assert not plan.wants_claim(8, NOW)
    plan.wake()
    plan.wake()
    assert plan.wants_claim(8, NOW)
    plan.request(8, [])
    assert not plan.wants_claim(8, NOW)
    plan.wake()
    plan.took(batch(), NOW)
    assert plan.wants_claim(8, NOW)


def test_a_claim_in_doubt_is_made_again() -> None:
    """Its answer was lost: whatever it did is known to the next."""
    plan = after(batch())
    plan.request(8, [])
    plan.wake()
    assert plan.wants_claim(8, NOW)


def test_a_claim_is_due_with_the_next_retry() -> None:
    """Or never, where none waits."""
    plan = after(batch(next_retry_seconds=3.0))
    assert not plan.wants_claim(8, NOW + 2.999)
    assert plan.wants_claim(8, NOW + 3.0)
    assert not after(batch()).wants_claim(8, NOW + 1e9)


@pytest.mark.parametrize(
    ("claimed", "retry_seconds", "seconds"),
    [
        ([CLAIMED], None, 0.0),
        ([CLAIMED], 3.0, 0.0),
        ([], None, SWEEP_SECONDS),
        ([], SWEEP_SECONDS * 2, SWEEP_SECONDS),
        ([], SWEEP_SECONDS / 2, SWEEP_SECONDS / 2),
    ],
)
def test_a_walk_that_stopped_halfway_goes_on(
    claimed: list[Claimed], retry_seconds: float | None, seconds: float
) -> None:
    """At once where it found something; a moment later, or with the next retry, where all that it saw was blocked."""
    plan = after(batch(claimed, is_complete=False, next_retry_seconds=retry_seconds))
    assert plan.wants_claim(8, NOW + seconds)
    assert seconds == 0 or not plan.wants_claim(8, NOW + seconds * 0.99)


def test_a_request_says_where_the_walk_stands_and_what_is_known() -> None:
    """It goes on where the last one ended."""
    sweep = Sweep(after_lane=7, turn=2)
    plan = after(batch(sweep=sweep))
    request = plan.request(3, [4, 5])
    assert (request.free, request.sweep, request.known) == (3, sweep, [4, 5])
    last = plan.last_request([4])
    assert (last.free, last.sweep, last.known, last.ahead) == (0, sweep, [4], 0)


# ------------------------------------------------------------------------------------------------------ ahead of time


@pytest.mark.parametrize(
    ("before", "claimed", "verdict", "now"),
    [
        (0, RETRIED, DONE, 2),
        (7, RETRIED, DONE, 8),
        (3, CLAIMED, DONE, 3),
        (3, CLAIMED, RETRY, 0),
        (3, RETRIED, RETRY, 0),
        (3, CLAIMED, TOLD, 3),
        (3, RETRIED, GIVE_BACK, 3),
        (3, RETRIED, Verdict(State.DEAD), 3),
    ],
)
def test_success_after_failure_lets_others_go_ahead_and_a_failure_stops_them(
    before: int, claimed: Claimed, verdict: Verdict, now: int
) -> None:
    """Two for each, within the limit; successes of what never failed mean nothing."""
    plan = with_ahead(before)
    plan.ended(claimed, verdict)
    assert ahead(plan) == now


def with_ahead(count: int) -> ClaimPlan:
    """A plan for eight slots by which so many may run ahead of their time."""
    plan = make_plan(concurrency=8)
    for _ in range(4):
        plan.ended(RETRIED, DONE)
    plan.took(batch([RETRIED] * (8 - count)), NOW)
    assert ahead(plan) == count
    return plan


def test_when_telegram_is_back_two_go_ahead_at_once() -> None:
    """Or as many as might before, if they were more."""
    plan = after(batch())
    plan.telegram_is_back()
    assert plan.wants_claim(8, NOW)
    assert ahead(plan) == AHEAD_STEP
    for before, now in ((1, AHEAD_STEP), (5, 5)):
        plan = with_ahead(before)
        plan.telegram_is_back()
        assert ahead(plan) == now


def test_what_went_ahead_was_one_of_those_that_might() -> None:
    """What was due anyway was not."""
    plan = with_ahead(5)
    plan.took(batch([RETRIED, CLAIMED, RETRIED]), NOW)
    assert ahead(plan) == 3


def test_b14_a_failure_settled_beside_a_claim_ahead_of_its_time_leaves_none() -> None:
    """It had said that nothing more may, when the answer came with two: less than none can be asked of no database."""
    plan = with_ahead(2)
    plan.request(8, [])
    plan.ended(CLAIMED, RETRY)
    plan.took(batch([RETRIED, RETRIED]), NOW)
    assert ahead(plan) == 0


def test_no_more_go_ahead_than_there_are_slots() -> None:
    """The others may later."""
    plan = with_ahead(5)
    assert [ahead(plan, free) for free in (1, 5, 8)] == [1, 5, 5]


# ---------------------------------------------------------------------------------------------------- peeks, recovery


def test_without_news_the_inbox_is_asked_every_second() -> None:
    """From a claim on, and from the begin of a question: also where its answer never came."""
    plan = after(batch())
    at = NOW
    for pause in (0.0, 0.0, 7.5):
        assert not plan.wants_peek(8, at + POLL_SECONDS - 0.001)
        assert plan.wants_peek(8, at + POLL_SECONDS)
        at += POLL_SECONDS + pause
        plan.begin_peek(at)


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize("is_woken", [False, True])
def test_there_is_a_claim_if_something_was_found_or_has_come_since(found: bool, is_woken: bool) -> None:
    """That nothing was found says nothing about what woke us meanwhile."""
    plan = after(batch())
    plan.begin_peek(NOW + POLL_SECONDS)
    if is_woken:
        plan.wake()
    plan.peeked(found)
    assert plan.wants_claim(8, NOW + POLL_SECONDS) is (found or is_woken)


def test_recovery_waits_for_its_time_and_for_the_suspect_that_runs() -> None:
    """At the begin nobody has looked yet whether there is one."""
    plan = make_plan()
    assert not plan.wants_recovery(RECOVER_AT - 0.001, must_wait=False)
    assert plan.wants_recovery(RECOVER_AT, must_wait=False)
    assert not plan.wants_recovery(RECOVER_AT, must_wait=True)


def test_recovery_is_over_until_a_claim_finds_another_suspect() -> None:
    """Every claim says whether there is one."""
    plan = make_plan()
    plan.recovered()
    assert not plan.wants_recovery(RECOVER_AT, must_wait=False)
    for has_suspects in (False, True, False):
        plan.took(batch(has_suspects=has_suspects), NOW)
        assert plan.wants_recovery(RECOVER_AT, must_wait=False) is has_suspects


# --------------------------------------------------------------------------------------------------------------- rest


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("retry_seconds", [None, 0.01, POLL_SECONDS / 2, 60.0])
@pytest.mark.parametrize("has_suspects", [True, False])
@pytest.mark.parametrize("must_wait", [True, False])
@pytest.mark.parametrize("recover_at", [NOW - 1, NOW + 0.005, NOW + 0.7, NOW + 3600])
@pytest.mark.parametrize("free", [0, 1])
def test_it_rests_until_something_is_wanted_and_no_longer(
    free: int,
    recover_at: float,
    is_complete: bool,
    retry_seconds: float | None,
    has_suspects: bool,
    must_wait: bool,
) -> None:
    """A rest that is too short would go round and round, one that is too long would be late."""
    plan = make_plan(recover_at=recover_at)
    plan.request(8, [])
    plan.took(
        batch(is_complete=is_complete, next_retry_seconds=retry_seconds, has_suspects=has_suspects), NOW
    )

    def is_something_wanted(now: float) -> bool:
        return (
            plan.wants_claim(free, now)
            or plan.wants_peek(free, now)
            or plan.wants_recovery(now, must_wait=must_wait)
        )

    due = plan.rests_until(free, tries_at=math.inf, must_wait=must_wait)
    assert is_something_wanted(due) or due == math.inf
    assert not is_something_wanted(math.nextafter(due, -math.inf))


def test_without_a_slot_it_rests_until_there_may_be_one() -> None:
    """As while Telegram refuses the token; a recovery needs none."""
    plan = after(batch(next_retry_seconds=0.0, has_suspects=True))
    assert plan.rests_until(0, tries_at=NOW + 1, must_wait=False) == NOW + 1
    assert plan.rests_until(0, tries_at=NOW + 30, must_wait=False) == RECOVER_AT
    assert plan.rests_until(0, tries_at=NOW + 30, must_wait=True) == NOW + 30


# -------------------------------------------------------------------------------------------------------------- sweep


def test_a_sweep_goes_on_where_it_stopped_and_takes_turns() -> None:
    """The sources of heads are served first by turns."""
    sweep = Sweep()
    turns = []
    for lane in (5, 9, 2, 7):
        turns.append(sweep.turn)
        sweep = sweep.next(lane)
        assert sweep.after_lane == lane
    assert turns == [0, 1, 2, 0]
