"""Where the operator's code is at work: file and line of the innermost frame that is no library's.

Not promised: that it is there a moment later. A thread is looked at from another, while it runs. Nor what an asynchronous
generator, or a task of its own, waits for: that is not to be seen from who waits for them.
"""

from __future__ import annotations

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

_OURS = tuple(str(Path(__file__).parents[1] / package) + os.sep for package in ("shared", "webhook_worker"))


def shown(filename: str, line: int | None) -> str:
    """`my_bot/main.py:42`, from the working directory where it is in it."""
    path = Path(filename)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"


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
    """Where a coroutine waits: the innermost place in code that is no library's, None where that is ours, or there is none; and
    the whole way there as a traceback has it, without the lines of code, "" where it has ended.

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
    frame = next((frame for frame in reversed(frames) if not _is_in(frame, "<", *LIBRARIES)), None)
    return None if frame is None or _is_in(frame, *_OURS) else _place(frame), way


def _is_in(frame: FrameType, *beginnings: str) -> bool:
    return frame.f_code.co_filename.startswith(beginnings)


def _place(frame: FrameType) -> str:
    return f"{shown(frame.f_code.co_filename, frame.f_lineno)} in {frame.f_code.co_name}"
