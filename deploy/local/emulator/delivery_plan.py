"""What is to be delivered next: the queues of one webhook.

Pure: given `now` and random numbers. TELEGRAM.md "Delivery", order and retry:

    log ──load (at most 2 x max_connections)──► queues by (chat, kind)
        messages:7   [ 41 ][ 43 ][ 47 ]         only the first of each queue is ever sent,
        messages:9   [ 42 ]                     the next one after the 2xx of the one before
        callbacks:7  [ 44 ][ 45 ]               (or after it was dropped because it expired)

A queue whose first update is backing off holds up nobody else, except that what it has loaded counts against the
limit of loaded updates, as in the real server.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from deploy.local.emulator.backoff import MAX_CAP_SECONDS, MIN_CAP_SECONDS, Backoff, is_expired
from deploy.local.emulator.update_log import StoredUpdate


class Failed(Enum):
    """What becomes of an update whose delivery failed."""

    RETRY = "retry"
    DROPPED = "dropped"  # its next try would fall after its expiry


@dataclass(slots=True)
class _Loaded:
    update: StoredUpdate
    wakeup_at: float
    backoff: Backoff = field(default_factory=Backoff)


class DeliveryPlan:
    """The loaded updates of one webhook, in their queues."""

    def __init__(self, max_connections: int, rng: random.Random) -> None:
        self._max_loaded = max_connections * 2
        self._rng = rng
        self._queues: dict[str, deque[_Loaded]] = {}
        self._due: list[tuple[float, int, str]] = []
        self._in_flight: dict[int, _Loaded] = {}
        self._count = 0

    @property
    def room(self) -> int:
        """How many more updates may be loaded."""
        return self._max_loaded - self._count

    @property
    def queue_count(self) -> int:
        """Queues with anything in them, in flight and backing off included: what connections are opened for."""
        return len(self._queues)

    @property
    def in_flight_count(self) -> int:
        return len(self._in_flight)

    def load(self, updates: Iterable[StoredUpdate], now: float) -> None:
        for update in updates:
            self._count += 1
            loaded = _Loaded(update, now)
            queue = self._queues.get(update.queue)
            if queue is None:
                self._queues[update.queue] = deque([loaded])
                self._schedule(loaded)
            else:
                queue.append(loaded)

    def next_due_at(self) -> float | None:
        """When the next update can be sent (it may lie in the past); None if nothing waits."""
        return self._due[0][0] if self._due else None

    def take_due(self, now: float) -> StoredUpdate | None:
        """The next update to send, which counts as in flight from now on; None if none is due."""
        if not self._due or self._due[0][0] > now:
            return None
        _, _, name = heapq.heappop(self._due)
        loaded = self._queues[name][0]
        self._in_flight[loaded.update.seq] = loaded
        return loaded.update

    def succeeded(self, seq: int) -> None:
        """A 2xx came: the next of its queue may go."""
        self._drop(self._in_flight.pop(seq))

    def failed(self, seq: int, retry_after_seconds: int, unix_now: float, now: float) -> tuple[Failed, int]:
        """Anything but a 2xx came, or nothing.

        Returns:
            What becomes of it, and the seconds until the next try (until the one it did not live to see).
        """
        loaded = self._in_flight.pop(seq)
        cap = self._rng.randint(MIN_CAP_SECONDS, MAX_CAP_SECONDS)
        backoff, delay = loaded.backoff.after_failure(retry_after_seconds, cap)
        if is_expired(unix_now, delay, loaded.update.expires_at):
            self._drop(loaded)
            return Failed.DROPPED, delay
        loaded.backoff = backoff
        loaded.wakeup_at = now + delay
        self._schedule(loaded)
        return Failed.RETRY, delay

    def _drop(self, loaded: _Loaded) -> None:
        queue = self._queues[loaded.update.queue]
        first = queue.popleft()
        assert first is loaded, "only the first of a queue is ever in flight"
        self._count -= 1
        if queue:
            self._schedule(queue[0])
        else:
            del self._queues[loaded.update.queue]

    def _schedule(self, loaded: _Loaded) -> None:
        heapq.heappush(self._due, (loaded.wakeup_at, loaded.update.seq, loaded.update.queue))
