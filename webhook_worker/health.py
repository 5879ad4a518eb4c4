"""/healthz and /readyz of the public port: JSON from memory, for GET and HEAD.

Health is what the supervisor said last (SetHealth); of its own the worker only knows until when an ownership is good that it
was told to act on, and claims none without.

Not FastAPI's: a platform sends traffic from the first 200 on, and a probe that waited for FastAPI to be imported would hold it
back for a second, or ten on a small instance.

Not promised: that the supervisor still means it. It says so again with every change, and is gone when we are still here for
milliseconds at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from shared.answers import Role, health_answer
from shared.clock import now

if TYPE_CHECKING:
    from starlette.types import Send

Probe = Callable[[], tuple[int, dict[str, str]]]
"""Status code and JSON of the answer as of now."""


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
        self._said: tuple[bool, Role, str | None] = (False, "PASSIVE", "starting")

    def set(self, role: Role, reason: str | None, *, ok: bool) -> None:
        """Takes over what SetHealth says."""
        self._said = (ok, role, reason)

    def answer(self) -> tuple[int, dict[str, str]]:
        """Status code and JSON of /healthz."""
        ok, role, reason = self._said
        owned_until = self.owned_until()
        # Our supervisor may be frozen, and somebody else own by now. Without a deadline we could not know; where the supervisor
        # owns and lets nobody lead yet (a refused token, polling before the webhook is deleted), HEALTH_PORT says it alone.
        if role == "ACTIVE" and (owned_until is None or self._clock() >= owned_until):
            role = "PASSIVE"
        return health_answer(role, reason, ok=ok)


async def answer_probe(probe: Probe, method: str, send: Send) -> None:
    """Answers one request; what is neither GET nor HEAD with 405."""
    if method in ("GET", "HEAD"):
        status, document = probe()
        body = msgspec.json.encode(document)
        headers = [(b"content-type", b"application/json")]
    else:
        status, body, headers = 405, b"", [(b"allow", b"GET, HEAD")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
