"""Handlers that block the event loop, each for a moment: the moments do not add up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from telegram.ext import ApplicationBuilder, Defaults, TypeHandler

from shared import wire
from supervisor.readings import BEAT_LATE_SECONDS
from tests.integration.worker.worker_bots import Offline
from tests.sample_bots.handlers import Context
from tests.sample_bots.settings import TOKEN
from tests.sample_bots.wrapping import wrapping
from tests.unit.worker.dispatch_scene import Scene, Script
from tests.unit.worker.virtual_time import block, now, run
from webhook_worker.beat import Beats
from webhook_worker.lanes import Ending, State
from webhook_worker.outcomes import Done, Outcome
from webhook_worker.update_run import UpdateRun, adopt

CHATS = 32

WAYS = ("plain", "wrapped", "beside")
"""How a handler runs: in the task that the dispatcher makes, in a coroutine of an instrumentation of asyncio, or with
`block=False`, in a task of the Application."""


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
        unstored=lambda: 0,
        token_refused=lambda: False,
        completed=lambda: scene.dispatcher.completed,
        dispatch_fault=lambda: scene.dispatcher.fault,
        links=(),
        inbox=scene.inbox,  # is not asked
        has_session=lambda: True,
    )


async def scene_of(way: str, calls: Script, **settings: float) -> Scene:
    """A dispatcher whose handlers make these calls; `way`: how they run, one of WAYS."""
    if way == "wrapped":
        asyncio.get_running_loop().set_task_factory(wrapping)
    scene = Scene(store=None, **{"concurrency": CHATS, **settings})
    scene.bot.default = await beside(calls) if way == "beside" else calls
    return scene


async def beside(calls: Script, *others: Callable[[int, Context], Coroutine[Any, Any, None]]) -> Script:
    """The same calls, made by a handler with `block=False` for an update in which nothing stands but the attempt; `others` are
    blocking handlers."""

    async def handler(attempt: int, context: Context) -> None:
        await calls(attempt)

    builder = ApplicationBuilder().token(TOKEN).updater(None).job_queue(None).defaults(Defaults(block=False))
    app = builder.request(Offline()).get_updates_request(Offline()).build()
    app.add_handler(TypeHandler(int, handler))
    for group, other in enumerate(others, start=1):
        app.add_handler(TypeHandler(int, other, block=True), group)
    adopt(app, stop_asked=lambda: None)
    await app.initialize()

    async def script(attempt: int) -> Outcome:
        update = UpdateRun()
        await update.run(app, attempt, update_id=attempt, attempt=attempt)
        assert update.errors == []
        return Done()

    return script


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

    begun = itertools.count(1)

    async def calls(attempt: int) -> Outcome:
        is_last = next(begun) == CHATS
        block(0.2)
        if is_last:
            await asyncio.sleep(0.5)
        return Done()

    beats_while_all_become(State.DONE, way, calls, handler_timeout_seconds=5)


@pytest.mark.parametrize("way", WAYS)
def test_x_a_handler_whose_call_has_failed_takes_no_step_past_the_deadline(way: str) -> None:
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

        scene = await scene_of(way, calls, concurrency=1, deadline=now() + 8)
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


def test_x_an_update_of_which_a_task_was_refused_a_step_is_not_done() -> None:
    """Also where the task has ended long before the other handler, which ignores its cancellation, and finishes."""
    stepped: list[int] = []

    async def main() -> None:
        waited_for = asyncio.get_running_loop().create_future()

        async def calls(attempt: int) -> Outcome:
            await waited_for
            stepped.append(attempt)
            return Done()

        async def stubborn(attempt: int, context: Context) -> None:
            for _ in range(2):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)

        scene = Scene(concurrency=1, deadline=now() + 8)
        scene.bot.default = await beside(calls, stubborn)
        scene.send(1, 1)
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        waited_for.set_result(None)
        block(20)
        assert await scene.ending() is Ending.DEADLINE
        assert stepped == []
        assert (scene.row(1).state, scene.row(1).attempts) == (State.PENDING, 0)

    run(main)
