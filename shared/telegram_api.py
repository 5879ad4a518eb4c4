"""The Bot API methods that we call ourselves, over httpx; every failure is an error that says what to do about it.

    429                                    RetryLater: wait as long as it says
    401, 404                               TokenRefused: do not repeat
    409                                    Conflict: somebody else did the same just then
    other 4xx                              BadRequest: repeating does not help
    5xx, no answer in time, no connection,
    an answer that is not the Bot API's    TelegramUnavailable: repeat with backoff; the call may have been applied, unless the
                                           error says that it was never sent

Rejected: `telegram.Bot`. It costs the supervisor 100 ms and 7 MB more than httpx, sits beside the bot in 512 MB, and would be
imported for four calls. The worker has it anyway, and yet makes its getUpdates here, since it needs the updates as they came,
and the getMe that asks whether Telegram is back (outage.py), since a bot's own client may hold calls back.

httpx itself is imported when the client is opened, where it is not there yet (for_both.py), since that takes time from a start
in which the port and the lock come first; and beside the event loop, as the client is made, which reads certificates: who holds
a lock must not stand still for it.

The token is part of every URL of the Bot API, and httpx's exceptions carry the URL. So none of them leaves this module: not as
an error, not as its cause, and not as its context.

Not promised: repetition. One call is one request, and whoever calls decides about the next. And no call here can drop what is
pending: `drop_pending_updates` is never sent (a16).
"""

from __future__ import annotations

import asyncio
import math
import sys
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from shared.errors import BadRequest, Conflict, RetryLater, TelegramError, TelegramUnavailable, TokenRefused
from shared.late_import import import_late, run_beside
from shared.redaction import Redactor
from shared.secret import Secret
from shared.webhook_info import WebhookInfo as WebhookInfo  # for those who ask

if TYPE_CHECKING:
    from types import TracebackType

    import httpx

DEFAULT_TIMEOUT_SECONDS = 10.0
"""Limit of one call from its begin to its end. setWebhook resolves our host before it answers, which takes seconds at times."""

CONNECT_SECONDS = 8.0
"""Limit of connecting, the name's look-up included, which takes 5 s where the first nameserver is dead. Where packets are
dropped the kernel repeats the lost one after 1, 3, 7 and 15 s: a new try sends one sooner than that last one (b31)."""

DEFAULT_RETRY_AFTER_SECONDS = 1.0
"""For a 429 that does not say how long; what it says for two setWebhook within a second (TELEGRAM.md, "rate")."""

RETRY_MARGIN_SECONDS = 0.05
"""What whoever obeys `retry_after` adds to it: Telegram counts whole seconds, and our clock is not its clock."""

MAX_RETRY_AFTER_SECONDS = 86_400.0
"""Flood limits last for hours at times, and whoever calls within one prolongs it. More is taken for a day."""

# httpx's command line, which nobody uses here, brings click, a MiB of it. None: as where that is not installed.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

_MAX_DESCRIPTION_CHARACTERS = 500  # goes into log lines and health reasons

_CONNECTING = frozenset({"connect_tcp", "start_tls"})
"""Steps of a request (httpx's extension "trace"), by way of a proxy too, before any of it is sent to the Bot API server."""

Result = TypeVar("Result")


class BotIdentity(msgspec.Struct, frozen=True):
    """Who the token belongs to (getMe)."""

    id: int
    name: str = msgspec.field(name="first_name")
    username: str | None = None


class _Parameters(msgspec.Struct):
    retry_after: float | None = None


class _Answer(msgspec.Struct):
    ok: bool
    result: msgspec.Raw = msgspec.Raw()
    error_code: int | None = None
    description: str = ""
    parameters: _Parameters | None = None


_answer = msgspec.json.Decoder(_Answer)


class TelegramApi:
    """A client of one bot, with its own connections: `async with TelegramApi(...) as api`."""

    def __init__(
        self,
        base_url: str,
        token: Secret,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Does no I/O.

        Args:
            base_url: of the Bot API server, without a trailing slash.
            token: the bot's.
            timeout_seconds: limit of each call as a whole.
            transport: what carries the requests instead of the network.
        """
        self._transport = transport
        self._base_url = base_url
        self._token = token
        self._timeout_seconds = timeout_seconds
        self._redactor = Redactor([token.reveal()])
        self._client: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"TelegramApi({self._base_url!r})"

    async def __aenter__(self) -> Self:
        """Makes the client.

        Raises:
            TelegramUnavailable: it cannot be made, for what the environment says of proxies and certificates.
        """
        await import_late("httpx")
        import httpx

        limits = httpx.Timeout(self._timeout_seconds, connect=min(self._timeout_seconds, CONNECT_SECONDS))
        try:
            # With a transport of somebody's it reads no certificates.
            if self._transport is None:
                self._client = await run_beside(lambda: httpx.AsyncClient(timeout=limits))
            else:
                self._client = httpx.AsyncClient(timeout=limits, transport=self._transport)
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as exc:
            # httpx reads the environment: a kind of proxy that it does not know, a file of certificates that is not there. Its
            # words may hold the proxy's password.
            failure = f"{type(exc).__name__}; look at HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE"
        else:
            return self
        raise TelegramUnavailable("a client", f"cannot be made: {failure}", may_be_applied=False)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()
        self._client = None

    async def get_me(self) -> BotIdentity:
        """Asks who the token belongs to.

        Raises:
            TelegramError: the one of its subclasses that says what to do; TokenRefused if the token is not valid.
        """
        return self._read("getMe", BotIdentity, await self._call("getMe", {}))

    async def get_webhook_info(self) -> WebhookInfo:
        """Asks what is registered, and how deliveries fare.

        Raises:
            TelegramError: the one of its subclasses that says what to do.
        """
        return self._read("getWebhookInfo", WebhookInfo, await self._call("getWebhookInfo", {}))

    async def set_webhook(
        self, url: str, *, secret_token: str, max_connections: int, allowed_updates: tuple[str, ...]
    ) -> str:
        """Registers; with nothing changed it is a no-op at Telegram.

        Args:
            url: ends in the secret path.
            secret_token: what Telegram sends in X-Telegram-Bot-Api-Secret-Token.
            max_connections: 1 to 100.
            allowed_updates: empty is sent as an empty list, which restores the default; an absent one would keep what
                whoever called before had set.

        Returns:
            Telegram's description: "Webhook was set" or "Webhook is already set".

        Raises:
            TelegramError: the one of its subclasses that says what to do. After TelegramUnavailable it may be set or not.
        """
        parameters = {
            "url": url,
            "secret_token": secret_token,
            "max_connections": max_connections,
            "allowed_updates": list(allowed_updates),
        }
        return (await self._call("setWebhook", parameters)).description

    async def delete_webhook(self) -> str:
        """Removes the registration; what is pending stays.

        Returns:
            Telegram's description: "Webhook was deleted" or "Webhook is already deleted".

        Raises:
            TelegramError: the one of its subclasses that says what to do.
        """
        return (await self._call("deleteWebhook", {})).description

    async def get_updates(
        self, offset: int | None, *, wait_seconds: int, allowed_updates: tuple[str, ...]
    ) -> bytes:
        """Fetches what is pending, at most 100 updates; waits for the first. Ends whoever else waits for them.

        Args:
            offset: acknowledges every update below it, which are gone then; None: none.
            wait_seconds: 0 to 50, and less than the client's limit of a call.
            allowed_updates: as of `set_webhook`.

        Returns:
            The answer as it came, if it is not a refusal. In one of the updates may be what a strict decoder refuses.

        Raises:
            TelegramError: the one of its subclasses that says what to do. Conflict: a webhook is set, or somebody else polls.
        """
        parameters: dict[str, object] = {"timeout": wait_seconds, "allowed_updates": list(allowed_updates)}
        if offset is not None:
            parameters["offset"] = offset
        status, body = await self._request("getUpdates", parameters)
        answer = _decoded(body)
        if 200 <= status < 300 and (answer is None or answer.ok):
            return body
        raise self._refusal("getUpdates", status, answer)

    async def _call(self, method: str, parameters: dict[str, object]) -> _Answer:
        status, body = await self._request(method, parameters)
        answer = _decoded(body)
        if answer is not None and answer.ok and 200 <= status < 300:
            return answer
        raise self._refusal(method, status, answer)

    async def _request(self, method: str, parameters: dict[str, object]) -> tuple[int, bytes]:
        import httpx

        if self._client is None:
            raise RuntimeError("TelegramApi is used outside of its `async with`")
        url = f"{self._base_url}/bot{self._token.reveal()}/{method}"
        may_be_applied = True

        async def notice(event: str, _details: object) -> None:
            # httpx's errors do not tell: our own limit ends a connecting as well as a waiting.
            nonlocal may_be_applied
            may_be_applied = _CONNECTING.isdisjoint(event.split("."))

        try:
            # httpx limits each step of a call, and a server that sends a byte now and then meets them all.
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._client.post(url, json=parameters, extensions={"trace": notice})
                return response.status_code, response.content
        except httpx.ConnectTimeout:
            failure = f"no connection within {min(self._timeout_seconds, CONNECT_SECONDS):g} s"
        except (TimeoutError, httpx.TimeoutException):
            failure = f"no answer within {self._timeout_seconds:g} s"
        except httpx.ProxyError as exc:
            # It refused to connect us.
            failure, may_be_applied = f"{type(exc).__name__}: {exc}", False
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            # OSError: what is wrong with TLS after the handshake comes as it is, an ssl.SSLError.
            failure = f"{type(exc).__name__}: {exc}"
        # Outside of the handlers: raised within, the new error would carry the old one, with our URL, as its context.
        raise TelegramUnavailable(method, self._clean(failure), may_be_applied=may_be_applied)

    def _refusal(self, method: str, status: int, answer: _Answer | None) -> TelegramError:
        if answer is None or answer.ok or status >= 500:
            # A proxy's 404 in HTML must not pass for a refused token, which would end the process.
            kind = "" if answer else ", not an answer of a Bot API server"
            detail = f": {answer.description}" if answer and answer.description else ""
            return TelegramUnavailable(method, self._clean(f"status {status}{kind}{detail}"))
        code = answer.error_code or status
        description = self._clean(f"{code} {answer.description}")
        match code:
            case 429:
                return RetryLater(method, description, _retry_after(answer.parameters))
            case 401 | 404:
                return TokenRefused(method, description)
            case 409:
                return Conflict(method, description)
            case _ if 400 <= code < 500:
                return BadRequest(method, description)
            case _:
                return TelegramUnavailable(method, description)

    def _read(self, method: str, kind: type[Result], answer: _Answer) -> Result:
        try:
            return msgspec.json.decode(answer.result, type=kind)
        except _UNDECODABLE as exc:
            failure = f"its result is not what it should be: {exc}"
        raise TelegramUnavailable(method, self._clean(failure))

    def _clean(self, text: str) -> str:
        return self._redactor.bounded(" ".join(text.split()), _MAX_DESCRIPTION_CHARACTERS)


# A string that is not UTF-8, and nesting without end, are no DecodeError to msgspec.
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _decoded(body: bytes) -> _Answer | None:
    try:
        return _answer.decode(body)
    except _UNDECODABLE:
        return None


def _retry_after(parameters: _Parameters | None) -> float:
    seconds = parameters.retry_after if parameters else None
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return DEFAULT_RETRY_AFTER_SECONDS
    return min(seconds, MAX_RETRY_AFTER_SECONDS)
