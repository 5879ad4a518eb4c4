"""Keyboards under messages: what may be sent, and how a stored one looks.

Pure. Limits from the Bot API documentation (InlineKeyboardButton: callback_data is 1 to 64 bytes; exactly one of the
optional fields); errors in the server's words, where they are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.local.emulator.errors import bad_request
from deploy.local.emulator.parameters import Parameters

MAX_CALLBACK_DATA_BYTES = 64
MAX_BUTTONS = 100
# What an inline button can do; exactly one of them.
ACTIONS = (
    "url",
    "callback_data",
    "web_app",
    "login_url",
    "switch_inline_query",
    "switch_inline_query_current_chat",
    "switch_inline_query_chosen_chat",
    "copy_text",
    "callback_game",
    "pay",
)


def read_markup(call: Parameters) -> dict[str, Any] | None:
    """The `reply_markup` of a call; None without one (an empty inline keyboard is none).

    Raises:
        ApiError: 400, it is no keyboard that can be shown.
    """
    try:
        markup = call.json("reply_markup")
    except ValueError:
        raise bad_request("can't parse reply keyboard markup JSON object") from None
    if markup is None:
        return None
    if not isinstance(markup, dict):
        raise bad_request("object expected as reply markup")
    if "inline_keyboard" in markup:
        return _read_inline(markup["inline_keyboard"])
    if "keyboard" in markup:
        return _read_reply_keyboard(markup)
    return markup or None


def is_inline(markup: Mapping[str, Any] | None) -> bool:
    return markup is not None and "inline_keyboard" in markup


def find_button(markup: Mapping[str, Any], text: str | None, data: str | None) -> Mapping[str, Any] | None:
    """The first button with a callback that has this text, or this data."""
    for row in markup.get("inline_keyboard", []):
        for button in row:
            if "callback_data" not in button:
                continue
            if (text is not None and button["text"] == text) or (
                data is not None and button["callback_data"] == data
            ):
                found: Mapping[str, Any] = button
                return found
    return None


def _read_inline(rows: Any) -> dict[str, Any] | None:
    if not isinstance(rows, list):
        raise bad_request('field "inline_keyboard" of the InlineKeyboardMarkup must be of type Array')
    kept: list[list[dict[str, Any]]] = []
    for row in rows:
        if not isinstance(row, list):
            raise bad_request(
                'field "inline_keyboard" of the InlineKeyboardMarkup must be an Array of Arrays'
            )
        if row:
            kept.append([_read_inline_button(button) for button in row])
    if sum(map(len, kept)) > MAX_BUTTONS:
        raise bad_request("reply markup is too long")
    return {"inline_keyboard": kept} if kept else None


def _read_inline_button(button: Any) -> dict[str, Any]:
    wrong = "can't parse inline keyboard button: "
    if not isinstance(button, dict):
        raise bad_request(f"{wrong}InlineKeyboardButton must be an Object")
    if not isinstance(button.get("text"), str):
        raise bad_request(f'{wrong}Can\'t find field "text"')
    if not button["text"].strip():
        raise bad_request("BUTTON_TEXT_EMPTY")
    actions = [name for name in ACTIONS if name in button]
    if not actions:
        raise bad_request(f"{wrong}Text buttons are unallowed in the inline keyboard")
    if "callback_data" in actions:
        data = button["callback_data"]
        if (
            not isinstance(data, str)
            or not 0 < len(data.encode("utf-8", "surrogatepass")) <= MAX_CALLBACK_DATA_BYTES
        ):
            raise bad_request("BUTTON_DATA_INVALID")
    if "url" in actions and not button["url"]:
        raise bad_request("BUTTON_URL_INVALID")
    return button


def _read_reply_keyboard(markup: dict[str, Any]) -> dict[str, Any]:
    rows = markup["keyboard"]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise bad_request('field "keyboard" of the ReplyKeyboardMarkup must be an Array of Arrays')
    for row in rows:
        for button in row:
            text = (
                button
                if isinstance(button, str)
                else button.get("text")
                if isinstance(button, dict)
                else None
            )
            if not isinstance(text, str):
                raise bad_request("can't parse keyboard button: Can't find field \"text\"")
    if not any(rows):
        raise bad_request("keyboard must be non-empty")
    return markup
