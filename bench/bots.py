"""The bots that are run: `counting`, ours and the peers', whose handler does nothing but count; `forgetting`, for soak.py;
`noting`, for latency.py."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, ContextTypes, MessageHandler, filters

from bench.counter import VARIABLE, Counter

_counter = Counter(os.environ.get(VARIABLE))


async def count(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    """As cheap as a handler can be."""
    _counter.add_one()


def counting(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """BOT_APP=bench.bots:counting."""
    application = builder.build()
    application.add_handler(MessageHandler(filters.TEXT, count))
    return application


WINDOW_MINUTES = 5.0


def forgetting(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """`counting`, in a worker whose window of deduplication is minutes instead of days."""
    from webhook_worker import inbox  # in this worker alone: to the peers' processes it would be a burden

    inbox.KEY_DAYS = WINDOW_MINUTES / 60 / 24
    return counting(builder)


NOTES_VARIABLE = "BENCH_NOTES"
"""Environment variable that names the file of `noting`."""

NOTE = struct.Struct("=qd")
"""update_id, and the wall clock in seconds when its handler began."""

BLOCKING_TEXT = "block"
BLOCKED_SECONDS = 10.0


def noting(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """BOT_APP=bench.bots:noting."""
    file = os.open(os.environ[NOTES_VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def note(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        os.write(file, NOTE.pack(update.update_id, time.time()))
        if update.message is not None and update.message.text == BLOCKING_TEXT:
            await asyncio.sleep(BLOCKED_SECONDS)

    application = builder.build()
    application.add_handler(MessageHandler(filters.TEXT, note))
    return application
