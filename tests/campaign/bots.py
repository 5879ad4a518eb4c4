"""Bots that misbehave. Each is deploy.local.traffic_bot, whose runs the judge sees, with something added.

blocking                     /block SECONDS blocks the event loop, with time.sleep, when it runs for the first time
crashing_at_import           never comes up: its process ends while it is built
crashing_at_first_update     its process ends when the first update comes
crashing_when_ready          its process ends a moment after it has begun to dispatch
with_children                has processes of its own: one from the beginning, one from its first update
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, CommandHandler, ContextTypes, TypeHandler

from deploy.local import traffic_bot
from webhook_worker import attempt

# After the traffic bot's first, which records the begin of a run and keeps messages of work to itself, and before the
# built-in bot's, which answers everything else.
_BEFORE_MENU = -500
# Before the record of the run: for what must happen with every update.
_FIRST = -2000
_CRASH_STATUS = 70
_READY_SECONDS = 0.5

CHILDREN = 2
"""How many a worker has that has handled an update."""

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


def crashing_at_import(builder: Builder) -> App:
    """As a native library does that finds something missing."""
    os._exit(_CRASH_STATUS)


async def _crash(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    os._exit(_CRASH_STATUS)


def crashing_at_first_update(builder: Builder) -> App:
    """Comes up, and ends with whatever comes first."""
    application = traffic_bot.build(builder)
    application.add_handler(TypeHandler(Update, _crash), group=_FIRST)
    return application


async def _crash_soon(application: App) -> None:
    threading.Timer(_READY_SECONDS, os._exit, (_CRASH_STATUS,)).start()


def crashing_when_ready(builder: Builder) -> App:
    """Comes up, owns, and ends."""
    return traffic_bot.build(builder.post_init(_crash_soon))


def _start_child() -> None:
    # By the folder among its arguments it is found again, and told from those of another campaign.
    folder = os.environ["HISTORY_DIR"]
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)", folder])


async def _start_child_once(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    if not context.application.bot_data.setdefault("has_children", False):
        context.application.bot_data["has_children"] = True
        _start_child()


def with_children(builder: Builder) -> App:
    """Has processes of its own."""
    application = traffic_bot.build(builder)
    application.add_handler(TypeHandler(Update, _start_child_once), group=_FIRST)
    _start_child()
    return application
