"""What the control API takes and gives, as values; both sides read this page.

Field names are the JSON names. `bot_id` may be left out wherever there is only one bot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from deploy.local.emulator.faults import Fault, Outage


class UserProfile(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a user is called."""

    first_name: str | None = None
    last_name: str | None = None
    username: str | None = None
    language_code: str | None = None


class NewBot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A bot to be known from now on."""

    token: str
    username: str | None = None
    first_name: str | None = None


class SendText(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user writes. `chat_id` defaults to the user's own chat; a negative one is a group.

    `extra` is merged into the Message object (a date, a photo, `reply_to_message`, ...).
    """

    user_id: int
    text: str
    chat_id: int | None = None
    bot_id: int | None = None
    profile: UserProfile | None = None
    chat_title: str | None = None
    extra: dict[str, Any] = {}


class Sent(msgspec.Struct, frozen=True):
    """A user's message; `update_id` is None if `allowed_updates` or a limit kept it from becoming an update."""

    update_id: int | None
    message_id: int
    chat_id: int


class Press(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user presses the inline button with this text or callback data; by default on the latest message with one."""

    chat_id: int
    text: str | None = None
    data: str | None = None
    message_id: int | None = None
    user_id: int | None = None
    bot_id: int | None = None


class Pressed(msgspec.Struct, frozen=True):
    """A press, as the callback query that it became."""

    update_id: int | None
    callback_query_id: str
    data: str


class Inject(msgspec.Struct, frozen=True, omit_defaults=True):
    """Any update at all.

    Attributes:
        update: the fields of an update; an `update_id` in it is used, one is given to it otherwise. `allowed_updates`
            applies to kinds that are known.
        raw: instead of `update`, a JSON object as bytes (base64 in JSON), without `update_id`; always taken.
        verbatim: `raw` is delivered as it stands, whatever it is; `update_id` is then only for the records.
        update_id: forces the number, a duplicate for instance.
        queue: forces the delivery queue; by default that of the real server.
    """

    update: dict[str, Any] | None = None
    raw: bytes | None = None
    verbatim: bool = False
    update_id: int | None = None
    queue: str | None = None
    bot_id: int | None = None


class Injected(msgspec.Struct, frozen=True):
    """An injected update's number; None if it was not taken."""

    update_id: int | None


class ChatMessage(msgspec.Struct, frozen=True):
    """A message as a user sees it now. `keyboard` holds the texts of the inline buttons, row by row."""

    message_id: int
    chat_id: int
    from_bot: bool
    text: str
    keyboard: list[list[str]]
    date: int
    is_edited: bool
    raw: dict[str, Any]


class Counts(msgspec.Struct, frozen=True):
    """Sums since the start.

    `sent`: updates that were taken; `refused`: those that were not, by reason; `pending`: not yet delivered,
    acknowledged or expired; `not_2xx`: failed attempts by status, or by error where there was none.
    """

    sent: int
    delivered: int
    pending: int
    in_flight: int
    attempts: int
    dropped: int
    expired: int
    not_2xx: dict[str, int]
    refused: dict[str, int]


class WebhookState(msgspec.Struct, frozen=True):
    """The registration, with what getWebhookInfo does not tell."""

    url: str
    secret_token: str
    max_connections: int
    allowed_updates: list[str] | None
    connections: int
    in_flight: int
    info: dict[str, Any]


class BotState(msgspec.Struct, frozen=True):
    """A bot in the overview."""

    id: int
    username: str
    webhook: WebhookState
    counts: Counts


class ActiveFault(msgspec.Struct, frozen=True):
    """A fault in force; `left` is None without an end."""

    id: int
    fault: Fault
    left: int | None


class EmulatorState(msgspec.Struct, frozen=True):
    """The overview. `control_url` serves the control API even while the Bot API refuses connections."""

    bots: list[BotState]
    outage: Outage
    faults: list[ActiveFault]
    control_url: str
    last_event_seq: int
    last_call_seq: int
    last_delivery_seq: int


def describe_message(raw: dict[str, Any], bot_id: int) -> ChatMessage:
    """A Message object, reduced to what a user sees."""
    rows: Iterable[Any] = raw.get("reply_markup", {}).get("inline_keyboard", [])
    return ChatMessage(
        message_id=raw["message_id"],
        chat_id=raw["chat"]["id"],
        from_bot=raw["from"]["id"] == bot_id,
        text=raw.get("text", raw.get("caption", "")),
        keyboard=[[button["text"] for button in row] for row in rows],
        date=raw.get("date", 0),
        is_edited="edit_date" in raw,
        raw=raw,
    )
