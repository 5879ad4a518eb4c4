"""Bots that misbehave. Each is deploy.local.traffic_bot, whose runs the judge sees, with something added.

A message of a command below does the harm; all others are handled as ever.

    blocking    /block SECONDS   blocks the event loop, with time.sleep, when it runs for the first time
"""

from __future__ import annotations

import time
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, CommandHandler, ContextTypes

from deploy.local import traffic_bot
from webhook_worker import attempt

# After the traffic bot's first, which records the begin of a run, and before the built-in bot's, which answers everything.
_BEFORE_MENU = -500

Builder = ApplicationBuilder[Any, Any, Any, Any, Any, Any]
App = Application[Any, Any, Any, Any, Any, Any]


async def _block(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    if attempt() == 1:
        time.sleep(float((context.args or ["30"])[0]))


def blocking(builder: Builder) -> App:
    """Blocks its event loop when told to."""
    application = traffic_bot.build(builder)
    application.add_handler(CommandHandler("block", _block), group=_BEFORE_MENU)
    return application
