"""Where the operator's code is at work: file and line of the innermost frame that is no library's.

Not promised: that it is there a moment later. A thread is looked at from another, while it runs. Nor what an asynchronous
generator, or a task of its own, waits for: that is not to be seen from who waits for them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Coroutine, Generator
from pathlib import Path
from types import FrameType

LIBRARIES = tuple(
    path + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (path := sysconfig.get_path(name))
)
"""Code of others: what happens in it says less than the line that called it."""

_PYTHON, _SITE = LIBRARIES[:2], LIBRARIES[2:]
_OURS = tuple(str(Path(__file__).parents[1] / package) + os.sep for package in ("shared", "webhook_worker"))


def shown(filename: str, line: int | None) -> str:
    """`my_bot/main.py:42`, from the working directory where it is in it."""
    path = Path(filename)
    with contextlib.suppress(OSError, ValueError):  # it is gone, or the file is not in it
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"


def of_thread(ident: int) -> str | None:
    """Where a thread is, like `my_bot/main.py:42 in order`: in code that is neither a library's nor ours, or, where there is
    none of that, in its innermost frame. None: it has ended."""
    frames = []
    frame = sys._current_frames().get(ident)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    operators = (frame for frame in frames if not _is_in(frame, "<", *LIBRARIES, *_OURS))
    found = next(operators, frames[0] if frames else None)
    return None if found is None else _place(found)


def of_coroutine(coroutine: object) -> tuple[str | None, str]:
    """Where a coroutine waits: the place, None where it is in our code; and the whole way there as a traceback has it, without
    the lines of code, "" where it has ended.

    The place is the innermost one that is no library's. Where that is ours, or there is none, it is the innermost one that is
    not Python's own: a bot that is installed as a package lies among the libraries.

    Args:
        coroutine: or what has its attributes.
    """
    frames = []
    while isinstance(coroutine, Coroutine | Generator):
        # Of those that are made of a function of Python: the others have no frame.
        if (frame := getattr(coroutine, "cr_frame", getattr(coroutine, "gi_frame", None))) is not None:
            frames.append(frame)
        coroutine = getattr(coroutine, "cr_await", getattr(coroutine, "gi_yieldfrom", None))
    way = "".join(
        f'  File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}\n'
        for frame in frames
    )
    frames.reverse()
    found = next((frame for frame in frames if not _is_in(frame, "<", *LIBRARIES)), None)
    if found is None or _is_in(found, *_OURS):
        found = next((frame for frame in frames if not _is_of_python(frame)), None)
    return None if found is None or _is_in(found, *_OURS) else _place(found), way


def _is_of_python(frame: FrameType) -> bool:
    return _is_in(frame, "<", *_PYTHON) and not _is_in(frame, *_SITE)


def _is_in(frame: FrameType, *beginnings: str) -> bool:
    return frame.f_code.co_filename.startswith(beginnings)


def _place(frame: FrameType) -> str:
    return f"{shown(frame.f_code.co_filename, frame.f_lineno)} in {frame.f_code.co_name}"
