"""What Telegram sent, as python-telegram-bot's Update: the very object that `Update.de_json` makes, in a fifth of the time.

All objects are made by the library's own code, but for three things that it does at each message:

**It asks whether an object is frozen.** It is, once it is made, so its `__setattr__`, a function in Python, asks at each
attribute whether it is by now, and a message with what is in it has 150 of them. So those that come often are made as instances
of classes that differ in nothing but that they do not ask, nor unfreeze what is not frozen yet, and are given their proper
class before anybody sees them. They are frozen then, as any other.

**It looks for what is not there.** `Message.de_json` has a line for each part of a message that is an object, 80 in all. Here
those are read that are there: their classes are known from the constructor. So is an update that brings nothing but its
message, or the button below one. A message of which one field is not known is left to `Message.de_json`.

**It compares names.** The constructor of a message has a hundred arguments. It finds its own string for one at once, and
compares one that is merely equal, as the decoder's, with each. So names are exchanged for its own.

A bot that has replaced one of the functions that make them, to log what Telegram sent for one, has them made as ever. So has
one that has put a class of its own in the place of one that comes often. One in the place of another class is taken from there.

Not promised: that the library goes on to allow it. It is tied to the releases that `packages` lets in; a test compares what
both make, attribute by attribute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from operator import itemgetter
from types import ModuleType
from typing import Any, Self, cast, get_args, get_origin, get_type_hints

import telegram
from telegram import (
    Bot,
    CallbackQuery,
    Chat,
    LinkPreviewOptions,
    MaybeInaccessibleMessage,
    Message,
    MessageEntity,
    PhotoSize,
    TelegramObject,
    Update,
    User,
    _callbackquery,
    _message,
    _update,
)

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

_OFTEN = (User, Chat, MessageEntity, LinkPreviewOptions, PhotoSize)
"""What is in many messages, and of a class whose `de_json` makes one of itself, never of another."""


class _Unasked:
    __slots__ = ()
    _freeze: Callable[[], None]  # the library's
    __setattr__ = object.__setattr__
    # As long as one of the two is a function in Python, the interpreter takes the long way for both.
    __delattr__ = object.__delattr__

    def _unfrozen(self) -> Self:
        """For `with`, in constructors: the library's is a generator, and unfreezes it before it freezes it."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._freeze()


_UNASKED: dict[type[TelegramObject], Any] = {
    # Of their module too: an error of the interpreter's may name it.
    kind: type(kind.__name__, (_Unasked, kind), {"__slots__": (), "__module__": kind.__module__})
    for kind in (Update, Message, CallbackQuery, *_OFTEN)
}


def _declared() -> tuple[dict[str, tuple[type[TelegramObject], bool]], set[str]]:
    """What the constructor of a message says of its fields.

    Returns:
        Those of objects, with their class, and whether there are several; and those of plain values. A field of anything else
        is in neither.
    """
    parts: dict[str, tuple[type[TelegramObject], bool]] = {}
    values: set[str] = set()
    try:
        hints = get_type_hints(Message.__init__, localns=vars(telegram))
    except NameError:  # of a release to come: the library reads everything then
        return parts, values
    for name, hint in hints.items():
        kinds = {*(get_args(hint) or [hint])} - {type(None)}
        if kinds <= {int, str, bool}:
            values.add(name)
        elif len(kinds) == 1:
            (kind,) = kinds
            are_several = get_origin(kind) is Sequence
            (kind,) = get_args(kind) if are_several else (kind,)
            if isinstance(kind, type) and issubclass(kind, TelegramObject):
                parts[name] = (kind, are_several)
    return parts, values


_PARTS, _VALUES = _declared()


def _named(module: ModuleType) -> itemgetter[Any]:
    """The classes that come often, as a module of the library's has them by name."""
    return itemgetter(
        *(name for name, kind in vars(module).items() if isinstance(kind, type) and kind in _UNASKED)
    )


_NAMED = [(_named(module), vars(module)) for module in (_update, _message, _callbackquery)]


def _makers() -> tuple[object, ...]:
    """All that makes those that are made here, or sees one of them before it is whole."""
    return (
        *[named(names) for named, names in _NAMED],
        *(Update.de_json, Update.__init__, Message.de_json, Message._de_json, Message.__init__),
        *(User.de_json, User.__init__, Chat.de_json, Chat.__init__, PhotoSize.de_json, PhotoSize.__init__),
        *(MessageEntity.de_json, MessageEntity.__init__),
        *(LinkPreviewOptions.de_json, LinkPreviewOptions.__init__, MaybeInaccessibleMessage.__init__),
        *(CallbackQuery.de_json, CallbackQuery.__init__),
        *(TelegramObject._de_json, TelegramObject.__init__, TelegramObject.__setattr__),
        *(TelegramObject.set_bot, TelegramObject._freeze),
        *(Message._unfrozen, Message._unfreeze, PhotoSize._unfrozen, PhotoSize._unfreeze),
        *(User.de_list, PhotoSize.de_list, MessageEntity.de_list),
    )


_THE_LIBRARYS = _makers()


def read_update(data: dict[str, Any], bot: Bot) -> Update:
    """Makes an update.

    Args:
        data: the decoded update; what it holds is used up.
        bot: that its shortcuts call.

    Raises:
        Exception: whatever `Update.de_json` raises of the same; of two things that cannot be read, of either.
    """
    if _makers() != _THE_LIBRARYS:
        # The bot has put its own in the place of one, to see what comes, and must see all of it.
        return Update.de_json(data, bot)
    contents = [
        (kind, read(content, bot))
        for kind, content in data.items()
        if type(content) is dict and (read := _CONTENTS.get(kind)) is not None
    ]
    for kind, _ in contents:
        del data[kind]
    new = _UNASKED[Update]
    update: Update = (new._de_json if data.keys() == {"update_id"} else new.de_json)(data, bot)
    for kind, content in contents:
        setattr(update, kind, content)
    update.__class__ = Update
    return update


def _read_query(data: dict[str, Any], bot: Bot) -> CallbackQuery:
    sender = _read_user(data.pop("from"), bot) if type(data.get("from")) is dict else None
    message = None
    # An inaccessible one has date 0. The library's documentation has an InaccessibleMessage then; so far it makes a Message.
    if type(data.get("message")) is dict and data["message"].get("date"):
        message = _read_message(data.pop("message"), bot)
    query: CallbackQuery = _UNASKED[CallbackQuery].de_json(data, bot)
    if sender is not None:
        query.from_user = sender
    if message is not None:
        query.message = message
    query.__class__ = CallbackQuery
    return query


def _read_message(data: dict[str, Any], bot: Bot) -> Message:
    sender = _read_user(data.pop("from"), bot) if type(data.get("from")) is dict else None
    chat = None
    if data.keys() <= _FIELDS.keys():
        fields = {}
        for field, value in data.items():
            name, read = _FIELDS[field]
            fields[name] = value if read is None or value is None else read(value, bot)
        if type(fields.get("chat")) is dict:
            chat = _read_chat(fields["chat"], bot)
            fields["chat"] = None
        message: Message = _UNASKED[Message]._de_json(fields, bot, {})
    else:
        message = _UNASKED[Message].de_json(data, bot)
    if sender is not None:
        message.from_user = sender
    if chat is not None:
        message.chat = chat
        message._id_attrs = (message.message_id, chat)
    message.__class__ = Message
    return message


_Read = Callable[[Any, Bot], Any]


def _reader(kind: type[TelegramObject]) -> _Read:
    """What reads an object of that class."""
    if kind is Message:
        return lambda data, bot: (_read_message if type(data) is dict else Message.de_json)(data, bot)
    if kind not in _UNASKED:
        present = _present_class(kind)
        return lambda data, bot: present().de_json(data, bot)
    unasked = _UNASKED[kind]

    def read(data: Any, bot: Bot) -> Any:
        if type(data) is not dict:
            return kind.de_json(data, bot)
        made = unasked.de_json(data, bot)
        made.__class__ = kind
        return made

    return read


def _list_reader(kind: type[TelegramObject]) -> _Read:
    """What reads several."""
    if kind not in _UNASKED:
        present = _present_class(kind)
        return lambda data, bot: present().de_list(data, bot)
    read = _reader(kind)

    def read_all(data: Any, bot: Bot) -> Any:
        if type(data) is not list:
            return kind.de_list(data, bot)
        return tuple([read(each, bot) for each in data])

    return read_all


def _present_class(kind: type[TelegramObject]) -> Callable[[], type[TelegramObject]]:
    """The library's, or the one that the bot has put in its place, where `Message.de_json` would find it."""
    names = vars(_message)
    for name, named in names.items():
        if named is kind:
            return lambda: cast("type[TelegramObject]", names[name])
    return lambda: kind


_read_user, _read_chat = _reader(User), _reader(Chat)


def _reader_of(field: str) -> _Read | None:
    """What reads that field of a message; None: it is a plain value, or comes after all others, as the chat does."""
    if field not in _PARTS or field == "chat":
        return None
    kind, are_several = _PARTS[field]
    return (_list_reader if are_several else _reader)(kind)


_FIELDS = {
    # With the very string that the constructor has for it: it compares any other with those of all its arguments, one by one.
    field: (sys.intern(field), _reader_of(field))
    for field in (_VALUES | _PARTS.keys() | {"date"}) - {"from_user"}
}
"""Those of a message in JSON, but for its sender, which has another name there."""

_CONTENTS: dict[str, _Read] = {**dict.fromkeys(_MESSAGES, _read_message), "callback_query": _read_query}
"""For each field of an update that is read here."""
