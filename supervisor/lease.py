"""The lock's session: the shell that carries out the core's `SessionAction`s, one at a time.

One dedicated connection, autocommit, on which everything about ownership happens: the lock, the term row, the heartbeat, the
announcements. So a heartbeat that is answered proves the very session that holds the lock, and the server's own time-outs are
a lease: a process that is stopped or cut off loses the lock `IDLE_SESSION_SECONDS` after its last statement, which is well past
the deadline at which it stopped by itself.

    client stops believing      DEADLINE_SECONDS (8) after the sending of the last answered statement
    server ends an idle session IDLE_SESSION_SECONDS (15) after it, a vanished client's after about 12

Between statements the socket is watched: a terminated session is noticed within milliseconds, not at the next heartbeat.

Does not promise that a statement returns in time: an await cannot measure leadership. The core counts by the clock, and closes
the session under a statement that hangs: first the socket, then the task, since cancelling a statement waits for the server.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import assert_never

import psycopg
from psycopg.pq import ConnStatus
from psycopg.rows import dict_row

from shared import clock, database, log
from shared.config import Config
from shared.errors import DatabaseRefused, SchemaError
from supervisor import lease_statements as statements
from supervisor import messages as m
from supervisor import suitability
from supervisor.registration_log import RegistrationLog

IDLE_SESSION_SECONDS = 15
SUCCESSOR_KEPT = "5 seconds"
"""How long nobody but the named successor begins a term, while it is ready: it waits in the queue, so it needs milliseconds."""

FORGOTTEN = "1 day"
"""Rows of instances that were silent so long go. A restart in place is recognised as the same instance within this time."""

CUT_SECONDS = 1.0
"""Limit on the connection by which a wait is cut: long enough that the wait has ended by itself. A request that was under way
then may come later, and end another statement: an end of the session, as any other error is."""

_SESSION_SETTINGS = {
    "idle_session_timeout": f"{IDLE_SESSION_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{IDLE_SESSION_SECONDS}s",
    "statement_timeout": "5s",
}
_CLIENT_CHECK = "500ms"
"""A waiter whose client is gone leaves the queue: otherwise it could be given the lock, and hold it until it notices."""

_log = log.get_logger("LOCK")


class Lease:
    """Owns at most one session. Every action is answered by exactly one event, unless the session was closed before."""

    def __init__(self, config: Config, post: Callable[[m.Event], None], tasks: asyncio.TaskGroup) -> None:
        """Does no I/O.

        Args:
            config: where the database is, who we are, what we register.
            post: takes every event.
            tasks: owns the tasks of the statements.
        """
        self._config = config
        self._post = post
        self._tasks = tasks
        self._key = database.lock_key(config.bot_id)
        self._key_as_oids = database.oids_of(self._key)
        self._registrations = RegistrationLog(config)
        self._session: int | None = None
        self._conn: psycopg.AsyncConnection[tuple[object, ...]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._cutting: asyncio.Task[None] | None = None
        self._watched: int | None = None
        self._told_of_check = False
        self._was_suitable = False

    # ------------------------------------------------------------------------------------------------------- actions

    def begin(self, action: m.OpenSession | m.SessionStatement) -> None:
        """Carry `action` out in a task of its own; the core sees to it that there is only one at a time."""
        self._unwatch()
        behind = self._cutting
        self._task = self._tasks.create_task(
            self._carry_out(action, behind), name=f"lease {type(action).__name__}"
        )

    def cut_wait(self) -> None:
        """Have the server end the wait for the lock that is under way: it is answered with what we have then.

        If it has just been answered, nothing is touched; the next statement is held back until the cut is over. Where one takes
        a thread (libpq before 17), which nothing bounds, the wait ends by itself.
        """
        if self._conn is not None and psycopg.capabilities.has_cancel_safe():
            self._cutting = self._tasks.create_task(_cancel(self._conn), name="lease cuts its wait")

    def close(self) -> None:
        """Close the session at once: the socket first, so that nothing waits for the server, unless it is being opened."""
        self._unwatch()
        if self._cutting is not None:
            self._cutting.cancel()
        conn, task = self._conn, self._task
        self._conn = self._session = self._task = self._cutting = None
        if task is None or task is asyncio.current_task():
            if conn is not None:
                conn.pgconn.finish()
            return
        if conn is None:
            task.cancel()
            return
        # The statement's reader is still on the descriptor: freed now, its number could be the next worker's control
        # socket's, whose reader psycopg would then take away. It stays ours until the task has ended.
        cancelling = database.cut_off(conn, task)

        def finish(_: asyncio.Task[None]) -> None:
            cancelling.cancel()
            conn.pgconn.finish()

        task.add_done_callback(finish)

    async def _carry_out(
        self, action: m.OpenSession | m.SessionStatement, behind: asyncio.Task[None] | None
    ) -> None:
        if behind is not None:
            await asyncio.wait({behind})  # a cut that comes late could hit this statement
        try:
            event = await (
                self._open(action.id) if isinstance(action, m.OpenSession) else self._answer(action)
            )
        except DatabaseRefused as exc:
            event = m.SessionFailed(at=clock.now(), id=action.id, reason=str(exc), refused=True)
        except SchemaError as exc:
            event = m.SessionFailed(at=clock.now(), id=action.id, reason=str(exc), schema=True)
        except (psycopg.Error, OSError, TimeoutError) as exc:
            # An answer in doubt is an end: whatever the server did of it ends with the session (a07).
            event = m.SessionFailed(at=clock.now(), id=action.id, reason=database.describe(exc))
        if self._task is not asyncio.current_task():
            return  # closed under us; whatever we have belongs to nobody, and a new session may be open
        self._task = None
        if isinstance(event, m.SessionFailed):
            self.close()
        else:
            self._watch()
        self._post(event)

    # ------------------------------------------------------------------------------------------------------- opening

    async def _open(self, id_: int) -> m.Event:
        self._session = id_
        dsn = self._config.database_url.reveal()
        conn = await suitability.connect(dsn, f"webhook-supervisor {self._config.identity.instance_id}")
        self._conn = conn
        await suitability.refuse_unsuitable(conn, dsn, is_first=not self._was_suitable)
        self._was_suitable = True
        await database.apply_schema(conn)
        settings = dict(_SESSION_SETTINGS)
        if database.bounds_transactions(conn):
            # A statement of which the server got all but the end would keep the lock as long as TCP lives.
            settings["transaction_timeout"] = f"{IDLE_SESSION_SECONDS}s"
        # Only now: set through a pooler that hides itself, they would stay with whatever session of the server comes next.
        await conn.execute(
            "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)",
            (list(settings), list(settings.values())),
        )
        await self._set_client_check(conn)
        await conn.execute(
            "DELETE FROM webhook_supervisor.instances WHERE bot_id = %s "
            "AND announced_at < clock_timestamp() - %s::interval",
            (self._config.bot_id, FORGOTTEN),
        )
        return m.SessionOpened(at=clock.now(), id=id_)

    async def _set_client_check(self, conn: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        """Have the server look after us during a statement; where its system cannot (macOS before Postgres 15, Windows), go on.

        By a statement of its own: refused among others, it would take them along.
        """
        try:
            await conn.execute(
                "SELECT set_config('client_connection_check_interval', %s, false)", (_CLIENT_CHECK,)
            )
        except psycopg.errors.InvalidParameterValue:
            if not self._told_of_check:
                _log.warning(
                    "the database server cannot set client_connection_check_interval: where a standby dies while it waits, "
                    "a take-over may come some seconds later"
                )
            self._told_of_check = True

    # ----------------------------------------------------------------------------------------------------- statements

    async def _answer(self, action: m.SessionStatement) -> m.Event:
        conn = self._conn
        if conn is None:
            raise psycopg.OperationalError("the session is closed")
        match action:
            case m.Announce():
                return await self._announce(conn, action)
            case m.TryLock(id=id_):
                await conn.execute("SELECT pg_try_advisory_lock(%s::int4, %s::int4)", self._key)
                return await self._look(conn, id_)
            case m.WaitForLock():
                return await self._wait_for_lock(conn, action)
            case m.BeginTerm():
                return await self._begin_term(conn, action)
            case m.CloseTerm():
                return await self._close_term(conn, action)
            case m.ReleaseLock(id=id_):
                sent_at = clock.now()
                await conn.execute("SELECT pg_advisory_unlock_all()")
                return m.LockReleased(at=clock.now(), id=id_, sent_at=sent_at)
            case m.RecordRegistration(id=id_):
                sent_at = clock.now()
                await self._registrations.record(conn)
                return m.RegistrationRecorded(at=clock.now(), id=id_, sent_at=sent_at)
            case m.ConfirmRegistration(id=id_):
                sent_at = clock.now()
                await self._registrations.confirm(conn)
                return m.RegistrationConfirmed(at=clock.now(), id=id_, sent_at=sent_at)
            case _:
                assert_never(action)

    async def _announce(
        self, conn: psycopg.AsyncConnection[tuple[object, ...]], action: m.Announce
    ) -> m.Announced:
        identity = self._config.identity
        # One message, and not a statement after the other: each heartbeat is worth DEADLINE_SECONDS from its sending, so at a
        # latency of seconds a second round trip would use up what the next one needs, and an owner would lose its term.
        cursor = psycopg.AsyncClientCursor(conn, row_factory=dict_row)
        sent_at = clock.now()
        await cursor.execute(
            f"{statements.ANNOUNCE};{statements.PEERS}".encode(),
            {
                "bot": self._config.bot_id,
                "instance": identity.instance_id,
                "platform": identity.platform_instance_id,
                # A preview is often of the very commit that is deployed next, and would make that deploy as old as itself.
                "deploy": identity.deploy_id if self._config.may_own else None,
                "fingerprint": identity.token_fingerprint,
                "ready": action.ready,
                "abstain": action.abstain_seconds,
                "listed": database.LISTED,
                **self._key_as_oids,
            },
        )
        cursor.nextset()
        rows = await cursor.fetchall()
        first = rows[0] if rows else {}
        of_term = {name: first.get(name) for name in ("holder", "handover_requested_seconds")}
        peers = tuple(m.Peer(**{k: v for k, v in row.items() if k not in of_term}) for row in rows)
        return m.Announced(at=clock.now(), id=action.id, sent_at=sent_at, peers=peers, **of_term)

    async def _wait_for_lock(
        self, conn: psycopg.AsyncConnection[tuple[object, ...]], action: m.WaitForLock
    ) -> m.Event:
        try:
            if action.then is not None:
                return await self._begin_term(conn, action.then, action.seconds)
            await conn.execute(statements.wait_for_lock(self._key, action.seconds).encode())
        except psycopg.errors.QueryCanceled:
            # A cut that came when the lock was ours: a term that was about to begin has not begun.
            if self._cutting is None:
                raise
        if self._cutting is not None:
            await asyncio.wait({self._cutting})
        return await self._look(conn, action.id)

    async def _look(self, conn: psycopg.AsyncConnection[tuple[object, ...]], id_: int) -> m.Event:
        """Whether the lock is ours. A time-out can leave it held, and locks nest: pg_locks alone says what we have."""
        sent_at = clock.now()
        row = await (await conn.execute(statements.HELD, self._key_as_oids)).fetchone()
        held = row is not None and bool(row[0])
        answer = m.LockAcquired if held else m.LockBusy
        return answer(at=clock.now(), id=id_, sent_at=sent_at)

    async def _begin_term(
        self,
        conn: psycopg.AsyncConnection[tuple[object, ...]],
        action: m.BeginTerm,
        waits_seconds: float | None = None,
    ) -> m.Event:
        """Begin a term under the lock that is held; or that is waited for, in the same message.

        Between the grant and the term's row there is then nothing but the server: no answer on its way to us, no process of
        ours that has to get its turn on a machine where another instance is just dying.
        """
        identity = self._config.identity
        term = str(uuid.uuid4())
        wait = "" if waits_seconds is None else statements.wait_for_lock(self._key, waits_seconds) + ";"
        cursor = psycopg.AsyncClientCursor(conn, row_factory=dict_row)
        sent_at = clock.now()
        await cursor.execute(
            f"{wait}{statements.BEGIN}".encode(),
            {
                "bot": self._config.bot_id,
                "term": term,
                "instance": identity.instance_id,
                "deploy": identity.deploy_id,
                "deadline": action.deadline_seconds,
                "kept": SUCCESSOR_KEPT,
                **self._key_as_oids,
            },
        )
        if wait:
            cursor.nextset()
        row = await cursor.fetchone()
        assert row is not None
        if not row["held"]:
            if not wait:
                raise psycopg.OperationalError("the lock is not held by the session that should hold it")
            return m.LockBusy(at=clock.now(), id=action.id, sent_at=sent_at)
        if not row["allowed"]:
            return m.TermDenied(at=clock.now(), id=action.id, sent_at=sent_at, successor=row["successor_id"])
        # Counted from the answer: whoever owned before may have had a heartbeat answered until we got the lock.
        clean = row["uuid"] is None or row["ended"] or row["uuid"] == action.reaped_term
        return m.TermBegun(
            at=clock.now(),
            id=action.id,
            sent_at=sent_at,
            term=term,
            number=row["number"],
            recover_after_seconds=0.0 if clean else row["deadline_seconds"],
        )

    async def _close_term(
        self, conn: psycopg.AsyncConnection[tuple[object, ...]], action: m.CloseTerm
    ) -> m.TermClosed:
        sent_at = clock.now()
        # In the order in which others may see it: the lock is freed by a later statement, when this is committed.
        await conn.execute(
            "UPDATE webhook_supervisor.terms SET ended_at = CASE WHEN %s THEN clock_timestamp() END, successor_id = %s, "
            "successor_until = clock_timestamp() + %s::interval WHERE bot_id = %s AND uuid = %s",
            (action.recovered, action.successor, SUCCESSOR_KEPT, self._config.bot_id, action.term),
        )
        if action.successor is not None:
            await conn.execute(
                "UPDATE webhook_supervisor.instances SET handed_over_at = clock_timestamp() "
                "WHERE bot_id = %s AND instance_id = %s",
                (self._config.bot_id, self._config.identity.instance_id),
            )
        return m.TermClosed(at=clock.now(), id=action.id, sent_at=sent_at)

    # ------------------------------------------------------------------------------------------------------- watching

    def _watch(self) -> None:
        """Notice between statements that the server ends the session: its last word makes the socket readable."""
        if self._conn is None:
            return
        self._watched = self._conn.fileno()
        asyncio.get_running_loop().add_reader(self._watched, self._readable)

    def _unwatch(self) -> None:
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
        self._watched = None

    def _readable(self) -> None:
        """Something came between statements: a notice, which is taken in, or the session's end."""
        conn, session = self._conn, self._session
        if conn is None or session is None:
            return
        reason = None
        try:
            conn.pgconn.consume_input()
            conn.pgconn.is_busy()  # parses what came: the server's last word sets the status
            if conn.pgconn.status == ConnStatus.BAD:
                reason = "the server closed the connection"
        except psycopg.Error as exc:
            reason = database.describe(exc)
        if reason is not None:
            self.close()
            self._post(m.SessionLost(at=clock.now(), session=session, reason=reason))


async def _cancel(conn: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
    """Ask the server to end the statement under way. Where that fails, a wait ends by itself a moment later."""
    try:
        await conn.cancel_safe(timeout=CUT_SECONDS)
    except (psycopg.Error, OSError) as exc:
        _log.info("the wait for the lock could not be cut short", reason=database.describe(exc))
