"""What Telegram sent, as python-telegram-bot's Update: the very object that `Update.de_json` makes, in two thirds of the time.

An object of the library is frozen when it is made, so its `__setattr__`, a function in Python, asks at each attribute whether
it is by now. A message and its update have 130 of them, and that takes longer than all that is read. So the three objects that
every message brings are made by the library's own code as instances of classes that differ in nothing but that they do not ask,
and are given their proper class before anybody sees them. They are frozen then, as any other. What is inside of them, and the
updates of other kinds, the library reads alone.

A bot that has replaced one of the functions that make them, to log what Telegram sent for one, has them made as ever.

Not promised: that the library goes on to allow it. It is tied to the releases that `packages` lets in; a test compares what
both make, attribute by attribute.
"""

from __future__ import annotations

from typing import Any

from telegram import Bot, MaybeInaccessibleMessage, Message, TelegramObject, Update, User

_MESSAGES = (
    "message",
    "edited_message",
    "channel_post",
    "edited_channel_post",
    "business_message",
    "edited_business_message",
    "guest_message",
)
"""Fields of an update that hold a Message."""


class _Unasked:
    __slots__ = ()
    __setattr__ = object.__setattr__


class _Update(_Unasked, Update):
    __slots__ = ()


class _Message(_Unasked, Message):
    __slots__ = ()


class _User(_Unasked, User):
    __slots__ = ()


def _makers() -> tuple[object, ...]:
    """All that makes the three, or sees one of them before it is whole."""
    return (
        *(Update.de_json, Update.__init__, Update.__setattr__),
        *(Message.de_json, Message._de_json, Message.__init__, Message.__setattr__),
        *(User.de_json, User.__init__, User.__setattr__),
        *(MaybeInaccessibleMessage.__init__, TelegramObject.__init__),
    )


_THE_LIBRARYS = _makers()


def read_update(data: dict[str, Any], bot: Bot) -> Update:
    """Makes an update.

    Args:
        data: the decoded update; what it holds is used up.
        bot: that its shortcuts call.

    Raises:
        Exception: whatever `Update.de_json` raises of the same.
    """
    if _makers() != _THE_LIBRARYS:
        # The bot has put its own in the place of one, to see what comes, and must see all of it.
        return Update.de_json(data, bot)
    messages = [
        (kind, _read_message(data.pop(kind), bot)) for kind in _MESSAGES if type(data.get(kind)) is dict
    ]
    update = _Update.de_json(data, bot)
    for kind, message in messages:
        setattr(update, kind, message)
    update.__class__ = Update
    return update


def _read_message(data: dict[str, Any], bot: Bot) -> Message:
    sender = data.pop("from") if type(data.get("from")) is dict else None
    user: User | None = None if sender is None else _User.de_json(sender, bot)
    message = _Message.de_json(data, bot)
    if user is not None:
        message.from_user = user
        user.__class__ = User
    message.__class__ = Message
    return message
