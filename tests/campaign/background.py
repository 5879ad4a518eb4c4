"""A bot whose handlers do not wait: deploy.local.traffic_bot, with work that goes on beside the handler that began it.

    nonblocking SECONDS   in a handler with block=False
    task SECONDS          in a task of Application.create_task
    thread SECONDS        in a thread, which a cancellation of its handler does not stop
    job SECONDS           a job of the job queue, which belongs to no update

and a timer that runs all the time. Runs are recorded as traffic_bot records them, to their real end. The timer, and the jobs,
write lines of their own into files `*.ticks` in HISTORY_DIR: owner, pid, time.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, ApplicationHandlerStop, ContextTypes, TypeHandler

from deploy.local import traffic_bot
from deploy.local.traffic_bot import record
from shared.inherited import INSTANCE_VARIABLE

# In front of the traffic bot's first, which would record the end of the handler as that of the run.
_BESIDE, _INSTEAD = -3000, -2900
_STEP_SECONDS = 0.1
TICK_SECONDS = 0.2

Context = ContextTypes.DEFAULT_TYPE


def _order(update: Update) -> tuple[str, float]:
    """What a message asks for."""
    words = ((update.message.text if update.message is not None else None) or "").split()
    if len(words) == 2 and words[0] in ("nonblocking", "task", "thread", "job"):
        return words[0], float(words[1])
    return "", 0.0


async def _work(update: Update, seconds: float) -> None:
    """As traffic_bot works, without an answer."""
    record("start", update)
    try:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _STEP_SECONDS))
            record("alive", update)
    except asyncio.CancelledError:
        record("end", update, "interrupted")
        raise
    record("end", update, "well")


async def _work_in_thread(update: Update, seconds: float) -> None:
    record("start", update)
    is_cancelled = threading.Event()
    thread = asyncio.to_thread(_step, update, seconds, is_cancelled)
    try:
        await thread
    except asyncio.CancelledError:
        is_cancelled.set()
        record("end", update, "interrupted")
        raise
    record("end", update, "well")


def _step(update: Update, seconds: float, is_cancelled: threading.Event) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _STEP_SECONDS))
        # Also after its handler was cancelled: this is what must not happen past the deadline.
        record("alive", update)
    if is_cancelled.is_set():
        record("end", update, "interrupted")


async def _begin_beside(update: Update, context: Context) -> None:
    kind, seconds = _order(update)
    if kind == "nonblocking":
        await _work(update, seconds)


async def _begin(update: Update, context: Context) -> None:
    kind, seconds = _order(update)
    match kind:
        case "task":
            context.application.create_task(_work(update, seconds), update)
        case "thread":
            await _work_in_thread(update, seconds)
        case "job":
            record("start", update)
            assert context.job_queue is not None
            context.job_queue.run_once(_job, 0.0, data=seconds)
            record("end", update, "well")
        case "":
            return
    raise ApplicationHandlerStop  # for the traffic bot, who knows nothing of it


async def _job(context: Context) -> None:
    assert context.job is not None
    end = time.monotonic() + float(str(context.job.data))
    while time.monotonic() < end:
        _tick("job")
        await asyncio.sleep(_STEP_SECONDS)


async def _timer(context: Context) -> None:
    _tick("timer")


@functools.cache
def _ticks_descriptor() -> int:
    path = Path(os.environ["HISTORY_DIR"]) / f"{os.environ['RENDER_INSTANCE_ID']}-{os.getpid()}.ticks"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _tick(what: str) -> None:
    line = {"what": what, "owner": os.environ[INSTANCE_VARIABLE], "pid": os.getpid(), "at": time.monotonic()}
    os.write(_ticks_descriptor(), json.dumps(line).encode() + b"\n")


def build(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """The BOT_APP."""
    application = traffic_bot.build(builder)
    application.add_handler(TypeHandler(Update, _begin_beside, block=False), group=_BESIDE)
    application.add_handler(TypeHandler(Update, _begin), group=_INSTEAD)
    assert application.job_queue is not None
    application.job_queue.run_repeating(_timer, TICK_SECONDS, first=0.0)
    return application
