"""The kinds of update: which queue each goes to, how long it lives, which are sent by default.

Pure. Numbers and queues: TELEGRAM.md "Delivery" (order, expiry) and `add_update` calls in `Client.cpp` of the public
Bot API server. An update of a kind that is not listed here gets a queue of its own and a day to live.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

# TELEGRAM.md "Delivery", expiry: a message lives 24 h, counted from its own date.
DAY_SECONDS = 86_400
CALLBACK_SECONDS = 150
CHOSEN_RESULT_SECONDS = 600
INLINE_QUERY_SECONDS = 30


class Owner(Enum):
    """Whose identifier makes the second half of a queue's name."""

    CHAT = auto()  # payload["chat"]["id"]
    USER = auto()  # payload["from"]["id"], or "user"
    POLL = auto()  # payload["id"] or "poll_id"
    CONNECTION = auto()  # payload["business_connection_id"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What is the same for all updates of a kind.

    `from_date`: the lifetime counts from the payload's own date, not from when the server got it.
    """

    queue: str
    owner: Owner
    lifetime_seconds: int = DAY_SECONDS
    from_date: bool = False


# In the server's order, which is also the order of `allowed_updates` in getWebhookInfo.
KINDS: Mapping[str, Kind] = {
    "message": Kind("messages", Owner.CHAT, from_date=True),
    "edited_message": Kind("messages", Owner.CHAT, from_date=True),
    "channel_post": Kind("messages", Owner.CHAT, from_date=True),
    "edited_channel_post": Kind("messages", Owner.CHAT, from_date=True),
    "inline_query": Kind("inline_queries", Owner.USER, INLINE_QUERY_SECONDS),
    "chosen_inline_result": Kind("chosen_inline_results", Owner.USER, CHOSEN_RESULT_SECONDS),
    "callback_query": Kind("callback_queries", Owner.USER, CALLBACK_SECONDS),
    "shipping_query": Kind("payments", Owner.USER, CALLBACK_SECONDS),
    "pre_checkout_query": Kind("payments", Owner.USER, CALLBACK_SECONDS),
    "purchased_paid_media": Kind("payments", Owner.USER),
    "poll": Kind("polls", Owner.POLL),
    "poll_answer": Kind("polls", Owner.POLL),
    "my_chat_member": Kind("my_membership", Owner.CHAT, from_date=True),
    "chat_member": Kind("membership", Owner.USER, from_date=True),
    "chat_join_request": Kind("membership", Owner.USER, from_date=True),
    "chat_boost": Kind("boosts", Owner.CHAT),
    "removed_chat_boost": Kind("boosts", Owner.CHAT),
    "message_reaction": Kind("reactions", Owner.CHAT, from_date=True),
    "message_reaction_count": Kind("reaction_counts", Owner.CHAT, from_date=True),
    "business_connection": Kind("business_connections", Owner.USER),
    "business_message": Kind("business_messages", Owner.CONNECTION, from_date=True),
    "edited_business_message": Kind("business_messages", Owner.CONNECTION, from_date=True),
    "deleted_business_messages": Kind("deleted_business_messages", Owner.CHAT),
}

# TELEGRAM.md "setWebhook", allowed_updates.
NOT_SENT_BY_DEFAULT = frozenset({"chat_member", "message_reaction", "message_reaction_count"})
DEFAULT_ALLOWED = frozenset(KINDS) - NOT_SENT_BY_DEFAULT


def find_kind(update: Mapping[str, Any]) -> str:
    """The name of the field that is not `update_id`; of several, a known one; "" if there is none."""
    names = [name for name in update if name != "update_id"]
    return next((name for name in names if name in KINDS), names[0] if names else "")


def name_queue(kind: str, payload: Any) -> str | None:
    """The queue that an update waits in.

    Returns:
        None if it waits for no other: an unknown kind, or a payload without the identifier.
    """
    known = KINDS.get(kind)
    if known is None or not isinstance(payload, Mapping):
        return None
    match known.owner:
        case Owner.CHAT:
            identifier = _nested_id(payload, "chat")
        case Owner.USER:
            identifier = (
                _changed_member_id(payload) or _nested_id(payload, "from") or _nested_id(payload, "user")
            )
        case Owner.POLL:
            identifier = payload.get("poll_id", payload.get("id"))
        case Owner.CONNECTION:
            identifier = payload.get("business_connection_id") or _nested_id(payload, "chat")
    # Of an injected update it can be anything.
    return f"{known.queue}:{identifier}" if isinstance(identifier, int | str) else None


def expiry_of(kind: str, payload: Any, now: float) -> float:
    """Unix time after which an update is no longer worth a try."""
    known = KINDS.get(kind)
    if known is None:
        return now + DAY_SECONDS
    if known.from_date and isinstance(payload, Mapping):
        date = payload.get("edit_date") or payload.get("date")
        if isinstance(date, (int, float)) and not isinstance(date, bool):
            return date + known.lifetime_seconds
    return now + known.lifetime_seconds


def resolve_allowed(names: Iterable[str]) -> frozenset[str]:
    """What an `allowed_updates` that was given means: unknown names are ignored, and none left means the default."""
    known = frozenset(name.lower() for name in names) & frozenset(KINDS)
    return known or DEFAULT_ALLOWED


def list_allowed(allowed: frozenset[str]) -> list[str] | None:
    """`allowed_updates` as getWebhookInfo shows it: None (absent) for the default."""
    return None if allowed == DEFAULT_ALLOWED else [name for name in KINDS if name in allowed]


def _nested_id(payload: Mapping[str, Any], field: str) -> Any:
    inner = payload.get(field)
    return inner.get("id") if isinstance(inner, Mapping) else None


def _changed_member_id(payload: Mapping[str, Any]) -> Any:
    """In a chat_member update the queue is that of the member who changed, not of whoever changed them."""
    member = payload.get("new_chat_member")
    return _nested_id(member, "user") if isinstance(member, Mapping) else None
