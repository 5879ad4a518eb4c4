"""The parameters of a Bot API call, however they were sent.

A call's parameters come in the query string, as a form, as JSON or as multipart with files; the server treats them all
as text, and so does this: `Parameters` hands out numbers, flags and JSON from text on request, with the real server's
leniency (a number that is none counts as the default).

Does not promise the streaming of large uploads: a body is in memory, whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qsl

from deploy.local.emulator.errors import bad_request
from deploy.local.emulator.update_kinds import resolve_allowed


class Parameters:
    """Read-only view of one call's parameters."""

    def __init__(self, values: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> None:
        self._values = {
            name: value if isinstance(value, str) else encode(value) for name, value in values.items()
        }
        self._files = dict(files or {})

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str:
        return self._values.get(name, "")

    def integer(self, name: str, default: int = 0, *, low: int | None = None, high: int | None = None) -> int:
        """A whole number inside the bounds; `default` (kept inside them too) when it is none."""
        text = self.text(name).strip()
        value = int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else default
        if low is not None:
            value = max(value, low)
        return value if high is None else min(value, high)

    def flag(self, name: str) -> bool:
        return self.text(name).strip().lower() in ("true", "yes", "1")

    def json(self, name: str) -> Any:
        """The decoded JSON of a parameter; None if absent or empty.

        Raises:
            ValueError: it is no JSON.
        """
        text = self.text(name)
        return json.loads(text) if text else None

    def file(self, name: str) -> bytes | None:
        """An upload, given directly or as `attach://other`."""
        if name in self._files:
            return self._files[name]
        _, separator, other = self.text(name).partition("attach://")
        return self._files.get(other) if separator else None

    def allowed_updates(self) -> frozenset[str] | None:
        """None if absent (or no list of strings, which the server treats the same)."""
        try:
            names = self.json("allowed_updates")
        except ValueError:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        return resolve_allowed(names)

    def to_record(self) -> dict[str, str]:
        """For the list of calls: uploads as their size."""
        uploads = {name: f"<{len(content)} bytes>" for name, content in self._files.items()}
        return {**self._values, **uploads}


def encode(value: Any) -> str:
    """A JSON value as the text that a form would have carried."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False)


def read_parameters(query: str, content_type: str, body: bytes) -> Parameters:
    """Parameters of the query string and of the body; the body's win.

    Raises:
        ApiError: 400 for a JSON body that is none.
    """
    values: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    files: dict[str, bytes] = {}
    kind = content_type.partition(";")[0].strip().lower()
    if body and kind == "application/json":
        values.update(_read_json(body))
    elif body and kind == "multipart/form-data":
        fields, files = _read_multipart(content_type, body)
        values.update(fields)
    elif body and kind == "application/x-www-form-urlencoded":
        values.update(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    return Parameters(values, files)


def _read_json(body: bytes) -> Mapping[str, Any]:
    try:
        decoded = json.loads(body)
    except ValueError:
        raise bad_request("can't parse request parameters: can't parse JSON object") from None
    if not isinstance(decoded, dict):
        raise bad_request("can't parse request parameters: JSON object expected")
    return {name: value for name, value in decoded.items() if value is not None}


def _read_multipart(content_type: str, body: bytes) -> tuple[dict[str, str], dict[str, bytes]]:
    # The email package reads the same syntax; python-multipart would be one more dependency for a local tool.
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body
    )
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            continue
        if part.get_filename() is None:
            fields[name] = content.decode("utf-8", "replace")
        else:
            files[name] = content
    return fields, files
