"""One HTTP connection: uvicorn's, with bounds on what a client may make us hold, and a short way for what Telegram sends.

    a whole POST to /webhook/ in one read ──► take_at_once ─┬─► a future: answered when it is done, 200 or 503
    everything else ──────────────► ASGI ◄── None: not so ──┘

The short way has no task, no scope, no messages: an acknowledged update costs 64 µs in place of 102. It decides nothing of its
own: whoever is asked takes what needs no second thought, and leaves the rest to the application.

Bounded are the bytes of a request's head and of its trailers, and the requests that wait for the one before them.

Not promised: that what `take_at_once` took is answered. Its client may have gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

TakeAtOnce = Callable[[bytes, Sequence[tuple[bytes, bytes]], bytes], asyncio.Future[None] | None]
"""Given path, headers and body: None, or a future. When it is done the answer is 200, and where it has failed 503."""

# The head of a request from Telegram through any proxy has some 2 KiB; 64 KiB is what proxies take at most themselves.
_MAX_HEAD_BYTES = 64 * 1024
# Telegram and proxies send a request when the one before is answered. One that waits costs us 2 KiB, and its sender 18 bytes.
_MAX_PIPELINED = 16

_STORED = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"
_NOT_STORED = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 2\r\n"


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

    arriving_since: float | None = None
    _answering: RequestResponseCycle | None = None
    # The part of a request that arrives now, and how much of it the parser keeps: head and trailers, and nothing of a body.
    _part = 0
    _kept_bytes: int | None = None
    # The pieces of a body that may go the short way; None for any other request, and between requests.
    _held: list[bytes] | None = None

    def __init__(self, *args: Any, take_at_once: TakeAtOnce | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._take_at_once = take_at_once

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn arms its timer after a response only: a client that never sends would stay for ever.
        self._arm_keep_alive()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells the last request only; those before it would answer into a transport that is gone, and fail loudly.
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
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
        # Data disarms the timer, also an empty line, or the rest of a request that was answered before it had arrived.
        if self._is_idle() and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._arm_keep_alive()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # It would be taken for the answer to what came before it.
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.arriving_since = self.loop.time()
        self._begin_part(is_kept=True)

    def on_headers_complete(self) -> None:
        self._begin_part(is_kept=False)
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise _TooManyPipelined  # for the parser, which refuses the data
        if self._may_be_short():
            self._held = []
        else:
            super().on_headers_complete()

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
            and (self.cycle is None or self.cycle.response_complete)
            and not self.expect_100_continue
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
        )

    def _went_short(self, body: bytes) -> bool:
        assert self._take_at_once is not None
        answer = self._take_at_once(self.url, self.headers, body)
        if answer is None:
            return False
        self._held = None
        # Whoever leads this server out says so in the headers of every answer (server.py, stop_accepting).
        cycle = _ShortCycle(keep_alive=not self.server_state.default_headers)
        self.cycle = cast(RequestResponseCycle, cycle)
        answer.add_done_callback(lambda done: self._answer_short(cycle, done))
        return True

    def _answer_short(self, cycle: _ShortCycle, answer: asyncio.Future[None]) -> None:
        cycle.response_complete = True
        if cycle.disconnected or self.transport.is_closing():
            answer.exception()  # nobody is left to be told
            return
        status = _STORED if answer.exception() is None else _NOT_STORED
        self.transport.write(status + (b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _release(self) -> None:
        """What was held goes the way of all others."""
        held, self._held = self._held or [], None
        if self.transport.is_closing():
            return
        super().on_headers_complete()
        for piece in held:
            super().on_body(piece)

    # --------------------------------------------------------------------------------------------------------- the rest

    def _begin_part(self, *, is_kept: bool) -> None:
        self._part += 1
        self._kept_bytes = 0 if is_kept else None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _is_idle(self) -> bool:
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and self.arriving_since is None

    def _arm_keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )


class _TooManyPipelined(Exception):
    """Nobody who waits for answers sends so much ahead of them."""
