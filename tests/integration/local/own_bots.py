"""Bots of one's own, for the tests of them."""

from __future__ import annotations

import asyncio
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, ContextTypes, MessageHandler, TypeHandler, filters


def held_up(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """It handles nothing to its end."""
    app = builder.build()
    app.add_handler(TypeHandler(Update, _wait))
    return app


def echo(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """It says what it is told."""
    app = builder.build()
    app.add_handler(MessageHandler(filters.TEXT, _echo))
    return app


async def _echo(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    assert update.effective_message is not None
    await update.effective_message.reply_text(f"heard {update.effective_message.text}")


async def _wait(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    print("held up", flush=True)
    await asyncio.Event().wait()
