"""The lease of a modelled process: its session with the modelled Postgres.

A statement takes effect half-way through its round trip and is answered at the end of it, so a fault can fall on either side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from supervisor import messages as m
from tests.models.ownership import Row, SessionKey
from tests.unit.supervisor.modelled_process import ModelledProcess

IDLE_SESSION = 15.0
CUTTING = 0.003

MakeAnswer = Callable[..., m.SessionAnswer]


class SessionShell(ModelledProcess):
    """Carries out `SessionAction`s, one at a time."""

    def _end_server_session(self) -> None:
        if self.session is not None:
            self.world.database.end_session(self.session)
            self.session = None
            self.world.grant()

    def lose_session(self, reason: str = "terminated by administrator") -> None:
        """The server ends the session."""
        if self.session is None:
            return
        busy, id_ = self.state.session.busy, self.state.session.id
        self._end_server_session()
        if busy is not None:
            self.post(m.SessionFailed, self.world.statement_seconds, id=busy.id, reason=reason)
        else:
            self.post(m.SessionLost, self.world.statement_seconds, session=id_, reason=reason)

    def _begin_statement(self, action: m.OpenSession | m.SessionStatement) -> None:
        sent_at = self.world.now
        if isinstance(action, m.OpenSession):
            self.world.at(self.world.statement_seconds, lambda: self._open(action))
        else:
            self.world.at(self.world.statement_seconds / 2, lambda: self._execute(action, sent_at))

    def _open(self, action: m.OpenSession) -> None:
        busy = self.state.session.busy
        if not self.lives or busy is None or busy.id != action.id:
            return
        fault, self.statement_fault = self.statement_fault, None
        if fault == "refuse":
            self.post(m.SessionFailed, id=action.id, reason="leads through a pooler", refused=True)
        elif fault == "hang":
            return
        elif self.world.schema_fault is not None:
            self.post(m.SessionFailed, id=action.id, reason=self.world.schema_fault, schema=True)
        elif fault is not None or not self.world.database_up:
            self.post(m.SessionFailed, id=action.id, reason="connection refused")
        else:
            self.session = (self.name, action.id)
            self.world.database.sessions.add(self.session)
            self.post(m.SessionOpened, id=action.id)

    def _execute(self, action: m.SessionStatement, sent_at: float) -> None:
        key = self.session
        if not self.lives or key is None or self.state.session.busy != action:
            return
        fault, self.statement_fault = self.statement_fault, None
        if fault == "fail":
            self.lose_session("server closed the connection")
            return
        if self.world.write_fault is not None and isinstance(action, m.Announce):
            self.lose_session(self.world.write_fault)
            return
        answer = self._effect(action, key, sent_at)
        if fault == "hang":
            # Nothing comes back; the server ends the session by its own time-out.
            self.world.at(IDLE_SESSION, lambda: self._server_gives_up(key))
        elif fault == "lost answer":
            self.lose_session("connection reset")
        elif answer is not None:
            make, fields = answer
            self._answer(action, make, fields, sent_at)

    def _answer(
        self, action: m.SessionAction, make: MakeAnswer, fields: dict[str, object], sent_at: float
    ) -> None:
        key = self.session

        def deliver() -> None:
            if self.session == key:
                self.take(make(at=self.world.now, id=action.id, sent_at=sent_at, **fields))

        def when_awake() -> None:
            if not self.lives:
                return
            if self.world.now < self.frozen_until:
                self.world.at(self.frozen_until - self.world.now, when_awake)
            else:
                deliver()

        self.world.at(self.world.statement_seconds / 2, when_awake)

    def _server_gives_up(self, key: SessionKey) -> None:
        if key in self.world.database.sessions:
            self.world.database.end_session(key)
            self.world.grant()

    def _effect(
        self, action: m.SessionStatement, key: SessionKey, sent_at: float
    ) -> tuple[MakeAnswer, dict[str, object]] | None:
        database, now = self.world.database, self.world.now + self.world.database_clock_seconds
        match action:
            case m.Announce(ready=ready, abstain_seconds=abstain):
                row = Row(
                    self.name, self.platform_id, self.deploy, self.token, key, ready, now + abstain, now, now
                )
                peers, holder, asked = database.announce(row, now)
                return m.Announced, {
                    "peers": peers,
                    "holder": holder,
                    "handover_requested_seconds": asked,
                }
            case m.TryLock():
                return (m.LockAcquired if database.try_lock(key) else m.LockBusy), {}
            case m.WaitForLock(seconds=seconds):
                if database.wait(key):
                    return self._granted(action, key, sent_at)
                self.world.at(seconds, lambda: self._wait_is_over(action, key))
                return None
            case m.BeginTerm(deadline_seconds=deadline, reaped_term=reaped):
                begun = database.begin_term(self.name, deadline, reaped, now)
                if isinstance(begun, str):
                    return m.TermDenied, {"successor": begun}
                number, uuid, recover = begun
                return m.TermBegun, {"term": uuid, "number": number, "recover_after_seconds": recover}
            case m.CloseTerm(term=term, successor=successor, recovered=recovered):
                assert not any(w.alive and w.term == term for w in self.workers.values())
                database.close_term(self.name, term, successor, now, recovered=recovered)
                return m.TermClosed, {}
            case m.ReleaseLock():
                database.release(key)
                self.world.grant()
                return m.LockReleased, {}
            case m.RecordRegistration():
                return m.RegistrationRecorded, {}
            case m.ConfirmRegistration():
                return m.RegistrationConfirmed, {}
            case _:
                assert_never(action)

    def _cut_wait(self) -> None:
        busy, key = self.state.session.busy, self.session
        assert isinstance(busy, m.WaitForLock)
        if key is not None:
            self.world.at(CUTTING, lambda: self._wait_is_over(busy, key))

    def _wait_is_over(self, action: m.WaitForLock, key: SessionKey) -> None:
        if key in self.world.database.queue:
            self.world.database.leave_queue(key)
            if self.lives and self.state.session.busy == action:
                self._answer(action, m.LockBusy, {}, self.world.now)

    def lock_granted(self, session: int) -> None:
        """Our wait in the queue has ended well."""
        busy = self.state.session.busy
        if self.lives and isinstance(busy, m.WaitForLock) and self.session == (self.name, session):
            sent_at = self.world.now if busy.then is None else self.state.session.busy_since
            answer = self._granted(busy, self.session, sent_at)
            assert answer is not None
            make, fields = answer
            self._answer(busy, make, fields, sent_at)

    def _granted(
        self, wait: m.WaitForLock, key: SessionKey, sent_at: float
    ) -> tuple[MakeAnswer, dict[str, object]] | None:
        """The lock is ours; where a term is to begin with it, it has begun, unless a cut of the wait hit that."""
        cut = self.state.session.wait_cut and self.world.cuts_hit_begin
        return (m.LockAcquired, {}) if wait.then is None or cut else self._effect(wait.then, key, sent_at)
