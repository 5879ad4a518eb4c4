"""The lease of a simulated supervisor: the core's `SessionAction`s, carried out on the simulated Postgres.

It stands in for supervisor/lease.py, whose decisions are the core's, and in SQL; tests/models/ownership.py is what that SQL
decides. As there: one statement at a time, an answer in doubt ends the session, and closing it waits for nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from random import Random
from typing import Any

import psycopg

from supervisor import messages as m
from tests.models.ownership import Row
from tests.simulation.network import CONNECT_SECONDS, Connection
from tests.simulation.postgres import SUPERSEDED_KEPT_SECONDS, VANISHED_SECONDS, Postgres, Session
from tests.simulation.process import Process

CUT_FAILS = 0.1
CUT_ROUND_TRIPS = 2
"""A connection, and the request; with TLS there are more."""


class Lease:
    """Owns at most one session."""

    def __init__(
        self,
        process: Process,
        host: str,
        postgres: Postgres,
        random: Random,
        *,
        row: Callable[[], Row],
        registration: tuple[bytes, bytes],
        post: Callable[[m.Event], None],
        confirmed: Callable[[float], object],
    ) -> None:
        """Not connected.

        Args:
            process: the supervisor's.
            host: from where it connects.
            postgres: the server.
            random: for the names of terms.
            row: ours in the table of instances, without what an announcement says.
            registration: hashes of path and secret.
            post: takes every event.
            confirmed: takes the deadline that an answer of the database shows.
        """
        self._process = process
        self._agenda = process.agenda
        self._host = host
        self._postgres = postgres
        self._random = random
        self._row = row
        self._registration = registration
        self._post = post
        self._confirmed = confirmed
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._id: int | None = None
        self._busy: m.SessionAction | None = None

    def begin(self, action: m.SessionAction) -> None:
        """Carries `action` out."""
        self._busy = action
        if isinstance(action, m.OpenSession):
            self._open(action)
        elif self._connection is None or not self._connection.client_open:
            self._process.post(self._fail, action, "the session is closed")
        else:
            self._connection.to_server(self._execute, action, self._session, self._agenda.now)

    def cut_wait(self) -> None:
        """Asks the server to end the wait, by a connection of its own, for which there may be no way or no room."""
        route = self._postgres.network.route(self._host)
        if self._session is None or route.is_cut or self._random.random() < CUT_FAILS:
            return
        self._session.is_being_cut = True
        delay = CUT_ROUND_TRIPS * 2 * route.latency_seconds * (0.5 + self._random.random())
        self._agenda.after(delay, self._session.cut_wait)

    def close(self) -> None:
        """Closes the session; also what the kernel does when the process dies."""
        connection = self._connection
        self._connection = self._session = self._id = self._busy = None
        if connection is not None:
            connection.close_by_client()

    # ------------------------------------------------------------------------------------------------------- opening

    def _open(self, action: m.OpenSession) -> None:
        route = self._postgres.network.route(self._host)
        self._id = action.id
        if route.is_cut:
            self._agenda.after(CONNECT_SECONDS, self._process.post, self._fail, action, "timeout expired")
            return
        # Look-ups, the checks of the server, the schema: about ten round trips.
        self._agenda.after(0.02 + 20 * route.latency_seconds, self._connect, action)

    def _connect(self, action: m.OpenSession) -> None:
        if self._busy is not action or self._process.dead:
            return
        if not self._postgres.is_up or self._postgres.write_fault is not None:
            self._process.post(self._fail, action, "connection refused")
            return
        connection = Connection(
            self._postgres.network,
            self._host,
            on_lost=lambda reason: self._process.post(self._lose, connection, reason),
            server_gives_up_seconds=VANISHED_SECONDS,
        )
        self._connection = connection
        self._session = self._postgres.open(connection, self._row().instance_id, idle_limit=True)
        self._postgres.ownership.forget(self._postgres.wall())
        self._process.post(self._opened, action)

    def _opened(self, action: m.OpenSession) -> None:
        if self._busy is action:
            self._busy = None
            self._post(m.SessionOpened(at=self._agenda.now, id=action.id))

    # ----------------------------------------------------------------------------------------------------- statements

    def _execute(self, action: m.SessionAction, session: Session, sent_at: float) -> None:
        """At the server."""
        connection = session.connection
        shown: tuple[str, float] | None = None

        def reply(answer: Any) -> None:
            self._process.post(self._answered, connection, action, sent_at, answer, shown)

        def carry_out(action: m.SessionAction) -> Any:
            nonlocal shown
            answer = self._effect(action, session)
            shown = self._postgres.deadline_from(session, sent_at)
            return answer

        match action:
            case m.WaitForLock(seconds=seconds, then=m.BeginTerm() as begin):
                session.wait_for_lock(
                    seconds,
                    reply,
                    then=lambda: session.execute(
                        lambda: carry_out(begin), reply, writes=True, locks_term=True
                    ),
                )
            case m.WaitForLock(seconds=seconds):
                session.wait_for_lock(seconds, reply)
            case m.TryLock():
                session.execute(lambda: self._postgres.ownership.try_lock(session.key), reply, writes=False)
            case m.ReleaseLock():
                session.execute(lambda: self._release(session), reply, writes=False)
            case m.BeginTerm() | m.CloseTerm():
                session.execute(lambda: carry_out(action), reply, writes=True, locks_term=True)
            case _:
                session.execute(lambda: carry_out(action), reply, writes=True)

    def _release(self, session: Session) -> None:
        self._postgres.ownership.release(session.key)
        self._postgres.grant()

    def _effect(self, action: m.SessionAction, session: Session) -> Any:
        ownership, store, now = self._postgres.ownership, self._postgres.store, self._postgres.wall()
        match action:
            case m.Announce(ready=ready, abstain_seconds=abstain):
                row = self._row()
                row.session, row.ready, row.candidate_after = session.key, ready, now + abstain
                row.first_announced_at = row.announced_at = now
                return ownership.announce(row, now)
            case m.BeginTerm(deadline_seconds=deadline, reaped_term=reaped):
                name = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
                begun = ownership.begin_term(self._row().instance_id, deadline, reaped, now, uuid=name)
                if not isinstance(begun, str):
                    store.term = name
                    self._postgres.note_term(self._row().instance_id, begun[0], name)
                return begun
            case m.CloseTerm(term=term, successor=successor, recovered=recovered):
                self._postgres.closed_terms.setdefault(term, self._postgres.agenda.now)
                ownership.close_term(self._row().instance_id, term, successor, now, recovered=recovered)
                if store.term == term and recovered:
                    store.term = None  # `ended_at IS NULL` is part of the fence
                return None
            case m.RecordRegistration():
                known = self._postgres.registrations
                _, superseded_at = known.get(self._registration, (now, now))
                if superseded_at is not None:
                    known[self._registration] = (now, None)
                return None
            case m.ConfirmRegistration():
                known = self._postgres.registrations
                for key, (recorded_at, superseded_at) in list(known.items()):
                    if key == self._registration:
                        known[key] = (recorded_at, None)
                    elif superseded_at is None:
                        known[key] = (recorded_at, now)
                    elif superseded_at < now - SUPERSEDED_KEPT_SECONDS:
                        del known[key]
                return None
            case _:
                raise TypeError(f"unknown action {action!r}")

    # -------------------------------------------------------------------------------------------------------- answers

    def _answered(
        self,
        connection: Connection,
        action: m.SessionAction,
        sent_at: float,
        answer: Any,
        shown: tuple[str, float] | None,
    ) -> None:
        if self._connection is not connection or self._busy is not action:
            return
        if isinstance(answer, psycopg.Error):
            self._fail(action, str(answer))
            return
        self._busy = None
        if shown is not None:
            self._postgres.history.note_deadline(*shown)
            self._confirmed(shown[1])
        at, id_ = self._agenda.now, action.id
        event: m.Event
        match action:
            case m.Announce():
                peers, holder, asked = answer
                event = m.Announced(
                    at=at,
                    id=id_,
                    sent_at=sent_at,
                    peers=peers,
                    holder=holder,
                    handover_requested_seconds=asked,
                )
            case m.TryLock():
                event = (m.LockAcquired if answer else m.LockBusy)(at=at, id=id_, sent_at=sent_at)
            case m.WaitForLock() if isinstance(answer, bool):
                # Asked by a statement of its own, behind the wait; but for one in vain that was to begin a term.
                asked_at = at if answer or action.then is None else sent_at
                event = (m.LockAcquired if answer else m.LockBusy)(at=at, id=id_, sent_at=asked_at)
            case m.BeginTerm() | m.WaitForLock() if isinstance(answer, str):
                event = m.TermDenied(at=at, id=id_, sent_at=sent_at, successor=answer)
            case m.BeginTerm() | m.WaitForLock():
                number, term, recover = answer
                event = m.TermBegun(
                    at=at, id=id_, sent_at=sent_at, term=term, number=number, recover_after_seconds=recover
                )
            case m.CloseTerm():
                event = m.TermClosed(at=at, id=id_, sent_at=sent_at)
            case m.ReleaseLock():
                event = m.LockReleased(at=at, id=id_, sent_at=sent_at)
            case m.RecordRegistration():
                event = m.RegistrationRecorded(at=at, id=id_, sent_at=sent_at)
            case _:
                event = m.RegistrationConfirmed(at=at, id=id_, sent_at=sent_at)
        self._post(event)

    def _fail(self, action: m.SessionAction, reason: str) -> None:
        if self._busy is not action:
            return
        self.close()
        self._post(m.SessionFailed(at=self._agenda.now, id=action.id, reason=reason))

    def _lose(self, connection: Connection, reason: str) -> None:
        if self._connection is not connection:
            return
        busy, id_ = self._busy, self._id
        self.close()
        if busy is not None:
            self._post(m.SessionFailed(at=self._agenda.now, id=busy.id, reason=reason))
        elif id_ is not None:
            self._post(m.SessionLost(at=self._agenda.now, session=id_, reason=reason))
