"""Until when a dispatch may go on, and why it ends.

    going on ──► end asked for: a drain, then every handler is interrupted ──┐
        ├──────► deadline, less a margin: interrupted at once ───────────────┼──► grace ──► what is left is left as it is
        └──────► superseded: interrupted at once ────────────────────────────┘

The deadline is compared with the clock wherever something begins or goes on, and never left to a timer: those of the loop are
late when it is blocked, and stand still while the machine is suspended. It is read anew each time, since another thread moves
it (deadline.py). Once something was told that it has passed, it has, whatever comes later.

Not promised: that anything has ended when it should; only that everybody who asks is told the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from shared.wire import DRAIN_GRACE_SECONDS
from webhook_worker.inbox import STATEMENT_SECONDS
from webhook_worker.lanes import Ending

GRACE_SECONDS = DRAIN_GRACE_SECONDS / 2
"""How long after the drain cancelled handlers and the database may take before the rest is left as it is. Half of what the
supervisor allows beyond the drain: the bot has to be stopped too."""

LAST_SECONDS = 1.0
"""What a statement gets at least, at the deadline too: to settle then what has ended is safe, since it is fenced."""


class Countdown:
    """Of one term.

    Attributes:
        ending: why the dispatch ends; None while it goes on.
        drain_until: when handlers are interrupted; infinite while it goes on.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        deadline: Callable[[], float],
        margin_seconds: float,
        on_stop: Callable[[], None],
        interrupt_all: Callable[[], None],
    ) -> None:
        """Begins at once.

        Args:
            clock: on which all times here are.
            deadline: nothing runs past it; moves while ownership is confirmed.
            margin_seconds: so long before it, handlers are interrupted.
            on_stop: called whenever something about the end has changed.
            interrupt_all: called when handlers are to be interrupted, maybe more than once.
        """
        self._clock = clock
        self._deadline = deadline
        self._has_passed = False
        self._margin_seconds = margin_seconds
        self._on_stop = on_stop
        self._interrupt_all = interrupt_all
        self.ending: Ending | None = None
        self.drain_until = math.inf
        self._settle_until = math.inf

    def stop(self, ending: Ending, drain_seconds: float = 0.0) -> None:
        """The first reason counts; but a drain ends at the deadline, and with the term."""
        self.drain_until = min(self.drain_until, self._clock() + drain_seconds)
        if self.ending is None or (self.ending is Ending.ENDED and ending is not Ending.ENDED):
            self.ending = ending
        if self._clock() >= self.drain_until:
            self._interrupt_all()
        self._on_stop()

    def look(self) -> float:
        """Ends what is to end now; when to look again."""
        now, stop_at = self._clock(), self._deadline() - self._margin_seconds
        if now >= stop_at:
            self.stop(Ending.DEADLINE)
        elif now >= self.drain_until:
            self._interrupt_all()
        return min(stop_at, self.drain_until)

    def is_past_deadline(self) -> bool:
        """Whether nothing at all may go on; then this ends, if it had not."""
        if not self._has_passed and self._clock() < self._deadline():
            return False
        self._has_passed = True
        self.stop(Ending.DEADLINE)
        return True

    def note_end_of_handlers(self) -> None:
        """They have all ended. While the database is away their ends are not settled, and that is given up before the whole
        drain has gone by: its end is for the bot's jobs and its last save, which may take 4.5 s (bot.py)."""
        self._settle_until = max(self._clock(), self.drain_until - DRAIN_GRACE_SECONDS) + GRACE_SECONDS

    def give_up_at(self, share: float = 1.0) -> float:
        """When the grace is over, or a share of it; none is given past the deadline."""
        grace_seconds = min(GRACE_SECONDS, max(0.0, self._deadline() - self.drain_until))
        # Infinite while there is no end in sight.
        return min(self.drain_until + share * grace_seconds, self._settle_until)

    def statement_seconds(self) -> float:
        """For one statement: not much longer than the deadline and the grace allow, and never too little to succeed."""
        left_seconds = min(self._deadline(), self.give_up_at()) - self._clock()
        return max(LAST_SECONDS, min(STATEMENT_SECONDS, left_seconds))
