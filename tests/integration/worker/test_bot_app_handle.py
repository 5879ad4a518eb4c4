"""Outcomes of updates, with python-telegram-bot's real dispatch: every place where a handler can fail, or not have ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any

import pytest
import structlog
import telegram.error as te
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from telegram import Update
from telegram.ext import (
    Application,
    ApplicationBuilder,
    ApplicationHandlerStop,
    CallbackContext,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    Defaults,
    ExtBot,
    MessageHandler,
    TypeHandler,
    filters,
)

from tests.sample_bots.bot_api import BotApi
from tests.sample_bots.running import (
    AnyApplication,
    body,
    builder_for,
    command,
    running,
    until,
    within_limit,
)
from tests.sample_bots.settings import TOKEN
from webhook_worker import RetryUpdate, attempt
from webhook_worker.bot import Bot
from webhook_worker.outcomes import Done, Failed, Outcome, Transient

Context = CallbackContext[Any, Any, Any, Any]
Handler = Callable[[Update, Context], Coroutine[Any, Any, Any]]


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    """Telegram."""
    async with BotApi() as api:
        yield api


@pytest.fixture
def app(api: BotApi) -> AnyApplication:
    """An Application that calls it, without handlers."""
    return builder_for(api.url).build()


def on_message(app: AnyApplication, handler: Handler, *, block: bool = True, group: int = 0) -> None:
    """Adds a handler for every message."""
    app.add_handler(MessageHandler(filters.ALL, handler, block=block), group=group)


def raising(exc: Exception) -> Handler:
    """A handler that raises."""

    async def handler(update: Update, context: Context) -> None:
        raise exc

    return handler


def failed(outcome: Outcome, *texts: str) -> None:
    """It is Failed, and these stand in its traceback, in this order."""
    assert isinstance(outcome, Failed), outcome
    rest = outcome.traceback_text
    for text in texts:
        assert text in rest, outcome.traceback_text
        rest = rest.partition(text)[2]


# ---------------------------------------------------------------------------------------------------------------- places


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
        failed(outcome, "Traceback", __file__, "ValueError: the bug")


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


# ----------------------------------------------------------------------------------------------------------- cancellation


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


# ---------------------------------------------------------------------------------------------------------------- context


async def test_handlers_see_their_attempt(app: AnyApplication) -> None:
    """In every kind of handler, in tasks and in threads; beside one another without mixing."""
    seen: dict[str, list[int]] = {}

    async def note(update: Update, context: Context) -> None:
        key = str(update.update_id)
        seen.setdefault(key, []).append(attempt())
        await asyncio.sleep(0.005)
        seen[key] += [attempt(), await asyncio.to_thread(attempt)]

    on_message(app, note)
    on_message(app, note, block=False, group=1)
    async with running(app) as bot:
        await asyncio.gather(*(bot.handle(body(), number) for number in range(1, 9)))
        assert await bot.handle(body(), 9) == Done()
        assert attempt() == 0
    assert sorted(seen.values()) == [[number] * 6 for number in range(1, 10)]


async def test_the_log_of_a_handler_carries_the_update(app: AnyApplication) -> None:
    """Bound for everything within the update, and gone after it."""
    seen: list[dict[str, Any]] = []

    async def handler(update: Update, context: Context) -> None:
        seen.append(structlog.contextvars.get_contextvars() | {"id": update.update_id})

    on_message(app, handler, block=False)
    async with running(app) as bot:
        await bot.handle(body(), 1)
    assert seen[0]["update_id"] == seen[0]["id"]
    assert structlog.contextvars.get_contextvars() == {}


async def test_jobs_are_not_part_of_the_update_that_set_the_timer(app: AnyApplication) -> None:
    """A job that comes due while its update still runs is not counted, logged or cancelled as a part of it."""
    seen: list[tuple[int, dict[str, Any]]] = []
    tasks: list[asyncio.Task[Any]] = []
    job_ran = asyncio.Event()

    async def job(context: Context) -> None:
        async def fail() -> None:
            raise ValueError("in a task of the job")

        seen.append((attempt(), structlog.contextvars.get_contextvars()))
        tasks.append(context.application.create_task(fail()))
        tasks.append(context.application.create_task(asyncio.sleep(0.05)))
        job_ran.set()

    async def handler(update: Update, context: Context) -> None:
        assert context.job_queue is not None
        # The scheduler looks for jobs when it is started, in a context of its own; from then on in that of who adds one.
        for _ in range(3):
            await asyncio.sleep(0)
        context.job_queue.run_once(job, 0)
        await job_ran.wait()
        raise te.TimedOut

    on_message(app, handler)
    async with running(app) as bot:
        outcome = await within_limit(bot.handle(body(), 1))
        assert not tasks[1].done()
        await asyncio.wait(tasks)
    assert isinstance(outcome, Transient)
    assert seen == [(0, {})]


# ----------------------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"7",
        b"{}",
        b'{"update_id": 1, "message": 7}',
        b'{"update_id": 1, "message": {}}',
        b'{"update_id": 1, "message": {"message_id": 1, "date": 1e400, "chat": {"id": 1, "type": "private"}}}',
        b'{"update_id": 1, "message": {"message_id": 1, "date": 99999999999999999999, "chat": {"id": 1, "type": "x"}}}',
        b'{"update_id": 1, "callback_query": {"id": "1", "from": {}}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"update_id": 1' + b"1" * 5000 + b"}",
    ],
)
async def test_a_body_that_cannot_be_read_is_failed(app: AnyApplication, content: bytes) -> None:
    """With the reason; the next update is handled."""
    async with running(app) as bot:
        failed(
            await bot.handle(content, 1), "UnreadableUpdate: python-telegram-bot ", "cannot read this update"
        )
        assert await bot.handle(body(), 1) == Done()


@pytest.mark.parametrize(
    "content",
    [
        b'{"update_id": 1, "some_future_kind": {"from": {"id": 7}, "x": [1]}}',
        b'{"update_id": 1}',
        b'{"update_id": -9223372036854775808, "message": {"message_id": 1, "date": 1, '
        b'"chat": {"id": -1, "type": "x"}, "text": "\\u0000 \\ud800", "unknown": {"a": 1}}}',
    ],
)
async def test_whatever_can_be_read_is_handed_over(app: AnyApplication, content: bytes) -> None:
    """Kinds that do not exist yet, NUL, lone surrogates: the bot may know what to do with them."""
    seen: list[Update] = []

    async def handler(update: Update, context: Context) -> None:
        seen.append(update)

    app.add_handler(TypeHandler(Update, handler))
    async with running(app) as bot:
        assert await bot.handle(content, 1) == Done()
    assert len(seen) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "from", "chat", "date", "text", "type", "entities", "message_id", "data", "offset"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


async def test_no_body_makes_handle_raise(app: AnyApplication) -> None:
    """Whatever Telegram, or somebody who knows the secret, sends."""
    seen: list[object] = []

    async def see(update: Update, context: Context) -> None:
        seen.append(update)

    app.add_handler(TypeHandler(object, see))
    contents: list[bytes] = []

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from([*Update.ALL_TYPES, "future", "Ünï"]), JSON)
    def collect(kind: str, content: Any) -> None:
        contents.append(json.dumps({"update_id": 5, kind: content}).encode())

    collect()
    async with running(app) as bot:
        for content in contents:
            outcome = await bot.handle(content, 1)
            assert isinstance(outcome, Done | Failed), content
    assert seen


async def test_arbitrary_callback_data_is_put_in(api: BotApi) -> None:
    """As by python-telegram-bot's own webhook, before handlers see the update: buttons can carry objects."""

    class Cached(ExtBot[Any]):
        def insert_callback_data(self, update: Update) -> None:
            assert update.callback_query is not None
            with update.callback_query._unfrozen():
                update.callback_query.data = "the object"

    app = ApplicationBuilder().bot(Cached(TOKEN, base_url=f"{api.url}/bot")).updater(None).build()
    seen: list[object] = []

    async def pressed(update: Update, context: Context) -> None:
        assert update.callback_query is not None
        seen.append(update.callback_query.data)

    app.add_handler(TypeHandler(Update, pressed))
    async with running(app) as bot:
        assert await bot.handle(body("callback_query", id="9", chat_instance="1", data="uuid"), 1) == Done()
    assert seen == ["the object"]


# -------------------------------------------------------------------------------------------------------------------- log


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (command("/start"), {"event": "/start from", "user_id": 7}),
        (command("/start@sample_bot my secret"), {"event": "/start from", "user_id": 7}),
        (command("/" + "x" * 33), {"event": "message from", "user_id": 7}),
        (command("/sta\nrt"), {"event": "message from", "user_id": 7}),
        (command("/пуск"), {"event": "message from", "user_id": 7}),
        (body(text="/start"), {"event": "message from", "user_id": 7}),
        (body(text="my secret"), {"event": "message from", "user_id": 7}),
        (body(text=5), {"event": "message from", "user_id": 7}),
        (
            body(text="see /start", entities=[{"type": "bot_command", "offset": 4, "length": 6}]),
            {"event": "message from", "user_id": 7},
        ),
        (
            body("callback_query", id="9", chat_instance="1", data="my secret"),
            {"event": "callback_query from", "user_id": 7},
        ),
        (
            body("channel_post", chat={"id": -100, "type": "channel"}, **{"from": None}),
            {"event": "channel_post from", "chat_id": -100},
        ),
        (b'{"update_id": 1, "some_future_kind": {"from": {"id": 7}}}', {"event": "some_future_kind"}),
        (b'{"update_id": 1, "Some\\nKind": {}}', {"event": "update"}),
        (b'{"update_id": 1}', {"event": "update"}),
    ],
)
async def test_one_flow_line_for_each_update(
    app: AnyApplication, update: bytes, expected: dict[str, Any]
) -> None:
    """`[FLOW] /start from user_id=...`: what kind and from whom, and never what they wrote."""
    async with running(app) as bot:
        with capture_logs() as lines:
            await bot.handle(update, 1)
    [line] = [line for line in lines if line.get("tag") == "FLOW"]
    fields = [key for key in line if key not in ("event", "tag", "log_level")]
    assert fields == [*(key for key in expected if key != "event"), "update_id"]
    assert {key: line[key] for key in line if key != "update_id"} == expected | {
        "tag": "FLOW",
        "log_level": "info",
    }


async def test_a_repeated_update_says_so_in_its_flow_line(app: AnyApplication) -> None:
    """Who reads the log sees that it is not the first time."""
    async with running(app) as bot:
        with capture_logs() as lines:
            await bot.handle(body(), 4)
    assert lines[0]["attempt"] == 4


async def test_a21_no_token_in_an_outcome(app: AnyApplication) -> None:
    """Outcomes go into the database and from there to whoever looks at dead letters."""
    on_message(app, raising(ValueError(f"cannot call https://api.telegram.org/bot{TOKEN}/x")))
    on_message(app, raising(RetryUpdate(f"with {TOKEN}")), group=1)
    async with running(app, redact=lambda text: text.replace(TOKEN, "***")) as bot:
        outcome = await bot.handle(body(), 1)
        failed(outcome, "bot***/x")
        assert TOKEN not in str(outcome)
        app.handlers.pop(0)
        assert await bot.handle(body(), 1) == Transient("webhook_worker.outcomes.RetryUpdate: with ***", None)
