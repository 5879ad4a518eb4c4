"""What the worker says of its health on the public port.

It is what the supervisor said last (SetHealth), from memory; of its own the worker only knows until when an ownership is good
that it was told to act on, and claims none without.

Not promised: that the supervisor still means it. It says so again with every change, and is gone when we are still here for
milliseconds at most.
"""

from __future__ import annotations

from collections.abc import Callable

from shared.clock import now


class Health:
    """What /healthz says; changed by the supervisor's word."""

    def __init__(self, *, clock: Callable[[], float] = now) -> None:
        """Says that it is starting.

        Args:
            clock: `shared.clock`.
        """
        self._clock = clock
        self.owned_until: Callable[[], float | None] = lambda: None
        """Until when the supervisor's word "ACTIVE" is good, on `shared.clock`; None before it was given. Set by the worker."""
        # One attribute: while the bot is imported, one thread writes and another reads.
        self._said: tuple[str, str, str | None] = ("failing", "PASSIVE", "starting")

    def set(self, status: str, role: str, reason: str | None) -> None:
        """Takes over what SetHealth says."""
        self._said = (status, role, reason)

    def answer(self) -> tuple[int, dict[str, str]]:
        """Status code and JSON of /healthz."""
        status, role, reason = self._said
        owned_until = self.owned_until()
        # Our supervisor may be frozen, and somebody else own by now. Without a deadline we could not know; where the supervisor
        # owns and lets nobody lead yet (a refused token, polling before the webhook is deleted), HEALTH_PORT says it alone.
        if role == "ACTIVE" and (owned_until is None or self._clock() >= owned_until):
            role = "PASSIVE"
        body = {"status": status, "role": role}
        if status == "ok":
            return 200, body
        return 503, {**body, "reason": reason or "unknown"}
