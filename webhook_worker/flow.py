"""What the log says of an update: what kind it is, and from whom. Never what somebody wrote, but for the name of a command.

Not promised: that the command is one of the bot's. `/whatever` is what a user typed, and is shown within the bounds that
Telegram sets to commands: 1 to 32 of `A-Z a-z 0-9 _` (https://core.telegram.org/bots/features#commands).
"""

from __future__ import annotations

import re

from telegram import Update

_COMMAND = re.compile(r"(/[A-Za-z0-9_]{1,32})(?:@[A-Za-z0-9_]{1,64})?(?![\w@/<>])")
_KIND = re.compile(r"[a-z_]{1,64}", re.ASCII)
# As plain strings: formatting a member of an enum takes a microsecond.
_KINDS = tuple(map(str, Update.ALL_TYPES))


def describe(update: Update) -> tuple[str, dict[str, int]]:
    """The event of a log line and its fields: `/start from` and `{"user_id": 42, "update_id": 7}`.

    Args:
        update: as Telegram sent it. python-telegram-bot does not check types, so any field may hold anything.
    """
    for role, party in (("user_id", update.effective_user), ("chat_id", update.effective_chat)):
        party_id = getattr(party, "id", None)
        if isinstance(party_id, int):
            return f"{_command(update) or _kind(update)} from", {
                role: party_id,
                "update_id": update.update_id,
            }
    return _kind(update), {"update_id": update.update_id}


def _kind(update: Update) -> str:
    for kind in _KINDS:
        if getattr(update, kind, None) is not None:
            return kind
    # A kind that this version of python-telegram-bot does not know.
    return next((kind for kind in update.api_kwargs if _KIND.fullmatch(kind)), "update")


def _command(update: Update) -> str | None:
    message = update.message
    if message is None or not isinstance(message.text, str):
        return None
    # As Telegram finds the entities that it adds for commands; whoever writes an update by hand leaves those out.
    found = _COMMAND.match(message.text)
    return found[1] if found else None
