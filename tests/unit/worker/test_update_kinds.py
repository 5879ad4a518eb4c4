"""Handlers of what Telegram leaves out by default, and what ALLOWED_UPDATES has to name for them."""

from __future__ import annotations

from typing import Any

import pytest
from telegram.ext import (
    ChatMemberHandler,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    MessageReactionHandler,
    TypeHandler,
)

from shared.webhook_info import NOT_BY_DEFAULT
from tests.sample_bots.running import builder_for
from tests.sample_bots.settings import API_URL
from webhook_worker.update_kinds import unsent_kinds, with_kinds

REACTIONS = ("message_reaction", "message_reaction_count")


async def handle(update: object, context: ContextTypes.DEFAULT_TYPE) -> None:
    """Never called."""


def member(kind: int = ChatMemberHandler.CHAT_MEMBER) -> Any:
    return ChatMemberHandler(handle, kind)


def reaction(**kind: Any) -> Any:
    return MessageReactionHandler(handle, **kind)


def conversation(**parts: Any) -> Any:
    return ConversationHandler(**{"entry_points": [], "states": {}, "fallbacks": [], **parts})


@pytest.mark.parametrize(
    ("handlers", "allowed", "missed"),
    [
        ([], "", ()),
        ([CommandHandler("go", handle), TypeHandler(object, handle)], "", ()),
        ([ChatMemberHandler(handle)], "", ()),
        ([member(ChatMemberHandler.MY_CHAT_MEMBER)], "message", ()),
        ([member()], "", ("chat_member",)),
        ([member(ChatMemberHandler.ANY_CHAT_MEMBER)], "message my_chat_member", ("chat_member",)),
        ([member(ChatMemberHandler.ANY_CHAT_MEMBER)], "message chat_member", ()),
        ([reaction()], "", REACTIONS),
        ([reaction()], "message_reaction", ()),
        (
            [reaction(message_reaction_types=MessageReactionHandler.MESSAGE_REACTION_UPDATED)],
            "",
            REACTIONS[:1],
        ),
        (
            [reaction(message_reaction_types=MessageReactionHandler.MESSAGE_REACTION_COUNT_UPDATED)],
            "message_reaction",
            REACTIONS[1:],
        ),
        ([member(), reaction(), member()], "", ("chat_member", *REACTIONS)),
        ([conversation(entry_points=[member()])], "", ("chat_member",)),
        (
            [conversation(states={1: [], 2: [reaction()]}, fallbacks=[member()])],
            "",
            ("chat_member", *REACTIONS),
        ),
        ([conversation(states={1: [conversation(fallbacks=[member()])]})], "", ("chat_member",)),
    ],
)
def test_what_a_bot_waits_for_in_vain(handlers: list[Any], allowed: str, missed: tuple[str, ...]) -> None:
    """In any group, and within conversations."""
    app = builder_for(API_URL).build()
    for group, handler in enumerate(handlers):
        app.add_handler(handler, group=group)
    assert unsent_kinds(app, allowed.split()) == missed


def test_a_conversation_within_itself_is_looked_into_once() -> None:
    """Nobody writes one, and nobody's start may hang for it."""
    around = conversation(states={1: [member()]})
    around.states[1].append(around)
    app = builder_for(API_URL).build()
    app.add_handler(around)
    assert unsent_kinds(app, ()) == ("chat_member",)


def test_the_remedy_takes_nothing_away() -> None:
    """A list replaces the default, so it has to name what came by it."""
    kinds = with_kinds((), ["chat_member"]).split(",")
    assert {"message", "callback_query", "my_chat_member"} < set(kinds)
    assert set(kinds) & NOT_BY_DEFAULT == {"chat_member"}
    assert with_kinds(("message", "poll"), ["chat_member"]) == "message,poll,chat_member"
