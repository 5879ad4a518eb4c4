"""The table, results.json, and docs/performance.md with its plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.figures import Figure, Series

RESULTS = Path(__file__).parent / "results.json"


def as_results(figures: Sequence[Figure]) -> dict[str, Any]:
    return {f.name: {"value": f.value} for f in figures}


def print_table(results: dict[str, Any]) -> None:
    print(results)


def write(figures: Sequence[Figure], series: Sequence[Series], path: Path, *, write_docs: bool) -> None:
    print_table(as_results(figures))
