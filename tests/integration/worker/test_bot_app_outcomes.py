"""Outcomes of updates, with python-telegram-bot's real dispatch: every place where a handler can fail, or not have ended."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
import telegram.error as te
from structlog.testing import capture_logs
from telegram import Update
from telegram.ext import (
    Application,
    ApplicationHandlerStop,
    CallbackContext,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    Defaults,
    ExtBot,
    MessageHandler,
    filters,
)

from tests.sample_bots.bot_api import BotApi
from tests.sample_bots.handlers import Context, Handler, failed, on_message, raising
from tests.sample_bots.running import (
    AnyApplication,
    body,
    builder_for,
    command,
    running,
    until,
    within_limit,
)
from webhook_worker import RetryUpdate, attempt
from webhook_worker.bot import Bot
from webhook_worker.outcomes import Done, Failed, Transient


async def reply(update: Update, context: Context) -> None:
    assert update.message is not None
    await update.message.reply_text("hi")


async def test_an_update_that_nobody_minds_is_done(app: AnyApplication) -> None:
    """No handler, or one that has nothing against it."""
    async with running(app) as bot:
        assert await bot.handle(body(), 1) == Done()
        on_message(app, lambda update, context: asyncio.sleep(0))
        assert await bot.handle(body(), 1) == Done()


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (ValueError("the bug"), Failed),
        (te.TimedOut(), Transient),
        (RetryUpdate("closed", retry_after_seconds=60), Transient),
    ],
)
async def test_what_a_handler_raises_is_the_outcome(
    app: AnyApplication, exc: Exception, expected: type, block: bool, started: bool
) -> None:
    """Blocking or not; between initialize and start too, when fresh updates run already (and no warning is given)."""
    on_message(app, raising(exc), block=block)
    async with running(app, started=started) as bot:
        outcome = await bot.handle(body(), 1)
    assert isinstance(outcome, expected)
    if isinstance(outcome, Failed):
        failed(outcome, "Traceback", raising.__code__.co_filename, "ValueError: the bug")


class Weird(BaseException):
    """As an extension in Rust raises one when it panics."""


@pytest.mark.parametrize("made_by", ["block=False", "create_task"])
async def test_what_is_no_exception_is_the_outcome_too(app: AnyApplication, made_by: str) -> None:
    """python-telegram-bot reports none such of the tasks that it makes."""

    async def weird(update: Update, context: Context) -> None:
        raise Weird("the panic")

    async def starts_weird(update: Update, context: Context) -> None:
        context.application.create_task(weird(update, context))

    on_message(app, weird if made_by == "block=False" else starts_weird, block=made_by != "block=False")
    async with running(app) as bot:
        failed(await bot.handle(body(), 1), "Weird: the panic")


async def test_telegrams_retry_after_is_kept(app: AnyApplication, api: BotApi) -> None:
    """From the answer of the API, through python-telegram-bot, to the outcome."""
    api.refuse("sendMessage", 429, "Too Many Requests: retry after 17", retry_after=17)
    on_message(app, reply)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # python-telegram-bot's own, about retry_after
        async with running(app) as bot:
            outcome = await bot.handle(body(), 1)
    assert isinstance(outcome, Transient)
    assert outcome.retry_after_seconds == 17


async def test_a_text_that_cannot_be_encoded_is_not_tried_for_ever(app: AnyApplication) -> None:
    """A lone surrogate echoed: the HTTP client refuses it, and python-telegram-bot calls that a NetworkError."""

    async def echo(update: Update, context: Context) -> None:
        assert update.message is not None
        await update.message.reply_text(str(update.message.text))

    on_message(app, echo)
    async with running(app) as bot:
        failed(await bot.handle(body(text="\ud800"), 1), "UnicodeEncodeError")


async def test_a_revoked_token_is_seen_and_no_fault_of_the_update(app: AnyApplication, api: BotApi) -> None:
    """b24: an instance with the new token will handle it."""
    api.refuse("sendMessage", 401, "Unauthorized")
    on_message(app, reply)
    async with running(app) as bot:
        assert not bot.take_token_refused()
        api.refuse("getMe", 401, "Unauthorized")
        outcome = await bot.handle(body(), 1)
        assert isinstance(outcome, Transient)
        assert outcome.is_token_refused
        assert bot.take_token_refused()


async def test_b24_a_refused_token_of_another_bot_stops_nobody_else(app: AnyApplication, api: BotApi) -> None:
    """A handler may use one with a token of its own; Telegram is asked which of the two it meant, and not for each update."""
    for _ in range(3):
        api.refuse("sendMessage", 401, "Unauthorized")
    on_message(app, reply)
    async with running(app) as bot:
        asked = api.methods.count("getMe")
        for _ in range(3):
            outcome = await bot.handle(body(), 1)
            assert isinstance(outcome, Transient)
            assert not outcome.is_token_refused
        assert not bot.take_token_refused()
        assert api.methods.count("getMe") == asked + 1


async def test_a_filter_that_raises_is_the_outcome(app: AnyApplication) -> None:
    """check_update is the bot's code, too."""

    class Broken(filters.MessageFilter):
        def filter(self, message: Any) -> bool:
            raise KeyError("in the filter")

    app.add_handler(MessageHandler(Broken(), raising(AssertionError("not reached"))))
    async with running(app) as bot:
        failed(await bot.handle(body(), 1), "KeyError: 'in the filter'")


class BrokenContext(CallbackContext[ExtBot[Any], dict[Any, Any], dict[Any, Any], dict[Any, Any]]):
    """A context that cannot be built from some updates."""

    @classmethod
    def from_update(cls, update: object, application: Any) -> Any:
        if isinstance(update, Update) and update.message is not None and update.message.text == "break":
            raise LookupError("no such shop")
        return super().from_update(update, application)


async def test_a_context_that_cannot_be_built_is_the_outcome(
    api: BotApi, caplog: pytest.LogCaptureFixture
) -> None:
    """python-telegram-bot only logs it, with the whole update; here nothing of the update is logged."""
    app = builder_for(api.url).context_types(ContextTypes(context=BrokenContext)).build()
    seen: list[type] = []

    async def see(update: Update, context: Context) -> None:
        seen.append(type(context))

    on_message(app, see)
    async with running(app) as bot:
        failed(await bot.handle(body(text="break", caption="SECRET"), 1), "LookupError: no such shop")
        assert await bot.handle(body(), 1) == Done()
        # Through the queue of the Application it is nobody's update, and python-telegram-bot does as ever.
        await app.update_queue.put(Update(5))
        await until(lambda: app.update_queue.empty())
    assert seen == [BrokenContext]
    assert "SECRET" not in caplog.text


async def test_a_task_of_the_application_counts(app: AnyApplication) -> None:
    """With the update or without: the handler's context tells whose it is."""
    begun = asyncio.Event()
    goes_on = asyncio.Event()

    async def work() -> None:
        begun.set()
        await goes_on.wait()
        raise ValueError("in the task")

    async def handler(update: Update, context: Context) -> None:
        context.application.create_task(work())

    on_message(app, handler)
    async with running(app) as bot:
        handling = asyncio.create_task(bot.handle(body(), 1))
        await within_limit(begun.wait())
        assert not handling.done()
        goes_on.set()
        failed(await within_limit(handling), "in the task")


async def test_a_task_that_starts_a_task_that_starts_a_task_is_waited_for(app: AnyApplication) -> None:
    """However deep, and through a plain asyncio task in between."""
    ended: list[int] = []

    async def work(context: Context, depth: int) -> None:
        await asyncio.sleep(0)
        if depth:
            context.application.create_task(work(context, depth - 1))
        ended.append(depth)

    async def handler(update: Update, context: Context) -> None:
        async def plain() -> None:
            context.application.create_task(work(context, 5))

        await asyncio.create_task(plain())

    on_message(app, handler, block=False)
    async with running(app) as bot:
        assert await bot.handle(body(), 1) == Done()
    assert ended == [5, 4, 3, 2, 1, 0]


async def test_an_error_that_is_reported_twice_counts_once(app: AnyApplication) -> None:
    """A handler that awaits its task raises what the task has reported."""

    async def work() -> None:
        raise ValueError("once")

    async def handler(update: Update, context: Context) -> None:
        await context.application.create_task(work(), update=update)

    on_message(app, handler)
    async with running(app) as bot:
        outcome = await bot.handle(body(), 1)
    assert isinstance(outcome, Failed)
    assert outcome.traceback_text.count("ValueError: once") == 1


async def test_every_group_runs_and_the_worst_error_decides(app: AnyApplication) -> None:
    """A permanent error beats a transient one, in either order."""
    ran: list[int] = []

    async def last(update: Update, context: Context) -> None:
        ran.append(3)

    on_message(app, raising(te.TimedOut()), group=1)
    on_message(app, raising(ValueError("the bug")), group=2)
    on_message(app, last, group=3)
    async with running(app) as bot:
        failed(await bot.handle(body(), 1), "TimedOut", "ValueError: the bug")
    assert ran == [3]


async def test_stopping_the_handlers_is_no_error(app: AnyApplication) -> None:
    """ApplicationHandlerStop is python-telegram-bot's way to say: enough."""
    on_message(app, raising(ApplicationHandlerStop()))
    on_message(app, raising(AssertionError("not reached")), group=1)
    async with running(app) as bot:
        assert await bot.handle(body(), 1) == Done()


@pytest.mark.parametrize("block", [True, False])
async def test_error_handlers_run_and_the_error_remains(app: AnyApplication, block: bool) -> None:
    """What python-telegram-bot reports is an error, whatever the bot's error handlers made of it; they are waited for."""
    seen: list[object] = []

    async def report(update: object, context: Context) -> None:
        await asyncio.sleep(0.01)
        seen.append((context.error, type(update), attempt()))

    exc = ValueError("the bug")
    app.add_error_handler(report, block=block)
    on_message(app, raising(exc), block=block)
    async with running(app) as bot:
        failed(await bot.handle(body(), 3), "the bug")
        assert seen == [(exc, Update, 3)]


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize(
    ("exc", "is_logged"),
    [(RetryUpdate("closed"), False), (te.NetworkError("Bad Gateway"), False), (ValueError("the bug"), True)],
)
async def test_without_error_handlers_only_bugs_are_logged_with_a_traceback(
    app: AnyApplication, caplog: pytest.LogCaptureFixture, exc: Exception, is_logged: bool, block: bool
) -> None:
    """What is tried again is no error, and is tried some hundred times in an outage."""
    on_message(app, raising(exc), block=block)
    async with running(app) as bot:
        await bot.handle(body(), 1)
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"] * is_logged


async def test_an_error_that_nobody_else_tells_is_logged(
    app: AnyApplication, caplog: pytest.LogCaptureFixture
) -> None:
    """Of an update that is cut short, and of what goes on when its update is over."""
    hangs, goes_on = asyncio.Event(), asyncio.Event()

    async def starts_another(update: Update, context: Context) -> None:
        async def later() -> None:
            await goes_on.wait()
            await app.process_update(update)

        later_ones.append(asyncio.create_task(later()))

    later_ones: list[asyncio.Task[None]] = []
    on_message(app, starts_another)
    async with running(app) as bot:
        assert await bot.handle(body(), 1) == Done()
        app.handlers.clear()
        on_message(app, raising(te.NetworkError("away")))
        goes_on.set()
        await within_limit(later_ones[0])
        assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]

        app.handlers.clear()
        on_message(app, raising(te.NetworkError("away")), block=False)
        on_message(app, lambda update, context: hangs.wait(), group=1)
        with capture_logs() as lines:
            handling = asyncio.create_task(bot.handle(body(), 1))
            await until(lambda: any(line["event"].endswith("from") for line in lines))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            handling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await handling
        told = [
            line["reason"]
            for line in lines
            if line["event"] == "an update that is cut short had failed before"
        ]
        assert told == ["telegram.error.NetworkError: away"]


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("block", [True, False])
async def test_an_error_handler_that_raises_hides_nothing(
    app: AnyApplication, block: bool, started: bool
) -> None:
    """The outcome is that of the error it was to handle."""

    async def broken(update: object, context: Context) -> None:
        raise RuntimeError("in the error handler")

    app.add_error_handler(broken, block=block)
    on_message(app, raising(te.TimedOut()))
    async with running(app, started=started) as bot:
        assert isinstance(await bot.handle(body(), 1), Transient)


async def test_an_error_handler_may_stop_the_groups(app: AnyApplication) -> None:
    """As python-telegram-bot has it; an error it is all the same."""

    async def stop(update: object, context: Context) -> None:
        raise ApplicationHandlerStop

    app.add_error_handler(stop)
    on_message(app, raising(ValueError("the bug")))
    on_message(app, raising(AssertionError("not reached")), group=1)
    async with running(app) as bot:
        outcome = await bot.handle(body(), 1)
    failed(outcome, "the bug")
    assert "not reached" not in str(outcome)


async def test_defaults_that_block_nothing_are_waited_for(api: BotApi) -> None:
    """`Defaults(block=False)` makes every handler and error handler a task."""
    app = builder_for(api.url).defaults(Defaults(block=False)).build()
    ended: list[str] = []

    async def handler(update: Update, context: Context) -> None:
        await asyncio.sleep(0.01)
        ended.append("handler")
        raise ValueError("the bug")

    async def report(update: object, context: Context) -> None:
        await asyncio.sleep(0.01)
        ended.append("report")

    app.add_handler(MessageHandler(filters.ALL, handler))
    app.add_error_handler(report)
    async with running(app) as bot:
        failed(await bot.handle(body(), 1), "the bug")
        assert ended == ["handler", "report"]


async def test_an_application_of_a_class_of_its_own_is_watched_too(api: BotApi) -> None:
    """Its overrides run; what they raise is the update's error."""
    ran: list[str] = []

    class Own(Application[Any, Any, Any, Any, Any, Any]):
        async def process_update(self, update: object) -> None:
            ran.append("process_update")
            await super().process_update(update)
            raise OSError("after the handlers")

        async def process_error(self, *args: Any, **kwargs: Any) -> bool:
            ran.append("process_error")
            return await super().process_error(*args, **kwargs)

    app = builder_for(api.url).application_class(Own).build()
    on_message(app, raising(ValueError("the bug")))
    async with running(app) as bot:
        failed(await bot.handle(body(), 1), "the bug", "after the handlers")
    assert ran == ["process_update", "process_error"]


async def test_conversations_work_blocking_and_not(app: AnyApplication) -> None:
    """The state that a non-blocking handler returns is there for the next update of the lane."""
    said: list[str] = []

    def step(name: str, state: int) -> Handler:
        async def handler(update: Update, context: Context) -> int:
            await asyncio.sleep(0.005)
            said.append(name)
            if update.message is not None and update.message.text == "fail":
                raise ValueError("in the conversation")
            return state

        return handler

    text = filters.TEXT & ~filters.COMMAND
    app.add_handler(
        ConversationHandler(
            entry_points=[CommandHandler("start", step("entry", 1), block=False)],
            states={
                1: [MessageHandler(text, step("first", 2), block=False)],
                2: [MessageHandler(text, step("second", ConversationHandler.END))],
            },
            fallbacks=[],
        )
    )
    async with running(app) as bot:
        outcomes = [
            await bot.handle(update, 1)
            for update in (command("/start"), body(), body(text="fail"), body(), body(text="after its end"))
        ]
    assert said == ["entry", "first", "second", "second"]
    assert [type(outcome) for outcome in outcomes] == [Done, Done, Failed, Done, Done]


async def test_what_nobody_may_take_for_done_without_initialisation(app: AnyApplication) -> None:
    """A bug of ours would dead-letter every update; it is raised instead."""
    with pytest.raises(RuntimeError, match=r"before Bot\.initialize"):
        await Bot(app, redact=str).handle(body(), 1)
