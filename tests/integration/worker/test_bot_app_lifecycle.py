"""The life of a bot: what runs when it is built, initialised, started and stopped, and what if a step of it fails."""

from __future__ import annotations

import asyncio
import pickle
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import telegram.error as te
from telegram import Update
from telegram.ext import CallbackContext, MessageHandler, PicklePersistence, filters
from telegram.warnings import PTBUserWarning

from shared.errors import ConfigurationError
from tests.sample_bots.bot_api import BotApi
from tests.sample_bots.running import (
    AnyApplication,
    AnyBuilder,
    body,
    builder_for,
    running,
    until,
    within_limit,
)
from tests.sample_bots.settings import TOKEN, config_for
from webhook_worker import bot_app
from webhook_worker.bot import Bot
from webhook_worker.outcomes import Done, Failed

Context = CallbackContext[Any, Any, Any, Any]


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    """Telegram."""
    async with BotApi() as api:
        yield api


def noting(
    log: list[str], name: str, exc: Exception | None = None
) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """A hook that says that it ran, and may raise."""

    async def hook(app: object) -> None:
        log.append(name)
        if exc is not None:
            raise exc

    return hook


def hooked(builder: AnyBuilder, log: list[str], **raised: Exception) -> AnyBuilder:
    """The builder with every hook."""
    return (
        builder.post_init(noting(log, "post_init", raised.get("post_init")))
        .post_stop(noting(log, "post_stop", raised.get("post_stop")))
        .post_shutdown(noting(log, "post_shutdown", raised.get("post_shutdown")))
    )


class NoSleep:
    """Returns at once, and remembers how long it should have taken."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def test_every_hook_runs_in_its_turn(api: BotApi) -> None:
    """post_init after getMe, post_stop only if it was started; as run_polling does it."""
    log: list[str] = []
    app = hooked(builder_for(api.url), log).build()
    bot = Bot(app, redact=str)
    assert (log, api.methods) == ([], [])
    await bot.initialize()
    assert (log, api.methods) == (["post_init"], ["getMe"])
    assert not app.running
    await bot.start()
    assert app.running
    await bot.stop()
    assert log == ["post_init", "post_stop", "post_shutdown"]
    assert not app.running
    await bot.stop()
    assert log == ["post_init", "post_stop", "post_shutdown"]
    with pytest.raises(RuntimeError):
        await bot.handle(body(), 1)


async def test_stopping_what_never_began_does_nothing(api: BotApi) -> None:
    """A standby's worker ends without a trace."""
    log: list[str] = []
    await Bot(hooked(builder_for(api.url), log).build(), redact=str).stop()
    assert (log, api.methods) == ([], [])


async def test_what_was_not_started_is_shut_down(api: BotApi) -> None:
    """A term that ends before timers may run."""
    log: list[str] = []
    bot = Bot(hooked(builder_for(api.url), log).build(), redact=str)
    await bot.initialize()
    await bot.stop()
    assert log == ["post_init", "post_shutdown"]


async def test_b32_jobs_run_between_start_and_stop_alone(api: BotApi) -> None:
    """Timers are the owner's: jobs that are due wait for `start`, and none runs after `stop`."""
    ran: list[str] = []

    async def job(context: Context) -> None:
        ran.append("job")

    app = builder_for(api.url).build()
    assert app.job_queue is not None
    app.job_queue.run_repeating(job, interval=0.01, first=0)
    bot = Bot(app, redact=str)
    await bot.initialize()
    for _ in range(3):
        assert await bot.handle(body(), 1) == Done()
        await asyncio.sleep(0.02)
    assert ran == []
    await bot.start()
    await until(lambda: len(ran) > 2)
    await within_limit(bot.stop())
    count = len(ran)
    assert not app.job_queue.scheduler.running
    await asyncio.sleep(0.05)
    assert len(ran) == count


async def test_a_bot_without_a_job_queue_is_fine(api: BotApi) -> None:
    """And no warning says otherwise."""
    async with running(builder_for(api.url).job_queue(None).build()) as bot:
        assert await bot.handle(body(), 1) == Done()


# ---------------------------------------------------------------------------------------------------------- initialising


async def test_an_outage_of_telegram_is_waited_out(api: BotApi) -> None:
    """b31: the owner's worker is as good as any; a new one would find the same. post_init is run once."""
    api.answer("getMe", 502, b"<html>Bad Gateway</html>")
    api.refuse("getMe", 500, "Internal Server Error")
    api.refuse("getMe", 429, "Too Many Requests", retry_after=17)
    log: list[str] = []
    sleep = NoSleep()
    bot = Bot(hooked(builder_for(api.url), log).build(), redact=str, sleep=sleep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # python-telegram-bot's own, about retry_after
        await within_limit(bot.initialize())
    assert api.methods == ["getMe"] * 4
    assert len(sleep.seconds) == 3
    assert sleep.seconds[2] == 17
    assert log == ["post_init"]
    await bot.stop()


async def test_waiting_for_telegram_can_be_cancelled(api: BotApi) -> None:
    """The term may end first."""
    api.refuse("getMe", 500, "Internal Server Error")
    asleep = asyncio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    log: list[str] = []
    bot = Bot(hooked(builder_for(api.url), log).build(), redact=str, sleep=sleep)
    initializing = asyncio.create_task(bot.initialize())
    await within_limit(asleep.wait())
    initializing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within_limit(initializing)
    await bot.stop()
    assert log == ["post_shutdown"]


@pytest.mark.parametrize(("status", "description"), [(401, "Unauthorized"), (404, "Not Found")])
async def test_a_token_that_is_not_valid_is_raised_without_the_token(
    api: BotApi, status: int, description: str
) -> None:
    """a21, b24: python-telegram-bot's own text quotes it."""
    api.refuse("getMe", status, description)
    bot = Bot(builder_for(api.url).build(), redact=str)
    with pytest.raises(te.InvalidToken) as caught:
        await bot.initialize()
    assert TOKEN not in str(caught.value)
    assert bot.take_token_refused()
    assert not bot.take_token_refused()
    assert api.methods == ["getMe"]
    await bot.stop()


@pytest.mark.parametrize("status", [401, 404])
async def test_b24_what_a_proxy_says_is_no_refusal_of_the_token(
    api: BotApi, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Bot API server answers in JSON; what does not come from it is tried again, and told as it came."""
    api.answer("getMe", status, b"<html>gone for a moment</html>")
    sleep = NoSleep()
    bot = Bot(builder_for(api.url).build(), redact=str, sleep=sleep)
    await within_limit(bot.initialize())
    assert api.methods == ["getMe"] * 2
    assert not bot.take_token_refused()
    await bot.stop()
    said = capsys.readouterr().out
    assert "gone for a moment" in said
    assert TOKEN not in said


async def test_what_post_init_raises_is_raised(api: BotApi) -> None:
    """Not tried again: who knows what it had done by then. The rest is shut down."""
    log: list[str] = []
    exc = te.TimedOut()
    bot = Bot(hooked(builder_for(api.url), log, post_init=exc).build(), redact=str)
    with pytest.raises(te.TimedOut) as caught:
        await bot.initialize()
    assert caught.value is exc
    await bot.stop()
    assert log == ["post_init", "post_shutdown"]


# --------------------------------------------------------------------------------------------------------------- stopping


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


async def test_b32_a_stop_ends_jobs_and_tasks_that_do_not_end(api: BotApi) -> None:
    """A job shields itself from cancellation, and the application forgets tasks of before its start: both are ended."""
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
    count = len(ran)
    await asyncio.sleep(0.05)
    goes_on.set()
    await within_limit(stopping)
    assert len(ran) == count


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


async def test_persistence_that_cannot_be_loaded_fails_initialize(api: BotApi, tmp_path: Path) -> None:
    """The bot would forget everything."""
    path = tmp_path / "state"
    path.write_bytes(b"not a pickle")
    bot = Bot(counting(api, path), redact=str)
    with pytest.raises(TypeError):
        await bot.initialize()
    await bot.stop()


# ------------------------------------------------------------------------------------------------------- from load to stop


async def test_a_loaded_bot_lives_through_a_term(api: BotApi) -> None:
    """From BOT_APP to the end, as the worker does it; a dead letter holds no secret of the configuration."""
    config = config_for("tests.sample_bots.failing:build", api_url=api.url)
    bot = await bot_app.load(config)
    await bot.initialize()
    await bot.start()
    outcome = await bot.handle(body(), 2)
    await bot.stop()
    assert isinstance(outcome, Failed)
    assert "attempt 2 with *** and" in outcome.traceback_text
    for secret in config.secrets:
        assert secret not in outcome.traceback_text
    assert "sendMessage" in api.methods


async def test_the_built_in_bots_menu_is_checked_at_load() -> None:
    """A button without a page is an error at start."""
    with pytest.raises(ConfigurationError) as caught:
        await bot_app.load(config_for("tests.sample_bots.failing:broken_menu"))
    assert caught.value.faults[0].startswith(
        "BOT_APP must be a bot; tests.sample_bots.failing:broken_menu: broken.json: "
    )
