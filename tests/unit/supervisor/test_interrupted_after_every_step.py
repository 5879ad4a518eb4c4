"""The core, interrupted after every step of every usual course by every fault; then an honest world.

In the manner of Patroni's test_quorum.py: the claim is not that a fault is without consequence, but that from wherever it
strikes everything comes to be as it should be, with every invariant kept on the way (invariants.py, after every step).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable

import pytest

from tests.unit.supervisor.stories import (
    FAULTS,
    STORIES,
    Fault,
    call_is_rejected,
    leader_hangs,
    newest_worker_hangs,
    next_lead_hangs,
    next_lead_swallows_its_cancellation,
    next_start_hangs,
    token_is_refused_once,
    unsettled,
)
from tests.unit.supervisor.world import Instance, World

EVERY_PLACE = bool(os.environ.get("ENUMERATE_ALL"))
"""Every fault at every place takes a minute. Without it each fault strikes at every second place, and its neighbour in the list
at the others, so that every place is struck by half of them."""

QUIET_SECONDS = 6.0
"""So long nothing may change for the world to be called settled: longer than any pause but those named below."""

SETTLED_WITHIN = 60.0
LONG_FAULTS: dict[Fault, float] = {
    token_is_refused_once: 400.0,  # tried again after 300 s
    next_lead_hangs: 120.0,  # 45 s
    next_lead_swallows_its_cancellation: 120.0,
    next_start_hangs: 200.0,  # a start has 120 s
    leader_hangs: 200.0,
    newest_worker_hangs: 200.0,
    call_is_rejected: 100.0,  # 60 s
}
"""Limits in simulated seconds."""


def _turns(story: Callable[[World], float]) -> list[int]:
    """The turns of "a" that are unlike every one before: a heartbeat more is no new place to be interrupted at."""
    world = World(tick_seconds=1.0, beat_seconds=2.0, narrates=False)
    end = story(world) + world.now
    instance, seen, turns = world.instances["a"], set(), []
    while world.now < end and instance.lives:
        before = instance.turns
        world.next()
        if instance.turns != before and (place := _place(instance)) not in seen:
            seen.add(place)
            turns.append(instance.turns)
    return turns


def _place(instance: Instance) -> Hashable:
    """Where in its life an instance is, without numbers and times."""
    state = instance.state
    workers = tuple(
        (
            w.accepting,
            w.led is not None,
            w.dispatching,
            w.leaving,
            w.connections_closed,
            w.term_ended,
            w.exit_at is None,
        )
        for w in state.workers
    )
    return (
        type(instance.events[-1]),
        type(state.session.busy),
        type(state.call),
        state.session.lock_held,
        state.term is not None
        and (state.term.worker is not None, state.term.ended, state.term.registration.asserted),
        state.stopping_since is None,
        workers,
    )


def run_interrupted(story: Callable[[World], float], turns: int, faults: tuple[Fault, ...]) -> World:
    """The story up to a turn of "a", the faults there, and then until nothing is left to do."""
    world = World(tick_seconds=1.0, beat_seconds=2.0, narrates=False)
    end = world.now + story(world)
    end = max(end, world.now)
    instance = world.instances["a"]
    world.run_until(lambda: instance.turns >= turns or not instance.lives)
    for fault in faults:
        fault(world, instance)
    world.run(max(end - world.now, 0.0) + 0.5)
    limit = world.now + max(LONG_FAULTS.get(fault, SETTLED_WITHIN) for fault in faults)
    while True:
        world.run_until(lambda: unsettled(world) is None, limit - world.now)
        before = world.database.term.uuid
        world.run(QUIET_SECONDS)
        if unsettled(world) is None and world.database.term.uuid == before:
            return world


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("story", STORIES, ids=lambda s: s.__name__)
def test_interrupted(story: Callable[[World], float], fault: Fault) -> None:
    """Whatever strikes after whatever step: in the end one owns, dispatches and has asserted; no stop hangs."""
    turns_of_story = _turns(story)
    if not EVERY_PLACE:
        turns_of_story = turns_of_story[FAULTS.index(fault) % 2 :: 2]
    for turns in turns_of_story:
        try:
            run_interrupted(story, turns, (fault,))
        except AssertionError as exc:
            raise AssertionError(f"{story.__name__}, {fault.__name__} after turn {turns}: {exc}") from exc
