"""What is printed, on its way to the log's thread: a `print` must not wait for the reader of standard output either (b15).

    print(...) ──► text stream ──► PrintedLines: whole lines, redaction ──► LineWriter ──► the descriptor that it had

A line goes on with its newline, where the interpreter's own stream into a pipe keeps 8 KiB together; until then it is kept,
flushed or not, so that no line of the log comes between, and no secret is taken apart. It goes as it was printed: no level,
no tag, no form. In a process that was forked nothing is queued: a flush writes what was begun too, and nothing is added.

There is no lock of this module's: who prints in the middle of a put, as a signal's handler or a finalizer may, holds the
writer's already, while another thread's print would hold ours and wait for the writer's.

Not promised: delivery, see `shared.line_writer`. Of a process that crashes (os._exit, a signal, a segmentation fault) come the
whole lines that were flushed by hand, where somebody reads at once, and of the others what was written by then. Nor all of this
for what is written past `sys.stdout` and `sys.stderr`: by os.write, faulthandler, extensions in C, and other programs that the
bot starts.
"""

from __future__ import annotations

import io
import os
from collections import deque
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
        # Its pieces in their order: one, but where several print at once. Of a deque one end is taken without a lock.
        self._begun: deque[bytes] = deque()
        self._seam = b"\n"
        self._is_forked = False

    def text(self) -> io.TextIOWrapper:
        """The stream for `sys`; what cannot be encoded is escaped rather than an error of whoever prints."""
        # Not line_buffering, which flushes here at each newline: only what somebody flushes by hand is to be waited for.
        return io.TextIOWrapper(self, encoding=_ENCODING, errors="backslashreplace", write_through=True)

    def write(self, data: ReadableBuffer, /) -> int:
        """Takes it all; never waits."""
        if self.closed:
            raise ValueError("write to closed file")
        written = bytes(data)
        # A print in the middle of this one, or beside it, finds nothing begun.
        *lines, rest = (self._take_begun() + written).split(b"\n")
        for line in lines:
            self._put(self._redacted(line), b"\n")
        if left := self._cut(rest):
            self._begun.appendleft(left)
        return len(written)

    def end(self) -> None:
        """No more comes: a line that was only begun goes too."""
        if begun := self._take_begun():
            self._put(self._redacted(begun), self._seam)

    def flush(self) -> None:
        """Waits a moment for the whole lines to be written: they may be the last words of a process that crashes.

        A line that was begun is kept, but in a process that was forked, which flushes before its end.
        """
        super().flush()
        if self._is_forked:
            self.end()
        else:
            self._writer.flush_briefly()

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
        """In a child: what was begun is the parent's to write, and no thread of ours writes between pieces of a line."""
        self._begun.clear()
        self._seam = b""
        self._is_forked = True

    def _take_begun(self) -> bytes:
        pieces = []
        while True:
            try:
                pieces.append(self._begun.popleft())
            except IndexError:
                return b"".join(pieces)

    def _redacted(self, line: bytes) -> str:
        return self._redactor(line.decode(_ENCODING, _ERRORS))

    def _cut(self, rest: bytes) -> bytes:
        """What is left of a begun line when its pieces that are long enough, or overwritten at a terminal, have gone."""
        if (end := rest.rfind(b"\r") + 1) and self.isatty():
            # Somebody watches its progress. Elsewhere the next line of the log would be found behind it, in the same line.
            self._put(self._redacted(rest[:end]), b"")
            rest = rest[end:]
        if len(rest) <= MAX_LINE_CHARACTERS + self._redactor.longest:
            return rest
        # The cut may go through a secret that is not all there yet: as much as that can be stays.
        text = self._redacted(rest)
        if pieces := text[: -self._redactor.longest]:
            self._put(pieces, self._seam)
        return text[len(pieces) :].encode(_ENCODING, _ERRORS)

    def _put(self, text: str, end: bytes) -> None:
        *starts, last = range(0, len(text) or 1, MAX_LINE_CHARACTERS)
        for at in starts:
            self._writer.put(text[at : at + MAX_LINE_CHARACTERS].encode(_ENCODING, _ERRORS) + self._seam)
        self._writer.put(text[last:].encode(_ENCODING, _ERRORS) + end)
