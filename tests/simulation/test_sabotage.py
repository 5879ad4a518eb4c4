"""The checker proves itself: with any one safety taken out it objects, and says what a reader would expect of it."""

from __future__ import annotations

import pytest

from tests.simulation.sabotage import Safety, first_objection

MOST_SEEDS = 100


@pytest.mark.parametrize("safety", list(Safety))
def test_a_safety_that_is_taken_out_is_missed(safety: Safety) -> None:
    """Within the first hundred seeds, in which the checker has nothing to object to as things are."""
    assert first_objection(safety, range(1, MOST_SEEDS + 1)) is not None
