"""Imports without what a library brings along for its own command line or for developers.

httpx and structlog import rich and pygments where they find them, and typer, with which the commands are made, brings both:
100 ms and several MiB of a process that never prints with them. Both do without, as if these were not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def without_printers() -> Iterator[None]:
    """What the block imports does not find rich and pygments; afterwards, everybody does again."""
    hidden = [name for name in ("rich", "pygments") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = cast(Any, None)  # the documented way to make an import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
