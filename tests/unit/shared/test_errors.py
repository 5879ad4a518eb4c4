"""The tree of errors, as it is drawn."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from shared import errors

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
