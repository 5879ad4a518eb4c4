"""Bots that do not do well."""

from __future__ import annotations

from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, CallbackContext, MessageHandler, filters

from tests.sample_bots.settings import PASSWORD
from webhook_worker import attempt
from webhook_worker.menu_bot import build_with
from webhook_worker.menu_file import parse_menu

AnyBuilder = ApplicationBuilder[Any, Any, Any, Any, Any, Any]
AnyApplication = Application[Any, Any, Any, Any, Any, Any]


async def _answer_and_fail(update: Update, context: CallbackContext[Any, Any, Any, Any]) -> None:
    assert update.effective_message is not None
    await update.effective_message.reply_text("I will fail")
    raise ValueError(f"attempt {attempt()} with {context.bot.token} and {PASSWORD}")


def build(builder: AnyBuilder) -> AnyApplication:
    """Answers, and then fails with the secrets in its words."""
    app = builder.build()
    app.add_handler(MessageHandler(filters.ALL, _answer_and_fail))
    return app


def broken_menu(builder: AnyBuilder) -> AnyApplication:
    """The built-in bot with a menu of which nothing is right."""
    return build_with(
        parse_menu(b'{"hint": "", "back": "", "commands": [], "pages": []}', name="broken.json"), builder
    )
