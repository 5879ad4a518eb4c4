"""Until when the term is ours, by what has been received: one number, written by one thread and read by everybody.

    Lead, Extend ──► lifeline thread (control.py) ──► Deadline ◄── asked before anything goes on: term.py, countdown.py

As a message to the event loop, an extension would come too late after a handler that blocked the loop: timers that are due run
first (uvloop runs them before anything that has come in), and would end a term that was confirmed all the time.

Only the lifeline's thread writes. To store a float is one operation of the interpreter's, so whoever reads gets the number from
before or the one from after, and both were confirmed. Nobody may read it twice and rely on getting the same.

Not promised: that what was past stays past for whoever takes a margin off; those remember their own answer (countdown.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable


class Deadline:
    """Of the one term of a worker.

    Attributes:
        at: on the clock it was given; before the term it has always passed.
    """

    __slots__ = ("_now", "at")

    def __init__(self, now: Callable[[], float]) -> None:
        """Without a term yet."""
        self._now = now
        self.at = -math.inf

    def begin(self, at: float) -> None:
        """A term was given to us. Called once."""
        self.at = at

    def extend(self, at: float) -> None:
        """Ownership was confirmed, which is received now. What has passed by now is not revived: it may have been acted on."""
        if self._now() < self.at:
            self.at = max(self.at, at)
