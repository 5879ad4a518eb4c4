"""The HTTP of the public port: the webhook, and in front of what it is.

    POST /webhook/{secret path}   answered here, in front of FastAPI: the same 200 costs 2.5 times less (measured); and where
                                  there is nothing to ask or to refuse, in front of ASGI too (connection.py)
    /healthz, /readyz             here too, since traffic comes once they say so, and FastAPI takes long to import (health.py)
    anything else                 FastAPI's 404 (rest_app.py)

The order of the checks is INTERFACE.md's table, and the cheap ones come first: nothing of a body is read before path, method
and secret are right. Answers of the webhook have no body at all.

Not promised: that a refused request has no effect. A 503 may be the answer to an update that is stored all the same.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, assert_never
from urllib.parse import unquote_to_bytes

from shared import log
from shared.answers import RETRY_AFTER_SECONDS
from shared.clock import now
from webhook_worker.health import Probe, answer_probe
from webhook_worker.ingest import NotStored, Tell
from webhook_worker.registrations import LookupFailed, Registrations
from webhook_worker.updates import MAX_BODY_BYTES, MalformedUpdate, UpdateKey, read_key
from webhook_worker.verify import Match, match, may_be_secret, secret_path

if TYPE_CHECKING:  # FastAPI comes late, and it with it
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECRET_HEADER = b"x-telegram-bot-api-secret-token"
_BODY_LIMIT_SECONDS = 30.0  # Telegram gives up after 60 s without progress (TELEGRAM.md, "failure")
_FOREIGN_INTERVAL_SECONDS = 1.0

_log = log.get_logger("WEBHOOK")


class Storage(Protocol):
    """What the webhook needs of an inbox: `ingest.Ingest`."""

    def store(self, update_id: int, lane: int | None, body: bytes) -> asyncio.Future[None]:
        """See Ingest.store."""
        ...

    def take(self, update_id: int, lane: int | None, body: bytes, tell: Tell) -> None:
        """See Ingest.take."""
        ...


class App:
    """The ASGI application."""

    def __init__(
        self,
        webhook: Webhook,
        probes: Mapping[bytes, Probe],
        *,
        make_rest: Callable[[], Coroutine[Any, Any, ASGIApp]],
    ) -> None:
        """Does nothing yet.

        Args:
            webhook: answers what comes to /webhook/.
            probes: by path; what answers GET and HEAD there.
            make_rest: makes what answers everything else, when it is first asked for; it may take its time.
        """
        self._webhook = webhook
        self._probes = probes
        self._make_rest = make_rest
        self._rest: asyncio.Task[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        path = _path_of(scope)
        if path.startswith(b"/webhook/"):
            status = await self._webhook.take(scope, receive)
            if status is not None:
                await _answer(send, status)
        elif path in self._probes:
            await answer_probe(self._probes[path], scope["method"], send)
        else:
            rest = await self._prepared_rest()
            await rest(scope, receive, send)

    async def _prepared_rest(self) -> ASGIApp:
        """Made once, for whoever asks first; anew if that failed."""
        if self._rest is None or (self._rest.done() and self._rest.exception() is not None):
            self._rest = asyncio.create_task(self._make_rest(), name="the rest of the application")
        # Shielded: others wait for it too.
        return await asyncio.shield(self._rest)


class Webhook:
    """Decides about requests to /webhook/, and stores the updates of those that are Telegram's."""

    def __init__(
        self,
        *,
        registrations: Registrations,
        storage: Storage,
        foreign_secret: Callable[[], None],
        clock: Callable[[], float] = now,
        body_limit_seconds: float = _BODY_LIMIT_SECONDS,
    ) -> None:
        """Does nothing yet.

        Args:
            registrations: what requests are compared with.
            storage: where updates go.
            foreign_secret: called, at most once a second, when a request came to a right path with a secret that is not
                the one of the present registration.
            body_limit_seconds: how long a body may take to arrive.
        """
        self._registrations = registrations
        self._storage = storage
        self._foreign_secret = foreign_secret
        self._foreign_at = -_FOREIGN_INTERVAL_SECONDS
        self._accepted: tuple[bytes, bytes] | None = None  # path and secret of our own registration
        self._lookup_fault: str | None = None
        self._clock = clock
        self._body_limit_seconds = body_limit_seconds

    async def take(self, scope: Scope, receive: Receive) -> int | None:
        """The status to answer with; None when there is nobody left to answer."""
        refusal = await self._refuse(scope)
        if refusal is not None:
            return refusal
        if _content_length(scope) > MAX_BODY_BYTES:
            return 413
        try:
            async with asyncio.timeout(self._body_limit_seconds):
                body = await _read_body(receive)
        except TimeoutError:
            return 408
        if body is None:
            return None
        if len(body) > MAX_BODY_BYTES:
            return 413
        try:
            key: UpdateKey = read_key(body)
        except MalformedUpdate as exc:
            _log.warning("refused an update that is none", reason=str(exc), bytes=len(body))
            return 400
        try:
            await self._storage.store(key.update_id, key.lane, body)
        except NotStored as exc:
            _log.debug("not stored", update_id=key.update_id, reason=exc.reason)
            return 503
        return 200

    def take_at_once(
        self, path: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes, tell: Tell
    ) -> bool:
        """The same for a whole POST by our own registration, where nothing need be asked or refused: nearly all of them.

        Args:
            path: as sent.
            headers: names in lower case.
            body: all of it, of no more than a read from the socket brings.
            tell: see Ingest.take.

        Returns:
            Whether it was taken; if not, `take` has to decide.
        """
        if not self._is_own(path, _header(headers, _SECRET_HEADER)):
            return False
        try:
            key = read_key(body)
            self._storage.take(key.update_id, key.lane, body, tell)
        except (MalformedUpdate, NotStored):
            return False
        return True

    def _is_own(self, path: bytes, secret: bytes | None) -> bool:
        """Whether a request is by our own registration, which is accepted whatever the database says."""
        if secret is None:
            return False
        if self._accepted is not None:
            # A path and a secret that were accepted once need not be hashed again with each update.
            own_path, own_secret = self._accepted
            if hmac.compare_digest(path, own_path) and hmac.compare_digest(secret, own_secret):
                return True
        part = secret_path(path)
        if part is None or match(self._registrations.known, part, secret) is not Match.ACCEPTED:
            return False
        self._accepted = path, secret
        return True

    async def _refuse(self, scope: Scope) -> int | None:
        """The status of a request that is not Telegram's; None for one that is."""
        path = secret_path(_path_of(scope))
        if path is None:
            return 404
        secret = _header(scope["headers"], _SECRET_HEADER)
        found = match(self._registrations.known, path, secret)
        if scope["method"] != "POST":
            # Nobody who is not Telegram may cause a look-up by clicking on a link.
            return 404 if found is Match.PATH_UNKNOWN else 405
        if found in (Match.ACCEPTED_OTHER, Match.ACCEPTED_PREVIOUS) and self._registrations.is_fresh:
            # It may be superseded by now, or gone.
            self._registrations.refresh_soon()
        elif found is not Match.ACCEPTED and may_be_secret(secret):
            try:
                await self._registrations.refresh()
            except LookupFailed as exc:
                self._note_lookup(str(exc))
                return 503
            self._note_lookup(None)
            found = match(self._registrations.known, path, secret)
        match found:
            case Match.PATH_UNKNOWN:
                return 404
            case Match.SECRET_WRONG:
                self._tell_foreign_secret()
                return 401
            case Match.ACCEPTED_PREVIOUS:
                self._tell_foreign_secret()
            case Match.ACCEPTED_OTHER | Match.ACCEPTED:
                pass
            case _:
                assert_never(found)
        return None

    def _note_lookup(self, reason: str | None) -> None:
        # Once: anybody can cause one with each request.
        if reason is not None and reason != self._lookup_fault:
            _log.warning("cannot tell whether a request is Telegram's", reason=reason)
        self._lookup_fault = reason

    def _tell_foreign_secret(self) -> None:
        at = self._clock()
        if at - self._foreign_at >= _FOREIGN_INTERVAL_SECONDS:
            self._foreign_at = at
            self._foreign_secret()


def _path_of(scope: Scope) -> bytes:
    """A proxy may write characters in other ways. Decoded once: what is encoded still is no path of ours."""
    raw_path: bytes = scope["raw_path"]
    return unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            # White space after a value is none of it (RFC 9110, 5.5); the parser takes off what comes before.
            return value.rstrip(b" \t")
    return None


def _content_length(scope: Scope) -> int:
    """What the request announces; 0 where it does not say."""
    value = _header(scope["headers"], b"content-length")
    # The HTTP parser has refused what is not a number.
    return int(value) if value is not None and value.isdigit() else 0


async def _read_body(receive: Receive) -> bytes | None:
    """The body, or its beginning when it is too long; None when the client has gone."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        piece: bytes = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
        if not message.get("more_body", False) or size > MAX_BODY_BYTES:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


_EMPTY: Message = {"type": "http.response.body", "body": b""}


def _start(status: int) -> Message:
    headers = [(b"content-length", b"0")]
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    if status == 405:
        headers.append((b"allow", b"POST"))
    if status == 408:
        headers.append((b"connection", b"close"))
    return {"type": "http.response.start", "status": status, "headers": headers}


_STARTS = {status: _start(status) for status in (200, 400, 401, 404, 405, 408, 413, 503)}


async def _answer(send: Send, status: int) -> None:
    await send(_STARTS[status])
    await send(_EMPTY)
