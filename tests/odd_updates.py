"""Updates as nobody has sent them yet, for tests of everybody who reads one: JSON in its widest legal sense, as hypothesis
strategies of bytes.

Written by hand and not by `json.dumps`, which never writes a key twice, a number of 400 digits, half a surrogate pair as an
escape, or a blank where it is allowed. What the strategies make is valid (by RFC 8259, a number may be of any size, and an
escape of a lone surrogate is grammatical), but for `damaged`.

Not promised: updates that a bot can make sense of.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

INT64 = st.integers(-(2**63), 2**63 - 1)

KNOWN_KINDS = (
    "message",
    "edited_channel_post",
    "callback_query",
    "inline_query",
    "poll_answer",
    "my_chat_member",
    "chat_member",
    "message_reaction",
    "business_message",
    "shipping_query",
    "removed_chat_boost",
)
UNKNOWN_KINDS = (
    "a_kind_of_the_future",
    "Message",
    "update_ids",
    "",
    "\U0001f600",
    "ключ",
    "__class__",
    "self",
)


@dataclass(frozen=True, slots=True)
class OddUpdate:
    """An update's bytes, and the number that everybody has to find in it."""

    update_id: int
    body: bytes


def quoted(text: str) -> str:
    """As a JSON string."""
    return json.dumps(text, ensure_ascii=False)


# Parts of a string, as they are written: escapes of every kind, whole and half surrogate pairs, brackets, quotation marks.
_written = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=6),
    st.sampled_from(
        [
            *(r"\u0000", r"\ud800", r"\uDC00", r"\udc00\ud800", r"\ud83d\ude00", r"\\ud800", r"\u005f"),
            *(r"\"", r"\\", r"\/", r"\n", "{", "}", "[", "]", "\u2028", "\x7f", "\U0001f600", "/start"),
        ]
    ),
)
strings = st.lists(_written, max_size=6).map(lambda parts: f'"{"".join(parts)}"')
numbers = st.one_of(
    st.integers(-(2**66), 2**66).map(str),
    st.sampled_from(
        [
            "-0",
            "0.0",
            "1e400",
            "-1E+400",
            "1e-400",
            "5e0",
            "1" + "0" * 400,
            "-" + "9" * 5000,
            "0." + "3" * 5000,
        ]
    ),
)


def _deep(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


nests = st.builds(
    lambda depth, brackets: _deep(depth, *brackets),
    st.sampled_from([20, 99, 100, 101, 400, 990, 3000, 30_000]),
    st.sampled_from([("[", "]"), ('{"chat":', "}"), ('[{"":', "}]")]),
)
_blanks = st.sampled_from(["", "", "", " ", "\n\t\r "])


def _object(members: Sequence[tuple[str, str]], blank: str) -> str:
    inner = f"{blank},{blank}".join(f"{name}{blank}:{blank}{value}" for name, value in members)
    return f"{{{blank}{inner}{blank}}}"


def objects(names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects with such names, which may come twice."""
    return st.builds(_object, st.lists(st.tuples(names, values), max_size=5), _blanks)


values = st.recursive(
    st.one_of(strings, numbers, nests, st.sampled_from(["null", "true", "false"])),
    lambda inner: st.one_of(
        st.builds("[{}]".format, st.lists(inner, max_size=3).map(",".join)), objects(strings, inner)
    ),
    max_leaves=6,
)

_ids = st.one_of(st.integers(-(2**63), 2**63 - 1).map(str), values)
_parties = st.one_of(objects(st.sampled_from(['"id"', '"type"', '"first_name"', '"is_bot"']), _ids), values)
_FIELDS = (
    *("chat", "from", "user", "message", "sender_chat", "new_chat_member", "date", "edit_date", "text"),
    *("entities", "message_id", "id", "poll_id", "query", "option_ids", "business_connection_id", "data"),
)
payloads = st.one_of(objects(st.sampled_from([*map(quoted, _FIELDS), '"ch\\u0061t"']), _parties), values)


@st.composite
def odd_updates(draw: st.DrawFn, kinds: Sequence[str] = (*KNOWN_KINDS, *UNKNOWN_KINDS)) -> OddUpdate:
    """Any update with an update_id within int64, which may come several times (the last counts), in any place."""
    update_id = draw(INT64)
    others = draw(st.lists(st.tuples(st.sampled_from(kinds).map(quoted), payloads), max_size=3))
    earlier = draw(st.lists(values, max_size=1))
    name = draw(st.sampled_from(['"update_id"', r'"update\u005fid"']))
    members = [*others, *(('"update_id"', value) for value in earlier)]
    # Not of the members themselves: hypothesis would write all of them into the name of the strategy.
    members = [members[at] for at in draw(st.permutations(range(len(members))))]
    last = max((at for at, member in enumerate(members) if member[0] == '"update_id"'), default=-1)
    members.insert(draw(st.integers(last + 1, len(members))), (name, str(update_id)))
    blank = draw(_blanks)
    return OddUpdate(update_id, (blank + _object(members, blank) + blank).encode())


@st.composite
def odd_contents(draw: st.DrawFn, kinds: Sequence[str] = (*KNOWN_KINDS, *UNKNOWN_KINDS)) -> bytes:
    """The same without an update_id: what the Bot API server puts a number to."""
    members = draw(st.lists(st.tuples(st.sampled_from(kinds).map(quoted), payloads), max_size=2))
    blank = draw(_blanks)
    return (blank + _object(members, blank) + blank).encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The bytes of an update, of which something is missing, changed, doubled or added: often no JSON any more."""
    body = draw(odd_updates()).body
    begin = draw(st.integers(0, len(body)))
    end = draw(st.integers(begin, min(len(body), begin + 3)))
    new = draw(
        st.one_of(
            st.binary(max_size=2),
            st.sampled_from(
                [b'"', b"\\", b"{", b"}", b",", b"\x00", b"\xed\xa0\x80", b"NaN", b"-", b"0", b"e", b"/**/"]
            ),
        )
    )
    return body[:begin] + new + body[end:]
