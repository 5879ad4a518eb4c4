"""The file of a menu, and what is wrong with it: all of it at once, at start, and not in the chat.

    {"hint": "...", "back": "« Back",
     "commands": [{"command": "start", "description": "...", "page": "main"}, {"command": "help", "description": "..."}],
     "pages": [{"id": "main", "title": "...", "text": "...", "rows": [[{"text": "About", "page": "about"}]]},
               {"id": "about", "title": "...", "text": "...", "back": "main",
                "rows": [[{"text": "Website", "url": "https://..."}]]}]}

The first page is the main menu. Every other page says by `back` to which page it goes back, and gets a button for that below
its rows, named as the file's `back` says. `/start` opens the main menu, `/help` has no page and lists the commands, every other
command opens a page. Texts are plain and the title is set in bold: there is no markup that could be wrong.

Not promised: that the target of a URL is there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from shared.errors import ConfigurationError
from webhook_worker.menu import Button, Command, Menu, Page, callback_data, list_commands, utf16_length

# https://core.telegram.org/bots/api: sendMessage, InlineKeyboardButton, BotCommand; those of a keyboard are from
# telegram.constants.InlineKeyboardMarkupLimit. A test compares them all with telegram.constants.
MAX_TEXT_LENGTH = 4096
MAX_CALLBACK_DATA_BYTES = 64
MAX_BUTTONS = 100
MAX_BUTTONS_IN_ROW = 8
MAX_DESCRIPTION_LENGTH = 256

_COMMAND = re.compile(r"[a-z0-9_]{1,32}", re.ASCII)

SpecT = TypeVar("SpecT")


class MenuError(ConfigurationError):
    """The menu cannot be shown. `faults` has a line for each reason, with the file and the place in it."""


def load_menu(path: Path) -> Menu:
    """Reads a menu and checks all of it.

    Raises:
        MenuError: it cannot be read, or something of it could not be shown.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise MenuError((f"{path.name} cannot be read: {exc.strerror or exc}",)) from exc
    return parse_menu(content, name=path.name)


def parse_menu(content: bytes, *, name: str) -> Menu:
    """The same from bytes.

    Args:
        name: of the file, for the faults.

    Raises:
        MenuError: something of it could not be shown.
    """
    try:
        spec = msgspec.json.decode(content, type=_Spec)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MenuError((f"{name}: {exc}",)) from exc
    faults: list[str] = []
    pages = [page for number, raw in enumerate(spec.pages, 1) if (page := _read_page(raw, number, faults))]
    commands = [
        command
        for number, raw in enumerate(spec.commands, 1)
        if (command := _convert(raw, Command, f"command {_name(raw, 'command', number)}", faults))
    ]
    is_read = not faults
    ids = [raw["id"] for raw in spec.pages if isinstance(raw, dict) and isinstance(raw.get("id"), str)]
    faults += _text_faults("hint", spec.hint)
    faults += _text_faults("back", spec.back)
    faults += [f"page {page_id!r}: there are {count}" for page_id, count in Counter(ids).items() if count > 1]
    for page in pages:
        faults += _page_faults(page, set(ids))
    faults += _command_faults(commands, set(ids), main_id=ids[0] if ids else None)
    if not spec.pages:
        faults.append("pages: there must be one at least, the main menu")
    elif is_read:  # else what could not be read would be missed on the way
        faults += _way_faults(pages, commands)
    if faults:
        raise MenuError(tuple(f"{name}: {fault}" for fault in faults))
    shown = {page.id: page.shown(spec.back) for page in pages}
    return Menu(shown[pages[0].id], shown, tuple(commands), spec.hint)


# --------------------------------------------------------------------------------------------------------------- reading


class _Spec(msgspec.Struct, forbid_unknown_fields=True):
    """The file. What is in its lists is converted one by one: a fault in one hides none in the others."""

    hint: str
    back: str
    commands: list[Any]
    pages: list[Any]


class _PageSpec(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    text: str
    title: str = ""
    back: str | None = None
    rows: list[list[Any]] = []


@dataclass(frozen=True, slots=True)
class _PageRead:
    """A page as it stands in the file."""

    place: str  # in faults
    is_main: bool
    id: str
    title: str
    text: str
    back: str | None
    rows: tuple[tuple[Button, ...], ...]

    def shown(self, back_label: str) -> Page:
        rows = self.rows if self.back is None else (*self.rows, (Button(back_label, page=self.back),))
        return Page(self.id, self.title, self.text, rows)


def _read_page(raw: Any, number: int, faults: list[str]) -> _PageRead | None:
    place = f"page {_name(raw, 'id', number)}"
    spec = _convert(raw, _PageSpec, place, faults)
    if spec is None:
        return None
    rows = []
    for row in spec.rows:
        buttons = [
            _convert(button, Button, f"{place}, button {_name(button, 'text')}", faults) for button in row
        ]
        rows.append(tuple(button for button in buttons if button is not None))
    return _PageRead(place, number == 1, spec.id, spec.title, spec.text, spec.back, tuple(rows))


def _convert(raw: Any, kind: type[SpecT], place: str, faults: list[str]) -> SpecT | None:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as exc:
        faults.append(f"{place}: {exc}")
        return None


def _name(raw: Any, key: str, number: int | None = None) -> str:
    if isinstance(raw, dict) and isinstance(raw.get(key), str):
        return repr(raw[key])
    return "?" if number is None else f"number {number}"


# -------------------------------------------------------------------------------------------------------------- checking


def _text_faults(place: str, text: str) -> Iterator[str]:
    if not text.strip():
        yield f"{place}: must not be empty"
    elif (length := utf16_length(text)) > MAX_TEXT_LENGTH:
        yield f"{place}: has {length} characters, and Telegram takes {MAX_TEXT_LENGTH}"


def _page_faults(page: _PageRead, ids: set[str]) -> Iterator[str]:
    yield from _text_faults(f"{page.place}, text", page.text)
    if page.title and page.text:
        yield from _text_faults(f"{page.place}, title and text", page.shown("").message)
    if page.title != page.title.strip():
        yield f"{page.place}, title: must not begin or end with a blank"
    size = len(callback_data(page.id).encode("utf-8", "surrogatepass"))
    if not page.id or size > MAX_CALLBACK_DATA_BYTES:
        most = MAX_CALLBACK_DATA_BYTES - len(callback_data(""))
        yield f"{page.place}, id: must have 1 to {most} bytes, since every button to it carries it"
    if page.is_main and page.back is not None:
        yield f"{page.place}: the first page is the main menu and has no back"
    elif not page.is_main and page.back is None:
        yield f"{page.place}: has no way back; name in `back` the page that it belongs to"
    elif page.back is not None and page.back not in ids:
        yield f"{page.place}, back: there is no page {page.back!r}"
    count = sum(map(len, page.rows)) + (page.back is not None)
    if count > MAX_BUTTONS:
        yield f"{page.place}: has {count} buttons, and Telegram takes {MAX_BUTTONS}"
    for row in page.rows:
        if not 1 <= len(row) <= MAX_BUTTONS_IN_ROW:
            yield f"{page.place}: a row must have 1 to {MAX_BUTTONS_IN_ROW} buttons, one has {len(row)}"
        for button in row:
            yield from _button_faults(f"{page.place}, button {button.text!r}", button, ids)


def _button_faults(place: str, button: Button, ids: set[str]) -> Iterator[str]:
    if not button.text.strip():
        yield f"{place}: must have a text"
    if (button.page is None) == (button.url is None):
        yield f"{place}: must have either a page or a url"
    if button.page is not None and button.page not in ids:
        yield f"{place}: there is no page {button.page!r}"
    if button.url is not None and not _is_url(button.url):
        yield f"{place}: {button.url!r} is no URL that Telegram opens: http, https or tg, and a host"


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https", "tg") and bool(url.hostname) and not re.search(r"\s", text)
    except ValueError:
        return False


def _command_faults(commands: list[Command], ids: set[str], *, main_id: str | None) -> Iterator[str]:
    if commands:
        yield from _text_faults("the list of the commands", list_commands(commands))
    counts = Counter(command.command for command in commands)
    for name in ("start", "help"):
        if name not in counts:
            yield f"commands: there must be {name!r}"
    for name, count in counts.items():
        if count > 1:
            yield f"command {name!r}: there are {count}"
    for command in commands:
        place = f"command {command.command!r}"
        if not _COMMAND.fullmatch(command.command):
            yield f"{place}: must have 1 to 32 of a-z 0-9 _"
        if not command.description.strip() or utf16_length(command.description) > MAX_DESCRIPTION_LENGTH:
            yield f"{place}, description: must have 1 to {MAX_DESCRIPTION_LENGTH} characters"
        if command.command == "help":
            if command.page is not None:
                yield f"{place}: lists the commands, and has no page"
        elif command.page is None:
            yield f"{place}: must have a page"
        elif command.page not in ids:
            yield f"{place}: there is no page {command.page!r}"
        elif command.command == "start" and command.page != main_id:
            yield f"{place}: must open the main menu, which is the first page, {main_id!r}"


def _way_faults(pages: list[_PageRead], commands: list[Command]) -> Iterator[str]:
    """Every page must lead back to the main menu, and be led to from there or by a command."""
    by_id = {page.id: page for page in pages}
    for page in pages:
        way = [page.id]
        while (back := by_id[way[-1]].back) in by_id and back not in way:
            way.append(back)
        if back in way:
            yield f"{page.place}: has no way back to the main menu: {' > '.join((*way, back))}"
    reached = {pages[0].id}
    ahead = [pages[0].id, *(command.page for command in commands if command.page in by_id)]
    while ahead:
        page = by_id[ahead.pop()]
        reached.add(page.id)
        ahead += {button.page for row in page.rows for button in row if button.page in by_id} - reached
    for page in pages:
        if page.id not in reached:
            yield f"{page.place}: no button and no command leads to it"
