"""Standard output and standard error, whoever reads them: `... | head`, a full disk, a terminal that is gone.

What cannot be written leaves the interpreter's buffer full, and its last flush then makes the exit code 120, whatever it was to
be. So whoever ends by an exit code that means something settles its streams first.

Not here: the log's way out (line_writer.py), which is never waited for.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def settle(stream: TextIO | None) -> OSError | None:
    """Write what is left in the buffer; where that cannot be, it goes nowhere, and so does all that comes after it.

    Args:
        stream: `sys.stdout` or `sys.stderr`; None where it was closed when the interpreter began.

    Returns:
        Why it could not be written; None if it was.
    """
    if stream is None:
        return None
    try:
        stream.flush()
    except OSError as exc:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return exc
    return None


def tell(text: object, stream: TextIO | None) -> None:
    """A line, if somebody takes it; once nobody does, it goes nowhere, and whoever wrote it goes on."""
    with contextlib.suppress(OSError):  # settled below
        print(text, file=stream)
    settle(stream)


def complain(text: object) -> None:
    """A line on standard error, if somebody takes it: the exit code tells the rest, and must not be another one for that."""
    tell(text, sys.stdout if sys.stderr is None else sys.stderr)
