"""The built-in bot: shows the menu of menu.json. What runs when BOT_APP is not set, and an example of what can be set there.

    /start, a command of the menu    a new message with that page
    a button                         the message that it is in becomes the page that it leads to
    /help                            the list of the commands
    anything else, in private        a hint

Handlers may run twice for one update, after a crash; here the second run only shows again what is shown.

Not promised: memory. The bot knows nothing of anybody, so any instance can go on where another one stopped.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

from telegram import (
    CallbackQuery,
    InaccessibleMessage,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    MessageEntity,
    Update,
)
from telegram.error import BadRequest
from telegram.ext import (
    Application,
    ApplicationBuilder,
    CallbackContext,
    CallbackQueryHandler,
    CommandHandler,
    MessageHandler,
    filters,
)

from webhook_worker.menu import Button, Menu, Page, callback_data, list_commands, utf16_length
from webhook_worker.menu_file import load_menu

MENU_FILE = Path(__file__).with_name("menu.json")

AnyContext = CallbackContext[Any, Any, Any, Any]

# Not edits of messages, and not posts of channels: nobody there asked the bot.
_NEW = filters.UpdateType.MESSAGE


def build(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """The bot, ready to be initialised.

    Raises:
        MenuError: menu.json has faults.
    """
    return build_with(load_menu(MENU_FILE), builder)


def build_with(
    menu: Menu, builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any]
) -> Application[Any, Any, Any, Any, Any, Any]:
    """The same with another menu."""
    app = builder.build()
    for command in menu.commands:
        answer = _help(menu) if command.page is None else menu.pages[command.page]
        app.add_handler(CommandHandler(command.command, functools.partial(_send, answer), filters=_NEW))
    app.add_handler(CallbackQueryHandler(functools.partial(_turn, menu)))
    hint = Page("", "", menu.hint, ())
    # A photo or a sticker too; not what nobody wrote, such as a message that was pinned.
    written = _NEW & filters.ChatType.PRIVATE & ~filters.StatusUpdate.ALL
    app.add_handler(MessageHandler(written, functools.partial(_send, hint)))
    return app


def _help(menu: Menu) -> Page:
    return Page(
        "",
        "Commands",
        list_commands(menu.commands),
        ((Button(menu.main.title or "/start", page=menu.main.id),),),
    )


async def _send(page: Page, update: Update, _context: AnyContext) -> None:
    if update.effective_message is not None:
        await update.effective_message.reply_text(
            page.message, entities=_entities(page), reply_markup=_keyboard(page), do_quote=False
        )


async def _turn(menu: Menu, update: Update, context: AnyContext) -> None:
    query = update.callback_query
    if query is None:
        return
    # Before the page: it ends the clock on the button. Refused for a press of more than some minutes ago, as after an outage.
    with contextlib.suppress(BadRequest):
        await query.answer()
    await _show(menu.page_for(query.data), query, context)


async def _show(page: Page, query: CallbackQuery, context: AnyContext) -> None:
    if not isinstance(query.message, InaccessibleMessage) and await _edit(page, query):
        return
    if query.message is not None:
        # The message with the button was deleted, or is too old to be edited (two days).
        await context.bot.send_message(
            query.message.chat.id, page.message, entities=_entities(page), reply_markup=_keyboard(page)
        )


async def _edit(page: Page, query: CallbackQuery) -> bool:
    try:
        await query.edit_message_text(page.message, entities=_entities(page), reply_markup=_keyboard(page))
    except BadRequest as exc:
        # It shows that page: the button was pressed twice, or the update is handled again.
        return "message is not modified" in exc.message.lower()
    return True


def _entities(page: Page) -> list[MessageEntity]:
    return [MessageEntity(MessageEntity.BOLD, 0, utf16_length(page.title))] if page.title else []


def _keyboard(page: Page) -> InlineKeyboardMarkup | None:
    if not page.rows:
        return None
    return InlineKeyboardMarkup([[_button(button) for button in row] for row in page.rows])


def _button(button: Button) -> InlineKeyboardButton:
    if button.page is None:
        return InlineKeyboardButton(button.text, url=button.url)
    return InlineKeyboardButton(button.text, callback_data=callback_data(button.page))
