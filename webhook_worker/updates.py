"""What an update's body must be, and what is read of it before it is stored: its id, and its lane. Pure.

The body itself is stored as it came. Only two things are read, without building objects (a microsecond or two, where
`Update.de_json` takes a hundred):

    update_id   a JSON integer within int64; not 5.0, not "5", not true
    lane        of the first object in the update: its chat, else its message's chat, else its sender, else its user; so it
                serves kinds of updates that do not exist yet. None (a lane of its own) where there is no such thing

Whatever else is strange in an update must not keep it from being stored: Telegram would send a refused one again for 24 hours,
and stop the queue behind it. So JSON is taken in its widest legal sense: lone surrogates written as escapes, which strict
decoders refuse; duplicate keys, where the last one counts, as for Python's own decoder; any depth. Telegram's updates take one
pass of the decoder; whatever it refuses is read again, piece by piece.

Not promised: that the bot can handle what is stored. What it cannot handle becomes a dead letter, with the reason; so does what
is no JSON below the depth at which no update has anything.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import msgspec
from msgspec import Struct

from shared.errors import SupervisorError

MAX_BODY_BYTES = 1024 * 1024
"""Telegram's updates have at most 64 KiB (TELEGRAM.md, "size"); a self-hosted server may differ, but not by this much."""

_OBJECT = ord("{")
_INT64 = range(-(2**63), 2**63)
# The decoder gives up at a thousand levels or so; an update has about a dozen.
_DEPTH_READ = 100

# Possessive: what was matched is not looked at again, so they keep nothing and take time in proportion to the body.
# An escape is one where an even number of backslashes stands before it. A string that does not end goes on to the end of the
# body: were it no match, the search would begin anew at every quotation mark in it, and take hours for a body of 1 MiB.
_SURROGATE_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*+)\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)

_Id = Annotated[int, msgspec.Meta(ge=_INT64.start, le=_INT64.stop - 1)]


class MalformedUpdate(SupervisorError):
    """The body is not JSON, or has no integer `update_id`: whoever sent it is not Telegram. Answer 400."""


class UpdateKey(Struct, frozen=True):
    """What the inbox knows of an update."""

    update_id: int
    lane: int | None


class _Party(Struct):
    id: _Id


class _Message(Struct):
    chat: _Party | None = None


class _Content(Struct, rename={"sender": "from"}):
    chat: _Party | None = None
    message: _Message | None = None
    sender: _Party | None = None
    user: _Party | None = None


_decode_usual = msgspec.json.Decoder(dict[str, _Content | int]).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_content = msgspec.json.Decoder(_Content).decode
_decode_id = msgspec.json.Decoder(_Id).decode


def read_key(body: bytes) -> UpdateKey:
    """Reads the id and the lane of an update.

    Raises:
        MalformedUpdate: see there. The message quotes nothing of the body.
    """
    try:
        if not body.isascii():
            # The decoder skips strings without looking into them; Python's, in the bot, does look.
            body.decode("utf-8")
        fields = _decode_usual(body)
    except UnicodeDecodeError:
        raise MalformedUpdate("not UTF-8") from None
    except (msgspec.DecodeError, RecursionError):
        return _read_odd_key(body)
    update_id = fields.pop("update_id", None)
    if not isinstance(update_id, int) or update_id not in _INT64:
        raise _no_update_id()
    for content in fields.values():
        if isinstance(content, _Content):
            return UpdateKey(update_id, _lane(content))
    return UpdateKey(update_id, None)


def split(answer: bytes) -> list[bytes]:
    """The updates in an answer to getUpdates, each as it came: as a delivery to a webhook would have been.

    By brackets alone, since nothing in one update must keep the others from being stored.

    Raises:
        MalformedUpdate: the answer holds no list, or is cut off.
    """
    found: list[bytes] = []
    opened: list[bytes] = []
    begin, is_list = 0, False
    for match in _BRACKET.finditer(answer):
        bracket = match.group()
        if bracket in (b"{", b"["):
            if opened == [b"{", b"["] and bracket == b"{":
                begin = match.start()
            opened.append(bracket)
            is_list = is_list or opened == [b"{", b"["]
        elif bracket in (b"}", b"]"):
            if opened == [b"{", b"[", b"{"]:
                found.append(answer[begin : match.end()])
            del opened[-1:]
    if opened or not is_list:
        raise MalformedUpdate("not an answer to getUpdates")
    return found


def decode(body: bytes) -> Any:
    """The whole of a body, as `json.loads` has it, in a third of its time.

    Raises:
        ValueError: it is no JSON, or holds a number that is too long.
        RecursionError: it is nested too deep.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return json.loads(body)  # lone surrogates, numbers beyond a float, and whatever else only it takes


def _read_odd_key(body: bytes) -> UpdateKey:
    """The same for any body in UTF-8, piece by piece, so that one odd thing does not hide the others."""
    fields = _read_fields(body)
    try:
        update_id = _decode_id(fields.pop("update_id"))
    except (msgspec.DecodeError, KeyError):
        raise _no_update_id() from None
    for raw in fields.values():
        if memoryview(raw)[0] == _OBJECT:
            try:
                return UpdateKey(update_id, _lane(_decode_content(raw)))
            except (msgspec.DecodeError, RecursionError):
                return UpdateKey(update_id, _lane_of_odd(raw))
    return UpdateKey(update_id, None)


def _no_update_id() -> MalformedUpdate:
    return MalformedUpdate("no integer update_id within 64 bits")


def _read_fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _decode_fields(body)
    except (msgspec.DecodeError, RecursionError):
        pass  # once more, without what is legal and yet refused
    try:
        return _decode_fields(_without_depth(_without_lone_surrogates(body)))
    except (msgspec.DecodeError, RecursionError):
        raise MalformedUpdate("not a JSON object") from None


def _lane(content: _Content) -> int | None:
    message = content.message
    for party in (content.chat, message.chat if message else None, content.sender, content.user):
        if party is not None:
            return party.id
    return None


def _lane_of_odd(content: msgspec.Raw) -> int | None:
    """The same where one of these is not what it should be: the others are read all the same, one by one."""
    for path in (("chat", "id"), ("message", "chat", "id"), ("from", "id"), ("user", "id")):
        raw = content
        try:
            for name in path:
                raw = _decode_fields(raw)[name]
            return _decode_id(raw)
        except (msgspec.DecodeError, RecursionError, KeyError):
            continue
    return None


def _without_lone_surrogates(body: bytes) -> bytes:
    """Every escape of a surrogate replaced by "?": which of them are pairs does not matter for what is read here."""
    return _SURROGATE_ESCAPE.sub(rb"\1?", body)


def _without_depth(body: bytes) -> bytes:
    """What is nested deeper than an update can be, replaced by null."""
    depth = 0
    kept: list[bytes] = []
    begin = 0
    for match in _BRACKET.finditer(body):
        bracket = match.group()
        if bracket in (b"{", b"["):
            depth += 1
            if depth == _DEPTH_READ + 1:
                kept += (body[begin : match.start()], b"null")
                begin = len(body)
        elif bracket in (b"}", b"]"):
            if depth == _DEPTH_READ + 1:
                begin = match.end()
            depth -= 1
    return b"".join((*kept, body[begin:]))
