"""Where the operator's code is at work: file and line of the innermost frame that is no library's.

Not promised: that it is there a moment later. A thread is looked at from another, while it runs.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

LIBRARIES = tuple(
    path + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (path := sysconfig.get_path(name))
)
"""Code of others: what happens in it says less than the line that called it."""

_OURS = tuple(str(Path(__file__).parents[1] / package) + os.sep for package in ("shared", "webhook_worker"))


def shown(filename: str, line: int | None) -> str:
    """`my_bot/main.py:42`, from the working directory where it is in it."""
    path = Path(filename)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"


def of_thread(ident: int) -> str | None:
    """Where a thread is, like `my_bot/main.py:42 in order`: in code that is neither a library's nor ours, or, where there is
    none of that, in its innermost frame. None: it has ended."""
    frame = innermost = sys._current_frames().get(ident)
    while frame is not None and frame.f_code.co_filename.startswith(("<", *LIBRARIES, *_OURS)):
        frame = frame.f_back
    found = frame or innermost
    return found and f"{shown(found.f_code.co_filename, found.f_lineno)} in {found.f_code.co_name}"
