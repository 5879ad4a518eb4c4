"""The Bot API client against a real HTTP server that answers as it is told."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from shared.errors import BadRequest, Conflict, RetryLater, TelegramError, TelegramUnavailable, TokenRefused
from shared.secret import Secret
from shared.telegram_api import BotIdentity, TelegramApi, WebhookInfo

TOKEN = "123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc"
HANG_SECONDS = 0.2  # the limit given to the client where the server does not answer
LIMIT_SECONDS = 30.0  # on a hang of ours

OK_TRUE = {"ok": True, "result": True, "description": "Webhook was set"}


@dataclass
class FakeServer:
    """Answers every request with `answer`: a status and a body, raw bytes, or something to do with the connection."""

    url: str = ""
    status: int = 200
    body: bytes = b"{}"
    behave: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def will_answer(self, body: object, status: int = 200) -> None:
        """Sets the answer; anything but bytes is sent as JSON."""
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request at a time."""
        try:
            while line := await reader.readline():
                length = 0
                while (header := (await reader.readline()).strip()) != b"":
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                self.requests.append(
                    (line.decode().split()[1], json.loads(await reader.readexactly(length) or b"{}"))
                )
                if self.behave is not None:
                    await self.behave(writer)
                    return
                head = f"HTTP/1.1 {self.status} Status\r\nContent-Length: {len(self.body)}\r\n\r\n"
                writer.write(head.encode() + self.body)
                await writer.drain()
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    """A server on a free port of 127.0.0.1; what still hangs at the end is cut off."""
    fake, connections = FakeServer(), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await fake.serve(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            return

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield fake
    listening.close()
    for task in connections:
        task.cancel()
    await asyncio.gather(*connections)
    await listening.wait_closed()


@pytest.fixture
async def api(server: FakeServer) -> AsyncIterator[TelegramApi]:
    """A client of that server."""
    async with TelegramApi(server.url, Secret(TOKEN), timeout_seconds=LIMIT_SECONDS) as client:
        yield client


async def failure(call: Awaitable[object]) -> TelegramError:
    """The error that a call ends with; nothing that can be got out of it may hold the token (a21)."""
    with pytest.raises(TelegramError) as raised:
        await call
    error = raised.value
    said = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + repr(error.args)
    assert TOKEN.partition(":")[2] not in said
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


# ------------------------------------------------------------------------------------------------------------- answers


async def test_get_me_says_who_the_token_belongs_to(server: FakeServer, api: TelegramApi) -> None:
    """Id, username and name; what else Telegram says is ignored."""
    server.will_answer(
        {
            "ok": True,
            "result": {"id": 123, "is_bot": True, "first_name": "Menu", "username": "menu_bot", "x": 1},
        }
    )
    assert await api.get_me() == BotIdentity(id=123, name="Menu", username="menu_bot")
    assert server.requests == [(f"/bot{TOKEN}/getMe", {})]


async def test_get_webhook_info_says_everything_that_telegram_says(
    server: FakeServer, api: TelegramApi
) -> None:
    """All fields of TELEGRAM.md; those that are absent have their defaults."""
    everything = {
        "url": "https://h/webhook/x",
        "has_custom_certificate": False,
        "pending_update_count": 3,
        "ip_address": "1.2.3.4",
        "last_error_date": 1,
        "last_error_message": "Connection refused",
        "last_synchronization_error_date": 2,
        "max_connections": 40,
        "allowed_updates": ["message", "callback_query"],
    }
    server.will_answer({"ok": True, "result": {**everything, "new_field": {}}})
    allowed = ("message", "callback_query")
    assert await api.get_webhook_info() == WebhookInfo(**{**everything, "allowed_updates": allowed})  # type: ignore[arg-type]
    server.will_answer(
        {"ok": True, "result": {"url": "", "has_custom_certificate": False, "pending_update_count": 0}}
    )
    assert await api.get_webhook_info() == WebhookInfo(url="")


async def test_set_webhook_sends_what_it_is_given_and_says_what_changed(
    server: FakeServer, api: TelegramApi
) -> None:
    """An empty list restores the default updates; an absent one would keep what was there before."""
    server.will_answer(OK_TRUE)
    said = await api.set_webhook(
        "https://h/webhook/x", secret_token="s", max_connections=7, allowed_updates=()
    )
    assert said == "Webhook was set"
    sent = {"url": "https://h/webhook/x", "secret_token": "s", "max_connections": 7, "allowed_updates": []}
    assert server.requests == [(f"/bot{TOKEN}/setWebhook", sent)]
    server.will_answer({"ok": True, "result": True, "description": "Webhook is already set"})
    said = await api.set_webhook(
        "https://h/webhook/x", secret_token="s", max_connections=7, allowed_updates=("message",)
    )
    assert said == "Webhook is already set"
    assert server.requests[1][1]["allowed_updates"] == ["message"]


async def test_a28_get_updates_gives_the_answer_as_it_came(server: FakeServer, api: TelegramApi) -> None:
    """Also where an update holds what a strict decoder refuses: it would be in the way of all others for a day."""
    for body in ('{"ok":true,"result":[]}', '{"ok":true,"result":[{"update_id":5,"x":"\\ud800"}]}', "<html>"):
        server.will_answer(body.encode())
        assert await api.get_updates(None, wait_seconds=3, allowed_updates=("poll",)) == body.encode()
    assert server.requests[-1][1] == {"timeout": 3, "allowed_updates": ["poll"]}
    server.will_answer(b'{"ok":true,"result":[]}')
    await api.get_updates(7, wait_seconds=0, allowed_updates=())
    assert server.requests[-1][1] == {"timeout": 0, "allowed_updates": [], "offset": 7}
    for status, kind in ((409, Conflict), (429, RetryLater), (401, TokenRefused), (502, TelegramUnavailable)):
        server.will_answer({"ok": False, "error_code": status, "description": "no"}, status)
        assert type(await failure(api.get_updates(7, wait_seconds=0, allowed_updates=()))) is kind
    server.will_answer(b"<html>", 502)
    refused = await failure(api.get_updates(7, wait_seconds=0, allowed_updates=()))
    assert type(refused) is TelegramUnavailable


async def test_what_is_wrong_with_tls_after_the_handshake_is_unavailability() -> None:
    """One damaged record: it comes through httpx as it is, and must end neither the supervisor nor the owner's worker."""

    async def damaged(request: httpx.Request) -> httpx.Response:
        raise ssl.SSLError(
            1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] decryption failed or bad record mac"
        )

    transport = httpx.MockTransport(damaged)
    async with TelegramApi("https://127.0.0.1:1", Secret(TOKEN), transport=transport) as client:
        for call in (client.get_me(), client.get_updates(None, wait_seconds=0, allowed_updates=())):
            assert type(await failure(call)) is TelegramUnavailable


async def test_a16_nothing_that_is_pending_is_ever_dropped(server: FakeServer, api: TelegramApi) -> None:
    """Neither call can say so."""
    server.will_answer({"ok": True, "result": True, "description": "Webhook was deleted"})
    assert await api.delete_webhook() == "Webhook was deleted"
    await api.set_webhook("https://h", secret_token="s", max_connections=1, allowed_updates=())
    assert not [request for request in server.requests if "drop_pending_updates" in json.dumps(request)]


# -------------------------------------------------------------------------------------------------------------- errors


def refusal(code: int, description: str = "Described", parameters: object = None) -> dict[str, object]:
    """A Bot API error."""
    found = {"ok": False, "error_code": code, "description": description}
    return found if parameters is None else {**found, "parameters": parameters}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (403, BadRequest),
        (413, BadRequest),
        (401, TokenRefused),
        (404, TokenRefused),
        (409, Conflict),
        (429, RetryLater),
        (500, TelegramUnavailable),
        (502, TelegramUnavailable),
        (302, TelegramUnavailable),
    ],
)
async def test_each_status_is_the_error_that_says_what_to_do(
    server: FakeServer, api: TelegramApi, status: int, kind: type[TelegramError]
) -> None:
    """And names the method and what Telegram said."""
    server.will_answer(refusal(status), status)
    error = await failure(api.get_webhook_info())
    assert type(error) is kind
    assert error.method == "getWebhookInfo"
    assert str(status) in str(error)
    assert "Described" in str(error)


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [
        ({"retry_after": 7}, 7.0),
        ({"retry_after": 0}, 0.0),
        ({}, 1.0),
        ({"migrate_to_chat_id": 5}, 1.0),
        ({"retry_after": -3}, 1.0),
        ({"retry_after": 36_001}, 36_001.0),
        ({"retry_after": 1e9}, 86_400.0),
    ],
)
async def test_retry_later_says_how_long(
    server: FakeServer, api: TelegramApi, parameters: dict[str, object], seconds: float
) -> None:
    """As long as Telegram says; bounded, and a second where it says nothing of use."""
    server.will_answer(refusal(429, parameters=parameters), 429)
    error = await failure(api.get_me())
    assert isinstance(error, RetryLater)
    assert error.retry_after_seconds == seconds


@pytest.mark.parametrize("status", [200, 401, 404, 429])
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>Not Found</html>", b"\xff", b"[]", b"null", b'{"ok": "yes"}', b"9" * 5000),
        *(b'{"ok": true, "description": "d\xe9faut"}', b'{"x": ' + b"[" * 100_000),
    ],
    ids=range(9),
)
async def test_what_is_no_answer_of_the_bot_api_is_unavailability(
    server: FakeServer, api: TelegramApi, status: int, body: bytes
) -> None:
    """A proxy's page with status 404 must not pass for a refused token, which would end the process."""
    server.will_answer(body, status)
    error = await failure(api.get_me())
    assert type(error) is TelegramUnavailable
    assert f"status {status}" in str(error)


@pytest.mark.parametrize("result", [True, {"id": "x"}, {}, None])
async def test_a_result_of_another_form_is_unavailability(
    server: FakeServer, api: TelegramApi, result: object
) -> None:
    """An answer that cannot be used is as good as none."""
    server.will_answer({"ok": True, "result": result})
    assert type(await failure(api.get_me())) is TelegramUnavailable


async def test_a_result_that_is_no_text_is_unavailability(server: FakeServer, api: TelegramApi) -> None:
    """Some proxies cut a character in two."""
    server.will_answer(b'{"ok": true, "result": {"id": 1, "username": "\xe9"}}')
    assert type(await failure(api.get_me())) is TelegramUnavailable


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks9://user:hush@127.0.0.1:1"),
        ("HTTPS_PROXY", "ftp://user:hush@127.0.0.1:1"),
        ("SSL_CERT_FILE", "/there/is/none.pem"),
    ],
)
async def test_a_client_that_cannot_be_made_is_unavailability_that_names_the_variables(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """It is found out with the lock in hand, and must not end who holds it."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(TelegramUnavailable, match=variable) as caught:
        async with TelegramApi("https://127.0.0.1:1", Secret(TOKEN), timeout_seconds=HANG_SECONDS):
            raise AssertionError("it was made")
    assert "hush" not in "".join(traceback.format_exception(caught.value))


async def test_a_connection_that_is_refused_or_cut_is_unavailability(
    server: FakeServer, api: TelegramApi
) -> None:
    """Before, within, and instead of an answer."""

    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def cut_within(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    async def nonsense(writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")

    for behave in (cut, cut_within, nonsense):
        server.behave = behave
        assert type(await failure(api.get_me())) is TelegramUnavailable
    nowhere = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{nowhere.sockets[0].getsockname()[1]}"
    nowhere.close()
    await nowhere.wait_closed()
    async with TelegramApi(url, Secret(TOKEN)) as away:
        assert type(await failure(away.get_me())) is TelegramUnavailable


async def test_a20_a_server_that_does_not_answer_costs_a_bounded_time(server: FakeServer) -> None:
    """Also one that sends a byte now and then, and so meets every limit on a single step."""

    async def hang(_writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b" ")
            await asyncio.sleep(HANG_SECONDS / 20)  # what is tested is that this goes on

    for behave in (hang, drip):
        server.behave = behave
        async with TelegramApi(server.url, Secret(TOKEN), timeout_seconds=HANG_SECONDS) as api:
            async with asyncio.timeout(LIMIT_SECONDS):
                error = await failure(
                    api.set_webhook("https://h", secret_token="s", max_connections=1, allowed_updates=())
                )
        assert type(error) is TelegramUnavailable
        assert "no answer within 0.2 s" in str(error)


async def test_a_call_that_is_cancelled_ends_as_cancelled(server: FakeServer, api: TelegramApi) -> None:
    """A term that ends cuts off its calls; that is no error of Telegram's."""

    async def hang(_writer: asyncio.StreamWriter) -> None:
        begun.set()
        await asyncio.Event().wait()

    begun, server.behave = asyncio.Event(), hang
    call = asyncio.create_task(api.get_me(), name="call")
    async with asyncio.timeout(LIMIT_SECONDS):
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


# ------------------------------------------------------------------------------------------------------------- secrecy


async def test_a21_a_description_that_quotes_the_token_is_cleaned(
    server: FakeServer, api: TelegramApi
) -> None:
    """Also cut to a length that fits a log line, and of one line."""
    server.will_answer(refusal(400, f"bad url /bot{TOKEN}/x\n" + "y" * 10_000), 400)
    error = await failure(api.get_me())
    assert "bad url /bot***/x y" in str(error)
    assert len(str(error)) < 1000
    assert TOKEN not in repr(api)


async def test_a_client_outside_of_its_context_is_a_mistake_that_says_so(server: FakeServer) -> None:
    """A bug of ours, and not a transient error that somebody would repeat for ever."""
    with pytest.raises(RuntimeError, match="async with"):
        await TelegramApi(server.url, Secret(TOKEN)).get_me()


def test_the_module_imports_no_http_client_until_it_is_used() -> None:
    """A standby never calls Telegram; its start does not pay for it."""
    script = "import sys, shared.telegram_api; print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_event_loop_turns_while_a_client_is_made() -> None:
    """Both the import and the reading of certificates wait here for the loop, in which heartbeats are sent."""
    script = """
import asyncio, ssl, sys, threading
from shared.secret import Secret
from shared.telegram_api import TelegramApi

waits, turned = threading.Event(), threading.Event()

def wait_for_a_turn():
    turned.clear()
    waits.set()
    assert turned.wait(30), "the loop stands still"

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "httpx":
            wait_for_a_turn()

async def main():
    turns = 0
    opening = asyncio.create_task(TelegramApi("https://127.0.0.1:1", Secret("1:a")).__aenter__())
    while not opening.done():
        if waits.is_set():
            turns += 1
            waits.clear()
            turned.set()
        await asyncio.sleep(0)
    await (await opening).__aexit__(None, None, None)
    print(turns, "turns")

sys.meta_path.insert(0, Finder())
ssl.SSLContext.load_verify_locations = lambda *arguments, **named: wait_for_a_turn()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("2 turns", 0), done.stderr
