"""What Postgres does for ownership, as far as the core can see it: one lock with its queue, the term row, the instances.

Follows supervisor/lease.py and shared/schema.sql. Times are the simulated clock's, which serves as the database's too.

Not modelled: transactions, latency (world.py adds it), anything of the inbox.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.messages import Peer

SessionKey = tuple[str, int]
"""An instance's name and the id of its OpenSession."""

SUCCESSOR_KEPT_SECONDS = 5.0
LISTED_SECONDS = 300.0
FORGOTTEN_SECONDS = 86400.0


@dataclass(slots=True)
class Row:
    """A row of `instances`."""

    instance_id: str
    platform_id: str
    deploy_id: str | None
    token: str
    session: SessionKey | None
    ready: bool
    candidate_after: float
    first_announced_at: float
    announced_at: float
    handed_over_at: float | None = None
    always_waiting: bool = False  # for peers that exist only as rows


@dataclass(slots=True)
class TermRow:
    """The row of `terms`."""

    number: int = 0
    uuid: str | None = None
    instance_id: str | None = None
    deadline_seconds: float = 0.0
    ended: bool = True
    successor: str | None = None
    successor_until: float = float("-inf")
    handover_requested_at: float | None = None


@dataclass(slots=True)
class ModelledDatabase:
    """The whole of it. `granted` collects who got the lock from the queue, for the world to tell them."""

    rows: dict[str, Row] = field(default_factory=dict)
    term: TermRow = field(default_factory=TermRow)
    holder: SessionKey | None = None
    queue: list[SessionKey] = field(default_factory=list)
    sessions: set[SessionKey] = field(default_factory=set)
    granted: list[SessionKey] = field(default_factory=list)
    terms_begun: list[tuple[float, str, int]] = field(default_factory=list)

    def try_lock(self, key: SessionKey) -> bool:
        """pg_try_advisory_lock: takes it when nobody has it, whoever waits."""
        if self.holder is None:
            self.holder = key
        return self.holder == key

    def wait(self, key: SessionKey) -> bool:
        """Stand in the queue; True if the lock was free, or is ours already: locks of a session nest, past any queue."""
        if self.holder == key:
            return True
        if self.holder is None and not self.queue:
            self.holder = key
            return True
        self.queue.append(key)
        return False

    def leave_queue(self, key: SessionKey) -> None:
        """The wait's time is over."""
        if key in self.queue:
            self.queue.remove(key)

    def release(self, key: SessionKey) -> None:
        """pg_advisory_unlock_all."""
        if self.holder == key:
            self.holder = None
            if self.queue:
                self.holder = self.queue.pop(0)
                self.granted.append(self.holder)

    def end_session(self, key: SessionKey) -> None:
        """With the session goes the lock."""
        self.sessions.discard(key)
        self.leave_queue(key)
        self.release(key)

    def forget(self, now: float) -> None:
        """Whoever opens a session deletes the rows of those who were silent for long."""
        for row in list(self.rows.values()):
            if row.announced_at < now - FORGOTTEN_SECONDS:
                del self.rows[row.instance_id]

    def announce(self, row: Row, now: float) -> tuple[tuple[Peer, ...], str | None, float | None]:
        """Write a row; all rows as peers, and by the term row the holder, and when it was asked to hand over."""
        old = self.rows.get(row.instance_id)
        row.first_announced_at = old.first_announced_at if old is not None else self._first_there(row, now)
        row.handed_over_at = old.handed_over_at if old is not None else None
        self.rows[row.instance_id] = row
        if self.term.ended:
            return self.peers(now), None, None
        requested_at = self.term.handover_requested_at
        return self.peers(now), self.term.instance_id, None if requested_at is None else now - requested_at

    def _first_there(self, row: Row, now: float) -> float:
        """When that code first came to that place, since when no other did."""
        there = [r for r in self.rows.values() if r.platform_id == row.platform_id]
        others = max(
            (r.first_announced_at for r in there if r.deploy_id != row.deploy_id), default=float("-inf")
        )
        own = (r for r in there if r.deploy_id == row.deploy_id and r.announced_at > others)
        return min((r.first_announced_at for r in own), default=now)

    def peers(self, now: float) -> tuple[Peer, ...]:
        """Who spoke lately, as lease.py reads them."""
        return tuple(
            Peer(
                instance_id=r.instance_id,
                deploy_id=r.deploy_id,
                token_fingerprint=r.token,
                ready=r.ready,
                waiting=r.always_waiting or (r.session is not None and r.session in self.queue),
                candidate=r.candidate_after <= now,
                age_seconds=now - r.first_announced_at,
                silent_seconds=now - r.announced_at,
                handed_over_seconds=None if r.handed_over_at is None else now - r.handed_over_at,
            )
            for r in self.rows.values()
            if now - r.announced_at <= LISTED_SECONDS
        )

    def begin_term(
        self,
        instance_id: str,
        deadline_seconds: float,
        reaped_term: str | None,
        now: float,
        *,
        uuid: str | None = None,
    ) -> tuple[int, str, float] | str:
        """(number, uuid, recover_after_seconds), or the successor in whose favour it is denied.

        `uuid`: that of the term, where numbers may repeat.
        """
        term = self.term
        named = self.rows.get(term.successor) if term.successor is not None else None
        if (
            named is not None
            and named.instance_id != instance_id
            and named.ready
            and now < term.successor_until <= now + SUCCESSOR_KEPT_SECONDS
        ):
            return named.instance_id
        clean = term.ended or term.uuid == reaped_term
        recover_after = 0.0 if clean else term.deadline_seconds
        number = term.number + 1
        uuid = uuid or f"term-{number}"
        self.term = TermRow(number, uuid, instance_id, deadline_seconds, ended=False)
        self.terms_begun.append((now, instance_id, number))
        return number, uuid, recover_after

    def request_handover(self, now: float) -> str | None:
        """As supervisor/commands/handover.py does; the begin of a term makes the row anew."""
        if (owner := self.owner()) is not None:
            self.term.handover_requested_at = now
        return owner

    def owner(self) -> str | None:
        """Whose term is open."""
        return None if self.term.ended else self.term.instance_id

    def close_term(
        self, instance_id: str, term: str, successor: str | None, now: float, *, recovered: bool
    ) -> None:
        """The clean end of a term; without `recovered` the next one waits for the deadline all the same."""
        if self.term.uuid == term:
            self.term.ended = recovered
            self.term.successor = successor
            self.term.successor_until = now + SUCCESSOR_KEPT_SECONDS
        if successor is not None and instance_id in self.rows:
            self.rows[instance_id].handed_over_at = now
