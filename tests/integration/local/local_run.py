"""`python -m deploy.local run` as a process, and what it prints: for the tests of it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# A limit on a hang: the start alone takes seconds on a busy machine.
LIMIT_SECONDS = 120.0


class Terminal:
    """The user's end of a terminal, or of a pipe."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.seen = ""

    def type(self, text: str) -> None:
        """As if typed."""
        os.write(self.descriptor, text.encode())

    def leave(self) -> None:
        """As `head` does: what is printed from now on has no reader."""
        nobody = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nobody, self.descriptor)
        os.close(nobody)

    def wait_for(self, *texts: str) -> str:
        """Everything that was printed since the last wait, when all the texts are in it."""
        begin, found = time.monotonic(), self.seen
        while not all(text in found for text in texts):
            left = LIMIT_SECONDS - (time.monotonic() - begin)
            ready, _, _ = select.select([self.descriptor], [], [], max(left, 0))
            chunk = b""
            with contextlib.suppress(OSError):
                # A terminal whose other side is gone answers with an error.
                chunk = os.read(self.descriptor, 4096) if ready else b""
            assert chunk, f"waited in vain for {texts} in:\n{found}"
            found += chunk.decode(errors="replace")
        self.seen = ""
        return found


@contextlib.contextmanager
def running(
    folder: Path,
    *,
    with_terminal: bool = False,
    page_port: int = 0,
    variables: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """The local system, with a web page if it is given a port, variables more in its environment, and what it prints."""
    ours, theirs = pty.openpty() if with_terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.local", "run", "--folder", str(folder)],
        cwd=ROOT,
        env={**os.environ, "LOCAL_PAGE_PORT": str(page_port), **(variables or {})},
        stdin=theirs if with_terminal else subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield process, Terminal(ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
