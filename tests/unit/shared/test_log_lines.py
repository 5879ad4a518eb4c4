"""How lines read, and that nothing a value does can break or forge one."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import LogFormat
from shared.log_lines import LineFormat
from shared.redaction import Redactor
from shared.secret import Secret

NOW = 1_768_228_800.25  # 2026-01-12 14:40:00.25 UTC
SECRET = "correct-horse-battery"
text_lines = LineFormat(LogFormat.TEXT, Redactor([SECRET]))
json_lines = LineFormat(LogFormat.JSON, Redactor([SECRET]))


def as_text(event: str = "message", **fields: Any) -> str:
    """The text line of an event, without its end."""
    line = text_lines.line({"event": event, "tag": "TAG", "level": "info", **fields}, now=NOW).decode()
    assert line.endswith("\n")
    return line[:-1]


def as_json(event: str = "message", **fields: Any) -> dict[str, Any]:
    """The object of an event's JSON line."""
    line = json_lines.line({"event": event, "tag": "TAG", "level": "info", **fields}, now=NOW).decode()
    assert line.count("\n") == 1
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_a_text_line_reads_as_the_interface_says() -> None:
    """Time, tag, message, key=value; quoted where a value has blanks, quotation marks or brackets."""
    line = as_text(
        "webhook set",
        url="https://h/webhook/***",
        pending=0,
        ready=True,
        reason="a b",
        empty="",
        quoted='"x"',
        n=[1],
    )
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[TAG\] webhook set url=", line)
    assert line.endswith(
        r'url=https://h/webhook/*** pending=0 ready=True reason="a b" empty="" quoted="\"x\"" n="[1]"'
    )


def test_a_text_line_names_its_level_unless_it_is_info() -> None:
    """The form of the interface has no place for it, and nobody should have to guess which lines are errors."""
    assert as_text("x", k=1).endswith("[TAG] x k=1")
    assert as_text("x", level="error", k=1).endswith("[TAG] x level=error k=1")


def test_a_json_line_has_the_keys_of_the_interface_and_the_same_fields() -> None:
    """timestamp, level, tag without brackets, event; numbers stay numbers, and nothing of ours is overwritten."""
    found = as_json(
        "webhook set", pending=0, share=0.5, ok=None, names=("a", {"b"}), deep={"x": 1}, timestamp="mine"
    )
    assert found == {
        "timestamp": "2026-01-12T14:40:00.250Z",
        "level": "info",
        "tag": "TAG",
        "event": "webhook set",
        "pending": 0,
        "share": 0.5,
        "ok": None,
        "names": ["a", ["b"]],
        "deep": {"x": 1},
        "timestamp_": "mine",
    }


def test_one_event_is_one_line_whatever_a_user_wrote() -> None:
    """A forged line would be as good as a real one to whoever greps; terminal escapes would hide the real ones."""
    evil = "/start\n2026-01-12 14:40:00 [LOCK] PostgreSQL advisory lock acquired\r\x1b[2K\x85\u2028"
    line = as_text(evil, **{"a key\n=": evil})
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert "a_key__" in line
    assert as_json(evil, k=evil)["k"] == evil


def test_a_traceback_follows_a_text_line_and_is_a_key_in_json() -> None:
    """From the exception itself, from True within a handler, and from a tuple; no exception is no traceback."""
    for form in range(3):
        try:
            raise ValueError("first\nsecond\x1b")
        except ValueError as exc:
            exc_info: object = (exc, True, sys.exc_info())[form]
            lines = as_text("failed", exc_info=exc_info).split("\n")
            found = as_json("failed", exc_info=exc_info)
        assert lines[0].endswith("[TAG] failed")
        assert lines[1] == "Traceback (most recent call last):"
        assert lines[-2:] == ["ValueError: first", "second\\x1b"]
        assert found["exception"].endswith("ValueError: first\nsecond\x1b")
    assert "exception" not in as_json("x", exc_info=None)
    assert as_text("x", exc_info=True).endswith("[TAG] x")


class Awkward:
    """A value whose own methods fail."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def self_holding() -> list[object]:
    """A list that holds itself."""
    found: list[object] = []
    found.append(found)
    return found


AWKWARD: dict[str, object] = {
    "failing str": Awkward(),
    "failing within": {"x": Awkward()},
    "failing key": {Awkward(): 1},
    "holds itself": self_holding(),
    "not a number": float("nan"),
    "number too long to print": 10**5000,
    "lone surrogate": "\udcff",
    "no text": b"\xff",
    "class": object,
}


@pytest.mark.parametrize("value", AWKWARD.values(), ids=AWKWARD)
def test_no_value_makes_logging_raise(value: object) -> None:
    """The line comes, and is a line; in JSON it is valid JSON."""
    assert "message" in as_text(key=value) or "cannot be shown" in as_text(key=value)
    assert as_json(key=value)["tag"] in ("TAG", "LOG")


def test_a_failing_value_costs_itself_and_not_the_event() -> None:
    """Of an event with one bad value the rest is written."""
    assert "k=1" in as_text(bad=Awkward(), k=1)
    assert "Awkward that cannot be shown: RuntimeError" in as_text(bad=Awkward())


def test_a_megabyte_does_not_go_into_the_log() -> None:
    """Neither as message, value, key, many values, nor traceback."""
    big = "x" * 1_000_000
    try:
        raise ValueError(big)
    except ValueError as exc:
        for event in (
            {"event": big},
            {"k": big},
            {big: 1},
            {f"k{n}": big for n in range(100)},
            {"exc_info": exc},
        ):
            for lines in (text_lines, json_lines):
                assert (
                    len(lines.line({"event": "e", "tag": "T", "level": "info", **event}, now=NOW))
                    < 128 * 1024
                )


def test_a21_every_part_of_an_event_is_redacted() -> None:
    """Message, tag, names, values, nested ones, bytes, numbers' texts, exceptions with causes, stack."""
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise ValueError(f"with {SECRET}") from cause
    except ValueError as exc:
        event = {
            "event": f"see {SECRET}",
            "tag": SECRET,
            "level": "info",
            SECRET: 1,
            "nested": [{SECRET: (SECRET.encode(), {SECRET})}],
            "exc_info": exc,
            "stack_info": f"File {SECRET}",
            "exception_itself": exc,
            "url": f"https://h/{SECRET}?x",
        }
    for lines in (text_lines, json_lines):
        line = lines.line(dict(event), now=NOW).decode()
        assert SECRET not in line
        assert line.count("***") >= 10


def test_a21_a_field_that_is_called_a_secret_is_one() -> None:
    """Whatever its value: `password`, `secret_token`, and Secret objects, also nested."""
    line = as_text(
        password="a",
        secret_token="b",
        headers={"X-Telegram-Bot-Api-Secret-Token": b"c"},
        token=Secret("d"),
        tokens=5,
    )
    assert '"b"' not in line
    assert "b'c'" not in line
    assert line.endswith(
        'password=*** secret_token=*** headers="{\\"X-Telegram-Bot-Api-Secret-Token\\": \\"***\\"}" token=*** tokens=5'
    )


keys = st.text(max_size=10).filter(lambda key: key not in ("event", "tag", "level", "exc_info", "stack_info"))
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=10)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30), st.dictionaries(keys, values, max_size=4))
def test_any_event_is_one_text_line_and_one_json_object(event: str, fields: dict[str, Any]) -> None:
    """For every message and every fields: one line of printable text, one object that JSON can read back."""
    whole = {"event": event, "tag": "TAG", "level": "info", **fields}
    text = text_lines.line(dict(whole), now=NOW).decode()
    assert text.count("\n") == 1
    assert len(text.splitlines()) == 1
    found = json.loads(json_lines.line(dict(whole), now=NOW), parse_constant=lambda name: pytest.fail(name))
    assert found["event"] == event.rstrip()
    assert found["tag"] == "TAG"


@pytest.mark.parametrize("secret", ["1234567890123", "99:1234567890123"])
def test_a_secret_that_is_a_number_is_taken_out_of_numbers_too(secret: str) -> None:
    """Numbers are passed as they are only where no secret is one."""
    lines = LineFormat(LogFormat.JSON, Redactor([secret]))
    event = {"event": "received", "tag": "WEBHOOK", "level": "info", "update_id": 1234567890123, "chat": 5}
    line = json.loads(lines.line(event, now=0.0))
    assert (line["update_id"], line["chat"]) == ("***", 5)


@pytest.mark.parametrize("form", list(LogFormat))
@pytest.mark.parametrize("secret", [SECRET, "12345678"])
def test_many_lines_are_what_each_would_be(form: LogFormat, secret: str) -> None:
    """However they are made; also where a secret is a number, which is then looked for in each."""
    lines = LineFormat(form, Redactor([secret]))
    event = {"event": "received", "tag": "WEBHOOK", "level": "info"}
    values = [7, 12345678, -1, 2**63 - 1]
    each = [lines.line({**event, "update_id": value}, now=NOW) for value in values]
    assert list(lines.lines(event, "update_id", values, now=NOW)) == each
    assert any(b"12345678" in line for line in each) is (secret == SECRET)


@pytest.mark.parametrize("form", list(LogFormat))
@pytest.mark.parametrize("secret", [SECRET, "12345678"])
@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": 42, "update_id": 7},
        {"user_id": 42, "update_id": 8, "attempt": 2},
        {"user_id": 12345678},
        {"user_id": True},
        {"user_id": 2**70},
        {"user_id": -(2**63)},
        {"level": 3, "timestamp": 4, "100% of": 5},
        {},
    ],
)
def test_a_line_of_numbers_is_what_any_line_would_be(
    form: LogFormat, secret: str, fields: dict[str, int]
) -> None:
    """The first time and when it is known; also where it is none of plain numbers, and where a secret is one."""
    lines = LineFormat(form, Redactor([secret]))
    for event in ("/start from", 'of 100%d "per cent"', f"{SECRET} from", "long " * 200):
        whole = {"event": event, "tag": "FLOW", "level": "info", **fields}
        for now in (NOW, NOW + 1.5):
            expected = lines.line(dict(whole), now=now)
            for _ in range(2):
                assert lines.line_of_numbers("info", "FLOW", event, fields, now=now) == expected


def test_what_users_make_up_does_not_fill_the_memory() -> None:
    """Any command that somebody types begins a line: only so many are kept, and all are written."""
    lines = LineFormat(LogFormat.JSON, Redactor([SECRET]))
    for number in range(3000):
        line = lines.line_of_numbers("info", "FLOW", f"/command{number} from", {"user_id": number}, now=NOW)
        assert json.loads(line)["event"] == f"/command{number} from"
    assert len(lines._templates) < 3000
