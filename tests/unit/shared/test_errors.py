"""The tree of errors, as it is drawn; and an error in one line."""

from __future__ import annotations

import ast
import asyncio
import re
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared import errors
from shared.errors import naming_line

ROOT = Path(__file__).parents[3]


def drawn(text: str) -> Iterator[tuple[str, str]]:
    """Each class of the drawing, with the one under which it hangs."""
    above: dict[int, str] = {}
    for line in text.splitlines():
        if (found := re.match(r"([ │]*[├└] |)(\w+)(?:  |$)", line)) is not None:
            depth = len(found[1])
            above = {**{at: name for at, name in above.items() if at < depth}, depth: found[2]}
            if depth:
                yield found[2], above[max(at for at in above if at < depth)]


def written() -> list[tuple[str, str]]:
    """Each class of production that has the root above it, with its base."""
    pairs = [
        (node.name, ast.unparse(base).split(".")[-1])
        for package in ("shared", "supervisor", "webhook_worker")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    ]
    of_the_tree = {"SupervisorError"}
    while more := {name for name, base in pairs if base in of_the_tree} - of_the_tree:
        of_the_tree |= more
    return sorted((name, base) for name, base in pairs if base in of_the_tree)


def test_the_tree_is_drawn_as_it_is() -> None:
    """Every error of production hangs in the drawing where it does in the code, and nothing else does."""
    assert errors.__doc__ is not None
    assert sorted(drawn(errors.__doc__)) == written()


async def fail_together() -> None:
    """As a handler with a TaskGroup does."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail("the first"))
        tasks.create_task(fail("the last"))


async def fail(reason: str) -> None:
    raise ValueError(reason)


async def fail_with_members_that_were_never_raised() -> None:
    raise ExceptionGroup("both", [KeyError("one"), ValueError("two\nand more")])


async def fail_with_notes() -> None:
    error = ValueError("noted")
    error.add_note("while handling order 7")
    raise error


async def fail_in_code() -> None:
    try:
        exec("a b")
    except SyntaxError as exc:
        raise ValueError("a line that shows where\nLINE 1: SELECT nope\n               ^") from exc


@pytest.mark.parametrize(
    ("failing", "named"),
    [
        (fail_together, "the last"),
        (lambda: fail("alone"), "alone"),
        (lambda: fail("first line\n  second\n"), "first line"),
        (fail_with_members_that_were_never_raised, "two"),
        (fail_with_notes, "noted"),
        (fail_in_code, "a line that shows where"),
    ],
)
def test_an_error_in_one_line_names_an_exception(
    failing: Callable[[], Coroutine[Any, Any, None]], named: str
) -> None:
    """Also that of a group, whose traceback ends with a rule of dashes; and not what a message or a note goes on with."""
    with pytest.raises(Exception) as raised:
        asyncio.run(failing())
    assert naming_line("".join(traceback.format_exception(raised.value))) == f"ValueError: {named}"
    assert naming_line("") == naming_line("\n") == ""
    assert naming_line("took longer than 300 s") == "took longer than 300 s"


def test_a_syntax_error_in_one_line_names_itself() -> None:
    """Its own place stands before it, in the form of a frame."""
    with pytest.raises(SyntaxError) as raised:
        exec("a b")
    assert naming_line("".join(traceback.format_exception(raised.value))).startswith(
        "SyntaxError: invalid syntax"
    )


def test_an_error_without_frames_in_one_line_is_not_its_cause() -> None:
    """It was made, and never raised."""
    with pytest.raises(ValueError, match="inside") as raised:
        asyncio.run(fail("inside"))
    error = ValueError("outside\nand more")
    error.__cause__ = raised.value
    assert naming_line("".join(traceback.format_exception(error))) == "ValueError: outside"
