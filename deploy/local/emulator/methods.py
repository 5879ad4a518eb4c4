"""The Bot API methods about messages, chats and queries.

Each is a function of the chats and the call's parameters that returns the `result`; `METHODS` is the whole list.
Methods about updates and webhooks are the bot's own (`bot.py`). Errors in the server's words, as `Client.cpp` and
TDLib have them.

Does not promise the rest of the Bot API: a method that is not here is 404 "method not found", as on an older server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from deploy.local.emulator.chats import Chats, Json
from deploy.local.emulator.errors import bad_request
from deploy.local.emulator.formatting import MAX_CAPTION, MAX_TEXT, read_text
from deploy.local.emulator.keyboards import is_inline, read_markup
from deploy.local.emulator.parameters import Parameters

Method = Callable[[Chats, Parameters], Any]

CHAT_ACTIONS = frozenset(
    {
        "typing",
        "upload_photo",
        "record_video",
        "upload_video",
        "record_voice",
        "upload_voice",
        "upload_document",
        "choose_sticker",
        "find_location",
        "record_video_note",
        "upload_video_note",
    }
)
NOT_MODIFIED = (
    "message is not modified: specified new message content and reply markup are exactly the same as a current content"
    " and reply markup of the message"
)
_FILE_FIELDS = ("photo", "document", "video", "audio", "voice", "animation", "sticker")


# Sending


def send_message(chats: Chats, call: Parameters) -> Json:
    return _post(chats, call, _read_body(call, "text"))


def _send_file(field: str) -> Method:
    def send(chats: Chats, call: Parameters) -> Json:
        upload = call.file(field)
        if upload is None and not call.text(field):
            raise bad_request(f"there is no {field} in the request")
        content: Json = {field: _describe_file(field, call.text(field), upload)}
        if call.text("caption"):
            content.update(_read_body(call, "caption"))
        return _post(chats, call, content)

    return send


def forward_message(chats: Chats, call: Parameters) -> Json:
    original = _find_source(chats, call, "message to forward not found")
    content = _content_of(original)
    content["forward_origin"] = {"type": "user", "sender_user": original["from"], "date": original["date"]}
    return chats.post(_chat_id(chats, call), content)


def copy_message(chats: Chats, call: Parameters) -> Json:
    content = _content_of(_find_source(chats, call, "message to copy not found"))
    if "caption" in call:
        content.update(_read_body(call, "caption") if call.text("caption") else {"caption": None})
    if (markup := read_markup(call)) is not None:
        content["reply_markup"] = markup
    message = chats.post(
        _chat_id(chats, call), {name: value for name, value in content.items() if value is not None}
    )
    return {"message_id": message["message_id"]}


def send_chat_action(chats: Chats, call: Parameters) -> bool:
    chat_id = _chat_id(chats, call)
    if call.text("action").lower() not in CHAT_ACTIONS:
        raise bad_request("wrong parameter action in request")
    chats.tell("chat_action", chat_id, action=call.text("action"))
    return True


# Changing


def edit_message_text(chats: Chats, call: Parameters) -> Json:
    content = _read_body(call, "text")
    message = _find_own(chats, call, "message to edit not found")
    if "text" not in message:
        raise bad_request("there is no text in the message to edit")
    return _edit(chats, message, {"entities": None, **content}, call)


def edit_message_caption(chats: Chats, call: Parameters) -> Json:
    message = _find_own(chats, call, "message to edit not found")
    if not any(field in message for field in _FILE_FIELDS):
        raise bad_request("there is no caption in the message to edit")
    content = _read_body(call, "caption") if call.text("caption") else {"caption": None}
    return _edit(chats, message, {"caption_entities": None, **content}, call)


def edit_message_reply_markup(chats: Chats, call: Parameters) -> Json:
    return _edit(chats, _find_own(chats, call, "message to edit not found"), {}, call)


def delete_message(chats: Chats, call: Parameters) -> bool:
    chats.remove(_chat_id(chats, call), _message_id(call))
    return True


def delete_messages(chats: Chats, call: Parameters) -> bool:
    chat_id = _chat_id(chats, call)
    ids = call.json("message_ids") or []
    # Bot API documentation: those that cannot be found are skipped.
    for message_id in {message["message_id"] for message in chats.messages(chat_id)} & set(ids):
        chats.remove(chat_id, message_id)
    return True


def pin_chat_message(chats: Chats, call: Parameters) -> bool:
    message = chats.find_message(_chat_id(chats, call), _message_id(call), "message to pin not found")
    chats.tell("pinned", message["chat"]["id"], message)
    return True


def unpin_chat_message(chats: Chats, call: Parameters) -> bool:
    chats.tell("unpinned", _chat_id(chats, call), message_id_given=call.text("message_id"))
    return True


def set_message_reaction(chats: Chats, call: Parameters) -> bool:
    message = chats.find_message(_chat_id(chats, call), _message_id(call), "message to react not found")
    chats.tell("reaction", message["chat"]["id"], message, reaction=call.json("reaction") or [])
    return True


# Answering


def answer_callback_query(chats: Chats, call: Parameters) -> bool:
    chat_id = chats.check_query(call.text("callback_query_id"))
    if len(call.text("text")) > 200:
        raise bad_request("MESSAGE_TOO_LONG")
    chats.tell(
        "callback_answered",
        chat_id,
        callback_query_id=call.text("callback_query_id"),
        text=call.text("text"),
        show_alert=call.flag("show_alert"),
    )
    return True


def _answer_query(field: str) -> Method:
    def answer(chats: Chats, call: Parameters) -> bool:
        chats.tell(
            "query_answered",
            chats.check_query(call.text(field)),
            query_id=call.text(field),
            ok=call.flag("ok"),
        )
        return True

    return answer


# Asking


def get_chat(chats: Chats, call: Parameters) -> Json:
    # Bot API documentation, ChatFullInfo: these are always there.
    chat = chats.find_chat(_chat_id(chats, call))
    gifts = dict.fromkeys(("unlimited_gifts", "limited_gifts", "unique_gifts", "premium_subscription"), True)
    return {
        **chat,
        "accent_color_id": 0,
        "max_reaction_count": 11,
        "accepted_gift_types": {**gifts, "gifts_from_channels": True},
    }


def get_chat_member(chats: Chats, call: Parameters) -> Json:
    _chat_id(chats, call)
    user = chats.find_user(call.integer("user_id"))
    if user is None:
        raise bad_request("PARTICIPANT_ID_INVALID")
    return {"status": "member", "user": user}


METHODS: Mapping[str, Method] = {
    "sendmessage": send_message,
    **{f"send{field}": _send_file(field) for field in _FILE_FIELDS},
    "forwardmessage": forward_message,
    "copymessage": copy_message,
    "sendchataction": send_chat_action,
    "editmessagetext": edit_message_text,
    "editmessagecaption": edit_message_caption,
    "editmessagereplymarkup": edit_message_reply_markup,
    "deletemessage": delete_message,
    "deletemessages": delete_messages,
    "pinchatmessage": pin_chat_message,
    "unpinchatmessage": unpin_chat_message,
    "setmessagereaction": set_message_reaction,
    "answercallbackquery": answer_callback_query,
    "answerinlinequery": _answer_query("inline_query_id"),
    "answerprecheckoutquery": _answer_query("pre_checkout_query_id"),
    "answershippingquery": _answer_query("shipping_query_id"),
    "getchat": get_chat,
    "getchatmember": get_chat_member,
}


def _chat_id(chats: Chats, call: Parameters, name: str = "chat_id") -> int:
    text = call.text(name).strip()
    if not text:
        raise bad_request("chat_id is empty")
    if text.startswith("@"):
        for chat in chats.chats():
            if f"@{chat.get('username', '')}".lower() == text.lower():
                return int(chat["id"])
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise bad_request("chat not found")
    return int(chats.find_chat(int(text))["id"])


def _message_id(call: Parameters) -> int:
    message_id = call.integer("message_id")
    if message_id <= 0:
        raise bad_request("message identifier is not specified")
    return message_id


def _find_own(chats: Chats, call: Parameters, otherwise: str) -> Json:
    message = chats.find_message(_chat_id(chats, call), _message_id(call), otherwise)
    if not chats.is_own(message):
        raise bad_request("message can't be edited")
    return message


def _find_source(chats: Chats, call: Parameters, otherwise: str) -> Json:
    return chats.find_message(_chat_id(chats, call, "from_chat_id"), _message_id(call), otherwise)


def _content_of(message: Json) -> Json:
    skipped = (
        "message_id",
        "from",
        "chat",
        "date",
        "edit_date",
        "reply_to_message",
        "reply_markup",
        "forward_origin",
    )
    return {name: value for name, value in message.items() if name not in skipped}


def _read_body(call: Parameters, field: str) -> Json:
    """Text or caption with its entities; 400 if it is empty or too long."""
    is_text = field == "text"
    if is_text and not call.text(field):
        raise bad_request("message text is empty")
    entities_field = "entities" if is_text else "caption_entities"
    try:
        given = call.json(entities_field)
    except ValueError:
        raise bad_request("can't parse entities JSON object") from None
    text, entities = read_text(call.text(field), call.text("parse_mode"), given)
    if is_text and not text.strip():
        raise bad_request("text must be non-empty")
    if len(text) > (MAX_TEXT if is_text else MAX_CAPTION):
        raise bad_request("message is too long" if is_text else "message caption is too long")
    return {field: text, entities_field: entities} if entities else {field: text}


def _describe_file(field: str, name: str, upload: bytes | None) -> Any:
    file_id = name if upload is None else f"upload-{field}-{hash(upload) & 0xFFFFFFFF:08x}"
    described: Json = {"file_id": file_id, "file_unique_id": file_id[-16:], "file_size": len(upload or b"")}
    match field:
        case "photo":
            return [{**described, "width": 1, "height": 1}]
        case "video" | "animation":
            return {**described, "width": 1, "height": 1, "duration": 1}
        case "audio" | "voice":
            return {**described, "duration": 1}
        case "sticker":
            return {
                **described,
                "width": 1,
                "height": 1,
                "type": "regular",
                "is_animated": False,
                "is_video": False,
            }
        case _:
            return {**described, "file_name": "file"}


def _post(chats: Chats, call: Parameters, content: Json) -> Json:
    chat_id = _chat_id(chats, call)
    markup = read_markup(call)
    if is_inline(markup):
        content["reply_markup"] = markup
    if (replied := _replied_message(chats, call, chat_id)) is not None:
        content["reply_to_message"] = {
            name: value for name, value in replied.items() if name != "reply_to_message"
        }
    if thread := call.integer("message_thread_id"):
        content["message_thread_id"] = thread
    message = chats.post(chat_id, content)
    if markup is not None and not is_inline(markup):
        # A reply keyboard is not part of the message in the API; a page that shows the chat still wants it.
        chats.tell("reply_keyboard", chat_id, message, reply_markup=markup)
    return message


def _replied_message(chats: Chats, call: Parameters, chat_id: int) -> Json | None:
    try:
        parameters = call.json("reply_parameters")
    except ValueError:
        raise bad_request("can't parse reply parameters JSON object") from None
    if not isinstance(parameters, dict):
        parameters = {
            "message_id": call.integer("reply_to_message_id"),
            "allow_sending_without_reply": call.flag("allow_sending_without_reply"),
        }
    message_id = parameters.get("message_id")
    if not isinstance(message_id, int) or message_id <= 0:
        return None
    for message in chats.messages(chat_id):
        if message["message_id"] == message_id:
            return message
    if parameters.get("allow_sending_without_reply"):
        return None
    raise bad_request("message to be replied not found")


def _edit(chats: Chats, message: Json, content: Json, call: Parameters) -> Json:
    markup = read_markup(call)
    changes = {**content, "reply_markup": markup if is_inline(markup) else None}
    if all(_same(message.get(name), value) for name, value in changes.items()):
        raise bad_request(NOT_MODIFIED)
    return chats.change(message, changes)


def _same(old: Any, new: Any) -> bool:
    return (old or None) == (new or None) or json.dumps(old, sort_keys=True) == json.dumps(
        new, sort_keys=True
    )
