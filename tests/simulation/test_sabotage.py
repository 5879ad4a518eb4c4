"""The checker proves itself: with any one safety taken out it objects, and says what a reader would expect of it."""

from __future__ import annotations

import pytest

from tests.simulation.plan import make_plan
from tests.simulation.sabotage import Safety, first_objection
from tests.simulation.simulate import simulate

MOST_SEEDS = 60

EXPECTED = {
    Safety.FENCE_IN_COMPLETION: "F",
    Safety.FENCE_IN_CLAIM: "F",
    Safety.DEDUPE: "O",
    Safety.LANE_ORDER: "S",
    Safety.ATTEMPTS_BEFORE_START: "P",
    Safety.COMMIT_BEFORE_200: "L",
    Safety.OWN_DEADLINE: "X",
    Safety.ASSERTION_ONCE_A_TERM: "W",
}
"""The letter of the invariant that each holds up."""


@pytest.mark.parametrize("safety", list(Safety))
def test_a_safety_that_is_taken_out_is_missed(safety: Safety) -> None:
    """Within the first sixty seeds, of which none objects as things are."""
    letter = EXPECTED[safety]

    def report_on(seed: int) -> tuple[str, ...]:
        report, _ = simulate(make_plan(seed))
        return tuple(breach for breach in report.breaches if breach.startswith(letter))

    assert first_objection(safety, range(1, MOST_SEEDS + 1), report_on) is not None
