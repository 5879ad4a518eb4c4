"""How the commands write times for people: in UTC, and how long ago. Programs get ISO 8601, or what Telegram has."""

from __future__ import annotations

import datetime


def moment(at: datetime.datetime) -> str:
    """A time, by the second."""
    return f"{at.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def moment_ago(at: datetime.datetime, now: datetime.datetime) -> str:
    """A time that is past, and how long it is."""
    return f"{moment(at)} ({span(now - at)} ago)"


def span(length: datetime.timedelta) -> str:
    """A length of time, roughly; a negative one counts as none."""
    seconds = max(0, int(length.total_seconds()))
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
