"""What is asked for, and when."""

from __future__ import annotations

from webhook_worker.claim_plan import Sweep


def test_a_sweep_goes_on_where_it_stopped_and_takes_turns() -> None:
    """The sources of heads are served first by turns."""
    sweep = Sweep()
    turns = []
    for lane in (5, 9, 2, 7):
        turns.append(sweep.turn)
        sweep = sweep.next(lane)
        assert sweep.after_lane == lane
    assert turns == [0, 1, 2, 0]
