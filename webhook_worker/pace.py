"""How many updates a dispatcher may begin now, and how soon it exchanges with the inbox again. No I/O.

slots       DISPATCH_CONCURRENCY; while Telegram refuses the token, one update now and then tries whether it still does
gathering   under load, exchanges come at a distance: what one costs is mostly the exchange, not the rows in it
"""

from __future__ import annotations

import math
from collections.abc import Callable

from shared import log
from webhook_worker.lanes import State, Verdict

REFUSED_SECONDS = 30.0
"""While Telegram refuses the bot's token, one update finds out so often whether it still does: a call for each that waits would
be hammering (b24)."""

GATHER_SECONDS = 0.005
"""Under load: from the begin of one exchange to that of the next. Nobody sees 5 ms."""

MANY_ROWS = 2
"""Load is an exchange that settles or claims so many at once; a lone update never waits, nor does a backlog of more chats than
there are slots. One of fewer chats goes on every 5 ms in each: 200 times as fast as a bot may answer in it."""

_log = log.get_logger("DISPATCH")


class Pace:
    """Of one dispatcher."""

    def __init__(self, concurrency: int, clock: Callable[[], float]) -> None:
        """Full speed.

        Args:
            concurrency: DISPATCH_CONCURRENCY.
            clock: the dispatcher's.
        """
        self._concurrency = concurrency
        self._clock = clock
        self._gathers_until = -math.inf
        self._refused_until: float | None = None

    def free(self, slots: int) -> int:
        """How many may begin beside those that take up `slots`."""
        if self._refused_until is not None:
            return 1 if slots == 0 and self._clock() >= self._refused_until else 0
        return max(0, self._concurrency - slots)

    @property
    def tries_at(self) -> float:
        """When the next update may try the refused token; infinite where there is nothing to wait for."""
        if self._refused_until is None or self._clock() >= self._refused_until:
            return math.inf
        return self._refused_until

    def note(self, verdict: Verdict) -> bool:
        """Takes in what became of an update; whether updates may be handled again that waited for the token."""
        if verdict.is_refused:
            if self._refused_until is None:
                _log.error("token refused, one update tries now and then", every_seconds=REFUSED_SECONDS)
            self._refused_until = self._clock() + REFUSED_SECONDS
        elif verdict.state is State.DONE and self._refused_until is not None:
            _log.info("updates are handled again")
            self._refused_until = None
            return True
        return False

    def exchanged(self, begun_at: float, rows: int, *, has_more: bool) -> None:
        """An exchange that began then settled, or claimed, so many rows; `has_more`: it found more than it could claim."""
        gathers = rows >= MANY_ROWS and not has_more
        self._gathers_until = begun_at + GATHER_SECONDS if gathers else -math.inf

    def gather_seconds(self, landed: int) -> float:
        """How long the next exchange can wait for more; 0 where what has landed takes up many of the slots."""
        if 2 * landed >= self._concurrency:
            return 0.0
        return max(0.0, self._gathers_until - self._clock())
