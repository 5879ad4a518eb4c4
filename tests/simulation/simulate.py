"""One simulation from begin to end, in this process."""

from __future__ import annotations

import time

import structlog

from tests.simulation.checker import Report, judge
from tests.simulation.plan import Plan, make_plan
from tests.simulation.world import World


def simulate(plan: Plan) -> tuple[Report, str]:
    """Lets a plan happen: the report on it, and the story.

    What fails in a process, an assertion of the product or of the core's invariants, is a breach like any other.
    """
    # Nobody reads its log, and lines are a good part of what a short life costs.
    structlog.configure(
        processors=[_drop],
        wrapper_class=structlog.make_filtering_bound_logger("CRITICAL"),
        cache_logger_on_first_use=False,  # a logger that is first used here would be silent ever after
    )
    world = World(plan)
    try:
        world.run()
    except Exception as exc:  # noqa: BLE001 - of the product or of the simulation: the seed's story is what helps
        cause = exc.__cause__ or exc
        world.history.object_to("BUG", f"{type(cause).__name__}: {cause}")
        exc.__traceback__ = cause.__traceback__ = None  # holds the frames of everything
    report, story = judge(world), world.history.text()
    world.end()
    return report, story


def _drop(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent


def simulate_seed(seed: int) -> tuple[Report, float]:
    """The report on a seed's plan, and the seconds of CPU that it took."""
    begin = time.process_time()
    report, _ = simulate(make_plan(seed))
    return report, time.process_time() - begin
