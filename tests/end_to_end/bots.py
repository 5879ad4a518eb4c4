"""Bots that misbehave, for BOT_APP."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from signal import SIGKILL
from typing import Any

from telegram import Update
from telegram.ext import ApplicationBuilder, ContextTypes, MessageHandler, filters

Builder = ApplicationBuilder[Any, Any, Any, Any, Any, Any]


def blocking(builder: Builder) -> Any:
    """A bot whose handler never gives the event loop back, once."""

    async def handle(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        time.sleep(300)

    application = builder.build()
    application.add_handler(MessageHandler(filters.TEXT, handle))
    return application


def failing(builder: Builder) -> Any:
    """A bot whose handler has a bug: what it handles becomes a dead letter."""

    async def handle(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        raise ValueError("the bug")

    application = builder.build()
    application.add_handler(MessageHandler(filters.TEXT, handle))
    return application


def with_commands(builder: Builder) -> Any:
    """A bot that calls Telegram as it starts."""

    async def name_commands(application: Any) -> None:
        await application.bot.set_my_commands([("go", "goes")])

    async def handle(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        assert update.effective_message is not None
        await update.effective_message.reply_text(f"{update.effective_message.text} to you")

    application = builder.post_init(name_commands).build()
    application.add_handler(MessageHandler(filters.TEXT, handle))
    return application


def with_child(builder: Builder) -> Any:
    """A bot that starts a process of its own, tells its pid, and works on for as many seconds as the message says."""

    async def handle(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        assert update.effective_message is not None
        await update.effective_message.reply_text(f"child={child.pid}")
        _, *seconds = (update.effective_message.text or "").split()
        await asyncio.sleep(sum(map(float, seconds)))

    application = builder.build()
    application.add_handler(MessageHandler(filters.TEXT, handle))
    return application


def crashing_leader(builder: Builder) -> Any:
    """A bot that is built well and dies as soon as it begins to own."""

    async def die(application: Any) -> None:
        os.kill(os.getpid(), SIGKILL)

    return builder.post_init(die).build()


def failing_leader(builder: Builder) -> Any:
    """A bot that is built well and does not start."""

    async def fail(application: Any) -> None:
        raise RuntimeError("no such table: users")

    return builder.post_init(fail).build()


def dying_at_build(builder: Builder) -> Any:
    """A bot that takes its process along while it is built."""
    os.kill(os.getpid(), SIGKILL)


def raising(builder: Builder) -> Any:
    """A bot that cannot be built."""
    raise RuntimeError("a bot that raises")


def leaking(builder: Builder) -> Any:
    """A bot that logs and raises its whole environment."""

    async def handle(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        logging.getLogger("leaky").warning("LEAK BEGINS %s", dict(os.environ))
        raise RuntimeError(f"LEAK BEGINS {dict(os.environ)} {context.bot.token} {context.bot.base_url}")

    application = builder.build()
    application.add_handler(MessageHandler(filters.TEXT, handle))
    return application


def held(builder: Builder) -> Any:
    """A bot that is built when the file that RELEASE names is there, as one whose imports take long."""
    while not os.path.exists(os.environ["RELEASE"]):
        time.sleep(0.01)
    return builder.build()
