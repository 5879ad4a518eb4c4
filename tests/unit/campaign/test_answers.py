"""What an update may be answered while the database is away (b10)."""

from __future__ import annotations

from dataclasses import replace

from deploy.local.platform.router import Exchange
from tests.campaign.scenarios.restarts import unpromised

UNAVAILABLE = Exchange(10.0, 0.01, "POST", "/webhook/path", 503, "one", "", "2")


def test_b10_only_503_with_retry_after_is_promised() -> None:
    """A bare 503 may keep Telegram away for two minutes, and so may a connection that nobody answers (TELEGRAM.md)."""
    others = [
        replace(UNAVAILABLE, retry_after=""),
        replace(UNAVAILABLE, retry_after="60"),
        replace(UNAVAILABLE, status=500),
        replace(UNAVAILABLE, status=401, retry_after=""),
        replace(UNAVAILABLE, status=502, retry_after="", fault="no connection: refused"),
        replace(UNAVAILABLE, status=502, retry_after="", fault="no answer: closed without an answer"),
    ]
    assert unpromised([UNAVAILABLE, *others, UNAVAILABLE]) == others
