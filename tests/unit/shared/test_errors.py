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
from shared.errors import last_line

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


@pytest.mark.parametrize(
    ("failing", "named"), [(fail_together, "the last"), (lambda: fail("alone"), "alone")]
)
def test_an_error_in_one_line_names_an_exception(
    failing: Callable[[], Coroutine[Any, Any, None]], named: str
) -> None:
    """Also that of a group, whose traceback ends with a rule of dashes."""
    with pytest.raises(Exception) as raised:
        asyncio.run(failing())
    assert last_line("".join(traceback.format_exception(raised.value))) == f"ValueError: {named}"
    assert last_line("") == last_line("\n") == ""
    assert last_line("took longer than 300 s") == "took longer than 300 s"
