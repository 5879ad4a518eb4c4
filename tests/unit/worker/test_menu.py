"""A menu that could not be shown is refused at start, with everything that is wrong with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from telegram import constants

from webhook_worker import menu, menu_bot, menu_file
from webhook_worker.menu import callback_data, utf16_length
from webhook_worker.menu_file import MenuError, load_menu, parse_menu

Spec = dict[str, Any]

GOOD: Spec = {
    "hint": "Send /start.",
    "back": "Back",
    "commands": [
        {"command": "start", "description": "the menu", "page": "main"},
        {"command": "help", "description": "this list"},
        {"command": "news", "description": "what is new", "page": "news"},
    ],
    "pages": [
        {
            "id": "main",
            "title": "Main",
            "text": "Hello",
            "rows": [[{"text": "A", "page": "a"}, {"text": "Site", "url": "https://example.org/x?y=z"}]],
        },
        {"id": "a", "text": "Page A", "back": "main", "rows": [[{"text": "B", "page": "b"}]]},
        {"id": "b", "text": "Page B", "back": "a"},
        {"id": "news", "text": "Nothing", "back": "main"},
    ],
}


def faults_of(spec: Spec | bytes) -> tuple[str, ...]:
    """What is wrong with a menu."""
    with pytest.raises(MenuError) as caught:
        parse_menu(spec if isinstance(spec, bytes) else json.dumps(spec).encode(), name="menu.json")
    assert all(fault.startswith("menu.json: ") for fault in caught.value.faults)
    return tuple(fault.removeprefix("menu.json: ") for fault in caught.value.faults)


def changed(change: Callable[[Spec], object]) -> Spec:
    """The good menu with a change."""
    spec = copy.deepcopy(GOOD)
    change(spec)
    return spec


def test_a_good_menu_is_read() -> None:
    """Every page but the main menu gets its button back, below the others."""
    good = parse_menu(json.dumps(GOOD).encode(), name="menu.json")
    assert good.main.message == "Main\n\nHello"
    assert good.pages["b"].message == "Page B"
    assert list(good.pages) == ["main", "a", "b", "news"]
    assert [[button.text for button in row] for row in good.pages["a"].rows] == [["B"], ["Back"]]
    assert good.pages["a"].rows[-1][0].page == "main"
    assert menu.list_commands(good.commands) == ("/start - the menu\n/help - this list\n/news - what is new")


@pytest.mark.parametrize(
    ("data", "page"),
    [
        (callback_data("a"), "a"),
        (callback_data("main"), "main"),
        (callback_data("gone"), "main"),
        ("a", "main"),
        ("other:menu:a", "main"),
        ("menu:", "main"),
        ("", "main"),
        (None, "main"),
    ],
)
def test_a_button_that_leads_nowhere_any_more_leads_to_the_main_menu(data: str | None, page: str) -> None:
    """Messages in chats are older than the menu that is deployed."""
    assert parse_menu(json.dumps(GOOD).encode(), name="menu.json").page_for(data).id == page


def set_button(**fields: Any) -> Callable[[Spec], object]:
    """Replaces the first button of the main menu and leaves page "a" reachable."""

    def change(spec: Spec) -> None:
        spec["pages"][0]["rows"] = [[fields, {"text": "A", "page": "a"}]]

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (set_button(text="X", page="nowhere"), "page 'main', button 'X': there is no page 'nowhere'"),
        (set_button(text="X"), "page 'main', button 'X': must have either a page or a url"),
        (
            set_button(text="X", page="a", url="https://x.org"),
            "page 'main', button 'X': must have either a page or a url",
        ),
        (set_button(text=" ", page="a"), "page 'main', button ' ': must have a text"),
        (set_button(page="a"), "page 'main', button ?: Object missing required field `text`"),
        (set_button(text="X", pgae="a"), "page 'main', button 'X': Object contains unknown field `pgae`"),
        (
            set_button(text="X", url="javascript:alert(1)"),
            "page 'main', button 'X': 'javascript:alert(1)' is no URL that Telegram opens: http, https or tg, and a host",
        ),
        (set_button(text="X", url="https://"), "is no URL that Telegram opens"),
        (set_button(text="X", url="https://a b.org"), "is no URL that Telegram opens"),
        (set_button(text="X", url="https://[x"), "is no URL that Telegram opens"),
        (
            lambda spec: spec["pages"][2].pop("back"),
            "page 'b': has no way back; name in `back` the page that it belongs to",
        ),
        (lambda spec: spec["pages"][2].update(back="c"), "page 'b', back: there is no page 'c'"),
        (
            lambda spec: spec["pages"][1].update(back="b"),
            "page 'a': has no way back to the main menu: a > b > a",
        ),
        (
            lambda spec: spec["pages"][2].update(back="b"),
            "page 'b': has no way back to the main menu: b > b",
        ),
        (
            lambda spec: spec["pages"][0].update(back="a"),
            "page 'main': the first page is the main menu and has no back",
        ),
        (lambda spec: spec["pages"][1].update(rows=[]), "page 'b': no button and no command leads to it"),
        (lambda spec: spec["pages"][2].update(id="a"), "page 'a': there are 2"),
        (lambda spec: spec["pages"][1].update(text=" \n"), "page 'a', text: must not be empty"),
        (
            lambda spec: spec["pages"][1].update(text="x" * 4097),
            "page 'a', text: has 4097 characters, and Telegram takes 4096",
        ),
        (
            lambda spec: spec["pages"][1].update(text="\N{CAT}" * 2049),
            "page 'a', text: has 4098 characters, and Telegram takes 4096",
        ),
        (
            lambda spec: spec["pages"][1].update(title="Long", text="x" * 4095),
            "page 'a', title and text: has 4101 characters, and Telegram takes 4096",
        ),
        (
            lambda spec: spec["pages"][1].update(title=" Title"),
            "page 'a', title: must not begin or end with a blank",
        ),
        (
            lambda spec: spec["pages"].append({"id": "ä" * 30, "text": "x", "back": "main"}),
            "id: must have 1 to 59 bytes, since every button to it carries it",
        ),
        (
            lambda spec: spec["pages"].append({"id": "", "text": "x", "back": "main"}),
            "page '', id: must have 1 to 59 bytes, since every button to it carries it",
        ),
        (
            lambda spec: spec["pages"][1]["rows"].append([]),
            "page 'a': a row must have 1 to 8 buttons, one has 0",
        ),
        (
            lambda spec: spec["pages"][1]["rows"].append([{"text": "B", "page": "b"}] * 9),
            "page 'a': a row must have 1 to 8 buttons, one has 9",
        ),
        (
            lambda spec: spec["pages"][1].update(rows=[[{"text": "B", "page": "b"}] * 5] * 20),
            "page 'a': has 101 buttons, and Telegram takes 100",
        ),
        (lambda spec: spec["pages"][1].pop("text"), "page 'a': Object missing required field `text`"),
        (lambda spec: spec["pages"].append(7), "page number 5: Expected `object`, got `int`"),
        (lambda spec: spec.update(pages=[]), "pages: there must be one at least, the main menu"),
        (lambda spec: spec.update(hint=""), "hint: must not be empty"),
        (lambda spec: spec.update(back=" "), "back: must not be empty"),
        (lambda spec: spec.pop("hint"), "Object missing required field `hint`"),
        (lambda spec: spec.update(pags=[]), "Object contains unknown field `pags`"),
        (lambda spec: spec["commands"].pop(0), "commands: there must be 'start'"),
        (lambda spec: spec["commands"].pop(1), "commands: there must be 'help'"),
        (lambda spec: spec["commands"].append(spec["commands"][2]), "command 'news': there are 2"),
        (lambda spec: spec["commands"][2].update(page="x"), "command 'news': there is no page 'x'"),
        (lambda spec: spec["commands"][2].pop("page"), "command 'news': must have a page"),
        (
            lambda spec: spec["commands"][1].update(page="a"),
            "command 'help': lists the commands, and has no page",
        ),
        (
            lambda spec: spec["commands"][0].update(page="a"),
            "command 'start': must open the main menu, which is the first page, 'main'",
        ),
        (
            lambda spec: spec["commands"][2].update(command="New"),
            "command 'New': must have 1 to 32 of a-z 0-9 _",
        ),
        (
            lambda spec: spec["commands"][2].update(description="x" * 257),
            "command 'news', description: must have 1 to 256 characters",
        ),
        (
            lambda spec: spec["commands"][2].pop("description"),
            "command 'news': Object missing required field `description`",
        ),
    ],
)
def test_every_fault_is_named_with_its_place(change: Callable[[Spec], object], fault: str) -> None:
    """An error at start, not in the chat."""
    assert any(fault in found for found in faults_of(changed(change)))


def test_all_faults_are_told_together() -> None:
    """Whoever writes a menu mends it once."""

    def change(spec: Spec) -> None:
        spec["hint"] = ""
        spec["pages"][0]["rows"][0].append({"text": "X", "page": "nowhere"})
        spec["pages"][1]["rows"] = []
        spec["pages"][2].pop("back")
        spec["pages"].append({"id": "loop", "text": "x", "back": "loop"})
        spec["commands"].pop(0)

    assert set(faults_of(changed(change))) == {
        "hint: must not be empty",
        "page 'main', button 'X': there is no page 'nowhere'",
        "page 'b': has no way back; name in `back` the page that it belongs to",
        "page 'b': no button and no command leads to it",
        "page 'loop': has no way back to the main menu: loop > loop",
        "page 'loop': no button and no command leads to it",
        "commands: there must be 'start'",
    }


def test_what_cannot_be_read_hides_no_other_fault_and_makes_up_none() -> None:
    """A page with a slip is still a page that buttons may name."""

    def change(spec: Spec) -> None:
        spec["pages"][1]["colour"] = "red"
        spec["pages"][2]["text"] = ""

    assert set(faults_of(changed(change))) == {
        "page 'a': Object contains unknown field `colour`",
        "page 'b', text: must not be empty",
    }


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"hint": "\xff"}', b"[" * 100_000])
def test_a_file_that_is_no_menu_is_one_fault(content: bytes) -> None:
    """In words, not as a traceback."""
    assert len(faults_of(content)) == 1


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    """And so is a folder."""
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(MenuError, match="cannot be read"):
            load_menu(path)


def test_the_menu_that_we_ship_is_good() -> None:
    """The built-in bot starts; its texts fit a screen."""
    shipped = load_menu(menu_bot.MENU_FILE)
    assert len(shipped.pages) >= 5
    assert all(utf16_length(page.message) < 800 for page in shipped.pages.values())


def test_limits_are_telegrams() -> None:
    """As python-telegram-bot has them from the Bot API's documentation."""
    assert menu_file.MAX_TEXT_LENGTH == constants.MessageLimit.MAX_TEXT_LENGTH
    assert menu_file.MAX_CALLBACK_DATA_BYTES == constants.InlineKeyboardButtonLimit.MAX_CALLBACK_DATA
    assert menu_file.MAX_BUTTONS == constants.InlineKeyboardMarkupLimit.TOTAL_BUTTON_NUMBER
    assert menu_file.MAX_BUTTONS_IN_ROW == constants.InlineKeyboardMarkupLimit.BUTTONS_PER_ROW
    assert menu_file.MAX_DESCRIPTION_LENGTH == constants.BotCommandLimit.MAX_DESCRIPTION
