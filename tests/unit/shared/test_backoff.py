"""The pauses between tries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.backoff import doubled_seconds, spread_seconds


@pytest.mark.parametrize(
    ("times", "seconds"), [(0, 0.5), (1, 1.0), (5, 16.0), (6, 30.0), (16, 30.0), (1100, 30.0), (10**9, 30.0)]
)
def test_a_pause_doubles_up_to_the_longest(times: int, seconds: float) -> None:
    """However long it goes on: a power that does not fit into a float would end the process."""
    assert doubled_seconds(0.5, times, 30.0) == seconds


@given(st.floats(0, 1e6), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_spread_by_a_fifth_either_way(seconds: float, chance: float) -> None:
    """And by nothing at an even chance."""
    assert 0.8 * seconds <= spread_seconds(seconds, chance) <= 1.2001 * seconds
    assert spread_seconds(seconds, 0.5) == seconds
