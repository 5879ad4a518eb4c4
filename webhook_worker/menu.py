"""A menu: pages joined by buttons. Pure; `menu_file` makes one from a file, `menu_bot` shows it.

Not promised: that a menu made by hand is without faults; `menu_file` checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

CALLBACK_PREFIX = "menu:"
"""Begins the callback data of every button, so that other handlers can have buttons beside the menu."""


class Button(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Opens a page of the menu, or a URL."""

    text: str
    page: str | None = None
    url: str | None = None


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Opens a page; `help`, which has none, lists the commands."""

    command: str  # without the slash
    description: str
    page: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What one message of the bot shows."""

    id: str
    title: str  # shown in bold above the text; may be empty
    text: str
    rows: tuple[tuple[Button, ...], ...]  # with the button that leads back

    @property
    def message(self) -> str:
        """Title and text, as they are sent."""
        return f"{self.title}\n\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Menu:
    """Everything that the bot can say."""

    main: Page
    pages: Mapping[str, Page]  # by id, the main menu included
    commands: tuple[Command, ...]
    hint: str  # the answer to what is no command

    def page_for(self, data: str | None) -> Page:
        """The page that a button opens; the main menu for one that leads nowhere any more, since menus change."""
        before, prefix, page_id = (data or "").partition(CALLBACK_PREFIX)
        return self.pages.get(page_id, self.main) if prefix and not before else self.main


def callback_data(page_id: str) -> str:
    """What a button to a page sends when it is pressed."""
    return CALLBACK_PREFIX + page_id


def list_commands(commands: Iterable[Command]) -> str:
    """What /help says: one command in a line."""
    return "\n".join(f"/{command.command} - {command.description}" for command in commands)


def utf16_length(text: str) -> int:
    """Length as Telegram measures texts and entities (https://core.telegram.org/api/entities#entity-length)."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
