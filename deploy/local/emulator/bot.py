"""One bot's account at the server: token, updates, webhook, long poll.

The shell in which the pure rules of `registration`, `update_log` and `update_kinds` meet the webhook's actor. What the
bot sends and who reads it is in `chats.py`.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from deploy.local.emulator.clock import Clock
from deploy.local.emulator.errors import ApiError, ControlError, bad_request, too_many_requests, unauthorized
from deploy.local.emulator.journal import DeliveryJournal
from deploy.local.emulator.long_poll import BY_SET_WEBHOOK, OTHER_SET_WEBHOOK, ConflictBrake, LongPoll
from deploy.local.emulator.parameters import Parameters
from deploy.local.emulator.registration import (
    SET_INTERVAL_SECONDS,
    Registration,
    WebhookHistory,
    check_registration,
    describe_webhook,
    requested_registration,
)
from deploy.local.emulator.update_kinds import expiry_of, find_kind, name_queue
from deploy.local.emulator.update_log import Refusal, StoredUpdate, UpdateLog
from deploy.local.emulator.webhook_actor import Resolver, WebhookActor

# Bot API documentation, close: 429 in the first 10 minutes after the bot is launched.
CLOSE_AFTER_SECONDS = 600
# The same, logOut: no log in on the cloud server for 10 minutes.
LOGGED_OUT_SECONDS = 600


class Bot:
    """A bot and everything that the server keeps for it."""

    def __init__(
        self,
        token: str,
        profile: Mapping[str, Any],
        *,
        clock: Clock,
        rng: random.Random,
        journal: DeliveryJournal,
        resolver: Resolver,
        local_mode: bool,
        run_method: Callable[[Bot, str, Mapping[str, Any]], None],
    ) -> None:
        self.id = int(token.partition(":")[0])
        self.token: str | None = token
        self.profile = dict(profile)
        self.refused: Counter[str] = Counter()
        self.pushed_count = 0
        self._clock = clock
        self._rng = rng
        self._journal = journal
        self._resolver = resolver
        self._local_mode = local_mode
        self._run_method = run_method
        self.log = UpdateLog(rng)
        self._brake = ConflictBrake(clock)
        self._poll = LongPoll(self.log, clock, self._brake)
        self.registration = Registration()
        self._history = WebhookHistory()
        self._synchronization_error_date: int | None = None
        self._actor: WebhookActor | None = None
        self._retired: list[WebhookActor] = []
        self._setting: asyncio.Future[str | ApiError] | None = None
        self._next_set_at = clock.monotonic()
        self._launched_at = clock.monotonic()
        self._logged_out_until: float | None = None

    # Updates

    def push(self, update: Mapping[str, Any], *, update_id: int | None = None) -> StoredUpdate | None:
        """Takes an update without `update_id`, unless `allowed_updates` leaves its kind out; None if not taken."""
        kind = find_kind(update)
        if kind not in self.registration.allowed_updates:
            self.refused["not_allowed"] += 1
            return None
        payload = update[kind]
        # Escaped like the real server does it, which also carries "\u0000" and lone surrogates unharmed.
        rest = json.dumps(update, separators=(",", ":")).encode("ascii")
        return self.push_bytes(
            kind, name_queue(kind, payload), rest, update_id, expiry_of(kind, payload, self._clock.now())
        )

    def push_bytes(
        self, kind: str, queue: str | None, rest: bytes, update_id: int | None, expires_at: float
    ) -> StoredUpdate | None:
        """Takes a JSON object as bytes, whatever it holds; `update_id` is put in front of it."""
        return self._taken(
            self.log.push(kind, queue, rest, expires_at, self._clock.now(), update_id=update_id)
        )

    def push_verbatim(self, body: bytes, update_id: int) -> StoredUpdate | None:
        """Takes bytes that are delivered untouched, as no real server would."""
        return self._taken(self.log.push_verbatim(body, update_id, self._clock.now() + 86_400))

    def _taken(self, result: StoredUpdate | Refusal) -> StoredUpdate | None:
        if isinstance(result, Refusal):
            self.refused[result.value] += 1
            return None
        self.pushed_count += 1
        if self._actor is not None:
            self._actor.notify()
        else:
            self._poll.notify()
        return result

    async def get_updates(self, call: Parameters) -> list[StoredUpdate]:
        """See `LongPoll.get_updates`; `allowed_updates` of the call is kept."""
        if not self._is_webhook_active():
            self._keep_allowed(call)
        return await self._poll.get_updates(call, self._is_webhook_active)

    # Webhook

    async def set_webhook(self, call: Parameters) -> str:
        """setWebhook, or with an empty URL deleteWebhook; returns the answer's description.

        Raises:
            ApiError: as TELEGRAM.md "setWebhook" says.
        """
        now = self._clock.monotonic()
        url = call.text("url")
        if url:
            if now < self._next_set_at:
                raise too_many_requests(1)
            self._next_set_at = now + SET_INTERVAL_SECONDS
        new = requested_registration(self.registration, call, local_mode=self._local_mode)
        drops_pending = call.flag("drop_pending_updates")
        if self._setting is not None:
            _settle(self._setting, ApiError(409, OTHER_SET_WEBHOOK))
        elif self.registration.is_unchanged_by(new, drops_pending=drops_pending):
            return "Webhook is already set" if url else "Webhook is already deleted"
        if url:
            self._poll.abort(BY_SET_WEBHOOK)
        had_webhook = bool(self.registration.url)
        self._close_webhook()
        if drops_pending:
            self.log.clear()
        if not url:
            self.registration = new
            return "Webhook was deleted" if had_webhook else "Webhook is already deleted"
        return await self._begin_webhook(new)

    async def _begin_webhook(self, new: Registration) -> str:
        parts = check_registration(new, local_mode=self._local_mode)
        try:
            actor = WebhookActor(
                self.id, new, parts, self.log, self._journal, self, self._clock, self._rng, self._resolver
            )
        except ssl.SSLError as exc:
            # Before anything is taken for set: a bot that is being set answers no getUpdates.
            raise bad_request("bad webhook: the certificate cannot be used") from exc
        setting: asyncio.Future[str | ApiError] = asyncio.get_running_loop().create_future()
        self._setting, self.registration, self._actor = setting, new, actor
        actor.notify()
        try:
            result = await setting
        finally:
            if self._setting is setting:
                self._setting = None
        if isinstance(result, ApiError):
            raise (await self._brake.fail(result.description)) if result.code == 409 else result
        return result

    def webhook_info(self) -> Mapping[str, Any]:
        self.log.expire(self._clock.now())
        info = describe_webhook(self.registration, self._history, len(self.log))
        if self._synchronization_error_date is None:
            return info
        return {**info, "last_synchronization_error_date": self._synchronization_error_date}

    def fail_synchronization(self, date: int | None) -> None:
        """The server could not get at the bot's updates, now or at `date`; told for ever, whichever webhook is set."""
        self._synchronization_error_date = int(self._clock.now()) if date is None else date

    @property
    def is_polling(self) -> bool:
        """Whether a getUpdates waits."""
        return self._poll.is_waiting

    @property
    def connection_count(self) -> int:
        return self._actor.connection_count if self._actor else 0

    @property
    def in_flight_count(self) -> int:
        return self._actor.in_flight_count if self._actor else 0

    def _is_webhook_active(self) -> bool:
        return bool(self.registration.url) or self._setting is not None

    def _keep_allowed(self, call: Parameters) -> None:
        self.registration = requested_registration(
            self.registration, Parameters({"allowed_updates": call.text("allowed_updates")}), local_mode=True
        )

    def _close_webhook(self) -> None:
        if self._actor is not None:
            self._actor.close()
            # Only those that still have something to wait for: a test may set webhooks by the thousand.
            self._retired = [actor for actor in [*self._retired, self._actor] if actor.is_busy]
            self._actor = None
        self.registration = self.registration.without_webhook()
        self._history = WebhookHistory()

    # What the actor tells

    def on_webhook_verified(self, ip_address: str) -> None:
        self._history.ip_address = ip_address
        if self._setting is not None:
            _settle(self._setting, "Webhook was set")

    def on_webhook_error(self, message: str) -> None:
        self._history.last_error_date = int(self._clock.now())
        self._history.last_error_message = message

    def on_webhook_closed(self, reason: str) -> None:
        self._close_webhook()
        if self._setting is not None:
            _settle(self._setting, bad_request(f"bad webhook: {reason}"))

    def on_method_answered(self, method: str, parameters: Mapping[str, Any]) -> None:
        self._run_method(self, method, parameters)

    # Account

    def check_open(self) -> None:
        """Raises what a bot answers that has logged out."""
        if self._logged_out_until is not None:
            if self._clock.monotonic() < self._logged_out_until:
                raise ApiError(400, "Logged out")
            self._logged_out_until = None

    def log_out(self) -> None:
        self.check_open()
        self._logged_out_until = self._clock.monotonic() + LOGGED_OUT_SECONDS
        self._close_webhook()

    def close(self) -> None:
        """The method `close`: the instance ends; the next call begins another, with the same webhook."""
        age = self._clock.monotonic() - self._launched_at
        if age < CLOSE_AFTER_SECONDS:
            raise too_many_requests(int(CLOSE_AFTER_SECONDS - age) or 1)
        self._launched_at = self._clock.monotonic()

    def revoke(self) -> None:
        """From now on no token is this bot's: 401. The webhook was that token's and ends; the updates stay."""
        self.token = None
        if self._setting is not None:
            _settle(self._setting, unauthorized())
        self._close_webhook()
        self._poll.notify()

    def reissue(self, token: str) -> None:
        """Gives the bot a new token; the old one is revoked."""
        if int(token.partition(":")[0]) != self.id:
            raise ControlError("the new token must begin with the same bot id")
        self.revoke()
        self.token = token

    async def aclose(self) -> None:
        self._close_webhook()
        for actor in self._retired:
            await actor.aclose()


def _settle(future: asyncio.Future[str | ApiError], result: str | ApiError) -> None:
    if not future.done():
        future.set_result(result)
