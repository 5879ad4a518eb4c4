"""What happened, numbered and timed: the history that tests judge the project by.

Three journals: deliveries (every attempt), calls (every Bot API call), and the outbox (what the bot did that a user
would see). Each entry has a number that grows, so that a reader can ask for what came after the last one it saw.

Times come twice: `_at` is unix time, `_monotonic` is the machine's `time.monotonic()`, which other processes of the
machine may compare with their own.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from deploy.local.emulator.clock import Clock
from deploy.local.emulator.update_log import StoredUpdate


class Outcome(StrEnum):
    """How a delivery attempt ended."""

    DELIVERED = "delivered"  # a 2xx
    RETRY = "retry"  # failed, will be tried again
    DROPPED = "dropped"  # failed, and its next try would have come after its expiry
    ABANDONED = "abandoned"  # the webhook was changed or deleted meanwhile; the update is still there


class DeliveryAttempt(msgspec.Struct):
    """One try to deliver one update. Times of the end are None while it is in flight.

    `answered_200_at` (and `_monotonic`) is set for any 2xx: from then on the update is the bot's responsibility.
    `retry_in_seconds` is what the server will wait before the next try; for a dropped update, what it would have been.
    """

    seq: int
    bot_id: int
    update_id: int
    kind: str
    queue: str
    connection: int
    started_at: float
    started_monotonic: float
    finished_at: float | None = None
    finished_monotonic: float | None = None
    answered_200_at: float | None = None
    answered_200_monotonic: float | None = None
    status: int | None = None
    error: str | None = None
    outcome: Outcome | None = None
    retry_in_seconds: float | None = None


class ApiCall(msgspec.Struct):
    """One Bot API call. `status` is None while it is under way, and stays so if it is never answered.

    `via` is "http", or "webhook" for a method in the answer to a delivery. `fault` names the injected fault it met. `is_early`:
    it came within a flood limit.
    """

    seq: int
    bot_id: int
    method: str
    parameters: dict[str, str]
    via: str
    started_at: float
    started_monotonic: float
    finished_at: float | None = None
    finished_monotonic: float | None = None
    status: int | None = None
    description: str | None = None
    fault: str | None = None
    is_early: bool = False


class BotEvent(msgspec.Struct):
    """Something that the bot did in a chat.

    `kind`: sent, edited, deleted, chat_action, callback_answered, reaction, pinned, unpinned, query_answered.
    """

    seq: int
    bot_id: int
    kind: str
    at: float
    monotonic: float
    chat_id: int | None = None
    message_id: int | None = None
    message: dict[str, Any] | None = None
    details: dict[str, Any] = {}


class Numbered(Protocol):
    """An entry of a journal."""

    seq: int


EntryT = TypeVar("EntryT", bound=Numbered)
NEARLY_UP_TO_DATE = 20_000


class Journal(Generic[EntryT]):
    """Entries in the order of their numbers; the oldest go when there are more than `limit`."""

    def __init__(self, limit: int) -> None:
        self._entries: deque[EntryT] = deque(maxlen=limit)
        self._next_seq = 1
        self._waiters: set[asyncio.Event] = set()

    @property
    def last_seq(self) -> int:
        return self._next_seq - 1

    def take_seq(self) -> int:
        """The number of the next entry, which is to be added at once: numbers have no gaps."""
        seq = self._next_seq
        self._next_seq += 1
        return seq

    def add(self, entry: EntryT) -> None:
        self._entries.append(entry)
        self.wake()

    def wake(self) -> None:
        """Lets everybody who waits look again."""
        for waiter in self._waiters:
            waiter.set()

    def after(
        self, seq: int, *, limit: int, matching: Callable[[EntryT], bool] = lambda entry: True
    ) -> list[EntryT]:
        """The first `limit` entries with a higher number that match."""
        found: list[EntryT] = []
        for entry in self._since(seq):
            if matching(entry):
                found.append(entry)
                if len(found) >= limit:
                    break
        return found

    async def wait(self, condition: Callable[[], bool], timeout_seconds: float) -> bool:
        """Waits until `condition` holds, looking again after every change; False when the time is over.

        The limit is in real time, whatever clock the emulator runs on: it guards a test against a hang.
        """
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    event.clear()
                    await event.wait()
            return True
        except TimeoutError:
            return condition()
        finally:
            self._waiters.discard(event)

    def _since(self, seq: int) -> Iterator[EntryT]:
        if not self._entries:
            return
        # Numbers have no gaps, so they are positions.
        skip = max(0, seq + 1 - self._entries[0].seq)
        fresh = len(self._entries) - skip
        # A deque is walked from one of its ends: a reader who is nearly up to date must not pay for the whole history.
        if fresh < NEARLY_UP_TO_DATE:
            yield from reversed(list(islice(reversed(self._entries), max(fresh, 0))))
        else:
            yield from islice(self._entries, skip, None)


class DeliveryJournal(Journal[DeliveryAttempt]):
    """The delivery attempts of all bots, and their counts."""

    def __init__(self, limit: int, clock: Clock) -> None:
        super().__init__(limit)
        self._clock = clock
        # Bounded by what is in flight: entries leave at their end.
        self.in_flight: dict[int, DeliveryAttempt] = {}
        self.delivered: Counter[int] = Counter()
        self.attempts: Counter[int] = Counter()
        self.dropped: Counter[int] = Counter()
        self.failures: dict[int, Counter[str]] = {}

    def start(self, bot_id: int, update: StoredUpdate, connection: int) -> DeliveryAttempt:
        attempt = DeliveryAttempt(
            seq=self.take_seq(),
            bot_id=bot_id,
            update_id=update.update_id,
            kind=update.kind,
            queue=update.queue,
            connection=connection,
            started_at=self._clock.now(),
            started_monotonic=self._clock.monotonic(),
        )
        self.attempts[bot_id] += 1
        self.in_flight[attempt.seq] = attempt
        self.add(attempt)
        return attempt

    def finish(
        self,
        attempt: DeliveryAttempt,
        outcome: Outcome,
        *,
        status: int | None = None,
        error: str | None = None,
        retry_in_seconds: float | None = None,
    ) -> None:
        attempt.finished_at = self._clock.now()
        attempt.finished_monotonic = self._clock.monotonic()
        attempt.status, attempt.error, attempt.outcome = status, error, outcome
        self.in_flight.pop(attempt.seq, None)
        if outcome is Outcome.DELIVERED:
            attempt.answered_200_at = attempt.finished_at
            attempt.answered_200_monotonic = attempt.finished_monotonic
            self.delivered[attempt.bot_id] += 1
        else:
            if outcome is Outcome.DROPPED:
                self.dropped[attempt.bot_id] += 1
            attempt.retry_in_seconds = retry_in_seconds
            reason = str(status) if status is not None else (error or "")
            self.failures.setdefault(attempt.bot_id, Counter())[reason] += 1
        self.wake()
