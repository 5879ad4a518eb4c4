"""setMyCommands and its like: the lists of commands that a bot shows.

Pure. Bot API documentation: lists are kept by scope and language; a command is 1 to 32 of `a-z 0-9 _`, its description
1 to 256 characters, at most 100 of them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from deploy.local.emulator.errors import bad_request
from deploy.local.emulator.parameters import Parameters

MAX_COMMANDS = 100


class Commands:
    """The command lists of one bot."""

    def __init__(self) -> None:
        self._lists: dict[tuple[str, str], list[dict[str, str]]] = {}

    def set(self, call: Parameters) -> bool:
        self._lists[_key(call)] = _read(call)
        return True

    def get(self, call: Parameters) -> list[dict[str, str]]:
        return self._lists.get(_key(call), [])

    def delete(self, call: Parameters) -> bool:
        self._lists.pop(_key(call), None)
        return True


def _key(call: Parameters) -> tuple[str, str]:
    try:
        scope: Any = call.json("scope") or {"type": "default"}
    except ValueError:
        raise bad_request("can't parse BotCommandScope JSON object") from None
    return json.dumps(scope, sort_keys=True), call.text("language_code")


def _read(call: Parameters) -> list[dict[str, str]]:
    try:
        given = call.json("commands")
    except ValueError:
        raise bad_request("can't parse commands JSON object") from None
    if not isinstance(given, list):
        raise bad_request("expected an Array of BotCommand")
    if len(given) > MAX_COMMANDS:
        raise bad_request("can't set more than 100 commands")
    commands = []
    for item in given:
        if not isinstance(item, dict):
            raise bad_request("expected an Object")
        command, description = (
            str(item.get("command", "")).removeprefix("/"),
            str(item.get("description", "")),
        )
        if not re.fullmatch(r"[a-z0-9_]{1,32}", command):
            raise bad_request("BOT_COMMAND_INVALID")
        if not 1 <= len(description) <= 256:
            raise bad_request("BOT_COMMAND_DESCRIPTION_INVALID")
        commands.append({"command": command, "description": description})
    return commands
