"""What `update_reader` makes is what python-telegram-bot makes of the same."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from datetime import datetime
from types import FrameType, MappingProxyType, ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from telegram import (
    Bot,
    Chat,
    InaccessibleMessage,
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

from tests.odd_updates import OddUpdate, odd_updates
from webhook_worker import update_reader
from webhook_worker.update_reader import _FIELDS, _MESSAGES, _UNASKED, read_update
from webhook_worker.updates import decode

BOT = Bot("1:a")

USER = {"id": 7, "is_bot": False, "first_name": "Ann", "language_code": "en", "is_premium": True}
CHAT = {"id": -100, "type": "supergroup", "title": "Cats", "is_forum": True}
BARE = {"message_id": 3, "date": 1768228800, "chat": CHAT}

MESSAGES: dict[str, dict[str, Any]] = {
    "text": {
        **BARE,
        "from": USER,
        "text": "/start",
        "entities": [{"type": "bold", "offset": 0, "length": 2}],
    },
    "nobody's": {**BARE, "sender_chat": CHAT, "text": "news"},
    "null sender": {**BARE, "from": None, "text": "news"},
    "date 0": {**BARE, "from": USER, "date": 0},
    "photo": {
        **BARE,
        "from": USER,
        "photo": [{"file_id": "a", "file_unique_id": "b", "width": 1, "height": 2}],
    },
    "reply": {**BARE, "from": USER, "reply_to_message": {**BARE, "from": USER, "text": "x"}, "text": "y"},
    "unknown fields": {**BARE, "from": {**USER, "aura": 1}, "text": "x", "telepathy": {"on": [True]}},
    "field of ours": {**BARE, "from": USER, "from_user": "x", "text": "x"},
    "edited": {**BARE, "from": USER, "text": "x", "edit_date": 1768228900},
    "service": {**BARE, "from": USER, "new_chat_members": [USER], "pinned_message": {**BARE, "text": "x"}},
    "keyboard": {
        **BARE,
        "from": USER,
        "reply_markup": {"inline_keyboard": [[{"text": "a", "callback_data": "b"}]]},
    },
    "from a bot": {**BARE, "from": {**USER, "can_join_groups": True}, "via_bot": USER, "text": "x"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "button": {"callback_query": {"id": "1", "from": USER, "chat_instance": "x", "data": "y", "message": MESSAGES["text"]}},
    "old button": {"callback_query": {"id": "1", "from": USER, "chat_instance": "x", "message": MESSAGES["date 0"]}},
    "button of nobody": {"callback_query": {"id": "1", "chat_instance": "x", "inline_message_id": "y", "from": None}},
    "inline": {"inline_query": {"id": "1", "from": USER, "query": "x", "offset": ""}},
    "future": {"a_kind_of_the_future": {"from": USER}},
    "two kinds": {"message": MESSAGES["text"], "edited_message": MESSAGES["reply"]},
    "null": {"message": None, "edited_message": MESSAGES["text"]},
    "nothing": {},
}  # fmt: skip
BROKEN: dict[str, object] = {
    "no message": "hello",
    "a list": [MESSAGES["text"]],
    "empty": {},
    "no id": {"date": 1, "chat": CHAT, "from": USER},
    "sender without a name": {**BARE, "from": {"id": 7}},
    "sender of another type": {**BARE, "from": "Ann"},
    "sender is a list": {**BARE, "from": [USER]},
    "date of another type": {**BARE, "date": "x", "from": USER},
    "name of an argument": {**BARE, "from": USER, "api_kwargs": {}},
    "sender with one": {**BARE, "from": {**USER, "api_kwargs": {}}},
}


def parts(value: object) -> object:
    """All that an object of the library is made of, as plain values: each class, and each attribute, private ones too."""
    match value:
        case TelegramObject():
            names = sorted({name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())})
            return type(value), {name: parts(getattr(value, name, "unset")) for name in names}
        case tuple() | list():
            return type(value), [parts(each) for each in value]
        case dict() | MappingProxyType():
            return type(value), {key: parts(each) for key, each in value.items()}
        case Bot():
            return id(value)
        case datetime():
            return repr(value)
        case float():
            return repr(value)
        case _:
            return type(value), value


def made_by(make: Callable[[dict[str, Any], Bot], Update], data: dict[str, Any]) -> object:
    """Its parts; or how it failed."""
    try:
        return parts(make(copy.deepcopy(data), BOT))
    except Exception as exc:  # noqa: BLE001 - whichever it is: it is compared
        return f"{type(exc).__name__}: {exc}"


def both(data: dict[str, Any]) -> tuple[object, object]:
    """What we make, and what the library does."""
    return made_by(read_update, data), made_by(Update.de_json, data)


@pytest.mark.parametrize("kind", _MESSAGES)
@pytest.mark.parametrize("name", MESSAGES)
def test_message_is_what_the_library_makes(name: str, kind: str) -> None:
    """In every part, whatever is in it."""
    ours, its = both({"update_id": 5, kind: MESSAGES[name]})
    assert ours == its
    assert not isinstance(its, str)


@pytest.mark.parametrize("value", [None, 0, 7, "x", True, [], [None], [{}], {}, {"id": 1}, USER], ids=repr)
def test_every_field_is_read_as_by_the_library(value: object) -> None:
    """Whatever it holds, and the same error where the library refuses it: that names the class."""
    for name in sorted(_FIELDS):
        ours, its = both({"update_id": 5, "message": {**BARE, "from": USER, name: value}})
        assert ours == its, name


def test_all_fields_are_known() -> None:
    """But the few that are neither plain values nor objects; the library reads a message that has one."""
    fields = Message.__init__.__annotations__.keys() - {"from_user", "api_kwargs"}
    assert fields - _FIELDS.keys() == {"edit_date"}


@pytest.mark.parametrize(
    ("name", "times"),
    [("text", 0), ("nobody's", 0), ("reply", 0), ("photo", 0), ("edited", 1), ("unknown fields", 1)],
)
def test_message_is_not_searched_for_what_it_has_not(name: str, times: int) -> None:
    """It takes longer than all that is read."""
    searched = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is Message.de_json.__code__:
            searched.append(frame)

    data = copy.deepcopy({"update_id": 5, "message": MESSAGES[name]})
    sys.setprofile(note)
    try:
        read_update(data, BOT)
    finally:
        sys.setprofile(None)
    assert len(searched) == times


def test_interpreter_sets_attributes_itself() -> None:
    """It calls a function for each, and be it object's own, as long as a class has one of Python's for setting or deleting."""
    for kind in _UNASKED.values():
        assert kind.__setattr__ is object.__setattr__
        assert kind.__delattr__ is object.__delattr__


def test_constructor_finds_the_arguments_of_a_message_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have its own strings for names, and no others that are equal, which it would compare with each of its own."""
    make = _UNASKED[Message]._de_json
    names: list[str] = []

    def note(data: dict[str, Any], *others: Any) -> object:
        names.extend(data)
        return make(data, *others)

    monkeypatch.setattr(_UNASKED[Message], "_de_json", note)
    read_update(decode(msgspec.json.encode({"update_id": 5, "message": MESSAGES["text"]})), BOT)
    assert {*names} == MESSAGES["text"].keys() - {"from"}
    assert {*map(id, names)} <= {*map(id, Message.__init__.__code__.co_varnames)}


@pytest.mark.parametrize("name", OTHERS)
def test_update_is_what_the_library_makes(name: str) -> None:
    """Also of another kind."""
    ours, its = both({"update_id": 5, **OTHERS[name]})
    assert ours == its
    assert not isinstance(its, str)


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_fails_as_in_the_library(name: str) -> None:
    """With the same error."""
    ours, its = both({"update_id": 5, "message": BROKEN[name]})
    assert ours == its
    assert isinstance(its, str)


@given(odd_updates(kinds=(*_MESSAGES, "callback_query", "poll_answer")))
def test_odd_updates_are_what_the_library_makes(odd: OddUpdate) -> None:
    """Of any JSON."""
    try:
        data = decode(odd.body)
    except (ValueError, RecursionError):
        return
    ours, its = both(data)
    # Of two kinds that are both broken, either may be the first that is found.
    assert ours == its or (isinstance(ours, str) and isinstance(its, str))


def test_every_kind_that_holds_a_message_is_known() -> None:
    """Those of the library's Update that are made of a message."""
    kinds = [kind for kind, of in Update.__init__.__annotations__.items() if of == Message | None]
    assert sorted(kinds) == sorted(_MESSAGES)


def test_objects_are_frozen_and_travel() -> None:
    """As the library's own: nothing can be set, and a persistence may keep them."""
    update = read_update({"update_id": 5, "message": copy.deepcopy(MESSAGES["text"])}, BOT)
    message = update.message
    assert message is not None
    assert message.from_user is not None
    for each, name in ((update, "update_id"), (message, "text"), (message.from_user, "first_name")):
        with pytest.raises(AttributeError, match="can't be set"):
            setattr(each, name, 1)
    assert parts(pickle.loads(pickle.dumps(update)).message.from_user)
    assert copy.deepcopy(message) == message
    assert hash(message) == hash(copy.deepcopy(message))
    assert message.get_bot() is BOT
    assert update.effective_user is message.from_user


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Update, "de_json"),
        (Update, "__init__"),
        (Message, "de_json"),
        (Message, "__init__"),
        (User, "de_json"),
        (Chat, "__init__"),
        (MessageEntity, "de_json"),
        (TelegramObject, "__init__"),
        (TelegramObject, "set_bot"),
        (TelegramObject, "_freeze"),
        (TelegramObject, "_unfrozen"),
        (TelegramObject, "_unfreeze"),
        (Message, "_unfrozen"),
        (Message, "_unfreeze"),
        (PhotoSize, "_unfrozen"),
        (PhotoSize, "_unfreeze"),
        (MessageEntity, "de_list"),
    ],
)
def test_bots_own_function_sees_all_of_it(
    kind: type[TelegramObject], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of the library's, as bots put them there to log what comes."""
    original, seen = getattr(kind, name), []
    of_the_class = name in ("de_json", "de_list")

    def wrapped(first: object, *args: Any, **kwargs: Any) -> object:
        made = original(*args, **kwargs) if of_the_class else original(first, *args, **kwargs)
        whole = (made[0] if name == "de_list" else made) if of_the_class else first
        seen.append((type(whole), getattr(whole, "message", None), getattr(whole, "from_user", None)))
        return made

    data = {"update_id": 5, "message": {**MESSAGES["text"], **MESSAGES["photo"]}}
    expected = made_by(Update.de_json, data)
    monkeypatch.setattr(kind, name, classmethod(wrapped) if of_the_class else wrapped)
    assert made_by(read_update, data) == expected
    kinds = {each[0] for each in seen}
    unfreezes = name in ("_unfrozen", "_unfreeze")
    of_all = {Message, PhotoSize} if unfreezes else {Update, Message, User}
    assert kinds >= (of_all if kind is TelegramObject else {kind})
    if kind in (Update, Message) and not unfreezes:
        assert all(message or sender for _, message, sender in seen)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *((_update, each) for each in ("Message", "CallbackQuery")),
        *((_callbackquery, each) for each in ("Message", "User")),
        *((_message, each) for each in ("User", "Chat", "MessageEntity", "InlineKeyboardMarkup")),
    ],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_bots_own_class_is_the_one_that_is_made(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it stands in the place of the library's, which has no other way to have one."""
    original = getattr(module, name)
    own = type(name, (original,), {"__slots__": ()})
    message = {**MESSAGES["text"], **MESSAGES["keyboard"]}
    data = {"update_id": 5, "message": message, "callback_query": OTHERS["button"]["callback_query"]}
    before = made_by(Update.de_json, data)
    monkeypatch.setattr(module, name, own)
    ours, its = both(data)
    assert ours == its
    assert its != before


def test_class_of_an_inaccessible_message_is_the_librarys_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a release that makes what it says. This one makes a Message that has nothing."""
    monkeypatch.setattr(_callbackquery, "Message", MaybeInaccessibleMessage)
    monkeypatch.setattr(update_reader, "_THE_LIBRARYS", update_reader._makers())
    update = read_update({"update_id": 5, **copy.deepcopy(OTHERS["old button"])}, BOT)
    assert update.callback_query is not None
    assert type(update.callback_query.message) is InaccessibleMessage
    for name in ("old button", "button"):
        ours, its = both({"update_id": 5, **OTHERS[name]})
        assert ours == its
