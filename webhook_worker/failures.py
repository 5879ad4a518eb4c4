"""What an exception that a handler raised means for its update.

    raised by a handler                                             outcome     what follows
    ─────────────────────────────────────────────────────────────   ─────────   ──────────────────────────────────────
    nothing                                                         Done        completed
    something outside is away for now: Telegram (time-out, network,
    5xx, flood limit, token revoked), the database, another HTTP    Transient   again with backoff, the lane waits
    service; or the handler asks for it: RetryUpdate
    anything else                                                   Failed      dead letter with traceback, the lane goes on

An exception of a kind that is not known here says of what it is a consequence by `raise ... from`, and that decides: a
`StockError` from a `TimedOut` is transient. What it was merely raised *during* (`__context__`) decides nothing: a bug in an
`except` block is a bug. Of a group, and of several handlers of one update, the worst decides (see `outcome_of`).

Not promised: knowledge of every library. Exceptions of Redis or AMQP clients and the like are Failed unless they derive from
the built-in network errors or carry an SQLSTATE; a handler turns them into `RetryUpdate(...)`.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import traceback
from collections.abc import Sequence
from datetime import timedelta
from http import HTTPStatus

import httpx
import psycopg
import telegram.error
from msgspec import Struct

from webhook_worker.outcomes import Failed, RetryUpdate, Transient, storable

MAX_REASON_CHARACTERS = 500
"""A reason is for one line of a log."""

MAX_RETRY_AFTER_SECONDS = 86_400.0
"""Longer than Telegram itself keeps a message (TELEGRAM.md, "expiry")."""

MAX_TRACEBACK_CHARACTERS = 32 * 1024
"""A traceback goes into the database; messages in it can be as long as somebody likes to make them."""


def classify(exc: BaseException) -> Transient | Failed:
    """What one exception means for the update whose handler raised it. Does not raise."""
    return outcome_of([exc])


def outcome_of(errors: Sequence[BaseException]) -> Transient | Failed:
    """What all the errors of one try mean together; there is at least one.

    One that is permanent decides, whatever the others are: repeating would only bring it up again, and in the meantime repeat
    what the update's other handlers did, and hold up its chat. If all are transient, the latest of the named times holds.
    """
    retry = _all(errors, frozenset())
    if retry is None:
        return Failed(_traceback_text(errors))
    seconds = retry.retry_after_seconds
    if seconds is not None:
        seconds = min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)
    return Transient(_reason(errors[0]), seconds)


def is_token_refused(exc: BaseException) -> bool:
    """Telegram answered 401: the token was revoked. (A 404, as for a file that has expired, is the same class.)"""
    return (
        isinstance(exc, telegram.error.InvalidToken)
        and exc.message.startswith(HTTPStatus.UNAUTHORIZED.phrase)
        and not _is_no_answer(exc)
    )


def _is_no_answer(exc: telegram.error.InvalidToken) -> bool:
    """A proxy on the way said it, in HTML or nothing at all: a Bot API server answers in JSON."""
    # The cause is what getMe got; the error itself then says that the token "was rejected by the server".
    errors = (exc, exc.__cause__)
    return any(
        ". Parsing the server response " in error.message
        for error in errors
        if isinstance(error, telegram.error.InvalidToken)
    )


# ------------------------------------------------------------------------------------------------------ what is transient

# What the system says when the network, a peer or the way there is away. Local trouble (ENOENT, EACCES ...) is not among
# them; a shortage of descriptors or buffers is, since through httpx it shows as a connection that failed as well. The first six
# make a bare OSError a ConnectionError or a TimeoutError, and no subclass of somebody else's, such as aiohttp's.
_NETWORK_ERRNOS = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EPIPE,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EADDRNOTAVAIL,
        errno.ENOTCONN,
        errno.ENOBUFS,
        errno.EMFILE,
        errno.ENFILE,
    }
)

# https://www.postgresql.org/docs/current/errcodes-appendix.html. By code and not by class of exception, since the classes put
# data that is too large (54) next to a lost connection; and so other drivers than psycopg are understood too.
_TRANSIENT_SQLSTATES = (
    "08",  # connection exception
    "28",  # invalid authorization: a password is being changed; nothing to do with the update
    "40",  # transaction rollback: deadlock, serialization
    "53",  # insufficient resources: too many connections, disk full
    "55006",  # object in use
    "55P03",  # lock not available
    "57",  # operator intervention: shutdown, starting up, statement cancelled by a time-out
    "58",  # system error: I/O
    "25006",  # read-only transaction: the server became a standby
)

# A NetworkError is whatever python-telegram-bot cannot place: also a call that Telegram refuses as too large, and any other
# 4xx. Its only trace is the text (`BaseRequest._request_wrapper`); 408, 425 and 429 ask to be repeated.
_REFUSED = re.compile(r"Request Entity Too Large|[\w' -]+ \((?!408|425|429)4\d\d\)")

# The same wraps whatever happens while a request is made, in "Unknown error in HTTP implementation": the network's trouble,
# but also text that cannot be encoded, which would fail for ever.
_DATA_OR_CODE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)


class _Later(Struct, frozen=True):
    """Transient, and for how long if somebody said so; None in its place is permanent."""

    retry_after_seconds: float | None = None


def _retry_of(exc: BaseException, above: frozenset[int]) -> _Later | None:
    """The first exception in the chain that is known decides. `above`: a group can be the cause of its own member."""
    seen = set(above)
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        match link:
            case BaseExceptionGroup():
                return _all(link.exceptions, frozenset(seen))
            case RetryUpdate():
                return _Later(link.retry_after_seconds)
            case telegram.error.RetryAfter():
                wait = link.retry_after
                return _Later(wait.total_seconds() if isinstance(wait, timedelta) else float(wait))
            case telegram.error.BadRequest():
                return None  # a NetworkError by class
            case telegram.error.NetworkError():
                return None if _is_refused_or_ours(link) else _Later()
            case telegram.error.InvalidToken() if _is_no_answer(link):
                return _Later()
            case telegram.error.TelegramError():
                return _Later() if is_token_refused(link) else None
            case httpx.HTTPStatusError():
                status = link.response.status_code
                return _Later() if status >= 500 or status == HTTPStatus.TOO_MANY_REQUESTS else None
            case httpx.UnsupportedProtocol() | httpx.LocalProtocolError():
                return None  # the request itself is wrong
            case httpx.TransportError() | TimeoutError() | ConnectionError():
                return _Later()
            case socket.gaierror() | socket.herror() | ssl.SSLError():
                return _Later()  # OSErrors with numbers of their own
            case OSError() if link.errno in errno.errorcode:  # others have a resolver's there, or none
                return _Later() if link.errno in _NETWORK_ERRNOS else None
            case _ if isinstance(sqlstate := getattr(link, "sqlstate", None), str):
                return _Later() if sqlstate.startswith(_TRANSIENT_SQLSTATES) else None
            case psycopg.OperationalError():
                return _Later()  # without a code: no connection, or lost, or none to be had from the pool
            case _:
                link = link.__cause__
    return None


def _all(errors: Sequence[BaseException], above: frozenset[int]) -> _Later | None:
    seconds: list[float] = []
    for error in errors:
        retry = _retry_of(error, above)
        if retry is None:
            return None
        if retry.retry_after_seconds is not None:
            seconds.append(retry.retry_after_seconds)
    return _Later(max(seconds, default=None))


def _is_refused_or_ours(exc: telegram.error.NetworkError) -> bool:
    is_ours = isinstance(exc.__cause__, _DATA_OR_CODE) and not isinstance(exc.__cause__, OSError)
    return is_ours or _REFUSED.match(exc.message) is not None


# ---------------------------------------------------------------------------------------------------------------- texts


def _reason(exc: BaseException) -> str:
    line = " ".join("".join(traceback.format_exception_only(exc)).split())
    return storable(line, MAX_TRACEBACK_CHARACTERS)[:MAX_REASON_CHARACTERS]


def _traceback_text(errors: Sequence[BaseException]) -> str:
    text = "\nAnd:\n".join("".join(traceback.format_exception(error)) for error in errors)
    return storable(text, MAX_TRACEBACK_CHARACTERS)
