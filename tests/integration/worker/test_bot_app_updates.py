"""What a handler is given: the update, whatever its body; its attempt; a context for its log; the line about each update."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import structlog
import telegram.error as te
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from telegram import Update
from telegram.ext import (
    ApplicationBuilder,
    ExtBot,
    TypeHandler,
)

from tests.sample_bots.bot_api import BotApi
from tests.sample_bots.handlers import Context, failed, on_message, raising
from tests.sample_bots.running import (
    AnyApplication,
    body,
    command,
    running,
    within_limit,
)
from tests.sample_bots.settings import TOKEN
from webhook_worker import RetryUpdate, attempt
from webhook_worker.outcomes import Done, Failed, Transient

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
    is_seen = asyncio.Event()

    async def job(context: Context) -> None:
        async def fail() -> None:
            raise ValueError("in a task of the job")

        seen.append((attempt(), structlog.contextvars.get_contextvars()))
        tasks.append(context.application.create_task(fail()))
        tasks.append(context.application.create_task(is_seen.wait()))
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
        is_seen.set()
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
        (command("/start, my secret"), {"event": "/start from", "user_id": 7}),
        (command("/пуск"), {"event": "message from", "user_id": 7}),
        (command("/stпуск"), {"event": "message from", "user_id": 7}),
        (body(text="/my/secret"), {"event": "message from", "user_id": 7}),
        (body(text="/start"), {"event": "/start from", "user_id": 7}),
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
