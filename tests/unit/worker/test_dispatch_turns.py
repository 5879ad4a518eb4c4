"""Handlers that hold the event loop up, each for a moment: the moments do not add up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable

import pytest

from shared import wire
from supervisor.readings import BEAT_LATE_SECONDS
from tests.sample_bots.wrapping import wrapping
from tests.unit.worker.dispatch_scene import Scene, Script
from tests.unit.worker.virtual_time import block, now, run
from webhook_worker.beat import Beats
from webhook_worker.lanes import Ending, State
from webhook_worker.outcomes import Done, Outcome

CHATS = 32

WAYS = ("plain", "wrapped")
"""The second: under an instrumentation of asyncio, in whose coroutine every handler runs."""


def beats_of(scene: Scene, told: list[tuple[float, wire.Beat]]) -> Beats:
    """Written down with the time at which they were sent."""

    def tell(message: wire.ToSupervisor) -> None:
        assert isinstance(message, wire.Beat)
        told.append((now(), message))

    return Beats(
        tell=tell,
        fault=lambda: None,
        wait_tried=lambda limit_seconds: asyncio.sleep(0),
        polling_fault=lambda: None,
        connections=lambda: 0,
        unstored=lambda: 0,
        token_refused=lambda: False,
        completed=lambda: scene.dispatcher.completed,
        links=(),
        inbox=scene.inbox,  # is not asked
    )


async def scene_of(way: str, calls: Script, **settings: float) -> Scene:
    """A dispatcher whose handlers make these calls; `way`: how they run, one of WAYS."""
    if way == "wrapped":
        asyncio.get_running_loop().set_task_factory(wrapping)
    scene = Scene(store=None, concurrency=CHATS, **settings)
    scene.bot.default = calls
    return scene


def beats_while_all_become(
    state: State, way: str, calls: Script, *, handler_timeout_seconds: float = 300
) -> list[wire.Beat]:
    """Runs that handler for an update of each chat at one time, until all have that state; no two beats are far apart."""
    told: list[tuple[float, wire.Beat]] = []

    async def main() -> None:
        scene = await scene_of(way, calls, handler_timeout_seconds=handler_timeout_seconds)
        for number in range(CHATS):
            scene.send(number, number)
        beating = asyncio.create_task(beats_of(scene, told).run())
        scene.start()
        await scene.until_quiet()
        beating.cancel()
        assert {row.state for row in scene.store.rows.values()} == {state}
        await scene.end()

    run(main)
    times = [at for at, _ in told]
    assert max(after - before for before, after in itertools.pairwise(times)) < BEAT_LATE_SECONDS / 2
    return [beat for _, beat in told]


async def after_a_moment() -> None:
    """All who wait for it go on at one time, and so below."""
    await asyncio.sleep(0.01)


async def after_a_time_out() -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)


async def after_a_failure() -> None:
    failing = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.01, failing.set_exception, OSError("away"))
    with contextlib.suppress(OSError):
        await failing


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("goes_on", [after_a_moment, after_a_time_out, after_a_failure])
@pytest.mark.parametrize("blocked_seconds", [0.3, 1.0])
def test_b26_a_backlog_of_handlers_that_block_for_a_moment_each_is_no_hung_worker(
    blocked_seconds: float, goes_on: Callable[[], Awaitable[None]], way: str
) -> None:
    """32 chats wait, and each one's handler makes two synchronous calls: beats, timers and requests have their turn between any
    two of them. In one turn these were 10 or 32 s, and who is silent for 9 is killed."""

    async def calls(attempt: int) -> Outcome:
        block(blocked_seconds)
        await goes_on()
        block(blocked_seconds)
        return Done()

    told = beats_while_all_become(State.DONE, way, calls)
    # A timer, the future that it sets, the task that waits for it: a turn each.
    assert max(beat.loop_lag_ms for beat in told) <= 3 * 1000 * blocked_seconds


@pytest.mark.parametrize("way", WAYS)
def test_b26_handlers_that_take_too_long_together_end_one_after_the_other(way: str) -> None:
    """32 wait for what hangs, and each one's end takes a moment: they are cancelled at one time."""

    async def calls(attempt: int) -> Outcome:
        try:
            await asyncio.sleep(60)
        finally:
            block(0.3)
        return Done()

    beats_while_all_become(State.DEAD, way, calls, handler_timeout_seconds=5)


@pytest.mark.parametrize("way", WAYS)
def test_b25_who_waits_for_a_turn_does_not_take_too_long(way: str) -> None:
    """HANDLER_TIMEOUT_SECONDS is less than all the others' steps together: it counts from the first step of each one's own."""

    async def calls(attempt: int) -> Outcome:
        block(0.2)
        return Done()

    beats_while_all_become(State.DONE, way, calls, handler_timeout_seconds=5)


def test_x_a_handler_whose_call_has_failed_takes_no_step_past_the_deadline() -> None:
    """The loop was blocked meanwhile: in place of the failure it sees a cancellation, and its update goes back."""
    stepped_at: list[float] = []

    async def main() -> None:
        waited_for: list[asyncio.Future[None]] = []

        async def calls(attempt: int) -> Outcome:
            waited_for.append(asyncio.get_running_loop().create_future())
            try:
                await waited_for[0]
            except OSError:
                stepped_at.append(now())
            return Done()

        scene = Scene(concurrency=1, deadline=now() + 8)
        scene.bot.default = calls
        scene.send(1, 1)
        scene.start()
        await scene.until(lambda: bool(waited_for))
        waited_for[0].set_exception(OSError("away"))
        block(20)
        assert await scene.ending() is Ending.DEADLINE
        assert stepped_at == []
        assert scene.row(1).state is State.PENDING

    run(main)


@pytest.mark.parametrize("way", WAYS)
def test_x_a_step_that_was_put_off_past_the_deadline_is_not_taken(way: str) -> None:
    """Of 32 that began together those are interrupted whose turn did not come, and their updates go back as they were."""
    stepped_at: list[float] = []

    async def calls(attempt: int) -> Outcome:
        stepped_at.append(now())
        block(0.5)
        return Done()

    async def main() -> None:
        scene = await scene_of(way, calls, deadline=now() + 8)
        for number in range(CHATS):
            scene.send(number, number)
        scene.start()
        assert await scene.ending() is Ending.DEADLINE
        assert max(stepped_at) < scene.deadline
        rows = list(scene.store.rows.values())
        assert len(stepped_at) == sum(row.state is State.DONE for row in rows) < CHATS
        assert {row.attempts for row in rows if row.state is not State.DONE} == {0}

    run(main)
