"""Bots of one's own, for the tests of them."""

from __future__ import annotations

import asyncio
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, ContextTypes, TypeHandler


def held_up(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """It handles nothing to its end."""
    app = builder.build()
    app.add_handler(TypeHandler(Update, _wait))
    return app


async def _wait(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    print("held up", flush=True)
    await asyncio.Event().wait()
