"""One HTTP connection: uvicorn's, with bounds on what a client may make us hold, and a short way for what Telegram sends.

    a whole POST to /webhook/ in one read ──► take_at_once ─┬─ taken: answered when we are told, 200 or 503
    everything else ──────────────► ASGI ◄──────── not so ──┘

The short way has no task, no future, no scope, no messages, no timer. It decides nothing of its own: whoever is asked takes
what needs no second thought, and leaves the rest to the application.

Bounded are the bytes of a request's head and of its trailers, and the requests that wait for the one before them.

Not promised: that what `take_at_once` took is answered. Its client may have gone.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import httptools

from shared.answers import RETRY_AFTER_SECONDS
from webhook_worker.lean_uvicorn import HttpToolsProtocol, RequestResponseCycle

TakeAtOnce = Callable[[bytes, Sequence[tuple[bytes, bytes]], bytes, Callable[[str | None], None]], bool]
"""Given path, headers, body, and what is to be called in the end: with None for a 200, with a reason for a 503. False: not
taken, and nothing will be called."""

# The head of a request from Telegram through any proxy has some 2 KiB; 64 KiB is what proxies take at most themselves.
_MAX_HEAD_BYTES = 64 * 1024
# Telegram and proxies send a request when the one before is answered. One that waits costs us 2 KiB, and its sender 18 bytes.
_MAX_PIPELINED = 16

_MAX_SHORT_URL_BYTES = 1024

_STORED = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"
_NOT_STORED = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: %d\r\n" % RETRY_AFTER_SECONDS
)


class _ShortCycle:
    """Stands where uvicorn looks for the request that is being answered, as far as it looks."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "more_body", "response_complete")

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.more_body = False
        self.message_event = _NOBODY_WAITS


class _NobodyWaits:
    def set(self) -> None:
        """Nobody does."""


_NOBODY_WAITS = _NobodyWaits()


class Connection(HttpToolsProtocol):
    """One of them."""

    # On the loop's clock. The server looks at them every second: timers of their own would be armed and ended for each update.
    arriving_since: float | None = None
    silent_since: float | None = None
    stalled_since: float | None = None
    _answering: RequestResponseCycle | None = None
    # The part of a request that arrives now, and how much of it the parser keeps: head and trailers, and nothing of a body.
    _part = 0
    _kept_bytes: int | None = None
    # The pieces of a body that may go the short way; None for any other request, and between requests.
    _held: list[bytes] | None = None

    def __init__(self, *args: Any, take_at_once: TakeAtOnce | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._take_at_once = take_at_once

    @property
    def is_answering(self) -> bool:
        """Whether a request has come, be it only its head, and has not got its whole answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn waits for the next request only: a client that never sends would stay for ever.
        self.silent_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells the last request only; those before it would answer into a transport that is gone, and fail loudly.
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        self.silent_since = None
        part = self._part
        super().data_received(data)
        if self._held is not None:
            # More of it comes later, if it does: not the short way.
            self._release()
        # llhttp puts no limit on these, and uvicorn keeps all of them. What begins or ends within the data is short.
        if self._kept_bytes is not None and self._part == part:
            self._kept_bytes += len(data)
            if self._kept_bytes > _MAX_HEAD_BYTES:
                self.transport.abort()
                return
        # An empty line, or the rest of a request that was answered before it had arrived.
        if self.arriving_since is None and (self.cycle is None or self.cycle.response_complete):
            self.silent_since = self.loop.time()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Goes on where the client has ended its side behind a whole request (`nc -N`): it waits for the answer.

        The answer is the last, and ends the connection. Whatever else is open - silent, or in the middle of a request that
        cannot come to its end any more - is closed now, as uvicorn has it.
        """
        if not self.is_answering or self.arriving_since is not None:
            return None
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        # Its client sends and reads nothing: what waits for it to read would wait as long as it answers the kernel.
        self.stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = None

    def send_400_response(self, msg: str) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            # Whose body is not over is the request that is no good.
            if cycle is not self._answering or not cycle.more_body or cycle.response_started:
                # It would be taken for the answer to what came before it, or for a part of the one that has begun.
                self.transport.abort()
                return
            cycle.disconnected = True  # before the application answers too
            cycle.message_event.set()
        super().send_400_response("")  # no answer tells more than its status

    def on_message_begin(self) -> None:
        # The scope is made when somebody needs it.
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self.arriving_since = self.loop.time()
        self._begin_part(is_kept=True)

    def on_headers_complete(self) -> None:
        self._begin_part(is_kept=False)
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise _TooManyPipelined  # for the parser, which refuses the data
        if self._may_be_short():
            self._held = []
        else:
            self._begin_cycle()
        if self.parser.should_upgrade():
            # The parser holds all that follows for another protocol's: a body would be read as the next request.
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        """A chunk begins; the last one has no body, and is followed by trailers."""
        self._begin_part(is_kept=True)

    def on_body(self, body: bytes) -> None:
        self._begin_part(is_kept=False)
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        self.arriving_since = None
        self._begin_part(is_kept=False)
        if self._held is not None:
            if self._went_short(b"".join(self._held)):
                return
            self._release()
        super().on_message_complete()

    # --------------------------------------------------------------------------------------------------- the short way

    def _may_be_short(self) -> bool:
        return (
            self._take_at_once is not None
            and self.url.startswith(b"/webhook/")
            and len(self.url) < _MAX_SHORT_URL_BYTES  # longer ones are the parser's to refuse
            and (self.cycle is None or self.cycle.response_complete)
            and not self.expect_100_continue
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
        )

    def _went_short(self, body: bytes) -> bool:
        assert self._take_at_once is not None
        # Whoever leads this server out says so in the headers of every answer (server.py, stop_accepting).
        cycle = _ShortCycle(keep_alive=not self.server_state.default_headers)
        if not self._take_at_once(self.url, self.headers, body, functools.partial(self._answer_short, cycle)):
            return False
        self._held = None
        self.cycle = cast(RequestResponseCycle, cycle)
        return True

    def _answer_short(self, cycle: _ShortCycle, reason: str | None) -> None:
        cycle.response_complete = True
        if cycle.disconnected or self.transport.is_closing():
            return  # nobody is left to be told
        status = _STORED if reason is None else _NOT_STORED
        self.transport.write(status + (b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _release(self) -> None:
        """What was held goes the way of all others."""
        held, self._held = self._held or [], None
        if self.transport.is_closing():
            return
        self._begin_cycle()
        for piece in held:
            super().on_body(piece)

    # --------------------------------------------------------------------------------------------------------- the rest

    def on_response_complete(self) -> None:
        # uvicorn's, without its timer.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self.silent_since = self.loop.time()

    def _begin_cycle(self) -> None:
        """The way of uvicorn, from the end of the head on."""
        url, headers, expect_100_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = _with_path(url), expect_100_continue
        self.headers += headers  # the scope has this very list
        super().on_headers_complete()

    def _begin_part(self, *, is_kept: bool) -> None:
        self._part += 1
        self._kept_bytes = 0 if is_kept else None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)


def _with_path(url: bytes) -> bytes:
    """A whole URL may name a host and no path, which is the same as "/" (RFC 9112, 3.2.1); uvicorn wants to see one."""
    if url.startswith(b"/"):
        return url
    parsed = httptools.parse_url(url)
    if parsed.path is not None or parsed.host is None:
        return url
    return b"/" if parsed.query is None else b"/?" + parsed.query


class _TooManyPipelined(Exception):
    """Nobody who waits for answers sends so much ahead of them."""
