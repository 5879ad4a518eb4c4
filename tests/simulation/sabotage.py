"""Safeties of the product taken out, one at a time, in the simulation alone: the checker has to object to each.

The product has no switch for any of these: its parts are replaced by lesser ones while a simulation runs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from msgspec.structs import replace

from supervisor import core
from supervisor import messages as m
from supervisor.state import State, with_registration
from tests.models.inbox import Row, Store
from tests.simulation import instance, postgres, worker
from tests.simulation.plan import make_plan
from tests.simulation.simulate import simulate
from webhook_worker.claim_plan import Batch, ClaimRequest
from webhook_worker.health import Health
from webhook_worker.ingest import Ingest, Tell
from webhook_worker.lanes import Claimed, Settlement
from webhook_worker.lanes import State as RowState
from webhook_worker.term import Term


class Safety(Enum):
    """What is taken out."""

    FENCE_IN_COMPLETION = "the fence in the completion"
    FENCE_IN_CLAIM = "the fence in the claim"
    DEDUPE = "dedupe"
    LANE_ORDER = "lane order"
    ATTEMPTS_BEFORE_START = "attempts before start"
    COMMIT_BEFORE_200 = "commit before 200"
    OWN_DEADLINE = "the worker's own deadline"
    ASSERTION_ONCE_A_TERM = "assertion once a term"
    FLOOD_LIMIT_BEYOND_A_TERM = "a flood limit beyond its term"
    WORKERS_TRUTH = "the end of a worker's claim at its deadline"
    SUPERVISORS_TRUTH = "the end of a supervisor's claim at its deadline"
    DEADLINE_FROM_SENDING = "the deadline's count from the sending"
    PERMIT_OF_A_REPETITION = "the permit of a repetition"
    ASSERTION = "assertion at all"
    END_OF_TIMERS = "the end of timers before the deadline"
    COMPLETION_IN_A_CLAIM = "the completion in a claim"
    COMPARISON = "the comparison of the registration"


LETTERS = {
    Safety.FENCE_IN_COMPLETION: "F",
    Safety.FENCE_IN_CLAIM: "F",
    Safety.DEDUPE: "O",
    Safety.LANE_ORDER: "S",
    Safety.ATTEMPTS_BEFORE_START: "P",
    Safety.COMMIT_BEFORE_200: "L",
    Safety.OWN_DEADLINE: "X",
    Safety.ASSERTION_ONCE_A_TERM: "W",
    Safety.FLOOD_LIMIT_BEYOND_A_TERM: "W",
    Safety.WORKERS_TRUTH: "T",
    Safety.SUPERVISORS_TRUTH: "T",
    Safety.DEADLINE_FROM_SENDING: "T",
    Safety.PERMIT_OF_A_REPETITION: "W setWebhook by",
    Safety.ASSERTION: "W no setWebhook",
    Safety.END_OF_TIMERS: "X timers ran until",
    Safety.COMPLETION_IN_A_CLAIM: "O",
    Safety.COMPARISON: "A",
}
"""The invariant that each holds up; with the begin of the objection, where others of its letter would see it too."""


class _UnfencedCompletions(Store):
    def fence_settlement(self, term: str) -> None:
        return


class _UnfencedClaims(Store):
    def fence_claim(self, term: str) -> None:
        return


class _Forgetful(Store):
    def has_key(self, update_id: int) -> bool:
        return False


class _Unordered(Store):
    def heads(self) -> list[Row]:
        return [row for row in self.rows.values() if row.state is RowState.PENDING]


class _Uncounted(Store):
    def count_start(self, row: Row) -> None:
        row.attempts = max(row.attempts, 1)


class _Repetitive(Store):
    """Hands out once more what it was just told is done."""

    _again: Claimed | None = None

    def _settle(self, term: str, settlement: Settlement) -> None:
        row = self.rows.get(settlement.seq)
        if row is not None and row.body is not None and settlement.verdict.state is RowState.DONE:
            self._again = self._as_claimed(row)
        super()._settle(term, settlement)

    def _claim(self, term: str, request: ClaimRequest) -> Batch:
        batch = super()._claim(term, request)
        if self._again is None or len(batch.claimed) >= request.free:
            return batch
        again, self._again = self._again, None
        return replace(batch, claimed=(*batch.claimed, again))


class _Hasty(Ingest):
    def take(self, update_id: int, lane: int | None, body: bytes, tell: Tell) -> None:
        super().take(update_id, lane, body, lambda reason: None)
        asyncio.get_running_loop().call_soon(tell, None)


class _Timeless(Term):
    def __init__(self, **named: Any) -> None:
        make = named.pop("make_dispatcher")
        super().__init__(
            make_dispatcher=lambda term, deadline, recover_at: make(term, lambda: math.inf, recover_at),
            **named,
        )

    async def _end_near_deadline(self) -> None:
        return

    def _is_near_deadline(self) -> bool:
        return False


class _Leisurely(Term):
    async def _stop_bot(self) -> None:
        await asyncio.sleep(3.0)
        await super()._stop_bot()


class _Credulous(Health):
    def answer(self) -> tuple[int, dict[str, str]]:
        self.owned_until = lambda: math.inf
        return super().answer()


def _owning_with_the_session(state: State, now: float) -> bool:
    return state.term is not None and state.session.open


def _counting_from_the_answer(state: State, event: m.Event, now: float) -> tuple[State, tuple[m.Action, ...]]:
    if isinstance(event, m.Answered):
        event = replace(event, sent_at=event.at)
    return core.step(state, event, now)


def _taking_it_for_asserted(state: State, event: m.Event, now: float) -> tuple[State, tuple[m.Action, ...]]:
    state, actions = core.step(state, event, now)
    if isinstance(event, m.TermBegun):
        state = with_registration(state, asserted=True, asserted_at=now)
    return state, actions


def _asking_nothing(state: State, event: m.Event, now: float) -> tuple[State, tuple[m.Action, ...]]:
    state, actions = core.step(state, event, now)
    if isinstance(event, m.TermBegun):
        state = with_registration(
            state, asserted=True, asserted_at=now, verified=True, next_compare_at=math.inf
        )
    return state, actions


def _seeing_no_drift(state: State, event: m.Event, now: float) -> tuple[State, tuple[m.Action, ...]]:
    if isinstance(event, m.WebhookCompared):
        event = replace(event, facts=replace(event.facts, in_sync=True, drift=None))
    return core.step(state, event, now)


def _forgetting_what_it_was_told(
    state: State, event: m.Event, now: float
) -> tuple[State, tuple[m.Action, ...]]:
    return core.step(replace(state, writes_from=-math.inf), event, now)


_CHANGES: dict[Safety, tuple[tuple[Any, str, Any], ...]] = {
    Safety.FENCE_IN_COMPLETION: ((postgres, "MAKE_STORE", _UnfencedCompletions),),
    Safety.FENCE_IN_CLAIM: ((postgres, "MAKE_STORE", _UnfencedClaims),),
    Safety.DEDUPE: ((postgres, "MAKE_STORE", _Forgetful),),
    Safety.LANE_ORDER: ((postgres, "MAKE_STORE", _Unordered),),
    Safety.ATTEMPTS_BEFORE_START: ((postgres, "MAKE_STORE", _Uncounted),),
    Safety.COMMIT_BEFORE_200: ((worker, "MAKE_INGEST", _Hasty),),
    Safety.OWN_DEADLINE: ((worker, "MAKE_TERM", _Timeless), (worker, "HAS_LIFELINE", False)),
    Safety.ASSERTION_ONCE_A_TERM: ((instance, "STEP", _taking_it_for_asserted),),
    Safety.FLOOD_LIMIT_BEYOND_A_TERM: ((instance, "STEP", _forgetting_what_it_was_told),),
    Safety.WORKERS_TRUTH: ((worker, "MAKE_HEALTH", _Credulous),),
    Safety.SUPERVISORS_TRUTH: ((core, "owns", _owning_with_the_session),),
    Safety.DEADLINE_FROM_SENDING: ((instance, "STEP", _counting_from_the_answer),),
    # Asked before each attempt, and for the end of a call whose term is over; what is planned has a question of its own.
    Safety.PERMIT_OF_A_REPETITION: ((core, "may_call", lambda *_: True),),
    Safety.ASSERTION: ((instance, "STEP", _asking_nothing),),
    Safety.END_OF_TIMERS: ((worker, "MAKE_TERM", _Leisurely), (worker, "HAS_LIFELINE", False)),
    Safety.COMPLETION_IN_A_CLAIM: ((postgres, "MAKE_STORE", _Repetitive),),
    Safety.COMPARISON: ((instance, "STEP", _seeing_no_drift),),
}


@contextmanager
def without(safety: Safety) -> Iterator[None]:
    """Simulations within the block run without it."""
    before = [(module, name, getattr(module, name)) for module, name, _ in _CHANGES[safety]]
    try:
        for module, name, value in _CHANGES[safety]:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def first_objection(safety: Safety, seeds: range) -> tuple[int, str] | None:
    """The first seed in which the checker objects as it should while the safety is out, and what it says."""
    with without(safety):
        for seed in seeds:
            report, _ = simulate(make_plan(seed))
            breach = next((one for one in report.breaches if one.startswith(LETTERS[safety])), None)
            if breach is not None:
                return seed, breach
    return None
