"""What is read of an update before it is stored, and what is refused as none."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook_worker.updates import MalformedUpdate, UpdateKey, read_key


def key_of(text: str) -> UpdateKey:
    return read_key(text.encode())


@pytest.mark.parametrize(
    ("content", "lane"),
    [
        (
            '"message": {"message_id": 1, "from": {"id": 7}, "chat": {"id": -1001234567890}, "text": "hi"}',
            -1001234567890,
        ),
        ('"edited_channel_post": {"chat": {"id": -5}}', -5),
        ('"callback_query": {"id": "9", "from": {"id": 7}, "message": {"chat": {"id": 8}}}', 8),
        ('"callback_query": {"id": "9", "from": {"id": 7}, "inline_message_id": "x"}', 7),
        ('"inline_query": {"id": "9", "from": {"id": 7}, "query": ""}', 7),
        ('"poll_answer": {"poll_id": "1", "user": {"id": 7}}', 7),
        ('"business_connection": {"id": "1", "user": {"id": 7}, "user_chat_id": 7}', 7),
        ('"message_reaction": {"chat": {"id": 3}, "user": {"id": 7}}', 3),
        ('"a_kind_of_the_future": {"chat": {"id": 3}}', 3),
        ('"poll": {"id": "1", "question": "?"}', None),
        ('"message": {"chat": {"id": "3"}}', None),
        ('"message": {"chat": {"id": 9223372036854775808}}', None),
        ('"message": {"chat": [3]}', None),
        ('"message": {"chat": null, "from": {"id": 7}}', 7),
        ('"message": null', None),
        ('"message": "text"', None),
        ('"message": {}', None),
        ('"message": {"from": {"id": 9223372036854775808}, "chat": {"id": 3}}', 3),
        ('"message": {"chat": {"id": "3"}, "from": {"id": 7}}', 7),
        ('"message": {"chat": {}, "chat": {"id": 3}}', 3),
        ('"callback_query": {"from": "me", "message": {"chat": {"id": 8}}}', 8),
    ],
)
def test_lane_is_chat_else_user_else_none_for_any_kind(content: str, lane: int | None) -> None:
    """The lane is found without knowing the kind; what is odd has none, and is no error."""
    assert key_of(f'{{"update_id": 5, {content}}}') == UpdateKey(5, lane)
    assert key_of(f'{{{content}, "update_id": 5}}') == UpdateKey(5, lane)


@pytest.mark.parametrize("update_id", [0, -1, 2**31, 2**63 - 1, -(2**63)])
def test_update_id_within_int64_is_taken(update_id: int) -> None:
    """The whole range of the column."""
    assert key_of(f'{{"update_id": {update_id}}}') == UpdateKey(update_id, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{}",
        b'{"update_id": 5',
        b'{"update_id": 5}x',
        b'{"update_id": 5,}',
        b"{'update_id': 5}",
        b'{"update_id": 5.0}',
        b'{"update_id": 5e0}',
        b'{"update_id": "5"}',
        b'{"update_id": true}',
        b'{"update_id": null}',
        b'{"update_id": [5]}',
        b'{"update_id": 05}',
        b'{"update_id": 9223372036854775808}',
        b'{"update_id": -9223372036854775809}',
        b'{"update_id": ' + b"9" * 5000 + b"}",
        b'{"update_id": NaN}',
        b'{"update_id": 5, "message": {"text": NaN}}',
        b'{"Update_id": 5}',
        b'{"message": {"update_id": 5}}',
        b'{"update_id": 5, "update_id": "x"}',
        b'\xef\xbb\xbf{"update_id": 5}',
        b'{"update_id": 5, "message": {"text": "\xff"}}',
        b'{"update_id": 5, "message": {"text": "\xed\xa0\x80"}}',
        b'{"update_id": 5, "message": {"text": "\xc0\x80"}}',
        b'{"update_id": 5, "message": {"text": "\\x"}}',
        b'{"update_id": 5, "message": {"text": "\\ud8"}}',
        b'{"update_id": 5, \\ud800 "message": 5}',
        b'{"update_id": 5, "message": {"text": "\x00"}}',
        '{"update_id": 5}'.encode("utf-16"),
    ],
)
def test_what_is_no_update_is_refused(body: bytes) -> None:
    """Not UTF-8, not JSON, not an object, or no integer update_id within int64."""
    with pytest.raises(MalformedUpdate):
        read_key(body)


@pytest.mark.parametrize(
    "text",
    [
        r"\ud800",
        r"\udc00",
        r"\ud800A",
        r"\udc00\ud800",
        r"\ud83d\ude00 \ud83d",
        r"\\ud800 \ud800",
        r"\\\ud800",
        r"\u0000",
        "\U0001f600",
        r"\" } ] \ud800",
    ],
)
def test_legal_json_that_strict_decoders_refuse_is_stored(text: str) -> None:
    """A refused update would be sent again for a day, and hold up the queue behind it."""
    body = f'{{"update_id": 5, "message": {{"text": "{text}", "chat": {{"id": 3}}}}}}'
    json.loads(body)
    assert key_of(body) == UpdateKey(5, 3)


def test_lone_surrogate_in_another_place_than_a_text() -> None:
    """Also as a key, also at the top."""
    assert key_of(r'{"\ud800": 1, "update_id": 5, "message": {"\udc00": 1, "chat": {"id": 3}}}') == UpdateKey(
        5, 3
    )


@pytest.mark.parametrize("depth", [50, 101, 900, 1100, 50_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_does_not_hide_the_key(depth: int, opening: str, closing: str) -> None:
    """Whether the bot can read it is for the bot to say."""
    deep = opening * depth + "1" + closing * depth
    body = f'{{"update_id": 5, "message": {{"chat": {{"id": 3}}, "deep": {deep}, "text": "]}}"}}}}'
    assert key_of(body) == UpdateKey(5, 3)


def test_deep_nesting_that_does_not_close_is_refused() -> None:
    """It is no JSON."""
    with pytest.raises(MalformedUpdate):
        key_of('{"update_id": 5, "message": ' + "[" * 5000)


def test_the_last_of_duplicate_keys_counts_as_in_the_bot() -> None:
    """Python's decoder, which the bot uses, takes the last one."""
    body = '{"update_id": 1, "update_id": 2, "message": {"chat": {"id": 3}, "chat": {"id": 4}}}'
    assert json.loads(body)["update_id"] == 2
    assert key_of(body) == UpdateKey(2, 4)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    update_id=st.integers(-(2**63), 2**63 - 1),
    kind=st.text(min_size=1, max_size=12).filter(lambda kind: kind != "update_id"),
    content=st.dictionaries(
        st.sampled_from(["chat", "from", "user", "message", "x"]),
        _json | st.fixed_dictionaries({"id": _json}),
    ),
    ascii_only=st.booleans(),
    seed=st.integers(),
)
def test_any_json_object_with_an_id_is_an_update(
    update_id: int, kind: str, content: dict[str, object], ascii_only: bool, seed: int
) -> None:
    """No content, however odd, keeps an update from being stored."""
    items: list[tuple[str, object]] = [("update_id", update_id), (kind, content)]
    random.Random(seed).shuffle(items)
    assert (
        read_key(json.dumps(dict(items), ensure_ascii=ascii_only).encode("utf-8", "replace")).update_id
        == update_id
    )


@given(st.binary(max_size=200))
def test_anything_else_is_refused_by_the_one_error(body: bytes) -> None:
    """Whatever comes, it is an update or MalformedUpdate."""
    try:
        read_key(body)
    except MalformedUpdate:
        return
