"""The life of a bot: what runs when it is built, initialised and started, and what if a step of it fails."""

from __future__ import annotations

import asyncio
import socket
import warnings
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import telegram.error as te
from apscheduler.executors.asyncio import AsyncIOExecutor
from structlog.testing import capture_logs
from telegram import Update
from telegram.ext import JobQueue

from shared.errors import ConfigurationError
from tests.sample_bots.bot_api import BotApi
from tests.sample_bots.handlers import Context, hooked, on_message
from tests.sample_bots.running import (
    AnyApplication,
    body,
    builder_for,
    running,
    until,
    within_limit,
)
from tests.sample_bots.settings import TOKEN, config_for
from webhook_worker import bot_app
from webhook_worker.bot import Bot
from webhook_worker.bot_start import StartTimedOut, StopAsked, TokenUnknown
from webhook_worker.failures import classify
from webhook_worker.outcomes import Done, Failed, Transient


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
    assert await bot.handle(body(), 1) == Done()
    assert not app.job_queue.scheduler.running
    assert ran == []
    await bot.start()
    await until(lambda: len(ran) > 2)
    await within_limit(bot.stop())
    assert not app.job_queue.scheduler.running


class TwoExecutors(JobQueue[Any]):
    """A queue whose scheduler has another executor beside python-telegram-bot's."""

    @property
    def scheduler_configuration(self) -> dict[str, Any]:
        other = AsyncIOExecutor()
        return {"executors": {"default": self._executor, "other": other, "third": other}}


class NoExecutor(JobQueue[Any]):
    """One that leaves it to the scheduler."""

    @property
    def scheduler_configuration(self) -> dict[str, Any]:
        return {"timezone": UTC}


@pytest.mark.parametrize("queue", [JobQueue, TwoExecutors, NoExecutor, "configured"])
async def test_b32_a_job_that_comes_due_where_none_may_begin_does_not_run(
    api: BotApi, queue: type[JobQueue[Any]] | str
) -> None:
    """Past the deadline another owner's may be running; those of before it have. However the bot has set its scheduler up."""
    asked: list[bool] = []
    ran: list[int] = []
    is_ours = True

    def may_begin_job() -> bool:
        asked.append(is_ours)
        return is_ours

    async def job(context: Context) -> None:
        ran.append(len(asked))

    app = builder_for(api.url).job_queue(JobQueue() if isinstance(queue, str) else queue()).build()
    assert app.job_queue is not None
    if queue == "configured":
        app.job_queue.scheduler.configure(timezone=UTC)
    executor = "other" if queue is TwoExecutors else "default"
    app.job_queue.run_repeating(job, interval=0.01, first=0, job_kwargs={"executor": executor})
    bot = Bot(app, redact=str)
    await bot.initialize()
    await bot.start(may_begin_job=may_begin_job)
    await until(lambda: len(ran) > 2)
    is_ours = False
    await until(lambda: asked.count(False) > 2)
    await within_limit(bot.stop())
    assert len(ran) <= asked.count(True)


async def test_b32_timers_that_came_due_before_the_start_run_at_it_once(api: BotApi) -> None:
    """After an unclean end the job queue starts up to 8 s after post_init: its timer was dropped, and what repeats put off.

    What was late before, is paused, or is not due, is left as it is.
    """
    ran: list[str] = []

    def job(name: str) -> Callable[[Context], Coroutine[None, None, None]]:
        async def run(context: Context) -> None:
            ran.append(name)

        return run

    async def schedule(app: AnyApplication) -> None:
        assert app.job_queue is not None
        app.job_queue.run_once(job("once"), 0.1)
        app.job_queue.run_repeating(job("hourly"), 3600, first=0.1)
        app.job_queue.run_once(job("paused"), 0.1).enabled = False
        app.job_queue.run_once(job("later"), 3600)
        app.job_queue.run_once(job("an hour ago"), datetime.now(UTC) - timedelta(hours=1))
        replaced = {"id": "one", "replace_existing": True}
        for name in ("replaced", "replacing"):
            app.job_queue.run_once(job(name), 0.1, job_kwargs=replaced)

    app = builder_for(api.url).post_init(schedule).build()
    bot = Bot(app, redact=str)
    await bot.initialize()
    # The scheduler runs what is less than a second late.
    late_at = datetime.now(UTC) + timedelta(seconds=1.5)
    await until(lambda: datetime.now(UTC) > late_at)
    await bot.start()
    await until(lambda: len(ran) >= 3)
    await within_limit(bot.stop())
    assert sorted(ran) == ["hourly", "once", "replacing"]


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
    with pytest.raises(TokenUnknown) as caught:
        await bot.initialize()
    assert TOKEN not in str(caught.value)
    assert not bot.take_token_refused(), "that is what handlers met"
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


async def test_b21_a_post_init_that_never_ends_is_given_up(api: BotApi) -> None:
    """It is cancelled, and no fault of anything outside; the rest is shut down."""
    log: list[str] = []

    async def wait_for_ever(app: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    app = hooked(builder_for(api.url), log).post_init(wait_for_ever).build()
    bot = Bot(app, redact=str, limit_seconds=2.0)
    with pytest.raises(StartTimedOut, match=r"post_init did not end within 2 s; let it return") as caught:
        await within_limit(bot.initialize())
    assert isinstance(classify(caught.value), Failed)
    await bot.stop()
    assert log == ["cancelled", "post_shutdown"]


async def test_b31_a_start_that_an_outage_takes_up_is_transient(api: BotApi) -> None:
    """What was away is told, and not that the bot hangs; the next worker tries again."""
    api.refuse("getMe", 500, "Internal Server Error")

    async def sleep(seconds: float) -> None:
        await asyncio.Event().wait()

    bot = Bot(builder_for(api.url).build(), redact=str, sleep=sleep, limit_seconds=2.0)
    with pytest.raises(te.NetworkError, match="Internal Server Error") as caught:
        await within_limit(bot.initialize())
    assert isinstance(classify(caught.value), Transient)
    await bot.stop()


async def test_b23_a_flood_limit_beyond_the_start_is_told_at_once(api: BotApi) -> None:
    """Nobody waits for the end of the start to hear of it: an owner that does not dispatch is none."""
    api.refuse("getMe", 429, "Too Many Requests", retry_after=1)
    api.refuse("getMe", 429, "Too Many Requests", retry_after=600)
    sleep = NoSleep()
    bot = Bot(builder_for(api.url).build(), redact=str, sleep=sleep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # python-telegram-bot's own, about retry_after
        with pytest.raises(te.RetryAfter) as caught:
            await within_limit(bot.initialize())
        outcome = classify(caught.value)
    assert isinstance(outcome, Transient)
    assert outcome.retry_after_seconds == 600.0
    assert sleep.seconds == [1.0]
    await bot.stop()


async def test_b31_a_getme_that_is_never_answered_is_transient_too() -> None:
    """Its request may have a longer time-out than the start."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        bot = Bot(builder_for(url).build(), redact=str, limit_seconds=0.1)
        with pytest.raises(te.TimedOut, match="getMe was not answered") as caught:
            await within_limit(bot.initialize())
        assert isinstance(classify(caught.value), Transient)
        await bot.stop()


async def test_a_time_out_of_post_inits_own_is_its_own(api: BotApi) -> None:
    """It is raised as it is."""
    error = TimeoutError("its own")
    bot = Bot(hooked(builder_for(api.url), [], post_init=error).build(), redact=str)
    with pytest.raises(TimeoutError) as caught:
        await bot.initialize()
    assert caught.value is error
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


# ------------------------------------------------------------------------------------ bots that end the application


async def test_a_bot_that_does_not_want_to_start_fails_the_start(api: BotApi) -> None:
    """python-telegram-bot documents stop_running in post_init for a condition that is not met: half of the bot is missing."""

    async def give_up(app: AnyApplication) -> None:
        app.stop_running()

    bot = Bot(builder_for(api.url).post_init(give_up).build(), redact=str)
    with pytest.raises(StopAsked, match="stop_running"):
        await bot.initialize()
    with pytest.raises(RuntimeError):
        await bot.handle(body(), 1)
    await bot.stop()


@pytest.mark.parametrize("started", [False, True])
async def test_stop_running_in_a_handler_is_a_warning_and_nothing_else(
    api: BotApi, app: AnyApplication, started: bool
) -> None:
    """It would stop the worker's event loop in the middle of everything: the update killed one worker after the other."""

    async def stop(update: Update, context: Context) -> None:
        context.application.stop_running()

    on_message(app, stop)
    with capture_logs() as lines:
        async with running(app, started=started) as bot:
            for _ in range(3):
                assert await bot.handle(body(), 1) == Done()
            assert app.running is started
    assert [line["log_level"] for line in lines if "stop_running() does nothing here" in line["event"]] == [
        "warning"
    ]


@pytest.mark.parametrize("end", ["stop", "shutdown"])
async def test_an_application_that_the_bot_has_ended_is_a_bug_and_no_updates_error(
    api: BotApi, app: AnyApplication, end: str
) -> None:
    """Each update after it would be a dead letter, for want of a worker that runs."""

    async def end_it(update: Update, context: Context) -> None:
        await context.application.stop()
        if end == "shutdown":
            await context.application.shutdown()

    on_message(app, end_it)
    async with running(app) as bot:
        assert await bot.handle(body(), 1) == Done()
        with pytest.raises(RuntimeError, match="stopped or shut down by the bot itself"):
            await bot.handle(body(), 1)


async def test_errors_of_an_application_that_was_shut_down_meanwhile_are_not_the_updates(
    api: BotApi, app: AnyApplication
) -> None:
    """An innocent one beside it finds its connections closed."""
    may_go_on = asyncio.Event()

    async def answer(update: Update, context: Context) -> None:
        await may_go_on.wait()
        await context.bot.get_me()

    on_message(app, answer)
    async with running(app, started=False) as bot:
        innocent = asyncio.create_task(bot.handle(body(), 1))
        await asyncio.sleep(0)
        await app.shutdown()
        may_go_on.set()
        with pytest.raises(RuntimeError, match="stopped or shut down by the bot itself"):
            await within_limit(innocent)
