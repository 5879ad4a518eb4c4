"""What whoever runs the benchmarks can choose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """For every part.

    Attributes:
        rounds: how often each thing is measured, in turns; medians count.
        seconds: how long a round of load lasts.
        minutes: how long the soak does.
        quick: only whether it all works: few and small steps. What comes out means nothing.
        only: measure these contenders alone (throughput.py); empty: all.
    """

    rounds: int = 5
    seconds: float = 3.0
    minutes: float = 60.0
    quick: bool = False
    only: frozenset[str] = frozenset()
