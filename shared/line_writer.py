"""Writes lines to a descriptor without ever making the writer of a log line wait.

Standard output is somebody else's pipe: when its reader stops, a write blocks for as long as the reader pleases, and an event
loop that waits there loses its lock, its worker and its health (b15). So a line is put into a bounded queue, and a daemon
thread writes; what does not fit is dropped, and counted in a later line.

Under load the thread writes several lines at once, and pauses between: a thread that woke for each line would take the
interpreter away from the event loop thousands of times a second.

A process that was forked, in which our thread is not, writes each line itself, and waits: it has no event loop of ours.

Not promised: that a line arrives. It is lost when the queue is full, the reader gone, the disk full, or the process killed
before it is written (`flush_briefly` is for who sees that come); and lines over 4 KiB (PIPE_BUF) of two processes on one pipe
may be mixed, since the system promises no more.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
from collections.abc import Callable
from typing import assert_never

QUEUE_BYTES = 4 * 1024 * 1024
"""Most that waits to be written: some ten thousand lines, and little beside the bot in 512 MB."""

_WRITE_BYTES = 4096  # PIPE_BUF of Linux: as much stays together when several processes write to one pipe

_PAUSE_SECONDS = 0.005
"""After each write, so that lines gather; nobody sees a line come 5 ms later."""

BRIEF_FLUSH_SECONDS = 0.02
"""How long an event loop may stand still for last words: longer than a write takes where somebody reads, and no missed beat."""

_POLL_SECONDS = 1.0  # how often a full, non-blocking descriptor is looked at without a hint from the system


class LineWriter:
    """A queue of lines and the thread that writes them to one descriptor; lives as long as the process."""

    def __init__(
        self, fd: int, *, queue_bytes: int = QUEUE_BYTES, brief_flush_seconds: float = BRIEF_FLUSH_SECONDS
    ) -> None:
        """
        Args:
            fd: where to; not closed by us.
            queue_bytes: what may wait; a line that would make it more is dropped.
            brief_flush_seconds: what `flush_briefly` may take.
        """
        self._fd = fd
        self._dropped_line: Callable[[int], bytes] = lambda count: b"%d lines dropped\n" % count
        self._queue_bytes = queue_bytes
        self._brief_flush_seconds = brief_flush_seconds
        self._missed: threading.Event | None = None
        # Released to end the thread's pause. Not an Event: a signal's handler that prints may come in the middle of its `set`.
        self._rest = threading.Lock()
        self._rest.acquire()
        # Reentrant both: the garbage collector, or a signal's handler, may log in the middle of a put.
        self._lock = threading.RLock()
        self._queue: queue.SimpleQueue[bytes | int | threading.Event] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._is_full = False
        self._dropped = 0
        self._is_forked = False
        os.register_at_fork(after_in_child=self._go_on_after_fork)
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def tell_dropped_by(self, make_line: Callable[[int], bytes]) -> None:
        """Sets what makes the line, newline included, that tells of so many dropped ones; called by our thread."""
        self._dropped_line = make_line

    def put(self, line: bytes) -> None:
        """Queues one line, newline included, or drops it; never waits, never raises."""
        if self._is_forked:
            self._write(line)
            return
        with self._lock:
            # Once it drops it goes on until half is written: else every line that finds room would come with a count.
            room = self._queue_bytes // 2 if self._is_full else self._queue_bytes
            self._is_full = self._waiting_bytes + len(line) > room
            if self._is_full:
                self._dropped += 1
                return
            if self._dropped:
                self._tell_dropped()
            self._waiting_bytes += len(line)
            self._queue.put(line)

    def flush(self, limit_seconds: float) -> bool:
        """Waits until everything put so far is written or given up; False if that took longer than the limit."""
        if self._is_forked:
            return True
        reached = threading.Event()
        with self._lock:
            self._tell_dropped()
            self._queue.put(reached)
        return reached.wait(limit_seconds)

    def flush_briefly(self) -> None:
        """Waits a moment until everything put so far is written: at most as long as an event loop may stand still.

        After a wait that was too short it does not wait again before that much has been written, so that a reader who stopped
        costs one moment and not one at each call.
        """
        late = self._missed
        if self._is_forked or not self._waiting_bytes or (late is not None and not late.is_set()):
            return
        reached = threading.Event()
        self._queue.put(reached)
        with contextlib.suppress(RuntimeError):  # released before, and the thread has not rested since
            self._rest.release()
        if not reached.wait(self._brief_flush_seconds):
            self._missed = reached

    def _go_on_after_fork(self) -> None:
        # The lock may be held by a thread that is not there; what is in the queue is the parent's to write.
        self._is_forked = True

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._queue.put(self._dropped)
        self._dropped = 0

    def _run(self) -> None:
        lines: list[bytes] = []
        size = 0
        while True:
            item = self._next(wait=not lines)
            if isinstance(item, bytes) and (not lines or size + len(item) <= _WRITE_BYTES):
                lines.append(item)
                size += len(item)
                continue
            if lines:
                self._write_lines(lines, size)
                lines, size = [], 0
                if item is None:
                    self._rest.acquire(timeout=_PAUSE_SECONDS)
            match item:
                case None:
                    pass
                case threading.Event():
                    item.set()
                case int():
                    if self._write(self._dropped_line(item)):
                        self._count_dropped(item)
                case bytes():
                    lines, size = [item], len(item)
                case _:
                    assert_never(item)

    def _next(self, *, wait: bool) -> bytes | int | threading.Event | None:
        """What comes next in the queue; None, where it is not to be waited for, when there is nothing."""
        try:
            return self._queue.get(wait)
        except queue.Empty:
            return None

    def _write_lines(self, lines: list[bytes], size: int) -> None:
        left_bytes = self._write(b"".join(lines))
        with self._lock:
            self._waiting_bytes -= size
        # Those that are not written to their end: the last ones.
        lost = 0
        while left_bytes > 0:
            lost += 1
            left_bytes -= len(lines[-lost])
        if lost:
            self._count_dropped(lost)

    def _count_dropped(self, lines: int) -> None:
        with self._lock:
            self._dropped += lines

    def _write(self, line: bytes) -> int:
        """How many bytes of it are given up."""
        # One write for whole lines: another process on the same descriptor must not come between.
        while line:
            try:
                line = line[os.write(self._fd, line) :]
            except BlockingIOError:
                # Somebody made the descriptor non-blocking, for all who share it.
                select.select([], [self._fd], [], _POLL_SECONDS)
            except OSError:
                return len(line)  # EPIPE, ENOSPC, EIO, EBADF: this line is lost, the next may fare better
        return 0
