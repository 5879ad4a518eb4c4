"""The Bot API over HTTP: tokens, parameters, faults, and the form of answers.

`/bot<token>/<method>`, any case, GET or POST. TELEGRAM.md "Errors of any method": 404 for a malformed token, 401 for
one that is (no longer) a bot's. Every call is recorded before it can meet a fault; one with a token that is no longer good
counts as the bot's too, so that hammering with it is seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from deploy.local.emulator.bot import Bot
from deploy.local.emulator.chats import Chats
from deploy.local.emulator.clock import Clock, sleep
from deploy.local.emulator.commands import Commands
from deploy.local.emulator.errors import ApiError, not_found, too_many_requests, unauthorized
from deploy.local.emulator.faults import Fault, FaultKind, FaultPlan, Outage
from deploy.local.emulator.http_server import Request, Response
from deploy.local.emulator.journal import ApiCall, Journal
from deploy.local.emulator.methods import METHODS
from deploy.local.emulator.parameters import Parameters, read_parameters

_PATH = re.compile(r"/bot(?P<token>[^/]+)/(?:test/)?(?P<method>[A-Za-z0-9_]+)/?")
# The bot's id, a colon, and a secret part of URL-safe characters; 80 is the server's limit of the whole.
TOKEN = re.compile(r"(?=.{3,80}\Z)[1-9][0-9]{0,15}:[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Account:
    """A bot with its chats."""

    bot: Bot
    chats: Chats
    commands: Commands = field(default_factory=Commands)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a method, as JSON that is ready to be put into the answer."""

    result: bytes
    description: str = ""


class BotApi:
    """Answers the calls of all bots."""

    def __init__(self, accounts: Mapping[int, Account], calls: Journal[ApiCall], clock: Clock) -> None:
        self._accounts = accounts
        self._calls = calls
        self._clock = clock
        self.faults = FaultPlan()
        self.outage = Outage.NONE

    async def handle(self, request: Request) -> Response | None:
        """The answer to a request under `/bot`; None resets the connection."""
        match self.outage:
            case Outage.BAD_GATEWAY:
                return Response(502, b"<html><h1>502 Bad Gateway</h1></html>", "text/html")
            case Outage.RESET | Outage.REFUSED:
                return None
            case Outage.NONE:
                pass
        try:
            account, method = self._find(request.path)
        except ApiError as exc:
            return _failure(exc)
        record = self._begin(account.bot, method, "http")
        met = self.faults.take(account.bot.id, method, self._clock.monotonic())
        if met.latency_seconds:
            await sleep(self._clock, met.latency_seconds)
        if met.fault is None:
            return await self._run(account, method, request, record)
        record.fault, record.is_early = met.fault.kind.value, met.is_early
        return await self._run_faulty(met.fault, account, method, request, record)

    async def run_from_webhook(self, account: Account, method: str, values: Mapping[str, Any]) -> None:
        """A method in the answer to a delivery; nobody hears how it ended, the record apart."""
        record = self._begin(account.bot, method, "webhook")
        met = self.faults.take(account.bot.id, method, self._clock.monotonic())
        await sleep(self._clock, met.latency_seconds)
        fault, record.is_early = met.fault, met.is_early
        parameters = Parameters(values)
        record.parameters = parameters.to_record()
        try:
            if fault is not None and fault.kind not in (
                FaultKind.APPLIED_BUT_TIMED_OUT,
                FaultKind.APPLIED_BUT_DROPPED,
            ):
                raise ApiError(fault.status, fault.kind.value)
            await self._call(account, method, parameters)
        except ApiError as exc:
            self._end(record, exc.code, exc.description)
        else:
            self._end(record, 200)

    def _find(self, path: str) -> tuple[Account, str]:
        match = _PATH.fullmatch(path.replace("%3A", ":").replace("%3a", ":"))
        if match is None or not TOKEN.fullmatch(match["token"]):
            raise not_found()
        account = self._accounts.get(int(match["token"].partition(":")[0]))
        if account is None:
            raise unauthorized()
        if account.bot.token != match["token"]:
            error = unauthorized()
            self._end(self._begin(account.bot, match["method"], "http"), error.code, error.description)
            raise error
        return account, match["method"]

    async def _run(self, account: Account, method: str, request: Request, record: ApiCall) -> Response:
        try:
            parameters = read_parameters(request.query, request.headers.get("content-type", ""), request.body)
            record.parameters = parameters.to_record()
            answer = await self._call(account, method, parameters)
        except ApiError as exc:
            self._end(record, exc.code, exc.description)
            return _failure(exc)
        self._end(record, 200, answer.description)
        description = (
            b',"description":' + json.dumps(answer.description).encode() if answer.description else b""
        )
        return Response(200, b'{"ok":true,"result":' + answer.result + description + b"}")

    async def _run_faulty(
        self, fault: Fault, account: Account, method: str, request: Request, record: ApiCall
    ) -> Response | None:
        match fault.kind:
            case FaultKind.TOO_MANY_REQUESTS:
                return self._refuse(record, too_many_requests(fault.retry_after))
            case FaultKind.SERVER_ERROR:
                return self._refuse(record, ApiError(fault.status, HTTPStatus(fault.status).phrase))
            case FaultKind.APPLIED_BUT_TIMED_OUT | FaultKind.APPLIED_BUT_DROPPED:
                await self._run(account, method, request, record)
            case _:
                pass
        if fault.kind in (FaultKind.HANG, FaultKind.APPLIED_BUT_TIMED_OUT):
            await request.disconnected.wait()
        self._calls.wake()
        return None

    async def _call(self, account: Account, method: str, call: Parameters) -> Answer:
        bot, name = account.bot, method.lower()
        bot.check_open()
        match name:
            case "getupdates":
                updates = await bot.get_updates(call)
                return Answer(b"[" + b",\n".join(update.body for update in updates) + b"]")
            case "setwebhook":
                return Answer(b"true", await bot.set_webhook(call))
            case "deletewebhook":
                return Answer(b"true", await bot.set_webhook(_without_url(call)))
            case "getwebhookinfo":
                return _encode(bot.webhook_info())
            case "getme":
                return _encode(bot.profile)
            case "logout":
                bot.log_out()
                return Answer(b"true")
            case "close":
                bot.close()
                return Answer(b"true")
        handler = METHODS.get(name)
        if handler is not None:
            return _encode(handler(account.chats, call))
        command: Callable[[Parameters], Any] | None = {
            "setmycommands": account.commands.set,
            "getmycommands": account.commands.get,
            "deletemycommands": account.commands.delete,
        }.get(name)
        if command is None:
            raise ApiError(404, "Not Found: method not found")
        return _encode(command(call))

    def _begin(self, bot: Bot, method: str, via: str) -> ApiCall:
        record = ApiCall(
            seq=self._calls.take_seq(),
            bot_id=bot.id,
            method=method,
            parameters={},
            via=via,
            started_at=self._clock.now(),
            started_monotonic=self._clock.monotonic(),
        )
        self._calls.add(record)
        return record

    def _end(self, record: ApiCall, status: int, description: str = "") -> None:
        record.finished_at = self._clock.now()
        record.finished_monotonic = self._clock.monotonic()
        record.status = status
        record.description = description or None
        self._calls.wake()

    def _refuse(self, record: ApiCall, error: ApiError) -> Response:
        self._end(record, error.code, error.description)
        return _failure(error)


def _without_url(call: Parameters) -> Parameters:
    return Parameters({"drop_pending_updates": call.text("drop_pending_updates")})


def _encode(result: Any) -> Answer:
    return Answer(json.dumps(result, separators=(",", ":")).encode())


def _failure(error: ApiError) -> Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return Response(error.code, json.dumps(error.to_json()).encode(), headers=headers)
