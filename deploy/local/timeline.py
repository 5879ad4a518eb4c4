"""What happened when: the platform's history and the milestones of the instances' logs, in one list.

Pure. The milestones are the beginnings of log lines that INTERFACE.md promises.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deploy.local.log_lines import parse_line
from deploy.local.platform.records import OutputLine, Record

_MILESTONES = (
    ("LOCK", "PostgreSQL advisory lock acquired", "lock acquired"),
    ("LOCK", "lock held elsewhere", "standing by"),
    ("LOCK_CONTROLLER", "ACTIVE MODE", "active"),
    ("STATE_SYNC", "ACTIVE -> PASSIVE", "no longer active"),
    ("WEBHOOK", "webhook set", "webhook set"),
    ("WEBHOOK", "webhook already set", "webhook set"),
    ("LOCK_CONTROLLER", "active services initialized", "active services initialized"),
)


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened; `at` is `time.monotonic()`, `who` an instance or empty."""

    at: float
    what: str
    who: str = ""
    detail: str = ""


def moments_of(records: Iterable[Record], lines: Iterable[OutputLine]) -> list[Moment]:
    """The platform's history and the instances' milestones, in order."""
    moments = [Moment(record.at, record.what.value, record.instance, record.detail) for record in records]
    for line in lines:
        parsed = parse_line(line.text)
        if parsed is None:
            continue
        for tag, beginning, what in _MILESTONES:
            if parsed.begins(tag, beginning):
                detail = parsed.event if parsed.event != beginning else ""
                moments.append(Moment(line.at, what, line.instance, detail))
    return sorted(moments, key=lambda moment: moment.at)


def format_timeline(moments: Iterable[Moment], begin: float) -> str:
    """A line for each, with the seconds since the begin."""
    return "\n".join(
        f"  {moment.at - begin:8.3f}  {moment.what:<28} {moment.who:<16} {moment.detail}".rstrip()
        for moment in sorted(moments, key=lambda moment: moment.at)
    )


def first(moments: Iterable[Moment], what: str, *, who: str | None = None, after: float = 0) -> float | None:
    """When something first happened, to somebody in particular, after a time; None if it did not."""
    return min(
        (
            moment.at
            for moment in moments
            if moment.what == what and moment.at >= after and who in (None, moment.who)
        ),
        default=None,
    )
