"""When a failed delivery is tried again, and when a new connection may be opened.

Pure: given `now` and random numbers. All numbers from TELEGRAM.md "Delivery" (retry, ramp-up, expiry, 410 Gone), where
they were read from `WebhookActor.cpp`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# A random cap between these, drawn anew for every failure of an update.
MIN_CAP_SECONDS = 60
MAX_CAP_SECONDS = 120
MAX_RETRY_AFTER_SECONDS = 3600
# A webhook that answers 410 for this long without any other answer between is deleted.
GONE_SECONDS = 23 * 3600
# Without a success for this long, connections are opened one at a time.
QUIET_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """What the failures of one update so far amount to."""

    delay_seconds: int = 1
    failures: int = 0

    def after_failure(self, retry_after_seconds: int, cap_seconds: int) -> tuple[Backoff, int]:
        """The next state and the seconds until the next try.

        Args:
            retry_after_seconds: of the answer, 0 without one (a `Retry-After: 0` is none).
            cap_seconds: random, MIN_CAP_SECONDS to MAX_CAP_SECONDS.
        """
        retry_after = min(max(retry_after_seconds, 0), MAX_RETRY_AFTER_SECONDS)
        if retry_after:
            return Backoff(self.delay_seconds, self.failures + 1), retry_after
        if self.failures == 0:
            return Backoff(self.delay_seconds, 1), 0
        delay = min(cap_seconds, self.delay_seconds * 2)
        return Backoff(delay, self.failures + 1), delay


def is_expired(now: float, delay_seconds: float, expires_at: float) -> bool:
    """Whether the next try would fall after the update's end: it is dropped for ever then."""
    return now + delay_seconds > expires_at


def parse_retry_after(value: str | None) -> int:
    """Seconds of a `Retry-After` header; a date, or anything but digits, counts as none (0)."""
    text = (value or "").strip()
    return int(text) if text.isascii() and text.lstrip("-").isdigit() and len(text) < 10 else 0


class Allowance:
    """At most `count` events in any `seconds`."""

    def __init__(self, count: int, seconds: float) -> None:
        self._seconds = seconds
        self._events: deque[float] = deque(maxlen=count)

    def next_at(self, now: float) -> float:
        """When the next event is allowed: `now` or later."""
        if len(self._events) < (self._events.maxlen or 0):
            return now
        return max(now, self._events[0] + self._seconds)

    def add(self, now: float) -> None:
        self._events.append(now)


class Ramp:
    """How many connections may be open, and when the next may be opened."""

    def __init__(self, max_connections: int, now: float) -> None:
        self._max_connections = max_connections
        # As if the last success lay far back: a new webhook begins with one connection.
        self._last_success_at = now - 3600
        self._quiet = Allowance(1, 2.0)
        self._busy = Allowance(10, 0.5)

    def note_success(self, now: float) -> None:
        self._last_success_at = now

    def is_quiet(self, now: float) -> bool:
        return self._last_success_at + QUIET_SECONDS < now

    def wanted(self, queues: int, now: float, *, verified: bool) -> int:
        """How many connections there should be for that many queues with work."""
        wanted = min(queues, self._max_connections) if verified else 1
        return min(wanted, 1) if self.is_quiet(now) else max(wanted, 1)

    def next_opening_at(self, now: float) -> float:
        return self._allowance(now).next_at(now)

    def note_opening(self, now: float) -> None:
        self._allowance(now).add(now)

    def _allowance(self, now: float) -> Allowance:
        return self._quiet if self.is_quiet(now) else self._busy


class GoneWatch:
    """Counts how long a webhook has answered nothing but 410."""

    def __init__(self) -> None:
        self._since: float | None = None

    def note_answer(self, status: int, now: float) -> bool:
        """Takes an answer's status; True when the webhook is to be deleted."""
        if status != 410:
            self._since = None
        elif self._since is None:
            self._since = now
        else:
            return now > self._since + GONE_SECONDS
        return False
