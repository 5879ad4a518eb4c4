"""The answer to getWebhookInfo, as the Bot API has it. Pure: decisions are made from it, by code that has no client.

Not promised: that it is true by now. Anybody with the token may have changed it since.
"""

from __future__ import annotations

import msgspec

NOT_BY_DEFAULT = frozenset({"chat_member", "message_reaction", "message_reaction_count"})
"""Kinds of updates that an empty `allowed_updates` leaves out (TELEGRAM.md, allowed_updates)."""


class WebhookInfo(msgspec.Struct, frozen=True):
    """What is registered (getWebhookInfo; TELEGRAM.md). `last_error_*` is history, not state: it stays after recovery."""

    url: str  # empty: none is set. It holds the secret path: never log it
    has_custom_certificate: bool = False
    pending_update_count: int = 0
    ip_address: str | None = None
    last_error_date: int | None = None  # seconds since the epoch
    last_error_message: str | None = None
    last_synchronization_error_date: int | None = None  # seconds since the epoch
    max_connections: int | None = None
    allowed_updates: tuple[str, ...] | None = None  # None: the default
