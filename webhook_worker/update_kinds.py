"""Kinds of update that a bot has handlers for, and that Telegram does not send it: those that are left out by default.

A bot that was run by `run_polling(allowed_updates=Update.ALL_TYPES)` got them; here ALLOWED_UPDATES has to name them, and
nothing would be seen of their absence.

Not promised: what handlers of other classes look for (a TypeHandler takes whatever comes), or those that are added later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from telegram import Update
from telegram.ext import ChatMemberHandler, ConversationHandler, MessageReactionHandler

from shared.webhook_info import NOT_BY_DEFAULT
from webhook_worker.update_run import AnyApplication

_CHAT_MEMBER = frozenset({"chat_member"})
_REACTIONS = {
    MessageReactionHandler.MESSAGE_REACTION_UPDATED: frozenset({"message_reaction"}),
    MessageReactionHandler.MESSAGE_REACTION_COUNT_UPDATED: frozenset({"message_reaction_count"}),
    MessageReactionHandler.MESSAGE_REACTION: frozenset({"message_reaction", "message_reaction_count"}),
}


def unsent_kinds(app: AnyApplication, allowed: Sequence[str]) -> tuple[str, ...]:
    """Those of which nothing comes, sorted by name.

    A handler of both reactions is content with one of them: it is what one gets without a word about kinds.

    Args:
        app: with its handlers; conversations are looked into.
        allowed: ALLOWED_UPDATES; empty is Telegram's default.
    """
    missed: set[str] = set()
    for handler in _handlers(app):
        wanted = _wanted(handler)
        if wanted.isdisjoint(allowed):
            missed |= wanted
    return tuple(sorted(missed))


def with_kinds(allowed: Sequence[str], kinds: Iterable[str]) -> str:
    """ALLOWED_UPDATES as it has to be for these to come too, and all that comes now: naming one kind leaves out the others."""
    default = [kind for kind in Update.ALL_TYPES if kind not in NOT_BY_DEFAULT]
    return ",".join([*(allowed or default), *kinds])


def _handlers(app: AnyApplication) -> Iterator[object]:
    waiting: list[object] = [handler for group in app.handlers.values() for handler in group]
    seen: set[int] = set()  # one may be in several states, and a conversation in itself
    while waiting:
        handler = waiting.pop()
        if id(handler) in seen:
            continue
        seen.add(id(handler))
        yield handler
        if isinstance(handler, ConversationHandler):
            waiting += [*handler.entry_points, *handler.fallbacks]
            for of_state in handler.states.values():
                waiting += of_state


def _wanted(handler: object) -> frozenset[str]:
    match handler:
        case ChatMemberHandler(
            chat_member_types=ChatMemberHandler.CHAT_MEMBER | ChatMemberHandler.ANY_CHAT_MEMBER
        ):
            return _CHAT_MEMBER
        case MessageReactionHandler(message_reaction_types=types):
            return _REACTIONS.get(types, frozenset())
        case _:
            return frozenset()
