"""What the commands print of times: the zone, the day, and how long ago, for whoever reads it in the middle of an outage."""

from __future__ import annotations

import datetime
from typing import Any

from shared import config
from shared.telegram_api import WebhookInfo
from supervisor.commands import inbox, webhook
from supervisor.commands.standing import Registration, Standing
from supervisor.commands.status import as_lines

NOW = datetime.datetime(2026, 1, 12, 14, 40, tzinfo=datetime.UTC)
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
CONFIG = config.load(
    {
        "TELEGRAM_BOT_TOKEN": "123456:AAAbbbCCCdddEEEfffGGG",
        "DATABASE_URL": "postgresql://user:password@database.internal/bot",
        "WEBHOOK_BASE_URL": "https://bot.example.com",
    },
    stdin_is_terminal=False,
    stdout_is_terminal=False,
)


def test_webhook_info_says_how_old_an_error_is() -> None:
    """It stays after recovery until the webhook is set anew, so its age is what matters (runbook, step 4)."""
    failed_at = NOW - datetime.timedelta(days=2, hours=3)
    info = WebhookInfo(
        url="", last_error_message="Connection refused", last_error_date=int(failed_at.timestamp())
    )
    document = webhook.as_document(CONFIG, info)
    lines = webhook.as_lines(document, NOW)
    assert "last_error_date       2026-01-10 11:40:00 UTC (2 d 3 h ago)" in lines
    assert document["last_error_date"] == int(failed_at.timestamp())  # for programs
    assert not any(line.startswith("last_synchronization_error_date") for line in lines)


def row(**columns: Any) -> dict[str, Any]:
    """A row of the inbox as the list reads it."""
    return {
        "state": "pending",
        "update_id": 7,
        "starts": 0,
        "error": "",
        "finished_at": None,
        "claimed_at": None,
        "retry_at": None,
        "received_at": NOW - datetime.timedelta(minutes=5),
        **columns,
    }


def test_inbox_list_says_zone_day_and_age() -> None:
    """Whatever zone the database's session has."""
    retry_at = (NOW + datetime.timedelta(hours=12)).astimezone(EAST)
    assert inbox.as_line(row(retry_at=retry_at, starts=2, error="a\nTimedOut\n"), NOW) == (
        "2026-01-12 14:35:00 UTC (5 min ago)  pending  update 7  starts 2  next try 2026-01-13 02:40:00 UTC  TimedOut"
    )
    died_at = (NOW - datetime.timedelta(seconds=3)).astimezone(EAST)
    assert inbox.as_line(row(state="dead", finished_at=died_at), NOW) == (
        "2026-01-12 14:39:57 UTC (3 s ago)  dead     update 7"
    )


def test_inbox_list_says_since_when_an_update_runs_and_not_when_it_came() -> None:
    """After an outage it came long ago, and its handler does not hang (runbook, step 5)."""
    claimed_at = (NOW - datetime.timedelta(seconds=2)).astimezone(EAST)
    came_at = NOW - datetime.timedelta(hours=1)
    assert inbox.as_line(row(state="claimed", received_at=came_at, claimed_at=claimed_at, starts=1), NOW) == (
        "2026-01-12 14:39:58 UTC (2 s ago)  claimed  update 7  starts 1"
    )


def test_status_says_of_the_registration_when_it_was_confirmed_first() -> None:
    """The row keeps that time. What was overwritten since and mended does not show in it."""
    recorded_at = NOW - datetime.timedelta(days=2)
    registration = Registration(
        recorded_at, (recorded_at + datetime.timedelta(seconds=1)).astimezone(EAST), True
    )
    [line] = [
        line
        for line in as_lines(Standing(registration=registration), CONFIG, NOW)
        if line.startswith("registration")
    ]
    assert line == (
        "registration  recorded 2026-01-10 14:40:00 UTC, first confirmed 2026-01-10 14:40:01 UTC; this environment's"
    )
