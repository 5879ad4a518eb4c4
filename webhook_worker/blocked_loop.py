"""Whether the event loop is blocked: the lifeline's thread looks at its beats, and says so before the supervisor kills for it.

    a handler calls what blocks (time.sleep, requests.get) ──► no beat ──► 5 s: one line, with the place ──► 9 s: killed

The kill takes along whatever could tell which handler it was. The measure is the supervisor's own, the time since the last
beat, so what is told is up to a second too much; and the loop pays nothing for it but a number for each beat.

A look that comes late means that this thread did not run either: the process was stopped, the machine suspended, or somebody
has held the interpreter's lock. Nothing is known of that time, so the count begins anew.

Pure. Not promised: a line about what holds the interpreter's lock, as some extensions do; no thread runs beside that.
"""

from __future__ import annotations

import math

BLOCKED_SECONDS = 5.0
"""Without a beat, of which one is due each second. The supervisor kills after 9 (supervisor/workers_plan.py, HUNG_SECONDS)."""

GAP_SECONDS = 2.0
"""Between two looks, of which there are four a second (control.py): a thread that gets no turn for so long was stopped."""


class BlockedLoop:
    """Of one event loop; asked by one thread."""

    __slots__ = ("_beat_at", "_counts_from", "_is_told", "_looked_at")

    def __init__(self) -> None:
        """Nothing is known before the first look."""
        self._looked_at = -math.inf
        self._counts_from = -math.inf
        self._beat_at = -math.inf
        self._is_told = False

    def look(self, now: float, beat_at: float) -> float | None:
        """For how many seconds the loop has been blocked, where that is to be told: once, until it beats again.

        Args:
            now: on any clock that runs on while the machine is suspended.
            beat_at: when the loop last told that it runs, on the same clock.
        """
        if now - self._looked_at > GAP_SECONDS:
            self._counts_from = now
        self._looked_at = now
        if beat_at > self._beat_at:
            self._beat_at, self._is_told = beat_at, False
        seconds = now - max(beat_at, self._counts_from)
        if self._is_told or seconds < BLOCKED_SECONDS:
            return None
        self._is_told = True
        return seconds
