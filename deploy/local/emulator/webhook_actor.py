"""Delivers one webhook's updates: the shell around `DeliveryPlan`, `Ramp` and `GoneWatch`.

It lives from a setWebhook to the next one that changes anything, like `WebhookActor` of the real server, and works the
same way: whatever happens - an update, an answer, a hang-up, a timer - it runs one pass of load, resolve, connect,
send, and then sleeps until the earliest moment that any of them named.

Critical section: none. Everything runs on the loop's thread, and a pass never awaits.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

from deploy.local.emulator.backoff import GoneWatch, Ramp, parse_retry_after
from deploy.local.emulator.clock import Clock, Timer
from deploy.local.emulator.delivery_plan import DeliveryPlan, Failed
from deploy.local.emulator.journal import DeliveryAttempt, DeliveryJournal, Outcome
from deploy.local.emulator.registration import Registration, WebhookUrl
from deploy.local.emulator.update_log import UpdateLog
from deploy.local.emulator.webhook_http import Endpoint, WebhookConnection, WebhookResponse

# TELEGRAM.md "setWebhook", what success means: DNS is cached for 30 minutes; up to a tenth more, at random.
DNS_CACHE_SECONDS = 30 * 60
# TELEGRAM.md "Delivery", success: these are never run from an answer, and neither is any get*.
NEVER_RUN = frozenset({"setwebhook", "deletewebhook", "close", "logout"})


class Resolver(Protocol):
    """How the actor finds a webhook's address."""

    async def resolve(self, host: str, port: int) -> str:
        """An IP address.

        Raises:
            OSError: it does not resolve.
        """


class SystemResolver:
    """The machine's resolver."""

    async def resolve(self, host: str, port: int) -> str:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        return str(found[0][4][0])


class WebhookOwner(Protocol):
    """The bot, as far as its webhook's actor tells it things."""

    def on_webhook_verified(self, ip_address: str) -> None: ...

    def on_webhook_error(self, message: str) -> None: ...

    def on_webhook_closed(self, reason: str) -> None:
        """The actor ended by itself: it could not be verified, or answered 410 for too long."""

    def on_method_answered(self, method: str, parameters: Mapping[str, Any]) -> None:
        """The webhook's answer asks for a Bot API call."""


class WebhookActor:
    """Delivers the updates of `log` to a registered URL until it is closed."""

    def __init__(
        self,
        bot_id: int,
        registration: Registration,
        url: WebhookUrl,
        log: UpdateLog,
        journal: DeliveryJournal,
        owner: WebhookOwner,
        clock: Clock,
        rng: random.Random,
        resolver: Resolver,
    ) -> None:
        """Does no I/O.

        Raises:
            ssl.SSLError: the certificate cannot be used.
        """
        self._bot_id = bot_id
        self._registration = registration
        self._url = url
        self._log = log
        self._journal = journal
        self._owner = owner
        self._clock = clock
        self._rng = rng
        self._resolver = resolver
        self._plan = DeliveryPlan(registration.max_connections, rng)
        self._ramp = Ramp(registration.max_connections, clock.monotonic())
        self._gone = GoneWatch()
        self._load_from = log.head_seq
        self._endpoint: Endpoint | None = None
        self._tls = _tls_context(registration) if url.is_https else None
        self._resolve_at = clock.monotonic()
        self._verified = False
        self._closed = False
        self._connections: set[WebhookConnection] = set()
        # In turn, so that idle connections are all kept in use, as the real server's list does.
        self._ready: deque[WebhookConnection] = deque()
        self._attempts: dict[int, DeliveryAttempt] = {}
        self._next_number = 1
        self._timer: Timer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_flight_count(self) -> int:
        return self._plan.in_flight_count

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    @property
    def is_busy(self) -> bool:
        """Whether tasks or sockets are left, after `close` too."""
        return bool(self._tasks) or any(not connection.is_gone for connection in self._connections)

    def notify(self) -> None:
        """There may be new updates in the log; also starts the actor."""
        self._pass()

    def close(self) -> None:
        """Ends every delivery under way, at once. What was in flight stays in the log: it will be sent again."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for attempt in self._attempts.values():
            self._journal.finish(attempt, Outcome.ABANDONED, error="webhook closed")
        self._attempts.clear()
        for connection in self._connections:
            connection.close()
        self._ready.clear()
        for task in self._tasks:
            task.cancel()

    async def aclose(self) -> None:
        """Closes, and waits until all tasks and sockets are gone."""
        self.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            await connection.wait_closed()

    # One pass

    def _pass(self) -> None:
        if self._closed:
            return
        now = self._clock.monotonic()
        self._load(now)
        wakeups = [self._resolve(now), self._connect(now)]
        wakeups.append(self._send(now))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = min((at for at in wakeups if at is not None), default=None)
        if when is not None and not self._closed:
            self._timer = self._clock.call_at(when, self._pass)

    def _load(self, now: float) -> None:
        if self._plan.room <= 0:
            return
        updates = self._log.load(self._load_from, self._plan.room, self._clock.now())
        if updates:
            self._load_from = updates[-1].seq + 1
            self._plan.load(updates, now)

    def _resolve(self, now: float) -> float | None:
        if self._registration.fixed_ip_address:
            if self._endpoint is None:
                self._use_address(self._registration.fixed_ip_address)
            return None
        if now < self._resolve_at:
            return self._resolve_at
        self._resolve_at = now + DNS_CACHE_SECONDS + self._rng.uniform(0, DNS_CACHE_SECONDS / 10)
        self._spawn(self._look_up(), "resolve")
        return self._resolve_at

    def _connect(self, now: float) -> float | None:
        if self._endpoint is None:
            return None
        wanted = self._ramp.wanted(self._plan.queue_count, now, verified=self._verified)
        while len(self._connections) < wanted:
            allowed_at = self._ramp.next_opening_at(now)
            if allowed_at > now:
                return allowed_at
            self._ramp.note_opening(now)
            self._open(self._endpoint)
        return None

    def _open(self, endpoint: Endpoint) -> None:
        connection = WebhookConnection(self._next_number, endpoint, self, self._clock)
        self._next_number += 1
        self._connections.add(connection)
        self._ready.append(connection)
        self._spawn(connection.connect(), f"connection-{connection.number}")
        if not self._verified:
            # TELEGRAM.md, what success means: a connection could be tried. How it goes, getWebhookInfo will tell.
            self._verified = True
            self._owner.on_webhook_verified(endpoint.ip_address)

    def _send(self, now: float) -> float | None:
        while self._ready:
            update = self._plan.take_due(now)
            if update is None:
                return self._plan.next_due_at()
            connection = self._ready.popleft()
            self._attempts[update.seq] = self._journal.start(self._bot_id, update, connection.number)
            connection.send(update.seq, update.body)
        return None

    # What comes back

    def on_response(self, connection: WebhookConnection, response: WebhookResponse) -> None:
        if self._closed or connection.seq is None:
            return
        seq, connection.seq = connection.seq, None
        error = None if 200 <= response.status <= 299 else f"{response.status} {response.reason}"
        is_over = self._gone.note_answer(response.status, self._clock.monotonic())
        if response.keep_alive and connection.endpoint is self._endpoint:
            self._ready.append(connection)
        else:
            connection.close()
            self._connections.discard(connection)
        if error is None:
            self._succeed(seq, response)
        else:
            self._owner.on_webhook_error(f"Wrong response from the webhook: {error}")
            retry_after = parse_retry_after(response.headers.get("retry-after"))
            self._fail(seq, f"Wrong response from the webhook: {error}", response.status, retry_after)
        if is_over:
            self.close()
            self._owner.on_webhook_closed("410 Gone")
        else:
            self._pass()

    def on_hangup(self, connection: WebhookConnection, error: str | None) -> None:
        if self._closed:
            return
        self._connections.discard(connection)
        if connection in self._ready:
            self._ready.remove(connection)
        if error is not None:
            self._owner.on_webhook_error(error)
        if connection.seq is not None:
            self._fail(connection.seq, error or "Webhook connection closed", None, 0)
        self._pass()

    def _succeed(self, seq: int, response: WebhookResponse) -> None:
        self._ramp.note_success(self._clock.monotonic())
        self._plan.succeeded(seq)
        self._log.forget(seq)
        self._journal.finish(self._attempts.pop(seq), Outcome.DELIVERED, status=response.status)
        call = response.method_call()
        method = call.get("method") if call else None
        if call and isinstance(method, str) and _may_run(method):
            self._owner.on_method_answered(
                method, {key: value for key, value in call.items() if key != "method"}
            )

    def _fail(self, seq: int, error: str, status: int | None, retry_after: int) -> None:
        now = self._clock.monotonic()
        fate, delay = self._plan.failed(seq, retry_after, self._clock.now(), now)
        if fate is Failed.DROPPED:
            self._log.forget(seq)
        outcome = Outcome.DROPPED if fate is Failed.DROPPED else Outcome.RETRY
        self._journal.finish(
            self._attempts.pop(seq), outcome, status=status, error=error, retry_in_seconds=delay
        )

    # Address

    async def _look_up(self) -> None:
        try:
            address = await self._resolver.resolve(self._url.host, self._url.port)
        except OSError as exc:
            if not self._verified and not self._closed:
                self.close()
                self._owner.on_webhook_closed(f"Failed to resolve host: {exc.strerror or exc}")
            return
        if not self._closed:
            self._use_address(address)
            self._pass()

    def _use_address(self, address: str) -> None:
        if self._endpoint is not None and self._endpoint.ip_address == address:
            return
        # Connections to the address before are used up: each is closed after its next answer.
        self._endpoint = Endpoint(self._url, address, self._registration.secret_token, self._tls)
        if self._verified:
            self._owner.on_webhook_verified(address)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"webhook-{self._bot_id}-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _may_run(method: str) -> bool:
    name = method.lower()
    return bool(name) and not name.startswith("get") and name not in NEVER_RUN


def _tls_context(registration: Registration) -> ssl.SSLContext:
    if registration.certificate is None:
        return ssl.create_default_context()
    # A self-signed certificate that was uploaded is trusted for itself, and its host name is not compared.
    context = ssl.create_default_context(cadata=registration.certificate.decode("ascii", "backslashreplace"))
    context.check_hostname = False
    return context
