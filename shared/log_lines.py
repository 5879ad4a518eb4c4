"""How an event becomes a line: secrets out, then text or JSON. No clock, no stream: an event in, bytes out.

    text   2026-01-12 14:40:00 [TAG] message key=value key="a value with blanks"
           local time; `level=...` comes first among the keys unless it is info; a traceback follows on lines of its own
    JSON   {"timestamp":"2026-01-12T14:40:00.123Z","level":"info","tag":"TAG","event":"message","key":"value"}
           UTC; a traceback is the key "exception"

One event is one line, whatever a user of the bot writes into it: control characters are escaped, so nobody can forge a line.

Not promised: that a value can be read back from text form; that is what JSON is for.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from shared.config import LogFormat
from shared.redaction import Redactor
from shared.secret import MASK

MAX_TEXT_CHARACTERS = 8 * 1024
"""A longer message or value is cut."""

MAX_TRACE_CHARACTERS = 32 * 1024
"""A longer traceback is cut: one through a deep recursion must not fill the queue."""

MAX_FIELDS_CHARACTERS = 64 * 1024
"""Longer fields together are written as one text, and that is cut."""

_MAX_PHRASES = 1024  # names and messages of our own are some hundreds; what somebody else makes up must not fill the memory
_MAX_PHRASE_CHARACTERS = 80
_MAX_TEMPLATE_BYTES = 400

_MAX_DEPTH = 4  # nested deeper than this is written as one text; also where a value holds itself
_MAX_ITEMS = 100  # of a list or mapping, more are left out

# Lone ones, which users of a bot can send; in JSON the escapes are valid.
_ESCAPE_SURROGATES = "backslashreplace"

_SECRET_NAME = re.compile(r"(^|[-_])(password|secret|token)$", re.IGNORECASE)  # as a key, whatever its value
_QUOTED_IF = re.compile(r"[\s\"'=\[\]{}]|^$")
# Not NaN, which JSON has no word for, and no number that fills a page.
_NUMBER = re.compile(r"-?[0-9][0-9.e+-]{0,30}")
_SMALL = 2**63
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class LineFormat:
    """Makes lines of one form, without what its redactor knows to be secret."""

    def __init__(self, form: LogFormat, redactor: Redactor) -> None:
        self._form = form
        self._redactor = redactor
        self._phrases: dict[str, str] = {}
        self._templates: dict[tuple[str, str, str, tuple[str, ...]], bytes] = {}
        self._stamp = (-1, "")
        self._writes_numbers_as_they_are = form is LogFormat.JSON and redactor.leaves_numbers

    def line(self, event: MutableMapping[str, Any], *, now: float) -> bytes:
        """One line, newline included; it never raises, whatever the values are.

        Args:
            event: "event", "tag", "level" and any fields; "exc_info" and "stack_info" as `logging` has them. Is used up.
            now: seconds since the epoch.
        """
        try:
            return self._line(event, now)
        except Exception as exc:  # noqa: BLE001 - a value of somebody else's type did it; the log must not end what it tells of
            left = {
                "event": f"an event that cannot be shown: {type(exc).__name__}",
                "tag": "LOG",
                "level": "error",
            }
            return self._line(left, now)

    def lines(
        self, event: Mapping[str, Any], name: str, values: Iterable[int], *, now: float
    ) -> Iterator[bytes]:
        """One line for each value, as `line` makes it of the event and a field of that name; for a third of the cost.

        Args:
            event: "event", "tag" and "level", without fields.
            name: of the field.
            values: its values.
            now: seconds since the epoch.
        """
        if (template := self._template(event["level"], event["tag"], event["event"], (name,))) is not None:
            stamp = self._utc(now).encode()
            return (template % (stamp, value) for value in values)
        return (self.line({**event, name: value}, now=now) for value in values)

    def line_of_numbers(
        self, level: str, tag: str, event: str, fields: Mapping[str, int], *, now: float
    ) -> bytes:
        """One line, as `line` makes it of the same; for a fifth of the cost."""
        for value in fields.values():
            if type(value) is not int or not -_SMALL < value < _SMALL:
                break
        else:
            if (template := self._template(level, tag, event, tuple(fields))) is not None:
                return template % (self._utc(now).encode(), *fields.values())
        return self.line({"event": event, "tag": tag, "level": level, **fields}, now=now)

    def _template(self, level: str, tag: str, event: str, names: tuple[str, ...]) -> bytes | None:
        """A line whose time and whole numbers are to be filled in; None where that is not all that a line takes."""
        key = (level, tag, event, names)
        if (known := self._templates.get(key)) is not None:
            return known
        if not self._writes_numbers_as_they_are or len(self._templates) >= _MAX_PHRASES:
            return None
        head = {"timestamp": "", **self._head({"level": level, "tag": tag, "event": event})}
        if not head.keys().isdisjoint(names):
            return None
        opening = _encoded(head).removeprefix(b'{"timestamp":"').removesuffix(b"}")
        labels = [_encoded({self._phrase(name): 0})[1:-2] for name in names]
        filled = b"".join(b",%b%%d" % label.replace(b"%", b"%%") for label in labels)
        template = b'{"timestamp":"%b' + opening.replace(b"%", b"%%") + filled + b"}\n"
        if len(template) <= _MAX_TEMPLATE_BYTES:
            self._templates[key] = template
        return template

    def _line(self, event: MutableMapping[str, Any], now: float) -> bytes:
        trace = self._trace(event) if "exc_info" in event or "stack_info" in event else ""
        head = self._head(event)
        fields = self._plain_items(event, 0) if event else {}
        return (self._json if self._form is LogFormat.JSON else self._as_text)(
            now, head, fields, trace
        ) + b"\n"

    def _head(self, event: MutableMapping[str, Any]) -> dict[str, str]:
        pop = event.pop
        return {
            "level": self._phrase(text_of(pop("level", ""))).rstrip(),
            "tag": self._phrase(text_of(pop("tag", ""))).rstrip(),
            "event": self._phrase(text_of(pop("event", ""))).rstrip(),
        }

    def _trace(self, event: MutableMapping[str, Any]) -> str:
        traces = [_exception_text(event.pop("exc_info", None)), event.pop("stack_info", None)]
        return "\n".join(
            self._redact(str(text).rstrip("\n"), MAX_TRACE_CHARACTERS) for text in traces if text
        )

    def _json(self, now: float, head: dict[str, str], fields: dict[str, Any], trace: str) -> bytes:
        document: dict[str, Any] = {"timestamp": self._utc(now), **head}
        if trace:
            document["exception"] = trace
        line = _encoded(_joined(document, fields))
        if (
            len(line) > MAX_FIELDS_CHARACTERS
            and len(text := _encoded(fields).decode()) > MAX_FIELDS_CHARACTERS
        ):
            return _encoded(_joined(document, {"fields": text[:MAX_TEXT_CHARACTERS]}))
        return line

    def _utc(self, now: float) -> str:
        second, milliseconds = divmod(int(now * 1000), 1000)
        if self._stamp[0] != second:
            # Making it anew for each line would be a tenth of the line.
            self._stamp = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        return f"{self._stamp[1]}{milliseconds:03}Z"

    def _as_text(self, now: float, head: dict[str, str], fields: dict[str, Any], trace: str) -> bytes:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        if head["level"] != "info":
            fields = {"level": head["level"], **fields}
        pairs = "".join(f" {re.sub(_QUOTED_IF, '_', key)}={_value(value)}" for key, value in fields.items())
        if len(pairs) > MAX_FIELDS_CHARACTERS:
            pairs = pairs[:MAX_TEXT_CHARACTERS] + "..."
        line = _CONTROL.sub(_escape, f"{stamp} [{head['tag']}] {head['event']}{pairs}")
        if trace:
            line = f"{line}\n{_CONTROL_BUT_LINES.sub(_escape, trace)}"
        return line.encode("utf-8", _ESCAPE_SURROGATES)

    def _phrase(self, text: str) -> str:
        """A text that comes again and again, without secrets: the search is made once."""
        known = self._phrases.get(text)
        if known is None:
            known = self._redact(text)
            if len(self._phrases) < _MAX_PHRASES and len(text) <= _MAX_PHRASE_CHARACTERS:
                self._phrases[text] = known
        return known

    def _redact(self, text: str, limit_characters: int = MAX_TEXT_CHARACTERS) -> str:
        return self._redactor.bounded(text, limit_characters)

    def _plain(self, value: object, depth: int) -> Any:
        """The value as JSON can hold it, without secrets."""
        if type(value) is int and self._redactor.leaves_numbers and -_SMALL < value < _SMALL:
            return value  # by far the most: update_id, user_id
        if value is None or isinstance(value, bool):
            return value
        if depth < _MAX_DEPTH:
            if isinstance(value, Mapping):
                return self._plain_items(value, depth + 1)
            if isinstance(value, list | tuple | set | frozenset):
                plain = [self._plain(item, depth + 1) for item in islice(value, _MAX_ITEMS)]
                return [*plain, f"... ({len(value) - _MAX_ITEMS} more)"] if len(value) > _MAX_ITEMS else plain
        text = text_of(value)
        redacted = self._redact(text)
        if type(value) in (int, float) and redacted == text and _NUMBER.fullmatch(text):
            return value
        return redacted

    def _plain_items(self, items: Mapping[Any, object], depth: int) -> dict[str, Any]:
        plain = {}
        for key, value in islice(items.items(), _MAX_ITEMS):
            name = text_of(key)
            is_secret = isinstance(value, str | bytes) and _SECRET_NAME.search(name)
            plain[self._phrase(name)] = MASK if is_secret else self._plain(value, depth)
        return plain


def _joined(document: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    if document.keys().isdisjoint(fields):
        return document | fields
    return document | {f"{key}_" if key in document else key: value for key, value in fields.items()}


def _encoded(document: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(document)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", _ESCAPE_SURROGATES
        )


def text_of(value: object) -> str:
    """The value as `str` has it, or a description where that fails."""
    if isinstance(value, str):
        return value
    try:
        return str(value)
    except Exception as exc:  # noqa: BLE001 - somebody's __str__ may raise anything, and a log must not end what it tells of
        return f"<{type(value).__name__} that cannot be shown: {type(exc).__name__}>"


def _exception_text(exc_info: object) -> str | None:
    if exc_info is True:
        exc_info = sys.exc_info()
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    if not isinstance(exc_info, BaseException):
        return None
    return "".join(traceback.format_exception(exc_info))


def _value(value: object) -> str:
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False)
        if _is_nested(value)
        else str(value)
    )
    if not _QUOTED_IF.search(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_nested(value: object) -> bool:
    return isinstance(value, dict | list)


def _escape(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]
