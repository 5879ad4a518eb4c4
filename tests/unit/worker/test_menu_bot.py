"""Whom the built-in bot answers: everybody who writes to it, whatever they send, and nobody who did not."""

from __future__ import annotations

from typing import Any

import pytest
from telegram import Update
from telegram.ext import ApplicationBuilder, MessageHandler

from webhook_worker.menu_bot import build

PRIVATE = {"id": 7, "type": "private", "first_name": "A"}
GROUP = {"id": -100, "type": "group", "title": "G"}
SIZE = {"file_id": "a", "file_unique_id": "b", "width": 1, "height": 1}
OTHER = {"message_id": 1, "date": 1, "chat": PRIVATE}


def is_hinted(kind: str, chat: dict[str, Any], **content: Any) -> bool:
    """Whether such an update is answered with the hint."""
    app = build(ApplicationBuilder().token("123456:a-token-of-nobody"))
    message = {
        "message_id": 2,
        "date": 1,
        "chat": chat,
        "from": {"id": 7, "is_bot": False, "first_name": "A"},
    }
    update = Update.de_json({"update_id": 1, kind: {**message, **content}}, app.bot)
    taker = next((handler for handler in app.handlers[0] if handler.check_update(update)), None)
    return isinstance(taker, MessageHandler)


@pytest.mark.parametrize(
    "content",
    [
        {"text": "hello"},
        {"photo": [SIZE]},
        {"photo": [SIZE], "caption": "look"},
        {"sticker": {**SIZE, "type": "regular", "is_animated": False, "is_video": False}},
        {"voice": {"file_id": "a", "file_unique_id": "b", "duration": 1}},
        {"location": {"longitude": 1.0, "latitude": 1.0}},
    ],
    ids=lambda content: "_".join(content),
)
def test_whatever_is_sent_in_private_gets_the_hint(content: dict[str, Any]) -> None:
    """Silence would look like a dead bot. In a group people send it to one another; and an edit is nothing new."""
    assert is_hinted("message", PRIVATE, **content)
    assert not is_hinted("message", GROUP, **content)
    assert not is_hinted("edited_message", PRIVATE, **content)


@pytest.mark.parametrize(
    "content",
    [{"pinned_message": OTHER}, {"write_access_allowed": {"from_request": True}}],
    ids=lambda content: "_".join(content),
)
def test_what_nobody_wrote_is_not_answered(content: dict[str, Any]) -> None:
    """Messages that tell of something that was done."""
    assert not is_hinted("message", PRIVATE, **content)
