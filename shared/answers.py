"""What is answered on PORT alike, by a worker or by the supervisor while none accepts; and on HEALTH_PORT. Pure.

Not here: how an answer is sent, and to whom.
"""

from __future__ import annotations

from typing import Literal

Role = Literal["ACTIVE", "PASSIVE"]
"""Whether an instance owns, as it says of itself in answers, in /status and in the control protocol."""

RETRY_AFTER_SECONDS = 2
"""Of a 503 to an update, in place of Telegram's growing delay (TELEGRAM.md, Delivery): it is served again within this of a
recovery."""

WEBHOOK_PATH = r"/webhook/([A-Za-z0-9_-]{16,128})"
"""A regular expression: what may be the path of a registration, this instance's or another's (INTERFACE.md,
WEBHOOK_SECRET_PATH)."""


def health_answer(role: Role, reason: str | None, *, ok: bool) -> tuple[int, dict[str, str]]:
    """Status code and JSON of /healthz.

    Args:
        role: as of now.
        reason: why it fails, where it does.
        ok: whether this instance should be kept and routed to.
    """
    if ok:
        return 200, {"status": "ok", "role": role}
    return 503, {"status": "failing", "role": role, "reason": reason or "unknown"}


def ready_answer(why_not: str | None) -> tuple[int, dict[str, str]]:
    """Status code and JSON of /readyz.

    Args:
        why_not: why an update sent now would not be stored; None if it would.
    """
    return (200, {"status": "ok"}) if why_not is None else (503, {"status": "failing", "reason": why_not})
