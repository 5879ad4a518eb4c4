"""What our processes do not import, and whoever wants to still can."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRINTERS = ("rich", "pygments")


@pytest.mark.parametrize(
    "imports",
    [
        "from shared import log",
        "from shared.lean_imports import without_printers\nwith without_printers(): import httpx, telegram.ext",
    ],
)
def test_no_printers_are_imported_and_whoever_wants_them_finds_them(imports: str) -> None:
    """They would be megabytes and a good part of the start of every process; the other commands print with them."""
    script = f"import sys\n{imports}\nprint([name for name in {PRINTERS} if name in sys.modules])\nimport rich, pygments"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_there_already_stays() -> None:
    """A bot that prints with rich goes on to."""
    script = (
        "import rich\nfrom shared.lean_imports import without_printers\n"
        "with without_printers(): import rich.console\nprint(rich.console.Console.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Console"
