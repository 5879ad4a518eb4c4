"""Bots for tests of the worker process: they do what a message tells them, write down what they did, and call nobody.

A message's text is a word and a number: `sleep 5`, `block 5` (the event loop), `thread 5`, `stubborn 5` (ignores its
cancellation), `job` (starts one that takes long), `child` (starts a process of its own), `print 5` (so many characters, and as
many to standard error), `stop_running`. Each line of the file that OBSERVATIONS names is one observation, with its time.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, ContextTypes, TypeHandler
from telegram.request import BaseRequest, RequestData

from shared.clock import now
from tests.sample_bots.wrapping import wrapping

AnyBuilder = ApplicationBuilder[Any, Any, Any, Any, Any, Any]
AnyApplication = Application[Any, Any, Any, Any, Any, Any]

_ME = {"id": 123456789, "is_bot": True, "first_name": "Test", "username": "test_bot"}


def observe(line: str) -> None:
    """Writes one observation and its time; whole lines, also when a process is killed right after."""
    with open(os.environ["OBSERVATIONS"], "a", encoding="utf-8") as file:
        file.write(f"{now():.3f} {line}\n")


class Offline(BaseRequest):
    """Telegram as a bot needs it to come up: it says who the bot is, and yes to everything else."""

    def __init__(self, status: int = 200) -> None:
        self._status = status

    @property
    def read_timeout(self) -> float | None:
        return 5.0

    async def initialize(self) -> None:
        """Nothing to open."""

    async def shutdown(self) -> None:
        """Nothing to close."""

    async def do_request(
        self, url: str, method: str, request_data: RequestData | None = None, *args: Any, **timeouts: Any
    ) -> tuple[int, bytes]:
        if self._status != 200:
            return self._status, json.dumps(
                {"ok": False, "error_code": self._status, "description": "no"}
            ).encode()
        result: Any = _ME if url.endswith("/getMe") else True
        return 200, json.dumps({"ok": True, "result": result}).encode()


async def _handle(update: object, context: ContextTypes.DEFAULT_TYPE) -> None:
    assert isinstance(update, Update)
    text = update.effective_message.text if update.effective_message is not None else None
    word, _, number = (text or "").partition(" ")
    observe(f"begin {update.update_id}")
    try:
        match word:
            case "sleep":
                await asyncio.sleep(float(number))
            case "block":
                time.sleep(float(number))
            case "hold":
                # A single operation, which keeps the interpreter's lock: no thread, and no handler of a signal, runs beside it.
                sum(range(10**12))
            case "thread":
                await asyncio.to_thread(_in_thread, update.update_id, float(number))
            case "stubborn":
                end = time.monotonic() + float(number)
                while time.monotonic() < end:
                    try:
                        await asyncio.sleep(0.05)
                    except asyncio.CancelledError:
                        observe(f"ignored {update.update_id}")
            case "job":
                assert context.job_queue is not None
                context.job_queue.run_once(_long_job, 0)
            case "child":
                child = subprocess.Popen(["sleep", "1000"])
                observe(f"child {child.pid}")
            case "print":
                print("x" * int(number))
                print("y" * int(number), file=sys.stderr)
            case "stop_running":
                context.application.stop_running()
    except asyncio.CancelledError:
        observe(f"cancelled {update.update_id}")
        raise
    observe(f"end {update.update_id}")


async def _long_job(context: ContextTypes.DEFAULT_TYPE) -> None:
    observe("job begin")
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        observe("job cancelled")
        raise


def _in_thread(update_id: int, seconds: float) -> None:
    time.sleep(seconds)
    observe(f"thread-end {update_id}")


def _offline(builder: AnyBuilder, status: int = 200) -> AnyApplication:
    app = builder.request(Offline(status)).get_updates_request(Offline(status)).build()
    app.add_handler(TypeHandler(Update, _handle, block=True))
    return app


def obedient(builder: AnyBuilder) -> AnyApplication:
    """Comes up, and observes its own life."""

    async def post_init(app: AnyApplication) -> None:
        observe("post_init")

    async def post_stop(app: AnyApplication) -> None:
        observe("post_stop")

    async def tick(context: ContextTypes.DEFAULT_TYPE) -> None:
        observe("tick")

    app = _offline(builder.post_init(post_init).post_stop(post_stop))
    assert app.job_queue is not None
    app.job_queue.run_repeating(tick, 0.05, first=0.0)
    return app


def instrumented(builder: AnyBuilder) -> AnyApplication:
    """The obedient one; has every task of its process wrapped, from when it is imported."""
    asyncio.get_running_loop().set_task_factory(wrapping)
    return obedient(builder)


def failing_post_init(builder: AnyBuilder) -> AnyApplication:
    """Raises where the operator's own code runs."""

    async def post_init(app: AnyApplication) -> None:
        raise RuntimeError(f"the shop is closed, {app.bot.token}")

    return _offline(builder.post_init(post_init))


def unwilling(builder: AnyBuilder) -> AnyApplication:
    """Does not want to run, and says so as python-telegram-bot has it."""

    async def post_init(app: AnyApplication) -> None:
        app.stop_running()

    return _offline(builder.post_init(post_init))


def refused(builder: AnyBuilder) -> AnyApplication:
    """Has a token that Telegram does not know."""
    return _offline(builder, status=401)


def raising(builder: AnyBuilder) -> AnyApplication:
    """Cannot be built."""
    raise RuntimeError("no menu today")


def held(builder: AnyBuilder) -> AnyApplication:
    """Is built when the file that RELEASE names is there; until then it holds the main thread, as a slow import does."""
    while not os.path.exists(os.environ["RELEASE"]):
        time.sleep(0.01)
    return _offline(builder)


def held_and_raising(builder: AnyBuilder) -> AnyApplication:
    """The same, and then it cannot be built."""
    held(builder)
    raise RuntimeError("no menu today")


def telling(builder: AnyBuilder) -> AnyApplication:
    """Prints what it should not."""
    app = _offline(builder)
    print("the token is", app.bot.token)
    print("not an error:", app.bot.token, file=sys.stderr)
    return app
