"""Fields that are changed by their names exist. mypy does not look at the keywords of `replace`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from supervisor.state import Registration, Session, State, Worker

PACKAGE = Path(__file__).parents[3] / "supervisor"
CHANGED: dict[str, type[Struct]] = {
    "with_session": Session,
    "with_registration": Registration,
    "with_worker": Worker,
}


def changes_in(source: str) -> Iterator[tuple[type[Struct], str]]:
    """Every field that is changed by its name, and of what: by the three functions above, and by `replace(state, ...)`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in CHANGED:
                changed = CHANGED[name]
            case ast.Call(func=ast.Name(id="replace"), args=[ast.Name(id="state")]):
                changed = State
            case _:
                continue
        yield from ((changed, keyword.arg) for keyword in node.keywords if keyword.arg is not None)


def misspelt(source: str) -> list[str]:
    return [
        f"{changed.__name__}.{name}"
        for changed, name in changes_in(source)
        if name not in changed.__struct_fields__
    ]


def test_every_change_of_the_facts_is_of_a_field_that_there_is() -> None:
    """Otherwise it fails when it comes to that, in an owner."""
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")]
    assert {changed for source in sources for changed, _ in changes_in(source)} == {*CHANGED.values(), State}
    assert [name for source in sources for name in misspelt(source)] == []


def test_a_misspelt_field_is_found() -> None:
    """The check itself objects."""
    assert misspelt("with_session(state, lock_hold=True)") == ["Session.lock_hold"]
    assert misspelt("x = replace(state, peers=(), peer=())") == ["State.peer"]
