"""The instances' log lines, read as an operator's tools would read them.

Only the JSON form (LOG_FORMAT=json) is understood, and of it what INTERFACE.md "Log lines" promises:
`timestamp`, `level`, `tag`, `event`, and the event's own keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line; `fields` holds the event's own keys."""

    timestamp: str
    level: str
    tag: str
    event: str
    fields: dict[str, Any]

    def begins(self, tag: str, *beginnings: str) -> bool:
        """Whether it is one of these events, by its promised beginning."""
        return self.tag == tag and self.event.startswith(beginnings)

    def __str__(self) -> str:
        fields = "".join(f" {name}={value}" for name, value in self.fields.items())
        return f"[{self.tag}] {self.event}{fields}" if self.tag else f"{self.event}{fields}"


def parse_line(text: str) -> LogLine | None:
    """A line of output as a log line; None if it is something else, a traceback for instance."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
    if "event" not in fields:
        return None
    timestamp, level, tag, event = (
        str(fields.pop(name, "")) for name in ("timestamp", "level", "tag", "event")
    )
    return LogLine(timestamp, level, tag, event, fields)
