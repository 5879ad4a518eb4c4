"""What is read of an update is what the bot's own decoder finds in it, however odd the update is; anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.odd_updates import INT64, OddUpdate, damaged, odd_updates
from webhook_worker.updates import MAX_BODY_BYTES, MalformedUpdate, UpdateKey, decode, read_key, split

DEEP = 100
"""Deeper than this `read_key` does not look."""


def key_of(body: bytes) -> UpdateKey | None:
    """What is read, None for what is refused; any other exception is a bug."""
    try:
        return read_key(body)
    except MalformedUpdate:
        return None


def python_finds(body: bytes) -> Any:
    """The update as Python's decoder has it, which the bot uses.

    Raises:
        RecursionError: it is nested too deep for it.
        ValueError: it is no JSON, or holds a number that is too long for it.
    """
    return json.loads(body.decode("utf-8"), parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@settings(max_examples=200)
@given(odd_updates())
def test_any_update_is_taken_and_has_one_number_for_everybody(update: OddUpdate) -> None:
    """Depth, duplicate keys, escapes, surrogates and numbers of any size keep no update from being stored."""
    key = key_of(update.body)
    assert key is not None
    assert key.update_id == update.update_id
    try:
        found = python_finds(update.body)
    except (RecursionError, ValueError):
        return  # a dead letter, with this reason
    assert found["update_id"] == update.update_id


def as_decoded(decoder: Callable[[bytes], Any], body: bytes) -> str:
    """What a decoder makes of a body; of what it refuses, that it does."""
    try:
        return repr(decoder(body))
    except (RecursionError, ValueError):
        return "refused"


@settings(max_examples=300)
@given(st.one_of(odd_updates().map(lambda update: update.body), damaged()))
@example(b'{"update_id": 1, "a": 1e400, "b": "\\ud83d", "c": NaN}')
@example(b'{"update_id": 1, "a": 1, "a": 1.0, "b": -0.0, "c": ' + b"9" * 40 + b"}")
@example(b"[" * 2000 + b"]" * 2000)
def test_the_bot_sees_what_python_decodes(body: bytes) -> None:
    """The faster decoder is no other one."""
    assert as_decoded(decode, body) == as_decoded(json.loads, body)


@settings(max_examples=300)
@given(damaged())
def test_what_is_damaged_is_taken_only_if_it_is_an_update_all_the_same(body: bytes) -> None:
    """The bot's decoder and ours agree, both ways."""
    key = key_of(body)
    try:
        found = python_finds(body)
    except RecursionError:
        return
    except ValueError as exc:
        is_for_python_alone = "integer string conversion" in str(exc)
        assert key is None or is_for_python_alone or body.count(b"[") + body.count(b"{") > DEEP
        return
    update_id = found.get("update_id") if isinstance(found, dict) else None
    is_update = type(update_id) is int and -(2**63) <= update_id < 2**63
    assert (key is not None) == is_update
    assert key is None or key.update_id == update_id


@given(odd_updates(kinds=["message"]), INT64, st.booleans())
def test_the_lane_is_the_chat_whatever_else_a_message_holds(
    update: OddUpdate, chat_id: int, has_chat: bool
) -> None:
    """An identifier outside int64, a field that comes twice: the chat that the bot finds is the one whose order counts."""
    body = update.body
    if has_chat:
        chat = b'"message":{"chat":{"type":"private","id":%d},' % chat_id
        body = body.replace(b'"message":{', chat, 1).replace(b",}", b"}")
    found = _chat_of_message(body)
    key = key_of(body)
    assert key is not None
    assert found is None or key.lane == found


def _chat_of_message(body: bytes) -> int | None:
    """The message's chat, as the bot sees it, where it is an integer within int64."""
    try:
        chat_id = python_finds(body)["message"]["chat"]["id"]
    except (RecursionError, ValueError, TypeError, KeyError):
        return None
    return chat_id if type(chat_id) is int and -(2**63) <= chat_id < 2**63 else None


@pytest.mark.parametrize(
    ("opening", "filler"),
    [
        (b'{"update_id": 5, "text": "', b'\\"'),
        (b'{"update_id": 5, "text": "', b'\\\\"'),
        (b'{"update_id": 5, "text": "', b"\\ud800"),
        (b'{"update_id": 5, "text": "\\ud800", "more": ', b"["),
        (b'{"update_id": 5, "text": "\\ud800", "more": ', b'{"":'),
        (b'{"update_id": 5, "text": "\\ud800", "more": "', b"x"),
        (b'{"update_id": ', b"9"),
        (b'{"update_id": 5, "more": ', b'["],'),
    ],
)
def test_b29_bad_json_of_the_largest_size_is_refused_cheaply(opening: bytes, filler: bytes) -> None:
    """No way to read it takes more than time in proportion to its size; else this would take hours."""
    body = opening + filler * ((MAX_BODY_BYTES - len(opening)) // len(filler))
    assert key_of(body) is None


@settings(max_examples=200)
@given(st.lists(odd_updates(), max_size=4), st.sampled_from([b",", b",\n", b" , "]))
def test_an_answer_to_get_updates_is_taken_apart_into_what_it_was_made_of(
    updates: list[OddUpdate], comma: bytes
) -> None:
    """To the byte, whatever is in one of them; cut off anywhere it is no answer."""
    bodies = [update.body.strip() for update in updates]
    answer = b'{"ok":true,"description":"[{}]","result":[' + comma.join(bodies) + b"]}"
    assert split(answer) == bodies
    for end in range(len(answer) - 1, 0, -max(1, len(answer) // 20)):
        with pytest.raises(MalformedUpdate):
            split(answer[:end])
