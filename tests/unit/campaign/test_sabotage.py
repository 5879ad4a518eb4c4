"""What the proof takes out is still there to be taken out: each change finds its place in the modules as they are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.campaign.proof import SHOWS
from tests.campaign.sabotage import Safety
from tests.campaign.scenario import all_scenarios

_TAKE_OUT = "import sys; from tests.campaign.sabotage import *; take_out(Safety(sys.argv[1]))"


@pytest.mark.parametrize("safety", Safety, ids=lambda safety: safety.name)
def test_every_safety_can_be_taken_out(safety: Safety) -> None:
    """In a process of its own: it changes modules for good."""
    done = subprocess.run(
        [sys.executable, "-c", _TAKE_OUT, safety.value], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("safety", Safety, ids=lambda safety: safety.name)
def test_every_safety_has_a_scenario_in_which_it_shows(safety: Safety) -> None:
    """Named by its id, and there."""
    _, ids = SHOWS[safety]
    assert ids
    assert set(ids) <= set(all_scenarios())
