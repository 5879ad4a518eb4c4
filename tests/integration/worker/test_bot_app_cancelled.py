"""The end of an update before its time: cancellation reaches everything of it, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import Coroutine, Generator
from typing import Any

import pytest
from telegram import Update

from tests.sample_bots.handlers import Context, failed, on_message
from tests.sample_bots.running import (
    AnyApplication,
    body,
    running,
    until,
    within_limit,
)
from webhook_worker.outcomes import Done, Outcome, Transient


async def test_b32_cancellation_reaches_every_handler_and_task(app: AnyApplication) -> None:
    """And is waited for: when `handle` has ended, nothing of the update runs."""
    running_now: set[str] = set()
    cancelled: set[str] = set()

    async def work(name: str) -> None:
        running_now.add(name)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # closes what it has open
            cancelled.add(name)
            raise
        finally:
            running_now.discard(name)

    async def blocking(update: Update, context: Context) -> None:
        context.application.create_task(work("task"), update=update)
        await work("blocking")

    on_message(app, lambda update, context: work("non-blocking"), block=False)
    on_message(app, blocking, group=1)
    async with running(app) as bot:
        handling = asyncio.create_task(bot.handle(body(), 1))
        await until(lambda: len(running_now) == 3)
        handling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within_limit(handling)
        assert running_now == set()
        assert cancelled == {"task", "blocking", "non-blocking"}


@pytest.mark.parametrize("block", [True, False])
async def test_a_handler_that_ignores_its_cancellation_is_waited_for(
    app: AnyApplication, block: bool
) -> None:
    """X: else its update would run a second time beside it. What it starts meanwhile is cancelled."""
    begun, told = asyncio.Event(), asyncio.Event()
    goes_on = asyncio.Event()
    late: list[asyncio.Task[Any]] = []
    never_begun = asyncio.Event().wait()

    async def stubborn(update: Update, context: Context) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            late.append(context.application.create_task(never_begun))
            told.set()
            await goes_on.wait()

    on_message(app, stubborn, block=block)
    async with running(app) as bot:
        handling = asyncio.create_task(bot.handle(body(), 1))
        await within_limit(begun.wait())
        handling.cancel()
        await within_limit(told.wait())
        assert not handling.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await within_limit(handling)
    assert late[0].cancelled()
    never_begun.close()


async def test_a_time_limit_around_it_works(app: AnyApplication) -> None:
    """HANDLER_TIMEOUT_SECONDS is the dispatcher's, by asyncio.timeout."""
    on_message(app, lambda update, context: asyncio.Event().wait(), block=False)
    async with running(app) as bot:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await bot.handle(body(), 1)


async def test_a_cancellation_of_the_handlers_own_making_is_a_failure(app: AnyApplication) -> None:
    """A handler that awaits a task somebody cancelled: nobody wanted the update to end, so it is not done, and not ours."""

    async def handler(update: Update, context: Context) -> None:
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task

    on_message(app, handler)
    async with running(app) as bot:
        failed(await within_limit(bot.handle(body(), 1)), "CancelledError")


async def test_such_a_failure_ends_the_updates_other_tasks(app: AnyApplication) -> None:
    """It is a dead letter, with the place; nothing of it runs on."""

    async def handler(update: Update, context: Context) -> None:
        context.application.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    on_message(app, handler)
    async with running(app) as bot:
        failed(await within_limit(bot.handle(body(), 1)), __file__, "raise asyncio.CancelledError")


@pytest.mark.parametrize("block", [True, False])
async def test_who_finishes_when_cancelled_has_finished(app: AnyApplication, block: bool) -> None:
    """A handler that completes its work in answer to a cancellation: it would only be done twice."""
    begun = asyncio.Event()

    async def handler(update: Update, context: Context) -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    on_message(app, handler, block=block)
    async with running(app) as bot:
        handling = asyncio.create_task(bot.handle(body(), 1))
        await within_limit(begun.wait())
        handling.cancel()
        assert await within_limit(handling) == Done()


async def test_a_time_limit_of_a_handlers_own_is_its_own(app: AnyApplication) -> None:
    """asyncio.timeout cancels the task that it is in, which is the caller's; that is no cancellation of the update."""
    ended: list[str] = []

    async def beside(update: Update, context: Context) -> None:
        await asyncio.sleep(0.05)
        ended.append("beside")

    async def handler(update: Update, context: Context) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        ended.append("handler")

    on_message(app, beside, block=False)
    on_message(app, handler, group=1)
    on_message(app, lambda update, context: asyncio.wait_for(asyncio.Event().wait(), 0.01), group=2)
    async with running(app) as bot:
        assert isinstance(await within_limit(bot.handle(body(), 1)), Transient)
    assert ended == ["handler", "beside"]


class Gate(Coroutine[Any, Any, Outcome]):
    """Lets a coroutine go on while it is open, as the dispatcher does with flights until the deadline."""

    def __init__(self, coroutine: Coroutine[Any, Any, Outcome]) -> None:
        self._coroutine = coroutine
        self.is_open = True

    def send(self, value: Any) -> Any:
        return (
            self._coroutine.send(value) if self.is_open else self._coroutine.throw(asyncio.CancelledError())
        )

    def throw(self, *arguments: Any) -> Any:
        return self._coroutine.throw(*arguments)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Outcome]:
        raise TypeError


async def test_b04_a_handler_takes_no_step_that_its_caller_forbids(app: AnyApplication) -> None:
    """X: blocking handlers run in the caller's task, so that no timer has to come in time to end them at the deadline."""
    steps: list[str] = []
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def handler(update: Update, context: Context) -> None:
        begun.set()
        try:
            await goes_on.wait()
            steps.append("past the deadline")
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise

    on_message(app, handler)
    async with running(app) as bot:
        gate = Gate(bot.handle(body(), 1))
        handling = asyncio.create_task(gate)
        await within_limit(begun.wait())
        gate.is_open = False
        goes_on.set()
        assert await within_limit(handling) != Done()
    assert steps == ["cancelled"]


async def test_a_task_that_another_update_cancels_is_no_error(app: AnyApplication) -> None:
    """ "Typing ..." until somebody says stop."""
    tasks: list[asyncio.Task[Any]] = []

    async def handler(update: Update, context: Context) -> None:
        if tasks:
            tasks.pop().cancel()
        else:
            tasks.append(context.application.create_task(asyncio.Event().wait()))

    on_message(app, handler)
    async with running(app) as bot:
        first = asyncio.create_task(bot.handle(body(), 1))
        await until(lambda: tasks)
        assert await bot.handle(body(), 1) == Done()
        assert await within_limit(first) == Done()


async def test_a_task_that_is_cancelled_before_it_begins_leaves_no_warning(app: AnyApplication) -> None:
    """Of many that wait for their turn, at the deadline; nobody comes to await what they were given."""

    async def handler(update: Update, context: Context) -> None:
        context.application.create_task(asyncio.sleep(0)).cancel()

    on_message(app, handler)
    async with running(app) as bot:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert await within_limit(bot.handle(body(), 1)) == Done()
            gc.collect()
        assert [str(warning.message) for warning in warned if warning.category is RuntimeWarning] == []


async def test_tasks_of_plain_asyncio_are_the_bots_own(app: AnyApplication) -> None:
    """They are not waited for; what they later create through the Application is nobody's either."""
    goes_on = asyncio.Event()
    own: list[asyncio.Task[Any]] = []

    async def background(context: Context) -> None:
        await goes_on.wait()
        with pytest.raises(ValueError):
            await context.application.create_task(fail())

    async def fail() -> None:
        raise ValueError("long after the update")

    async def handler(update: Update, context: Context) -> None:
        own.append(asyncio.create_task(background(context)))

    on_message(app, handler)
    async with running(app) as bot:
        assert await within_limit(bot.handle(body(), 1)) == Done()
        goes_on.set()
        await within_limit(own[0])


async def test_a_cancelled_update_has_no_say_afterwards(app: AnyApplication) -> None:
    """What the bot's own tasks create later is not cancelled with it."""
    begun, goes_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    own: list[asyncio.Task[Any]] = []

    async def finish() -> None:
        await asyncio.sleep(0)
        done.set()

    async def background(context: Context) -> None:
        await goes_on.wait()
        await context.application.create_task(finish())

    async def handler(update: Update, context: Context) -> None:
        own.append(asyncio.create_task(background(context)))
        begun.set()
        await asyncio.Event().wait()

    on_message(app, handler)
    async with running(app) as bot:
        handling = asyncio.create_task(bot.handle(body(), 1))
        await within_limit(begun.wait())
        handling.cancel()
        await asyncio.wait([handling])
        goes_on.set()
        await within_limit(own[0])
        assert done.is_set()
