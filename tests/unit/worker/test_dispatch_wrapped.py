"""Under an instrumentation of asyncio, which has every task run a coroutine of its own that awaits the handler's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from tests.sample_bots.wrapping import wrapping
from tests.unit.worker.dispatch_scene import Scene, takes
from tests.unit.worker.virtual_time import block, now, run
from webhook_worker.lanes import Ending, State
from webhook_worker.outcomes import Done, Failed, Outcome


def run_wrapped(main: Callable[[], Coroutine[None, None, None]]) -> None:
    """In virtual time, with every task wrapped."""

    async def wrapped() -> None:
        asyncio.get_running_loop().set_task_factory(wrapping)
        await asyncio.create_task(main())

    run(wrapped)


def test_x_what_handlers_report_and_how_long_they_take_is_told() -> None:
    """Each ends as it would without; the first of them raised before its first step, and ended the worker, for ever."""

    async def main() -> None:
        scene = Scene(handler_timeout_seconds=5)
        scene.send(1, 1, takes(1))
        scene.send(2, 2, takes(1, Failed("the shop is closed")))
        scene.send(3, 3, takes(60))
        scene.start()
        await scene.until_quiet()
        assert [scene.row(number).state for number in (1, 2, 3)] == [State.DONE, State.DEAD, State.DEAD]
        assert "HANDLER_TIMEOUT_SECONDS" in (scene.row(3).error or "")
        assert await scene.end() == 0

    run_wrapped(main)


def test_x_at_the_deadline_a_handler_is_cancelled_and_its_update_goes_back() -> None:
    """Nothing of it runs past the deadline, and it has lost no attempt."""

    async def main() -> None:
        scene = Scene(deadline=now() + 8)
        scene.send(1, 1, takes(60))
        scene.start()
        assert await scene.ending() is Ending.DEADLINE
        (only,) = scene.bot.runs
        assert only.ended_at is not None
        assert only.ended_at < scene.deadline
        assert (scene.row(1).state, scene.row(1).attempts) == (State.PENDING, 0)

    run_wrapped(main)


def test_x_after_a_block_past_the_deadline_a_handler_sees_a_cancellation_alone() -> None:
    """Whatever it waited for."""
    seen: list[BaseException] = []

    async def main() -> None:
        failing = asyncio.get_running_loop().create_future()

        async def waits(attempt: int) -> Outcome:
            try:
                await failing
            except BaseException as exc:
                seen.append(exc)
                raise
            return Done()

        scene = Scene(deadline=now() + 8)
        scene.send(1, 1, waits)
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        failing.set_exception(OSError("away"))
        block(20)
        assert await scene.ending() is Ending.DEADLINE
        assert list(map(type, seen)) == [asyncio.CancelledError]
        assert scene.row(1).state is State.PENDING

    run_wrapped(main)


def test_b26_a_time_out_that_waits_for_its_turn_twice_is_raised_where_it_belongs() -> None:
    """All go on at one time, and each blocks the loop past the time-out of the next, who sees it when it is its turn."""

    async def main() -> None:
        all_go_on = asyncio.get_running_loop().create_future()
        seen: list[str] = []

        async def waits(attempt: int) -> Outcome:
            try:
                async with asyncio.timeout(0.1):
                    await asyncio.shield(all_go_on)
                seen.append("went on")
            except TimeoutError:
                seen.append("timed out")
            block(0.5)
            return Done()

        scene = Scene()
        for number in range(4):
            scene.send(number, number, waits)
        scene.start()
        await scene.until(lambda: scene.bot.running == 4)
        all_go_on.set_result(None)
        await scene.until_quiet()
        # The second had its turn before the loop looked at its timers.
        assert seen == ["went on", "went on", "timed out", "timed out"]
        await scene.end()

    run_wrapped(main)


def test_b25_a_cancellation_reaches_a_handler_that_waits_for_its_turn() -> None:
    """The end of the drain comes in the same turn as what two waited for: the first blocks, the second is cancelled."""

    async def main() -> None:
        both = asyncio.get_running_loop().create_future()
        seen: list[str] = []

        async def waits(attempt: int) -> Outcome:
            try:
                await asyncio.shield(both)
                seen.append("went on")
                block(0.5)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            return Done()

        scene = Scene()
        scene.send(1, 1, waits)
        scene.send(2, 2, waits)
        scene.start()
        await scene.until(lambda: scene.bot.running == 2)
        loop = asyncio.get_running_loop()
        both.add_done_callback(lambda _: loop.call_soon(scene.dispatcher.shorten_drain, 0.0))
        both.set_result(None)
        assert await scene.ending() is Ending.ENDED
        assert seen == ["went on", "cancelled"]
        assert {scene.row(number).state for number in (1, 2)} == {State.DONE, State.PENDING}

    run_wrapped(main)


def test_x_whoever_looks_at_a_handlers_task_sees_the_handlers_coroutine() -> None:
    """Instrumentations want its name, anyio whether it has begun."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 1, takes(1))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "flight of update 1"]
        coroutine: Any = task.get_coro()
        assert coroutine.__qualname__ == "ScriptedBot.handle"
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
        await scene.end(5)

    run(main)
