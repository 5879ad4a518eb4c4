"""The control API over HTTP: JSON under `/control/`.

    GET  /control/state                              overview
    POST /control/bots        NewBot                 {"bot_id": n}
    POST /control/revoke      {"bot_id"}             the token is no longer good
    POST /control/reissue     {"bot_id", "token"}    a new token for the same bot
    POST /control/fail_synchronization {"bot_id", "date"}    last_synchronization_error_date; without a date, now
    POST /control/send        SendText               Sent
    POST /control/send_many   [SendText, ...]        [Sent, ...]
    POST /control/press       Press                  Pressed
    POST /control/inject      Inject                 Injected
    GET  /control/messages    ?chat_id &bot_id       [ChatMessage, ...]
    GET  /control/chats       ?bot_id                [Chat, ...] as the Bot API has them
    GET  /control/outbox      ?after &limit &timeout &bot_id &chat_id     [BotEvent, ...]
    GET  /control/calls       ?after &limit &timeout &bot_id &method      [ApiCall, ...]
    GET  /control/deliveries  ?after &limit &timeout &bot_id              [DeliveryAttempt, ...]
    GET  /control/counts      ?bot_id                Counts
    GET  /control/webhook     ?bot_id                WebhookState
    POST /control/wait_idle   {"bot_id", "timeout_seconds"}               {"is_idle", "counts"}
    POST /control/faults      Fault                  {"id": n}
    POST /control/clear_faults {"id"}                one, or without id all
    POST /control/outage      {"outage"}             {"control_url"}

The three journals answer with the entries numbered above `after`; with a `timeout` and none there yet they wait, so a
page follows a journal by asking again with the last `seq` it saw. A wrong call: 4xx, `{"error": "..."}`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec

from deploy.local.emulator.control import Control
from deploy.local.emulator.control_messages import Inject, NewBot, Press, SendText
from deploy.local.emulator.errors import ControlError
from deploy.local.emulator.faults import Fault, Outage
from deploy.local.emulator.http_server import Request, Response
from deploy.local.emulator.journal import Journal

MAX_ENTRIES = 10_000
MAX_WAIT_SECONDS = 600.0
EntryT = TypeVar("EntryT", bound="_Entry")
ValueT = TypeVar("ValueT")
Route = Callable[[Request], Awaitable[Any]]


class _Entry(Protocol):
    seq: int
    bot_id: int


class _BotChoice(msgspec.Struct, frozen=True):
    bot_id: int | None = None
    token: str = ""


class _Synchronization(msgspec.Struct, frozen=True):
    bot_id: int | None = None
    date: int | None = None


class _Wait(msgspec.Struct, frozen=True):
    bot_id: int | None = None
    timeout_seconds: float = 10.0


class _FaultChoice(msgspec.Struct, frozen=True):
    id: int | None = None


class _OutageChoice(msgspec.Struct, frozen=True):
    outage: Outage


class Listener(Protocol):
    """The emulator, as far as an outage concerns it."""

    @property
    def control_url(self) -> str: ...

    async def set_outage(self, outage: Outage) -> None: ...


class ControlHttp:
    """Routes of the control API."""

    def __init__(self, control: Control, listener: Listener) -> None:
        self._control = control
        self._listener = listener
        self._routes: Mapping[tuple[str, str], Route] = {
            ("GET", "state"): self._state,
            ("POST", "bots"): self._add_bot,
            ("POST", "revoke"): self._revoke,
            ("POST", "reissue"): self._reissue,
            ("POST", "fail_synchronization"): self._fail_synchronization,
            ("POST", "send"): self._send,
            ("POST", "send_many"): self._send_many,
            ("POST", "press"): self._press,
            ("POST", "inject"): self._inject,
            ("GET", "messages"): self._messages,
            ("GET", "chats"): self._chats,
            ("GET", "outbox"): self._outbox,
            ("GET", "calls"): self._calls,
            ("GET", "deliveries"): self._deliveries,
            ("GET", "counts"): self._counts,
            ("GET", "webhook"): self._webhook,
            ("POST", "wait_idle"): self._wait_idle,
            ("POST", "faults"): self._add_fault,
            ("POST", "clear_faults"): self._clear_faults,
            ("POST", "outage"): self._outage,
        }

    async def handle(self, request: Request) -> Response:
        """The answer to a request under `/control/`."""
        name = request.path.removeprefix("/control/").rstrip("/")
        route = self._routes.get((request.method, name))
        if route is None:
            return _failure(404, f"no {request.method} /control/{name}")
        try:
            return Response(200, msgspec.json.encode(await route(request)))
        except ControlError as exc:
            return _failure(exc.status, str(exc))
        except msgspec.ValidationError as exc:
            return _failure(400, str(exc))
        except msgspec.DecodeError as exc:
            return _failure(400, f"the body must be JSON: {exc}")

    async def _state(self, request: Request) -> Any:
        return self._control.state(self._listener.control_url)

    async def _add_bot(self, request: Request) -> Any:
        return {"bot_id": self._control.add_bot(_read(request, NewBot))}

    async def _revoke(self, request: Request) -> Any:
        self._control.revoke(_read(request, _BotChoice).bot_id)
        return {}

    async def _reissue(self, request: Request) -> Any:
        choice = _read(request, _BotChoice)
        self._control.reissue(choice.bot_id, choice.token)
        return {}

    async def _fail_synchronization(self, request: Request) -> Any:
        failure = _read(request, _Synchronization)
        self._control.fail_synchronization(failure.bot_id, failure.date)
        return {}

    async def _send(self, request: Request) -> Any:
        return self._control.send_text(_read(request, SendText))

    async def _send_many(self, request: Request) -> Any:
        return [self._control.send_text(wish) for wish in _read(request, list[SendText])]

    async def _press(self, request: Request) -> Any:
        return self._control.press(_read(request, Press))

    async def _inject(self, request: Request) -> Any:
        return self._control.inject(_read(request, Inject))

    async def _messages(self, request: Request) -> Any:
        query = _Query(request)
        chat_id = query.integer("chat_id")
        if chat_id is None:
            raise ControlError("chat_id must be given")
        return self._control.messages(query.integer("bot_id"), chat_id)

    async def _chats(self, request: Request) -> Any:
        return self._control.account(_Query(request).integer("bot_id")).chats.chats()

    async def _outbox(self, request: Request) -> Any:
        chat_id = _Query(request).integer("chat_id")
        return await _read_journal(
            self._control.outbox, request, lambda event: chat_id is None or event.chat_id == chat_id
        )

    async def _calls(self, request: Request) -> Any:
        method = _Query(request).text("method").lower()
        return await _read_journal(
            self._control.calls, request, lambda call: not method or call.method.lower() == method
        )

    async def _deliveries(self, request: Request) -> Any:
        return await _read_journal(self._control.deliveries, request, lambda attempt: True)

    async def _counts(self, request: Request) -> Any:
        return self._control.counts(_Query(request).integer("bot_id"))

    async def _webhook(self, request: Request) -> Any:
        return self._control.webhook(_Query(request).integer("bot_id"))

    async def _wait_idle(self, request: Request) -> Any:
        wait = _read(request, _Wait)
        is_idle = await self._control.wait_idle(wait.bot_id, min(wait.timeout_seconds, MAX_WAIT_SECONDS))
        return {"is_idle": is_idle}

    async def _add_fault(self, request: Request) -> Any:
        return {"id": self._control.add_fault(_read(request, Fault))}

    async def _clear_faults(self, request: Request) -> Any:
        self._control.clear_faults(_read(request, _FaultChoice).id)
        return {}

    async def _outage(self, request: Request) -> Any:
        await self._listener.set_outage(_read(request, _OutageChoice).outage)
        return {"control_url": self._listener.control_url}


class _Query:
    """The query string's values."""

    def __init__(self, request: Request) -> None:
        self._values = dict(parse_qsl(request.query))

    def text(self, name: str) -> str:
        return self._values.get(name, "")

    def integer(self, name: str, default: int | None = None) -> int | None:
        return msgspec.convert(self._values[name], int, strict=False) if name in self._values else default

    def seconds(self, name: str) -> float:
        return msgspec.convert(self._values.get(name, 0.0), float, strict=False)


async def _read_journal(
    journal: Journal[EntryT], request: Request, matching: Callable[[EntryT], bool]
) -> list[EntryT]:
    query = _Query(request)
    after = query.integer("after", 0) or 0
    limit = min(query.integer("limit", MAX_ENTRIES) or MAX_ENTRIES, MAX_ENTRIES)
    timeout = min(query.seconds("timeout"), MAX_WAIT_SECONDS)
    bot_id = query.integer("bot_id")

    def is_wanted(entry: EntryT) -> bool:
        return bot_id in (None, entry.bot_id) and matching(entry)

    def find() -> list[EntryT]:
        return journal.after(after, limit=limit, matching=is_wanted)

    if timeout > 0:
        await journal.wait(lambda: bool(journal.after(after, limit=1, matching=is_wanted)), timeout)
    return find()


def _read(request: Request, kind: type[ValueT]) -> ValueT:
    return msgspec.json.decode(request.body or b"{}", type=kind)


def _failure(status: int, message: str) -> Response:
    return Response(status, msgspec.json.encode({"error": message}))
