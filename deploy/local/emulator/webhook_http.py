"""One HTTP/1.1 connection to a webhook, as `HttpOutboundConnection` of the real server keeps it.

Why not httpx: a connection here is an object that can be waited for, idle, refused or cut on its own, and updates are
bound to it before it is connected - that is how the real server counts a refused connection as a failed delivery. On
httptools' parser it also costs a tenth of httpx.

    connecting ──► open: one request at a time ──► closed (by either side, by an error, by 60 s without a byte)

A request that is sent while connecting waits for the connection, and fails with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import httptools

from deploy.local.emulator.clock import Clock, Timer
from deploy.local.emulator.registration import WebhookUrl

# TELEGRAM.md "Delivery", failure: no answer within 60 s idle. An idle connection is closed after the same time.
IDLE_SECONDS = 60.0
MAX_RESPONSE_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """What the bot's side answered."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool

    def method_call(self) -> Mapping[str, Any] | None:
        """The JSON object of the body, if it says that it is one; what it asks for is not judged here."""
        if "application/json" not in self.headers.get("content-type", "").lower():
            return None
        try:
            decoded = json.loads(_decompress(self.body, self.headers.get("content-encoding", "")))
        except (ValueError, zlib.error):
            return None
        return decoded if isinstance(decoded, dict) else None


class ConnectionOwner(Protocol):
    """What the webhook's actor does with a connection's news."""

    def on_response(self, connection: WebhookConnection, response: WebhookResponse) -> None: ...

    def on_hangup(self, connection: WebhookConnection, error: str | None) -> None:
        """The connection is gone; `error` is None if it was closed in good order."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect to, and the part of every request that stays the same."""

    url: WebhookUrl
    ip_address: str
    secret_token: str = ""
    tls: ssl.SSLContext | None = None
    _head: bytes = field(init=False)

    def __post_init__(self) -> None:
        lines = [f"POST {self.url.target} HTTP/1.1", f"Host: {self.url.host}"]
        if self.url.userinfo:
            lines.append(f"Authorization: Basic {b64encode(self.url.userinfo.encode()).decode()}")
        if self.secret_token:
            lines.append(f"X-Telegram-Bot-Api-Secret-Token: {self.secret_token}")
        lines += [
            "Content-Type: application/json",
            "Connection: keep-alive",
            "Accept-Encoding: gzip, deflate",
        ]
        object.__setattr__(self, "_head", ("\r\n".join(lines) + "\r\nContent-Length: ").encode())

    def request(self, body: bytes) -> bytes:
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)


class WebhookConnection(asyncio.Protocol):
    """A connection and the update that it is busy with."""

    def __init__(self, number: int, endpoint: Endpoint, owner: ConnectionOwner, clock: Clock) -> None:
        self.number = number
        self.endpoint = endpoint
        self.seq: int | None = None
        self._owner = owner
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._closed = False
        self._gone = asyncio.Event()
        self._waiting = b""
        self._last_activity = clock.monotonic()
        self._idle_timer: Timer = clock.call_at(self._last_activity + IDLE_SECONDS, self._check_idle)
        self._parser = httptools.HttpResponseParser(self)
        self._begin_response()

    async def connect(self) -> None:
        """Opens the connection; a failure is told to the owner like any other hang-up."""
        url = self.endpoint.url
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self,
                self.endpoint.ip_address.strip("[]"),
                url.port,
                ssl=self.endpoint.tls,
                server_hostname=url.host.strip("[]") if self.endpoint.tls else None,
            )
        except ssl.SSLError as exc:
            self._hang_up(f"SSL error {{{exc.reason or exc}}}")
        except OSError as exc:
            self._hang_up(os.strerror(exc.errno) if exc.errno else str(exc))

    def send(self, seq: int, body: bytes) -> None:
        """Sends an update; the answer, or the lack of one, is told to the owner."""
        assert self.seq is None, "one request at a time"
        self.seq = seq
        self._last_activity = self._clock.monotonic()
        request = self.endpoint.request(body)
        if self._transport is None:
            self._waiting = request
        else:
            self._transport.write(request)

    def close(self) -> None:
        """Ends the connection at once and in silence; a request under way gets no answer any more."""
        self._closed = True
        self._idle_timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_gone(self) -> bool:
        """Whether there is no socket any more (or not yet)."""
        return self._transport is None or self._gone.is_set()

    async def wait_closed(self) -> None:
        """After `close`: waits until the socket is gone."""
        if self._transport is not None:
            await self._gone.wait()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._closed:
            self._transport.abort()
        elif self._waiting:
            self._transport.write(self._waiting)
            self._waiting = b""

    def data_received(self, data: bytes) -> None:
        self._last_activity = self._clock.monotonic()
        if self.seq is None:
            self._hang_up("Unexpected data from the webhook")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._hang_up("Bad Request: can't parse the webhook's response")

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        if self._headers_complete and self.seq is not None and not self._closed:
            # A body without a length ends with its connection.
            self._is_last = True
            self.on_message_complete()
        self._hang_up(os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else None)

    # httptools' side

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._headers_complete = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_RESPONSE_BYTES:
            self._hang_up("Response is too big")

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._closed:  # 100 Continue and the like: the answer is still to come
            self._begin_response()
            return
        response = WebhookResponse(
            status,
            self._reason.decode("latin-1"),
            self._headers,
            bytes(self._body),
            keep_alive=not self._is_last and self._parser.should_keep_alive(),
        )
        self._begin_response()
        self._owner.on_response(self, response)

    def _begin_response(self) -> None:
        self._headers: dict[str, str] = {}
        self._reason = b""
        self._body = bytearray()
        self._headers_complete = False
        self._is_last = False

    def _check_idle(self) -> None:
        # Armed once a minute, not once a request: at a thousand updates a second the timers would cost more than they do.
        due_at = self._last_activity + IDLE_SECONDS
        if self._clock.monotonic() < due_at:
            self._idle_timer = self._clock.call_at(due_at, self._check_idle)
        elif self._transport is None:
            self._hang_up("Connection timed out")
        else:
            self._hang_up("Read timeout expired" if self.seq is not None else None)

    def _hang_up(self, error: str | None) -> None:
        if self._closed:
            return
        self.close()
        self._owner.on_hangup(self, error)


def _decompress(body: bytes, encoding: str) -> bytes:
    match encoding.strip().lower():
        case "gzip":
            return zlib.decompress(body, wbits=31)
        case "deflate":
            return zlib.decompress(body)
        case _:
            return body
