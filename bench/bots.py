"""The bot that ours and the peers run: one handler, which does nothing but count."""

from __future__ import annotations

import os
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
