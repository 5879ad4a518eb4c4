"""A simulated Telegram: the Bot API's registration, and delivery with its queues, retries, expiry and limits.

The rules are TELEGRAM.md's, and the code is the emulator's where that is pure: UpdateLog, DeliveryPlan, Ramp, Registration.
The emulator's own tests show that these follow the rules. What is written here again is the shell around them, without sockets.

Not modelled: DNS, TLS, certificates, webhook answers that are method calls, getUpdates.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import httpx

from deploy.local.emulator.backoff import Ramp
from deploy.local.emulator.delivery_plan import DeliveryPlan, Failed
from deploy.local.emulator.parameters import Parameters
from deploy.local.emulator.registration import (
    SET_INTERVAL_SECONDS,
    Registration,
    requested_registration,
)
from deploy.local.emulator.update_log import StoredUpdate, UpdateLog
from tests.simulation.agenda import Agenda, Entry
from tests.simulation.history import Delivery, History

ANSWER_SECONDS = 60.0
"""Without an answer for so long a delivery has failed (TELEGRAM.md, "failure")."""

LATENCY_SECONDS = 0.04
UNIX_SECONDS = 1_700_000_000.0
"""The unix time at 0 of the agenda; only differences matter here."""


class Receiver(Protocol):
    """Where deliveries go: the platform's router."""

    def deliver(self, url: str, secret: str, body: bytes, reply: Callable[[int | None], None]) -> None:
        """Takes a request; `reply` is called once, with the status, or None where the connection broke."""
        ...


class _Delivery:
    """One attempt that is under way."""

    __slots__ = ("is_foreign", "is_over", "timer", "update")

    def __init__(self, update: StoredUpdate, *, is_foreign: bool) -> None:
        self.update = update
        # By a registration that somebody else has made: whatever is said to it is right.
        self.is_foreign = is_foreign
        self.is_over = False
        self.timer: Entry | None = None


class Telegram:
    """The Bot API server of one bot."""

    def __init__(self, agenda: Agenda, history: History, random: Random, token: str) -> None:
        """No webhook is set."""
        self.agenda = agenda
        self.history = history
        self.random = random
        self.token = token
        self.receiver: Receiver | None = None
        self.registration = Registration()
        # Under a term, with the moment at which the caller sent it.
        self.calls: list[tuple[float, str, str]] = []
        self.refused: set[str] = set()  # whose token was answered 401, which no token recovers from here
        self.early_calls: list[tuple[float, str, str]] = []  # by a process that had been told to wait
        # Faults of calls, used up one by one: "429", "502", "applied", "hang".
        self.call_faults: list[str] = []
        self.away_until = 0.0
        self._last_set_at = -1000.0
        self._setting = 0
        self._is_foreign = False
        self._log = UpdateLog(random)
        self._plan: DeliveryPlan | None = None
        self._ramp = Ramp(1, 0.0)
        self._load_from = 0
        self._attempts: set[_Delivery] = set()
        self._open = 0
        self._timer: Entry | None = None

    # --------------------------------------------------------------------------------------------------------- users

    def push(self, kind: str, queue: str, lane: int, content: dict[str, Any], lifetime: float) -> int | None:
        """A user does something; the update's number, None if it is not taken."""
        now = self.agenda.now
        stored = self._log.push(
            kind, queue, json.dumps(content).encode(), UNIX_SECONDS + now + lifetime, UNIX_SECONDS + now
        )
        if not isinstance(stored, StoredUpdate):
            return None
        self.history.deliveries[stored.update_id] = Delivery(
            stored.update_id, lane, stored.queue, now, now + lifetime
        )
        self._pass()
        return stored.update_id

    def repeat(self, update_id: int, queue: str, content: dict[str, Any]) -> None:
        """An update comes a second time, as after a changed registration."""
        unix = UNIX_SECONDS + self.agenda.now
        body = json.dumps(content).encode()
        self._log.push("message", queue, body, unix + 3600.0, unix, update_id=update_id)
        self._pass()

    @property
    def pending(self) -> int:
        """Updates that are neither delivered nor expired."""
        return len(self._log)

    # ------------------------------------------------------------------------------------------------------- delivery

    def _pass(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        plan = self._plan
        if plan is None:
            return
        now = self.agenda.now
        if plan.room > 0:
            updates = self._log.load(self._load_from, plan.room, UNIX_SECONDS + now)
            if updates:
                self._load_from = updates[-1].seq + 1
                plan.load(updates, now)
        wake_at: float | None = None
        wanted = self._ramp.wanted(plan.queue_count, now, verified=True)
        while self._open < wanted:
            wake_at = self._ramp.next_opening_at(now)
            if wake_at > now:
                break
            wake_at = None
            self._ramp.note_opening(now)
            self._open += 1
        while len(self._attempts) < self._open:
            update = plan.take_due(now)
            if update is None:
                due = plan.next_due_at()
                wake_at = due if wake_at is None else wake_at if due is None else min(wake_at, due)
                break
            self._send(update)
        if wake_at is not None:
            self._timer = self.agenda.at(max(wake_at, now + 0.001), self._pass)

    def _send(self, update: StoredUpdate) -> None:
        delivery = self.history.deliveries[update.update_id]
        if delivery.first_sent_at is None:
            delivery.first_sent_at = self.agenda.now
        attempt = _Delivery(update, is_foreign=self._is_foreign)
        self._attempts.add(attempt)
        attempt.timer = self.agenda.after(ANSWER_SECONDS, self._answered, attempt, None)
        assert self.receiver is not None
        registration = self.registration

        def arrive() -> None:
            assert self.receiver is not None
            self.receiver.deliver(
                registration.url,
                registration.secret_token,
                update.body,
                lambda status: self._answer(attempt, status),
            )

        self.agenda.after(LATENCY_SECONDS * self.random.random(), arrive)

    def _answer(self, attempt: _Delivery, status: int | None) -> None:
        self.agenda.after(LATENCY_SECONDS * self.random.random(), self._answered, attempt, status)

    def _answered(self, attempt: _Delivery, status: int | None) -> None:
        update = attempt.update
        if attempt.is_over:
            return
        attempt.is_over = True
        if attempt.timer is not None:
            attempt.timer.cancel()
        now = self.agenda.now
        if not attempt.is_foreign or status == 200:
            self.history.deliveries[update.update_id].answers.append((now, status))
        if attempt not in self._attempts:
            return  # closed by a change of the registration; the answer was read all the same
        self._attempts.discard(attempt)
        plan = self._plan
        assert plan is not None
        if status is not None and 200 <= status < 300:
            self._ramp.note_success(now)
            plan.succeeded(update.seq)
            self._log.forget(update.seq)
        else:
            if status is None:
                self._open -= 1
            retry_after = 2 if status == 503 else 0
            fate, _ = plan.failed(update.seq, retry_after, UNIX_SECONDS + now, now)
            self.history.note("telegram", f"update {update.update_id} was answered {status}")
            if fate is Failed.DROPPED:
                self._log.forget(update.seq)
                self.history.deliveries[update.update_id].expired_at = now
        self._pass()

    def register(self, registration: Registration, *, is_foreign: bool = False) -> None:
        """Takes a registration that changes something: deliveries under way are closed, and sent again."""
        self.registration = registration
        self._is_foreign = is_foreign
        self._attempts.clear()
        self._open = 0
        self._load_from = self._log.head_seq
        self._plan = DeliveryPlan(registration.max_connections, self.random) if registration.url else None
        self._ramp = Ramp(registration.max_connections or 1, self.agenda.now)
        self._pass()

    # ---------------------------------------------------------------------------------------------------------- calls

    def is_away(self) -> bool:
        """Whether every call fails."""
        return self.agenda.now < self.away_until

    async def call(
        self, caller: str, token: str, method: str, parameters: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """A call of the Bot API, in the caller's event loop: status and JSON.

        Args:
            caller: the instance.
            token: which one it has.
            method: of the API.
            parameters: of the call.

        Raises:
            httpx.ReadError: the connection broke.
        """
        await asyncio.sleep(LATENCY_SECONDS * self.random.random())
        fault = "502" if self.is_away() else self.call_faults.pop() if self.call_faults else ""
        match fault:
            case "429":
                return 429, _error(429, "Too Many Requests: retry after 3", {"retry_after": 3})
            case "502":
                return 502, _error(502, "Bad Gateway")
            case "hang":
                await asyncio.sleep(1000.0)
        if token != self.token:
            self.refused.add(caller)
            return 401, _error(401, "Unauthorized")
        answer = await self._apply(caller, method, parameters)
        if fault == "applied":
            raise httpx.ReadError("the answer was lost")
        await asyncio.sleep(LATENCY_SECONDS * self.random.random())
        return answer

    async def _apply(
        self, caller: str, method: str, parameters: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        match method:
            case "getMe":
                return 200, {
                    "ok": True,
                    "result": {"id": 7, "is_bot": True, "first_name": "b", "username": "b"},
                }
            case "getWebhookInfo":
                registration = self.registration
                info = {"url": registration.url, "pending_update_count": self.pending}
                if registration.url:
                    info["max_connections"] = registration.max_connections
                return 200, {"ok": True, "result": info}
            case "setWebhook" | "deleteWebhook":
                return await self._set(caller, method, parameters)
            case _:
                return 404, _error(404, "Not Found")

    async def _set(self, caller: str, method: str, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        is_set = method == "setWebhook"
        if is_set and self.agenda.now - self._last_set_at < SET_INTERVAL_SECONDS:
            return 429, _error(429, "Too Many Requests: retry after 1", {"retry_after": 1})
        new = requested_registration(self.registration, Parameters(parameters), local_mode=True)
        new = new if is_set else self.registration.without_webhook()
        if is_set:
            self._last_set_at = self.agenda.now
        if self.registration.is_unchanged_by(new, drops_pending=False):
            self.history.note(caller, f"{method}: unchanged")
            said = "Webhook is already set" if is_set else "Webhook is already deleted"
            return 200, {"ok": True, "result": True, "description": said}
        self._setting += 1
        mine = self._setting
        await asyncio.sleep(LATENCY_SECONDS * self.random.random())
        if mine != self._setting:
            return 409, _error(409, "Conflict: terminated by other setWebhook")
        self.history.note(caller, f"{method}: changed")
        self.register(new)
        return 200, {"ok": True, "result": True, "description": "Webhook was set"}


def _error(code: int, description: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"ok": False, "error_code": code, "description": description}
    return error if parameters is None else {**error, "parameters": parameters}


class Transport(httpx.AsyncBaseTransport):
    """What carries the calls of one process to the simulated Telegram."""

    def __init__(self, telegram: Telegram, caller: str, has_term: Callable[[], bool]) -> None:
        """For calls in the event loop of that process; `has_term`: whether it knows of one."""
        self._telegram = telegram
        self._caller = caller
        self._has_term = has_term
        self._told_until: dict[str, float] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One call, its parameters in JSON."""
        _, bot, method = request.url.path.split("/")
        parameters = json.loads(request.content or b"{}")
        now = self._telegram.agenda.now
        # Of one who knows of no term of its own it is a question; no term is judged by it, although one may have begun.
        if method != "getMe" or self._has_term():
            self._telegram.calls.append((now, self._caller, method))
        if now < self._told_until.get(method, 0.0):
            self._telegram.early_calls.append((now, self._caller, method))
        status, answer = await self._telegram.call(self._caller, bot.removeprefix("bot"), method, parameters)
        if status == 429:
            self._told_until[method] = self._telegram.agenda.now + answer["parameters"]["retry_after"]
        return httpx.Response(status, json=answer)
