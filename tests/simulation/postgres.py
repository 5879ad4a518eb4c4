"""A simulated Postgres: sessions with their time-outs, the advisory lock with its queue, the term's row, the inbox.

What statements decide is in tests/models; here is what befalls a server: restarts, sessions that are ended, a disk that is
full, a wall clock that is set, a failover to a replica that lagged.

A statement is executed at one moment, when it arrives; its answer goes back over the connection. So the fence is the comparison
of the term at that moment, and what FOR SHARE adds in Postgres, that a new term waits for claims under way, holds by itself. A
claim whose client vanished in the middle of its transaction is modelled: it holds the term's row until the server ends it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

import psycopg

from tests.models.inbox import Store
from tests.models.ownership import ModelledDatabase, SessionKey
from tests.simulation.agenda import Agenda
from tests.simulation.history import History, Term
from tests.simulation.network import Connection, Network
from webhook_worker.inbox import Superseded

IDLE_SESSION_SECONDS = 15.0
"""idle_session_timeout of the lease (supervisor/lease.py)."""

VANISHED_SECONDS = 12.0
"""tcp_user_timeout and tcp_keepalives_* of the lease, on the server (supervisor/lease.py)."""

STATEMENT_SECONDS = 5.0
"""statement_timeout of the lease."""

CHECK_SECONDS = 0.5
"""client_connection_check_interval of the lease: how late a waiting session sees that its client is gone."""

SUPERSEDED_KEPT_SECONDS = 600.0
"""How long a superseded registration is found and kept (shared/database/schema.py, SUPERSEDED_KEPT)."""

CUT_HITS_BEGIN = 0.3
"""Where the lock is granted while its wait is being cut: how often that ends the statement behind it (measured: an eighth of
the cuts that came within 3 ms of a grant)."""

MAKE_STORE = Store
"""What the inbox is made of; sabotage.py takes safeties out of it."""


class Session:
    """One session of the server."""

    def __init__(self, postgres: Postgres, connection: Connection, key: SessionKey, idle_limit: bool) -> None:
        self.postgres = postgres
        self.connection = connection
        self.key = key
        self.is_open = True
        self.is_being_cut = False  # a cancellation of its wait is under way
        self.on_notify: Callable[[], object] | None = None
        self._last_at = postgres.agenda.now
        self._waits: Callable[[bool], object] | None = None
        self._then: Callable[[], object] | None = None
        connection.on_gone = self._client_is_gone
        if idle_limit:
            postgres.agenda.after(IDLE_SESSION_SECONDS, self._check_idle)

    def execute(
        self,
        act: Callable[[], Any],
        reply: Callable[[Any], object],
        *,
        writes: bool,
        locks_term: bool = False,
    ) -> None:
        """A statement has arrived: does it and sends the answer, which may be an exception to raise."""
        if not self.is_open:
            return
        postgres = self.postgres
        if locks_term and (wait := postgres.term_locked_until - postgres.agenda.now) > 0:
            if wait > STATEMENT_SECONDS:
                canceled = psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
                postgres.agenda.after(STATEMENT_SECONDS, self._answer, reply, canceled)
            else:
                postgres.agenda.after(wait, lambda: self.execute(act, reply, writes=writes))
            return
        self._last_at = postgres.agenda.now
        answer: Any
        if writes and postgres.write_fault is not None:
            answer = postgres.write_fault
        else:
            try:
                answer = act()
            except Superseded as superseded:
                answer = superseded
        self.connection.to_client(reply, answer)

    def wait_for_lock(
        self, seconds: float, reply: Callable[[bool], object], then: Callable[[], object] | None = None
    ) -> None:
        """pg_advisory_lock with lock_timeout; the answer is whether it is held, or what `then` sends once it is."""
        if not self.is_open:
            return
        self._waits, self._then = reply, then
        if self.postgres.ownership.wait(self.key):
            self.lock_granted()
        else:
            self.postgres.agenda.after(seconds, self._wait_is_over, reply)

    def lock_granted(self) -> None:
        """Its wait has ended well."""
        if self._waits is not None:
            reply, self._waits = self._waits, None
            self._last_at = self.postgres.agenda.now
            if self._then is None or self._cut_hits_what_follows():
                self.connection.to_client(reply, True)
            else:
                self._then()

    def end(self, reason: str) -> None:
        """The server ends it: with it go its locks."""
        if not self.is_open:
            return
        self.is_open = False
        self._waits = None
        self.postgres.forget(self)
        self.connection.close_by_server(reason)

    def _answer(self, reply: Callable[[Any], object], answer: Any) -> None:
        if self.is_open:
            self.connection.to_client(reply, answer)

    def _wait_is_over(self, reply: Callable[[bool], object]) -> None:
        if self._waits is reply and self.is_open:
            self._waits = None
            self.postgres.ownership.leave_queue(self.key)
            self._last_at = self.postgres.agenda.now
            self.connection.to_client(reply, False)

    def cut_wait(self) -> None:
        """A cancellation has come, maybe too late, or to a session that is no more."""
        self.is_being_cut = False
        if self._waits is not None:
            self._wait_is_over(self._waits)

    def _cut_hits_what_follows(self) -> bool:
        return self.is_being_cut and self.postgres.random.random() < CUT_HITS_BEGIN

    def _client_is_gone(self) -> None:
        if self._waits is not None:
            self.postgres.agenda.after(
                self.postgres.random.uniform(0.0, CHECK_SECONDS), self.end, "client gone"
            )
        else:
            self.end("client gone")

    def _check_idle(self) -> None:
        if not self.is_open:
            return
        left = self._last_at + IDLE_SESSION_SECONDS - self.postgres.agenda.now
        if self._waits is not None:
            left = IDLE_SESSION_SECONDS
        if left <= 0:
            self.end("terminating connection due to idle-session timeout")
        else:
            self.postgres.agenda.after(left, self._check_idle)


class Postgres:
    """The server at the address of DATABASE_URL."""

    def __init__(self, agenda: Agenda, network: Network, history: History, random: Random) -> None:
        """Empty, and up."""
        self.agenda = agenda
        self.network = network
        self.history = history
        self.random = random
        self.up_at = agenda.now
        self.wall_offset_seconds = 0.0
        self.write_fault: psycopg.Error | None = None
        self.term_locked_until = 0.0
        self.hosts_without_sessions: set[str] = set()  # for workers
        self.ownership = ModelledDatabase()
        self.store = MAKE_STORE(self.wall)
        self.store.on_commit = history.note_commit
        self.registrations: dict[tuple[bytes, bytes], tuple[float, float | None]] = {}
        self.closed_terms: dict[str, float] = {}  # when
        self.sessions: dict[SessionKey, Session] = {}
        self._count = 0

    @property
    def is_up(self) -> bool:
        """Whether it accepts connections."""
        return self.agenda.now >= self.up_at

    def wall(self) -> float:
        """The server's wall clock, which every age and every point in time in its tables is taken from."""
        return self.agenda.now + self.wall_offset_seconds

    def open(self, connection: Connection, name: str, *, idle_limit: bool) -> Session:
        """A new session."""
        self._count += 1
        session = Session(self, connection, (name, self._count), idle_limit)
        self.sessions[session.key] = session
        self.ownership.sessions.add(session.key)
        return session

    def forget(self, session: Session) -> None:
        """A session has ended."""
        self.sessions.pop(session.key, None)
        self.ownership.end_session(session.key)
        self.grant()

    def grant(self) -> None:
        """Tells those who got the lock from the queue."""
        while self.ownership.granted:
            key = self.ownership.granted.pop(0)
            if key in self.sessions:
                self.sessions[key].lock_granted()

    def notify(self) -> None:
        """NOTIFY: whoever listens is told."""
        for session in list(self.sessions.values()):
            if session.on_notify is not None:
                session.connection.to_client(session.on_notify)

    def deadline_from(self, session: Session, sent_at: float) -> tuple[str, float] | None:
        """What a statement that was executed in the session shows whoever sent it then, once it is answered.

        Returns:
            The term, and the end of the time for which others leave it alone; None: the session does not hold the lock,
            or its term was closed.
        """
        term = self.ownership.term
        is_its_own = self.ownership.holder == session.key and term.instance_id == session.key[0]
        if not is_its_own or term.uuid is None or term.uuid in self.closed_terms:
            return None
        return term.uuid, sent_at + term.deadline_seconds

    def note_term(self, instance: str, number: int, term: str) -> None:
        """A term has begun."""
        self.history.terms.append(Term(term, number, instance, self.agenda.now))
        self.history.note(instance, f"begins term {number} {term[:8]}")

    # ------------------------------------------------------------------------------------------------------ what befalls

    def end_sessions(self, reason: str) -> None:
        """All of them."""
        for session in list(self.sessions.values()):
            session.end(reason)

    def take_sessions(self, instance: str, host: str) -> None:
        """Those of its workers end, and others have their place; that of its lock stays."""
        self.hosts_without_sessions.add(host)
        for session in list(self.sessions.values()):
            if session.key[0].startswith(f"{instance}/"):
                session.end("terminating connection due to administrator command")

    def go_down(self, seconds: float) -> None:
        """Ends, and is back after so long; not before the end of another time for which it is away."""
        self.up_at = max(self.up_at, self.agenda.now + seconds)
        self.end_sessions("terminating connection due to administrator command")
        self.agenda.after(seconds, self._come_up)

    def _come_up(self) -> None:
        if self.is_up:
            self.history.database_returns.append(self.agenda.now)
            self.history.note("postgres", "is back")

    def replica(self) -> Callable[[], None]:
        """What a replica has at this moment; called later, it is promoted in place of the primary, which is gone."""
        rows = copy.deepcopy((self.store.rows, self.store.last_seq, self.store.term))
        term, instances = copy.deepcopy((self.ownership.term, self.ownership.rows))
        registrations = dict(self.registrations)
        replicated_at = self.agenda.now

        def promote() -> None:
            self.go_down(self.random.uniform(0.1, 3.0))
            self.history.note_failover(replicated_at)
            self.store.restore(*rows)
            self.ownership.term, self.ownership.rows = term, instances
            self.registrations = registrations
            self.term_locked_until = 0.0

        return promote
