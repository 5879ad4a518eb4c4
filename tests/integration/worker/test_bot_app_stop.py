"""The end of a bot: every step of a stop, what it waits for and what it ends, and what a persistence has kept then."""

from __future__ import annotations

import asyncio
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers.base import STATE_PAUSED
from telegram import Update
from telegram.ext import MessageHandler, PicklePersistence, filters
from telegram.warnings import PTBUserWarning

from tests.sample_bots.bot_api import BotApi
from tests.sample_bots.handlers import Context, hooked
from tests.sample_bots.running import (
    AnyApplication,
    body,
    builder_for,
    running,
    until,
    within_limit,
)
from tests.sample_bots.wrapping import wrapping
from webhook_worker.bot import Bot
from webhook_worker.outcomes import Done


async def test_every_step_of_a_stop_is_taken_whatever_the_others_raise(api: BotApi) -> None:
    """And all of it is told."""
    log: list[str] = []
    errors = {"post_stop": ValueError("in post_stop"), "post_shutdown": OSError("in post_shutdown")}
    app = hooked(builder_for(api.url), log, **errors).build()
    bot = Bot(app, redact=str)
    await bot.initialize()
    await bot.start()
    with pytest.raises(ExceptionGroup) as caught:
        await bot.stop()
    assert set(caught.value.exceptions) == set(errors.values())
    assert log == ["post_init", "post_stop", "post_shutdown"]
    with pytest.raises(RuntimeError, match="not initialized"):
        app._check_initialized()


@pytest.mark.parametrize("task_factory", [None, wrapping])
async def test_b32_a_stop_ends_jobs_and_tasks_that_do_not_end(
    api: BotApi, task_factory: Callable[..., asyncio.Task[Any]] | None
) -> None:
    """A job shields itself from cancellation, and the application forgets tasks of before its start: both are ended.

    Also under an instrumentation of asyncio, which wraps what tasks run: such a stop never ended, and nothing was flushed.
    """
    asyncio.get_running_loop().set_task_factory(task_factory)
    ended: list[str] = []
    begun: set[str] = set()

    async def endless(name: str) -> None:
        begun.add(name)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def job(context: Context) -> None:
        await endless("job")

    async def task_of_job(context: Context) -> None:
        context.application.create_task(endless("task of a job"))

    app = builder_for(api.url).build()
    assert app.job_queue is not None
    app.job_queue.run_once(job, 0)
    app.job_queue.run_once(task_of_job, 0)
    bot = Bot(app, redact=str)
    await bot.initialize()
    with pytest.warns(PTBUserWarning, match="won't be automatically awaited"):
        app.create_task(endless("task of before the start"))
    await bot.start()
    await until(lambda: len(begun) == 3)
    await within_limit(bot.stop(tasks_seconds=0.01))
    assert sorted(ended) == ["job", "task of a job", "task of before the start"]
    assert not app.job_queue.scheduler.running


async def test_a_stop_ends_tasks_that_the_application_does_not_know(api: BotApi) -> None:
    """Those of before its start, or of a term that ended before it; nothing has to run out of time first."""
    for started in (True, False):
        app = builder_for(api.url).build()
        bot = Bot(app, redact=str)
        await bot.initialize()
        with pytest.warns(PTBUserWarning, match="won't be automatically awaited"):
            task = app.create_task(asyncio.Event().wait())
        if started:
            await bot.start()
        await asyncio.sleep(0)
        await within_limit(bot.stop(tasks_seconds=1000))
        assert task.cancelled()


async def test_tasks_of_post_init_are_warned_of_as_ever(api: BotApi) -> None:
    """Only where we wait ourselves is python-telegram-bot's warning wrong, and taken out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app = builder_for(api.url).build()
        bot = Bot(app, redact=str)
        await bot.initialize()
        app.add_handler(MessageHandler(filters.ALL, lambda update, context: asyncio.sleep(0), block=False))
        for _ in range(2):
            with pytest.raises(PTBUserWarning, match="won't be automatically awaited"):
                app.create_task(asyncio.sleep(0))
            assert await bot.handle(body(), 1) == Done()
        await bot.stop()


async def test_a_stop_waits_for_jobs_and_tasks_that_do_end(api: BotApi) -> None:
    """Within its limit nothing is cut short."""
    ended: list[str] = []
    begun = asyncio.Event()

    async def job(context: Context) -> None:
        begun.set()
        await asyncio.sleep(0.05)
        ended.append("job")

    app = builder_for(api.url).build()
    assert app.job_queue is not None
    app.job_queue.run_once(job, 0)
    bot = Bot(app, redact=str)
    await bot.initialize()
    await bot.start()
    await within_limit(begun.wait())
    await bot.stop(tasks_seconds=20)
    assert ended == ["job"]


async def test_no_timer_goes_off_while_a_stop_waits(api: BotApi) -> None:
    """A job that takes its time does not keep the others coming."""
    ran: list[str] = []
    slow_begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(context: Context) -> None:
        slow_begun.set()
        await goes_on.wait()

    async def fast(context: Context) -> None:
        ran.append("fast")

    app = builder_for(api.url).build()
    assert app.job_queue is not None
    app.job_queue.run_once(slow, 0)
    app.job_queue.run_repeating(fast, interval=0.01, first=0)
    bot = Bot(app, redact=str)
    await bot.initialize()
    await bot.start()
    await within_limit(slow_begun.wait())
    await until(lambda: ran)
    stopping = asyncio.create_task(bot.stop(tasks_seconds=20))
    await until(lambda: not app.running)
    assert app.job_queue.scheduler.state == STATE_PAUSED
    goes_on.set()
    await within_limit(stopping)


async def test_a_stop_ends_updates_of_the_applications_own_queue(api: BotApi, tmp_path: Path) -> None:
    """Those that the bot put there itself; one of them never ends. What was to be saved is saved, once and for all."""
    begun = asyncio.Event()

    async def endless(update: Update, context: Context) -> None:
        context.bot_data["begun"] = True
        begun.set()
        await asyncio.Event().wait()

    log: list[str] = []
    path = tmp_path / "state"
    app = hooked(builder_for(api.url), log).persistence(PicklePersistence(path)).build()
    app.add_handler(MessageHandler(filters.ALL, endless))
    bot = Bot(app, redact=str)
    await bot.initialize()
    await bot.start()
    update = bot._read(body())
    await app.update_queue.put(update)
    await app.update_queue.put(update)
    await within_limit(begun.wait())
    await within_limit(bot.stop(tasks_seconds=0.01))
    assert log == ["post_init", "post_stop", "post_shutdown"]
    assert pickle.loads(path.read_bytes())["bot_data"] == {"begun": True}
    assert tasks_named("persistence_updater") == []


def tasks_named(part: str) -> list[str]:
    """Tasks of this loop."""
    return [task.get_name() for task in asyncio.all_tasks() if part in task.get_name()]


async def test_a_stop_can_be_cancelled(api: BotApi) -> None:
    """Whoever is in a hurry: the steps that are left are skipped, and no timer runs on."""
    begun = asyncio.Event()

    async def job(context: Context) -> None:
        begun.set()
        await asyncio.Event().wait()

    log: list[str] = []
    app = hooked(builder_for(api.url), log).build()
    assert app.job_queue is not None
    app.job_queue.run_once(job, 0)
    bot = Bot(app, redact=str)
    await bot.initialize()
    await bot.start()
    await within_limit(begun.wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await bot.stop(tasks_seconds=1000)
    assert not app.job_queue.scheduler.running
    assert log == ["post_init"]
    await app.shutdown()


# ------------------------------------------------------------------------------------------------------------ persistence


def counting(api: BotApi, path: Path) -> AnyApplication:
    """A bot that counts its messages in its persistence."""

    async def count(update: Update, context: Context) -> None:
        context.bot_data["count"] = context.bot_data.get("count", 0) + 1

    app = builder_for(api.url).persistence(PicklePersistence(path, update_interval=1000)).build()
    app.add_handler(MessageHandler(filters.ALL, count))
    return app


async def test_persistence_is_loaded_by_initialize_and_flushed_by_stop(api: BotApi, tmp_path: Path) -> None:
    """One owner after the other goes on where the last one stopped."""
    path = tmp_path / "state"
    for expected in (1, 2, 3):
        app = counting(api, path)
        bot = Bot(app, redact=str)
        assert bot.has_persistence
        assert app.bot_data == {}
        await bot.initialize()
        await bot.start()
        assert await bot.handle(body(), 1) == Done()
        await bot.stop()
        assert pickle.loads(path.read_bytes())["bot_data"] == {"count": expected}
    assert not Bot(builder_for(api.url).build(), redact=str).has_persistence


async def test_persistence_is_flushed_when_jobs_have_to_be_cancelled(api: BotApi, tmp_path: Path) -> None:
    """And its regular saving has ended: a superseded owner writes nothing any more."""
    begun = asyncio.Event()

    async def job(context: Context) -> None:
        begun.set()
        await asyncio.Event().wait()

    path = tmp_path / "state"
    app = counting(api, path)
    assert app.job_queue is not None
    app.job_queue.run_once(job, 0)
    bot = Bot(app, redact=str)
    await bot.initialize()
    await bot.start()
    assert await bot.handle(body(), 1) == Done()
    await within_limit(begun.wait())
    await within_limit(bot.stop(tasks_seconds=0.01))
    assert pickle.loads(path.read_bytes())["bot_data"] == {"count": 1}
    assert tasks_named("persistence_updater") == []


async def test_persistence_can_be_saved_without_a_stop(api: BotApi, tmp_path: Path) -> None:
    """A worker that has to go at once: what its updates left is not in the inbox any more."""
    path = tmp_path / "state"
    bot = Bot(counting(api, path), redact=str)
    await bot.save()
    assert not path.exists()
    await bot.initialize()
    assert await bot.handle(body(), 1) == Done()
    await bot.save()
    assert pickle.loads(path.read_bytes())["bot_data"] == {"count": 1}
    await bot.stop()
    async with running(builder_for(api.url).build()) as other:
        await other.save()


async def test_a_post_stop_that_does_not_end_is_cancelled_before_the_flush_comes_too_late(
    api: BotApi, tmp_path: Path
) -> None:
    """Else the worker is killed with everything that its persistence had not been given."""

    async def hang(app: AnyApplication) -> None:
        app.bot_data["late"] = True
        await asyncio.Event().wait()

    path = tmp_path / "state"
    app = counting(api, path)
    app.post_stop = hang
    bot = Bot(app, redact=str)
    await bot.initialize()
    await bot.start()
    with pytest.raises(ExceptionGroup) as caught:
        await within_limit(bot.stop(tasks_seconds=0, flush_in_seconds=0.05))
    assert "post_stop was cancelled" in str(caught.value.exceptions)
    assert pickle.loads(path.read_bytes())["bot_data"] == {"late": True}


async def test_persistence_that_cannot_be_loaded_fails_initialize(api: BotApi, tmp_path: Path) -> None:
    """The bot would forget everything."""
    path = tmp_path / "state"
    path.write_bytes(b"not a pickle")
    bot = Bot(counting(api, path), redact=str)
    with pytest.raises(TypeError):
        await bot.initialize()
    await bot.stop()
