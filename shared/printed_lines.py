"""What is printed, on its way to the log's thread: a `print` must not wait for the reader of standard output either (b15).

    print(...) ──► text stream ──► PrintedLines: whole lines, redaction ──► LineWriter ──► the descriptor that it had

A line goes on with its newline, where the interpreter's own stream into a pipe keeps 8 KiB together; until then it is kept,
flushed or not, so that no line of the log comes between, and no secret is taken apart. It goes as it was printed: no level,
no tag, no form.

Not promised: delivery, see `shared.line_writer`; and all of it for what is written past `sys.stdout` and `sys.stderr`: by
os.write, faulthandler, extensions in C, and other programs that the bot starts.
"""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING

from shared.redaction import Redactor

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from shared.line_writer import LineWriter

MAX_LINE_CHARACTERS = 64 * 1024
"""A longer line goes in pieces, each a line: what prints without ever ending one must not fill the memory."""

# Whatever the bytes are, they come out as they were.
_ENCODING, _ERRORS = "utf-8", "surrogateescape"


class PrintedLines(io.BufferedIOBase):
    """The bytes of one standard stream. For all threads: the garbage collector may print in the middle of a print."""

    def __init__(self, fd: int, writer: LineWriter, redactor: Redactor, *, name: str = "") -> None:
        """
        Args:
            fd: the stream's, for whoever asks for it; not closed by us.
            writer: to where this descriptor leads.
            redactor: takes out secrets.
            name: as the interpreter's own stream has it.
        """
        self.name = name
        self._fd = fd
        self._writer = writer
        self._redactor = redactor
        self._lock = threading.RLock()
        self._begun = b""
        self._is_forked = False

    def text(self) -> io.TextIOWrapper:
        """The stream for `sys`; what cannot be encoded is escaped rather than an error of whoever prints."""
        return io.TextIOWrapper(
            self, encoding=_ENCODING, errors="backslashreplace", line_buffering=True, write_through=True
        )

    def write(self, data: ReadableBuffer, /) -> int:
        """Takes it all; never waits."""
        if self.closed:
            raise ValueError("write to closed file")
        written = bytes(data)
        with self._lock:
            # Not in one expression with what follows: a print in the middle of it finds nothing begun.
            begun, self._begun = self._begun, b""
            *lines, rest = (begun + written).split(b"\n")
            for line in lines:
                self._put(self._redacted(line))
            self._begun = self._cut(rest) + self._begun
        return len(written)

    def end(self) -> None:
        """No more comes: a line that was only begun goes too."""
        with self._lock:
            begun, self._begun = self._begun, b""
            if begun:
                self._put(self._redacted(begun))

    def flush(self) -> None:
        """Of a line that was begun: nothing, but in a process that was forked, which does it before its end."""
        super().flush()
        if self._is_forked:
            self.end()

    def close(self) -> None:
        """Ends it; the descriptor stays open."""
        if not self.closed:
            self.end()
        super().close()

    def fileno(self) -> int:
        """Of the stream itself, for processes that are to inherit it."""
        return self._fd

    def isatty(self) -> bool:
        """As the descriptor says."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Always."""
        return True

    def go_on_after_fork(self) -> None:
        """In a child: the lock may be a thread's that is not there, and what was begun is the parent's to write."""
        self._lock = threading.RLock()
        self._begun = b""
        self._is_forked = True

    def _redacted(self, line: bytes) -> str:
        return self._redactor(line.decode(_ENCODING, _ERRORS))

    def _cut(self, rest: bytes) -> bytes:
        """What is left of a begun line when its pieces that are long enough have gone."""
        if len(rest) <= MAX_LINE_CHARACTERS + self._redactor.longest:
            return rest
        # The cut may go through a secret that is not all there yet: as much as that can be stays.
        text = self._redacted(rest)
        if pieces := text[: -self._redactor.longest]:
            self._put(pieces)
        return text[len(pieces) :].encode(_ENCODING, _ERRORS)

    def _put(self, line: str) -> None:
        for at in range(0, len(line) or 1, MAX_LINE_CHARACTERS):
            self._writer.put(line[at : at + MAX_LINE_CHARACTERS].encode(_ENCODING, _ERRORS) + b"\n")
