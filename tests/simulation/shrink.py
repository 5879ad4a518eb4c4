"""Makes a plan that breaks a promise smaller, as long as it still breaks one of the same kind.

Leaves out steps, half of them at a time, then a quarter, then one; then makes the rest plainer: fewer instances, chats,
updates, less time. Not promised: the smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.simulation.plan import Plan
from tests.simulation.simulate import simulate

MOST_TRIES = 150


def shrink(plan: Plan, letter: str) -> Plan:
    """The smallest that was found; `letter` is that of the breach."""
    tries = 0

    def still_fails(smaller: Plan) -> bool:
        nonlocal tries
        tries += 1
        report, _ = simulate(smaller)
        return any(breach.startswith(letter) for breach in report.breaches)

    is_smaller = True
    while is_smaller and tries < MOST_TRIES:
        is_smaller = False
        for smaller in _smaller(plan):
            if tries >= MOST_TRIES:
                break
            if still_fails(smaller):
                plan, is_smaller = smaller, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    size = len(plan.steps)
    length = size // 2
    while length:
        for begin in range(0, size, length):
            yield replace(plan, steps=plan.steps[:begin] + plan.steps[begin + length :])
        length //= 2
    plainer: tuple[Callable[[Plan], Plan], ...] = (
        lambda p: replace(p, odd_work=0.0),
        lambda p: replace(p, instances=max(1, p.instances - 1)),
        lambda p: replace(p, chats=1),
        lambda p: replace(p, updates_per_second=p.updates_per_second / 2),
        lambda p: replace(p, has_persistence=False),
        lambda p: replace(p, seconds=max([30.0, *(step.at + 5.0 for step in p.steps)])),
    )
    for make in plainer:
        if (made := make(plan)) != plan and made.updates_per_second >= 0.2:
            yield made
