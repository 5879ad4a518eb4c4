"""The server's store of updates that nobody has acknowledged yet, and their numbers.

Pure: given `now` and a random generator. Rules of TELEGRAM.md: update_id (grows by one, restarts at random after a
week without updates), expiry, at most 100,000 kept, at most 64 KiB each.

Does not promise durability: a restart of the emulator begins empty.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

MAX_UPDATES = 100_000
MAX_UPDATE_BYTES = 64 * 1024
RESTART_AFTER_SECONDS = 7 * 86_400
# Bounds of a random start: far from 0, and with room to grow inside a signed 32-bit number.
MIN_START_ID, MAX_START_ID = 200_001, 1_000_000_000


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update as the server keeps it.

    Attributes:
        seq: our own order of arrival; unlike `update_id` it never repeats, even when a test injects a duplicate.
        body: the JSON that is sent, `update_id` included.
        queue: of delivery, see `update_kinds.name_queue`.
        expires_at: unix time.
    """

    seq: int
    update_id: int
    kind: str
    queue: str
    body: bytes
    expires_at: float


class Refusal(Enum):
    """Why an update was not taken."""

    FULL = "full"  # MAX_UPDATES are waiting
    TOO_LARGE = "too_large"  # over MAX_UPDATE_BYTES
    EXPIRED = "expired"  # older than its lifetime on arrival


class UpdateLog:
    """Updates in their order of arrival, until they are forgotten or expire."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._updates: dict[int, StoredUpdate] = {}
        self._by_expiry: list[tuple[float, int]] = []
        self._head = 1
        self._next_seq = 1
        self._next_id: int | None = None
        self._last_push_at = 0.0
        self.expired_count = 0

    def __len__(self) -> int:
        return len(self._updates)

    def __contains__(self, seq: int) -> bool:
        return seq in self._updates

    @property
    def head_seq(self) -> int:
        """The `seq` from which on there can be updates."""
        while self._head < self._next_seq and self._head not in self._updates:
            self._head += 1
        return self._head

    def push(
        self,
        kind: str,
        queue: str | None,
        rest: bytes,
        expires_at: float,
        now: float,
        *,
        update_id: int | None = None,
    ) -> StoredUpdate | Refusal:
        """Takes an update.

        Args:
            rest: a JSON object without `update_id`, which is put in front.
            update_id: to force one (a duplicate); the numbering goes on as if this update were not there.
        """
        self.expire(now)
        if len(self._updates) >= MAX_UPDATES:
            return Refusal.FULL
        if len(rest) > MAX_UPDATE_BYTES:
            return Refusal.TOO_LARGE
        if expires_at <= now:
            return Refusal.EXPIRED
        number = self._take_number(now) if update_id is None else update_id
        inner = rest.strip()[1:]
        separator = b",\n" if inner.strip() != b"}" else b""
        return self._store(
            kind, queue, number, b'{"update_id":%d%s%s' % (number, separator, inner), expires_at
        )

    def push_verbatim(self, body: bytes, update_id: int, expires_at: float) -> StoredUpdate | Refusal:
        """Takes bytes that are sent exactly as they are, in a queue of their own; `update_id` is for the records."""
        if len(self._updates) >= MAX_UPDATES:
            return Refusal.FULL
        return self._store("", None, update_id, body, expires_at)

    def load(self, from_seq: int, limit: int, now: float) -> list[StoredUpdate]:
        """Up to `limit` living updates, in order, none before `from_seq`."""
        self.expire(now)
        found: list[StoredUpdate] = []
        for update in self._iterate(from_seq):
            if len(found) >= limit:
                break
            found.append(update)
        return found

    def forget(self, seq: int) -> None:
        self._updates.pop(seq, None)

    def acknowledge_below(self, update_id: int, now: float) -> None:
        """What a getUpdates with that `offset` does: forgets every update below it."""
        self.expire(now)
        for update in self._iterate(self.head_seq):
            # Not past the first that stays: a duplicate with a lower number behind it is not acknowledged yet.
            if update.update_id >= update_id:
                break
            self.forget(update.seq)

    def last_ids(self, count: int) -> int | None:
        """The update_id that a negative `offset` of `-count` stands for; None if nothing is there."""
        ids = [update.update_id for update in self._iterate(self.head_seq)]
        return ids[-count:][0] if ids else None

    def clear(self) -> int:
        """Forgets everything (drop_pending_updates); how many that were."""
        count = len(self._updates)
        self._updates.clear()
        self._by_expiry.clear()
        return count

    def expire(self, now: float) -> None:
        """Forgets what has outlived its time."""
        while self._by_expiry and self._by_expiry[0][0] < now:
            _, seq = heapq.heappop(self._by_expiry)
            if self._updates.pop(seq, None) is not None:
                self.expired_count += 1

    def _store(
        self, kind: str, queue: str | None, number: int, body: bytes, expires_at: float
    ) -> StoredUpdate:
        seq = self._next_seq
        self._next_seq += 1
        update = StoredUpdate(seq, number, kind, queue or f"alone:{seq}", body, expires_at)
        self._updates[seq] = update
        heapq.heappush(self._by_expiry, (expires_at, seq))
        return update

    def _take_number(self, now: float) -> int:
        if self._next_id is None or (not self._updates and now - self._last_push_at > RESTART_AFTER_SECONDS):
            self._next_id = self._rng.randint(MIN_START_ID, MAX_START_ID)
        number = self._next_id
        self._next_id += 1
        self._last_push_at = now
        return number

    def _iterate(self, from_seq: int) -> Iterator[StoredUpdate]:
        # Not over the dict itself: after many deletions at its front, every walk would pass all of their traces.
        for seq in range(max(from_seq, self.head_seq), self._next_seq):
            update = self._updates.get(seq)
            if update is not None:
                yield update
