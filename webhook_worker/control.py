"""The worker's side of the control socket, and its lifeline.

    lifeline thread     reads the socket; a message goes to the event loop. At the end of the file the supervisor is gone:
                        SIGKILL to the whole process group, children of the bot included. At the deadline of a term that has
                        not ended, the same: no handler runs past its owner's deadline, also where the event loop is blocked,
                        or a handler cannot be cancelled. So it is this thread that moves the deadline (deadline.py). It sees
                        that the loop is blocked, too (blocked_loop.py)
    event loop          writes, without ever waiting

The deadline is obeyed in two places. The dispatcher stops a little before it of its own accord, and then says `term_over`; so
a worker whose supervisor is frozen goes on accepting updates. The thread is for when that did not work.

The signals by which a terminal or a platform ends processes are answered by a handler that does nothing, and not by SIG_IGN,
which the bot's children would inherit.

Threads and handlers of signals do not run while an extension, or one long operation, holds the interpreter's lock. So the end
of the supervisor is seen to by the kernel, where it can (Linux): it kills the group when a pipe that the supervisor holds is
closed. At the deadline it is the supervisor who kills such a worker; one that is frozen itself does not.

Not promised: that messages arrive. Beats are left out when the supervisor does not read.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import fcntl
import math
import os
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType

from shared import clock, wire
from shared.errors import WireError
from webhook_worker.blocked_loop import BlockedLoop
from webhook_worker.deadline import Deadline

# poll() counts on a clock that stands still while the machine is suspended, ours does not: look at it this often.
_LOOK_SECONDS = 0.25
# Beats and the like are left out long before; the rest is a few lines in a worker's life.
_MAX_UNSENT_BYTES = 1024 * 1024
_STDERR = 2
_SUPERVISORS_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LEFT_OUT = (wire.Beat, wire.ForeignRegistration)


def kill_group() -> None:
    """Ends this process and everything it started, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    # Started in somebody else's group, by hand: that is not ours to kill.
    os.kill(os.getpid(), signal.SIGKILL)


def answer_signals() -> None:
    """Makes the worker deaf to the signals that are meant for the supervisor."""
    for number in _SUPERVISORS_SIGNALS:
        signal.signal(number, _do_nothing)
    # A worker is started with them blocked (supervisor/spawn.py), and the bot's children would be too.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SUPERVISORS_SIGNALS)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """See `answer_signals`."""


def die_with(lifeline: int) -> None:
    """Has the kernel kill this process and everything it started when the other end of a pipe is closed.

    An end of it that came before this, or where the kernel cannot, is told by the end of the control socket.

    Args:
        lifeline: the end to read from, of a pipe into which nobody writes; stays open.
    """
    if sys.platform == "linux":
        is_group_ours = os.getpgrp() == os.getpid()  # as for kill_group
        with contextlib.suppress(OSError):  # systems that only resemble Linux have none of this
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid() if is_group_ours else os.getpid())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


class Control:
    """The control socket. Used by the event loop's thread; what the lifeline thread does is in the methods that say so.

    Attributes:
        deadline: of the term; moved in the lifeline thread, to be read in any.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        now: Callable[[], float] = clock.now,
        die: Callable[[], None] = kill_group,
    ) -> None:
        """Does nothing yet.

        Args:
            connection: a connected stream socket, blocking.
            now: `shared.clock`.
            die: does not return, outside tests.
        """
        self._connection = connection
        self._now = now
        self._die = die
        self._term: str | None = None  # these two are written by the lifeline thread alone
        self.deadline = Deadline(now)
        self._term_is_over = False  # and this by the event loop's
        self._received: deque[wire.ToWorker] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliver: Callable[[wire.ToWorker], None] | None = None
        self._unsent = bytearray()
        self._blocked_loop = BlockedLoop()
        self._beat_at = -math.inf  # by the event loop, as the one before
        self._on_blocked: Callable[[float], None] | None = None
        self._lifeline = threading.Thread(target=self._hold, name="lifeline", daemon=True)

    def start(self) -> None:
        """Starts the lifeline. Messages wait until `attach`."""
        self._lifeline.start()

    def attach(self, deliver: Callable[[wire.ToWorker], None]) -> None:
        """From now on every message is delivered in the running event loop, those that came before it first."""
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._deliver_received()

    def detach(self) -> None:
        """In the loop that it was attached to: from now on messages wait again, and another loop may attach."""
        asyncio.get_running_loop().remove_writer(self._connection.fileno())
        self._loop = self._deliver = None

    def watch(self, on_blocked: Callable[[float], None]) -> None:
        """From now on an event loop that is blocked while a term runs is told of, once for each time.

        Args:
            on_blocked: called in a thread of its own, with the seconds since the last beat; it may log.
        """
        self._on_blocked = on_blocked

    def term_over(self) -> None:
        """Nothing of the term runs or will run: its deadline means nothing any more."""
        self._term_is_over = True

    def send(self, message: wire.ToSupervisor) -> None:
        """Tells the supervisor, without waiting."""
        if isinstance(message, wire.Beat):
            self._beat_at = self._now()
        if self._unsent and isinstance(message, _LEFT_OUT):
            return
        self._unsent += wire.encode(message)
        if len(self._unsent) > _MAX_UNSENT_BYTES:
            _say_without_waiting("webhook_worker: the supervisor does not read; killing the process group")
            self._die()
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._unsent:
                # The flag and not a non-blocking socket: the lifeline reads the same one, and wants to block.
                sent = self._connection.send(self._unsent, socket.MSG_DONTWAIT)
                del self._unsent[:sent]
        except BlockingIOError:
            loop.add_writer(self._connection.fileno(), self._flush)
            return
        except OSError:
            self._die()  # the supervisor is gone
        loop.remove_writer(self._connection.fileno())

    def _deliver_received(self) -> None:
        # Called into a loop that has detached meanwhile, it leaves them for the one that attaches next.
        if asyncio.get_running_loop() is not self._loop:
            return
        while self._deliver is not None and self._received:
            self._deliver(self._received.popleft())

    # ------------------------------------------------------------------------------------------ in the lifeline thread

    def _hold(self) -> None:
        try:
            reason = self._read_to_the_end()
            if reason is not None:
                _say_without_waiting(f"webhook_worker: {reason}; killing the process group")
        finally:
            self._die()

    def _read_to_the_end(self) -> str | None:
        """Why it is over with us, where that is worth a line."""
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        lines = wire.Lines()
        while True:
            left_seconds = self._left_seconds()
            if left_seconds is not None and left_seconds <= 0:
                return "the deadline of the term has passed, and something of it still runs"
            if left_seconds is not None:
                self._look_at_loop()
            if not poll.poll(None if left_seconds is None else 1000 * min(_LOOK_SECONDS, left_seconds)):
                continue
            try:
                chunk = self._connection.recv(65536)
            except OSError:
                return None
            if not chunk:
                return None
            try:
                for line in lines.end_in(chunk):
                    self._receive(wire.decode_for_worker(line))
            except WireError as exc:
                return str(exc)

    def _look_at_loop(self) -> None:
        seconds = self._blocked_loop.look(self._now(), self._beat_at)
        if seconds is None or self._on_blocked is None:
            return
        # This thread has to be there at the deadline, and whoever blocks the loop may hold the log's lock. So the line has a
        # thread, and not one of `threading`, whose start waits for it.
        with contextlib.suppress(RuntimeError):  # there is none to be had
            _thread.start_new_thread(self._on_blocked, (seconds,))

    def _left_seconds(self) -> float | None:
        """Until the deadline; None when there is no term that could outlive it."""
        if self._term is None or self._term_is_over:
            return None
        return self.deadline.at - self._now()

    def _receive(self, message: wire.ToWorker) -> None:
        # Here and not in the event loop, which may be blocked while its owner is confirmed all the time.
        if isinstance(message, wire.Lead) and self._term is None:
            self._term = message.term
            self.deadline.begin(message.deadline)
        elif isinstance(message, wire.Extend) and message.term == self._term:
            self.deadline.extend(message.deadline)
        self._received.append(message)
        while (loop := self._loop) is not None:
            loop.call_soon_threadsafe(self._deliver_received)
            if loop is self._loop:  # another one may have attached meanwhile
                break


def _say_without_waiting(line: str) -> None:
    # Not through logging: its lock may be held by a thread that will never run again. And not into a full pipe.
    if select.select([], [_STDERR], [], 0)[1]:
        os.write(_STDERR, f"{line}\n".encode())
