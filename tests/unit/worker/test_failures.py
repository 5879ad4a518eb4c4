"""What an exception means for the update whose handler raised it."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from typing import Any, cast

import httpx
import psycopg
import pytest
import telegram.error as te
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from telegram.request import BaseRequest

from webhook_worker import RetryUpdate
from webhook_worker.failures import (
    MAX_REASON_CHARACTERS,
    MAX_RETRY_AFTER_SECONDS,
    MAX_TRACEBACK_CHARACTERS,
    classify,
    is_token_refused,
    outcome_of,
)
from webhook_worker.outcomes import Failed, Transient

# python-telegram-bot tells that `retry_after` will be a timedelta, whoever makes or reads a RetryAfter.
pytestmark = pytest.mark.filterwarnings("ignore::telegram.warnings.PTBDeprecationWarning")


def caused(outer: Exception, inner: BaseException) -> Exception:
    """As after `raise outer from inner`."""
    outer.__cause__ = inner
    return outer


def raised_while(outer: Exception, inner: BaseException) -> Exception:
    """As after `raise outer` in an `except` block."""
    outer.__context__ = inner
    return outer


class ClientOSError(OSError):
    """As aiohttp has it: with the number of the system's error, and without its class."""


class CodedError(Exception):
    """As asyncpg and others have them."""

    def __init__(self, sqlstate: str) -> None:
        self.sqlstate = sqlstate


def status_error(status: int) -> httpx.HTTPStatusError:
    """As `raise_for_status` raises."""
    request = httpx.Request("GET", "http://shop.example")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


TRANSIENT = [
    te.TimedOut(),
    te.NetworkError("httpx.ConnectError: All connection attempts failed"),
    te.NetworkError("Bad Gateway"),
    te.NetworkError("Internal Server Error (500). Parsing the server response b'<html>' failed"),
    te.NetworkError("Request Timeout (408). Parsing the server response b'' failed"),
    te.InvalidToken("Not Found (404). Parsing the server response b'<html>' failed"),
    te.InvalidToken("Unauthorized (401). Parsing the server response b'<html>' failed"),
    te.NetworkError("Bad Gateway: the upstream said (404)"),
    caused(te.NetworkError("Unknown error in HTTP implementation"), ConnectionResetError()),
    caused(te.NetworkError("Unknown error in HTTP implementation"), ssl.SSLCertVerificationError()),
    te.InvalidToken("Unauthorized"),
    httpx.ConnectError("x"),
    httpx.ReadTimeout("x"),
    httpx.RemoteProtocolError("x"),
    status_error(500),
    status_error(503),
    status_error(429),
    TimeoutError(),
    ConnectionRefusedError(),
    BrokenPipeError(),
    socket.gaierror(socket.EAI_AGAIN, "no DNS"),
    ssl.SSLError("handshake"),
    OSError(errno.ENETUNREACH, "unreachable"),
    OSError(errno.EMFILE, "too many files"),
    ClientOSError(errno.ECONNREFUSED, "Cannot connect to host"),
    ClientOSError(errno.ECONNRESET, "reset by peer"),
    ClientOSError(errno.ETIMEDOUT, "timed out"),
    caused(ClientOSError("Server disconnected"), ConnectionResetError()),
    caused(ClientOSError(socket.EAI_AGAIN, "no DNS"), socket.gaierror(socket.EAI_AGAIN, "no DNS")),
    psycopg.OperationalError("the connection is closed"),
    psycopg.errors.AdminShutdown(),
    psycopg.errors.TooManyConnections(),
    psycopg.errors.DiskFull(),
    psycopg.errors.DeadlockDetected(),
    psycopg.errors.QueryCanceled(),
    psycopg.errors.ReadOnlySqlTransaction(),
    CodedError("08006"),
    RetryUpdate("the shop is closed"),
    caused(KeyError("stock"), te.TimedOut()),
    caused(ValueError(), caused(LookupError(), psycopg.OperationalError())),
    ExceptionGroup("two", [te.TimedOut(), ConnectionResetError()]),
    caused(RuntimeError(), ExceptionGroup("two", [te.TimedOut(), ConnectionResetError()])),
]

PERMANENT = [
    ValueError("no"),
    te.BadRequest("Message is not modified"),
    te.Forbidden("bot was blocked by the user"),
    te.ChatMigrated(-100),
    te.Conflict("terminated by other getUpdates request"),
    te.InvalidToken("Not Found"),
    te.NetworkError("Request Entity Too Large"),
    te.NetworkError("Method Not Allowed (405). Parsing the server response b'' failed"),
    caused(
        te.NetworkError("Unknown error in HTTP implementation"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x"),
    ),
    caused(te.NetworkError("Unknown error in HTTP implementation"), TypeError()),
    status_error(404),
    httpx.UnsupportedProtocol("x"),
    httpx.LocalProtocolError("x"),
    FileNotFoundError(errno.ENOENT, "no such file"),
    PermissionError(errno.EACCES, "no"),
    ClientOSError(errno.ENOENT, "no such file"),
    ClientOSError("of another kind"),
    psycopg.errors.UniqueViolation(),
    psycopg.errors.ProgramLimitExceeded(),  # an OperationalError by class
    psycopg.errors.UndefinedTable(),
    psycopg.InterfaceError("the cursor is closed"),
    CodedError("23505"),
    asyncio.CancelledError(),
    MemoryError(),
    raised_while(AttributeError("a bug in an except block"), te.TimedOut()),
    caused(te.BadRequest("the first that is known decides"), te.TimedOut()),
    caused(KeyError("stock"), te.BadRequest("no")),
    ExceptionGroup("two", [te.TimedOut(), ValueError()]),
    ExceptionGroup("nested", [ExceptionGroup("two", [ValueError()]), te.TimedOut()]),
]


@pytest.mark.parametrize("exc", TRANSIENT, ids=repr)
def test_what_is_away_for_now_is_transient(exc: BaseException) -> None:
    """b31: an outage of Telegram, of the database, of the network dead-letters nothing."""
    outcome = classify(exc)
    assert isinstance(outcome, Transient)
    assert outcome.reason.startswith(type(exc).__qualname__) or type(exc).__qualname__ in outcome.reason


@pytest.mark.parametrize("exc", PERMANENT, ids=repr)
def test_anything_else_is_failed(exc: BaseException) -> None:
    """What would only fail again becomes a dead letter, with its traceback."""
    outcome = classify(exc)
    assert isinstance(outcome, Failed)
    assert type(exc).__name__ in outcome.traceback_text


class OneAnswer(BaseRequest):
    """python-telegram-bot's own reading of HTTP answers, on one answer or exception."""

    def __init__(self, status: int, payload: bytes, exc: Exception | None = None) -> None:
        self.answer, self.exc = (status, payload), exc

    read_timeout = None

    async def initialize(self) -> None:
        """Nothing to do."""

    async def shutdown(self) -> None:
        """Nothing to do."""

    async def do_request(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        """The answer."""
        if self.exc is not None:
            raise self.exc
        return self.answer


def error(code: int, description: str, **parameters: int) -> bytes:
    """As Telegram says it."""
    body = {"ok": False, "error_code": code, "description": description}
    return json.dumps(body | ({"parameters": parameters} if parameters else {})).encode()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (OneAnswer(500, error(500, "Internal Server Error: restart")), Transient),
        (OneAnswer(502, b"<html>Bad Gateway</html>"), Transient),
        (OneAnswer(504, b""), Transient),
        (OneAnswer(429, error(429, "Too Many Requests: retry after 3", retry_after=3)), Transient),
        (OneAnswer(429, error(429, "Too Many Requests")), Transient),
        (OneAnswer(429, b"<html>"), Transient),
        (OneAnswer(401, error(401, "Unauthorized")), Transient),
        (OneAnswer(401, b""), Transient),
        (OneAnswer(400, error(400, "Bad Request: chat not found")), Failed),
        (OneAnswer(403, error(403, "Forbidden: bot was kicked")), Failed),
        (OneAnswer(404, error(404, "Not Found")), Failed),
        (OneAnswer(409, error(409, "Conflict")), Failed),
        (OneAnswer(413, error(413, "Request Entity Too Large")), Failed),
        (OneAnswer(413, b"<html>"), Failed),
        (OneAnswer(400, error(400, "Bad Request: group upgraded", migrate_to_chat_id=-1)), Failed),
        (OneAnswer(0, b"", UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")), Failed),
        (OneAnswer(0, b"", OSError(errno.ECONNRESET, "reset")), Transient),
    ],
)
async def test_every_answer_of_telegram_is_judged_right(answer: OneAnswer, expected: type) -> None:
    """By the classes and texts that python-telegram-bot really makes of an answer."""
    with pytest.raises(te.TelegramError) as caught:
        await answer.post("http://api.example/bot1:a/sendMessage")
    assert isinstance(classify(caught.value), expected), caught.value


@pytest.mark.parametrize(
    ("make", "seconds"),
    [
        (lambda: te.RetryAfter(7), 7.0),
        (lambda: te.RetryAfter(timedelta(milliseconds=1500)), 1.5),
        (lambda: RetryUpdate("later", retry_after_seconds=60), 60.0),
        (lambda: RetryUpdate("later"), None),
        (lambda: RetryUpdate("of another type", retry_after_seconds=cast(float, Fraction(3, 2))), 1.5),
        (lambda: RetryUpdate("never", retry_after_seconds=float("inf")), MAX_RETRY_AFTER_SECONDS),
        (lambda: RetryUpdate("nonsense", retry_after_seconds=float("nan")), 0.0),
        (lambda: RetryUpdate("earlier", retry_after_seconds=-5), 0.0),
        (lambda: te.TimedOut(), None),
        (lambda: ExceptionGroup("two", [te.RetryAfter(3), te.RetryAfter(9), te.TimedOut()]), 9.0),
        (lambda: caused(RuntimeError("wrapped"), te.RetryAfter(4)), 4.0),
    ],
)
def test_a_named_time_is_kept(make: Callable[[], BaseException], seconds: float | None) -> None:
    """Whoever says when, is obeyed; within a day, so that it is a time."""
    outcome = classify(make())
    assert isinstance(outcome, Transient)
    assert outcome.retry_after_seconds == seconds


def test_retry_after_is_read_in_either_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bot may have switched python-telegram-bot to timedeltas."""
    monkeypatch.setenv("PTB_TIMEDELTA", "1")
    outcome = classify(te.RetryAfter(7))
    assert isinstance(outcome, Transient)
    assert outcome.retry_after_seconds == 7.0


def test_a_permanent_error_decides_whatever_else_was_raised() -> None:
    """Repeating would only bring it up again; all of them are in the text."""
    outcome = outcome_of([te.TimedOut(), ValueError("the bug"), te.RetryAfter(9)])
    assert isinstance(outcome, Failed)
    assert re.search(r"TimedOut.*the bug.*RetryAfter", outcome.traceback_text, re.DOTALL)


def test_the_latest_of_several_named_times_holds() -> None:
    """The update is repeated as a whole, so all of them must have passed."""
    outcome = outcome_of([te.TimedOut(), te.RetryAfter(2), te.RetryAfter(9), te.RetryAfter(3)])
    assert outcome == Transient(outcome.reason if isinstance(outcome, Transient) else "", 9.0)
    assert "TimedOut" in str(outcome)


def test_a_retrying_helper_that_gave_up_is_judged_by_what_it_met() -> None:
    """tenacity's RetryError says from what."""

    @tenacity.retry(stop=tenacity.stop_after_attempt(1))
    def call() -> None:
        raise te.TimedOut

    with pytest.raises(tenacity.RetryError) as caught:
        call()
    assert isinstance(classify(caught.value), Transient)


def test_a_group_that_is_the_cause_of_its_own_member_ends() -> None:
    """`except* ... as group: raise group.exceptions[0] from group`."""
    member = RuntimeError("member")
    assert isinstance(classify(caused(member, ExceptionGroup("own", [member, te.TimedOut()]))), Failed)
    loop = KeyError("a")
    assert isinstance(classify(caused(loop, caused(KeyError("b"), loop))), Failed)


def test_two_consequences_of_one_cause_are_both_judged_by_it() -> None:
    """A lost connection fails two tasks of one group."""
    lost = psycopg.OperationalError("lost")
    group = ExceptionGroup("two", [caused(KeyError("a"), lost), caused(KeyError("b"), lost)])
    assert isinstance(classify(group), Transient)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("wrap", [lambda exc: exc, lambda exc: caused(te.TimedOut(), exc)])
def test_an_exception_that_cannot_be_shown_is_still_an_outcome(
    wrap: Callable[[BaseException], BaseException],
) -> None:
    """Nothing that a handler raises may break the telling of its outcome."""
    assert isinstance(classify(wrap(Unspeakable())), Failed | Transient)


@given(st.text(alphabet=st.characters(codec=None, categories=None), max_size=200))
def test_texts_are_what_postgres_takes(text: str) -> None:
    """NUL and lone surrogates can come from a user's message; a statement with them would fail for ever."""
    failed, transient = classify(ValueError(text)), classify(RetryUpdate(text))
    assert isinstance(failed, Failed)
    assert isinstance(transient, Transient)
    for stored in (failed.traceback_text, transient.reason):
        assert "\0" not in stored
        stored.encode("utf-8")
    assert "\n" not in transient.reason


def test_texts_are_bounded_at_both_ends() -> None:
    """A message as long as somebody likes neither fills the table nor hides where it was raised."""
    try:
        raise ValueError("x" * 1_000_000 + "THE END")
    except ValueError as exc:
        outcome = outcome_of([exc])
    assert isinstance(outcome, Failed)
    assert len(outcome.traceback_text) <= MAX_TRACEBACK_CHARACTERS
    assert __file__ in outcome.traceback_text
    assert "THE END" in outcome.traceback_text
    reason = classify(RetryUpdate("y" * 10_000))
    assert isinstance(reason, Transient)
    assert len(reason.reason) <= MAX_REASON_CHARACTERS


def test_a_refused_token_is_told_from_a_file_that_is_gone() -> None:
    """Both are InvalidToken; only 401 is about the token."""
    assert is_token_refused(te.InvalidToken("Unauthorized"))
    assert not is_token_refused(te.InvalidToken("Not Found"))
    assert not is_token_refused(te.InvalidToken("Unauthorized (401). Parsing the server response b'' failed"))
    assert not is_token_refused(ValueError("Unauthorized"))
