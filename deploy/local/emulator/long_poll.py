"""getUpdates, and the 409 of everything that must not run beside something else.

TELEGRAM.md "getUpdates". One `LongPoll` belongs to one bot. Beyond that page, from `Client.cpp` of the public server: a
call with the offset of the one before, less than 3 s later, waits at least 3 s (and within 0.5 s brings one update), so
that a client that does not acknowledge cannot spin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deploy.local.emulator.clock import Clock, sleep
from deploy.local.emulator.errors import ApiError
from deploy.local.emulator.parameters import Parameters
from deploy.local.emulator.update_log import StoredUpdate, UpdateLog

# TELEGRAM.md "getUpdates": the same 409 is delayed by 3 s when it repeats.
CONFLICT_INTERVAL_SECONDS = 3.0
MAX_TIMEOUT_SECONDS = 50
MAX_UPDATES = 100
# What one answer may weigh: 4 MiB.
MAX_ANSWER_BYTES = 1 << 22

WEBHOOK_ACTIVE = "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
OTHER_POLL = (
    "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
)
BY_SET_WEBHOOK = "Conflict: terminated by setWebhook request"
OTHER_SET_WEBHOOK = "Conflict: terminated by other setWebhook"


class ConflictBrake:
    """Answers 409: the first at once, one within 3 s of the last prompt one after 3 s."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_prompt_at = clock.monotonic()

    def take_delay(self) -> float:
        """How long the next 409 is held back."""
        now = self._clock.monotonic()
        if now < self._next_prompt_at:
            return CONFLICT_INTERVAL_SECONDS
        self._next_prompt_at = now + CONFLICT_INTERVAL_SECONDS
        return 0.0

    async def fail(self, description: str) -> ApiError:
        """The error to raise, after the delay."""
        delay = self.take_delay()
        if delay:
            await sleep(self._clock, delay)
        return ApiError(409, description)


class LongPoll:
    """The one getUpdates that may be waiting."""

    def __init__(self, log: UpdateLog, clock: Clock, brake: ConflictBrake) -> None:
        self._log = log
        self._clock = clock
        self._brake = brake
        self._waiting: asyncio.Future[str | None] | None = None
        self._last_offset: int | None = None
        self._last_start = clock.monotonic() - 3600

    @property
    def is_waiting(self) -> bool:
        return self._waiting is not None

    def notify(self) -> None:
        """There are new updates."""
        self._finish(None)

    def abort(self, description: str) -> None:
        """Ends the waiting call with a 409."""
        self._finish(description)

    async def get_updates(
        self, call: Parameters, is_webhook_active: Callable[[], bool]
    ) -> list[StoredUpdate]:
        """Updates from `offset` on, which acknowledges those below; waits up to `timeout` for the first.

        Raises:
            ApiError: 409, for a webhook or for a later getUpdates.
        """
        if is_webhook_active():
            raise await self._brake.fail(WEBHOOK_ACTIVE)
        offset = call.integer("offset")
        limit = call.integer("limit", MAX_UPDATES, low=1, high=MAX_UPDATES)
        timeout = call.integer("timeout", low=0, high=MAX_TIMEOUT_SECONDS)
        now = self._clock.monotonic()
        if offset == self._last_offset and now < self._last_start + 3.0:
            timeout = max(timeout, 3)
            limit = 1 if now < self._last_start + 0.5 else limit
        self._last_offset, self._last_start = offset, now
        self.abort(OTHER_POLL)
        self._acknowledge(offset)
        updates = self._load(limit)
        if updates or timeout == 0:
            return updates
        return await self._wait(limit, timeout)

    async def _wait(self, limit: int, timeout: float) -> list[StoredUpdate]:
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting = future
        timer = self._clock.call_at(self._clock.monotonic() + timeout, lambda: _settle(future, None))
        try:
            conflict = await future
        finally:
            timer.cancel()
            if self._waiting is future:
                self._waiting = None
        if conflict is not None:
            raise await self._brake.fail(conflict)
        return self._load(limit)

    def _acknowledge(self, offset: int) -> None:
        now = self._clock.now()
        if offset < 0:
            first_kept = self._log.last_ids(-offset)
            offset = 0 if first_kept is None else first_kept
        if offset > 0:
            self._log.acknowledge_below(offset, now)

    def _load(self, limit: int) -> list[StoredUpdate]:
        updates: list[StoredUpdate] = []
        left = MAX_ANSWER_BYTES
        for update in self._log.load(self._log.head_seq, limit, self._clock.now()):
            left -= 50 + len(update.body)
            if left <= 0:
                break
            updates.append(update)
        return updates

    def _finish(self, conflict: str | None) -> None:
        if self._waiting is not None:
            _settle(self._waiting, conflict)
            self._waiting = None


def _settle(future: asyncio.Future[str | None], result: str | None) -> None:
    if not future.done():
        future.set_result(result)
