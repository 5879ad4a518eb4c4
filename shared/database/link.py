"""A database session that is kept: made again, every second, whenever it is lost (but see `After` and `Link.rest_once_lost`);
statements run on it one at a time.

Each statement has a limit, and ends at it whatever the network does. Between statements the session is watched, so that its
end is known within milliseconds where the network tells, and notifications are seen.

Not promised: that a statement which failed with DatabaseAway was not executed. It may have been committed just before the
connection broke; whoever repeats it must be able to.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.rows import TupleRow

from shared import log
from shared.database.session import CONNECT_LIMIT_SECONDS, DatabaseAway, connect, cut_off, describe

T = TypeVar("T")

# Never grows: Telegram repeats what got a 503 every 2 s, and the bot is dead until we are back.
_RECONNECT_SECONDS = 1.0
_LAST_RECONNECT_SECONDS = 10.0
"""The same of a link that comes after others: a slot that becomes free is found by those first."""

# No statement of a link has longer, and what holds locks must not outlive its sender.
_TRANSACTION_SECONDS = 10.0
_FAILURES_IN_A_ROW = 50
"""A session of which nothing but failures comes is made anew: each may leave something in the server (psycopg prepares what
failed again, under another name), and the state of the session may be why they fail."""

_BLOCKED_SECONDS = 0.5
_READ_SECONDS = 0.1
"""What an answer has to be read in, where our event loop comes so late to the end of its limit: a handler that blocks it is no
reason to lose a session."""

OWN_SHARE = 1 / 3
"""Of the limit of a statement that has to wait for its turn, what must be left for itself."""

_NOT_TRIED = "not connected yet"

_log = log.get_logger("DATABASE")


@dataclass(frozen=True, slots=True)
class After:
    """That a link comes after others: it is made only once another has lasted, by when everybody had several tries.

    Attributes:
        link: the other.
        seconds: how long it has to last.
    """

    link: Link
    seconds: float


class Link:
    """One kept database session; statements run on it one at a time.

    A lost session is noticed within milliseconds where the network says so, also between statements, and made again every
    second. With `listen`, notifications of that channel call `on_notify`, and so does every new session, since what was
    notified in between is lost.
    """

    def __init__(
        self,
        dsn: str,
        *,
        name: str,
        listen: str | None = None,
        on_notify: Callable[[], None] | None = None,
        after: After | None = None,
    ) -> None:
        """Does nothing yet; `async with` begins to connect, and does not wait for it.

        Args:
            dsn: the operator's.
            name: for pg_stat_activity and the log.
            listen: a channel, from `work_channel`.
            on_notify: cheap and idempotent; called in the event loop.
            after: where sessions are few, others have more use for one; see there.
        """
        self._dsn = dsn
        self._name = name
        self._listen = listen
        self._on_notify = on_notify
        self._after = after
        self._hurries = asyncio.Event()
        self._made_at = math.inf
        self._was_ours_alone = False
        self._connection: AsyncConnection[TupleRow] | None = None
        self._descriptor = -1
        self._watching = False
        self._reason: str | None = _NOT_TRIED
        self._said: str | None = _NOT_TRIED  # in the log; None: connected
        self._is_proven = True  # the session, or the last one, was of use
        self._failures = 0  # in a row
        self._lost = asyncio.Event()
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._reopens = asyncio.Event()
        self._reopens.set()
        self._keeper: asyncio.Task[None] | None = None
        self.waiting = 0
        """Those that wait for their turn."""

    @property
    def connected(self) -> bool:
        """Whether there is a session, as far as is known."""
        return self._connection is not None

    @property
    def reason(self) -> str | None:
        """Why there is no session, in one line without secrets; None when there is one."""
        return None if self.connected else self._reason

    @property
    def lasts_seconds(self) -> float:
        """How long there has been a session without a break; 0 while there is none."""
        return asyncio.get_running_loop().time() - self._made_at if self.connected else 0.0

    @property
    def busy(self) -> bool:
        """Whether a statement runs."""
        return self._turn.locked()

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep(), name=f"database link {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._keeper is not None
        # After the statement that may be under way; its limit bounds this.
        self.waiting += 1
        async with self._turn:
            self.waiting -= 1
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if not self._keeper.cancelled():
            self._keeper.result()

    async def wait_tried(self, limit_seconds: float) -> None:
        """Returns when the first attempt to connect has come to something, good or bad, or the limit is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                while self._reason == _NOT_TRIED:
                    self._changed.clear()
                    await self._changed.wait()

    async def wait_connected(self) -> None:
        """Returns when there is a session; at once if so."""
        while not self.connected:
            self._changed.clear()
            await self._changed.wait()

    def rest_once_lost(self) -> None:
        """A session that is lost is not made again before `reopen`: where there are few, others have more use for it."""
        self._reopens.clear()

    def reopen(self) -> None:
        """A lost session is made again, as ever; whoever waits until that is tried waits for this one."""
        if not self._reopens.is_set() and not self.connected:
            # Told again if it fails: it is tried again and again from now on, and the log's last word was that it is not.
            self._reason = self._said = _NOT_TRIED
        self._reopens.set()

    def hurry(self) -> None:
        """One that comes after others is tried at once, this time, or as soon as the other is there, which does its work till
        then. Whoever needs it comes before those others."""
        if self._after is not None and not self.connected:
            self._hurries.set()

    async def keep(self) -> None:
        """For a task of the owner: does not return while the link is open; raises what ended its keeping, a bug."""
        assert self._keeper is not None
        await asyncio.shield(self._keeper)

    async def run(
        self, fn: Callable[[AsyncConnection[TupleRow]], Coroutine[Any, Any, T]], limit_seconds: float
    ) -> T:
        """Runs `fn(connection)`, alone on this session.

        A cancelled caller still waits for the end of what it sent, so that it is never unknown whether a statement of ours
        is under way; the limit bounds that too.

        Args:
            fn: sends statements, and waits for nothing else. Autocommit: several that belong together need
                `connection.transaction()`.
            limit_seconds: for the wait for a turn and `fn` together.

        Returns:
            What `fn` returns.

        Raises:
            DatabaseAway: no session, or it broke, or the limit is over: with its turn (the session is then closed), or with
                so much of it that too little was left for itself (others have the session, which goes on). Whether it
                happened is not known.
            psycopg.Error: the statement failed, and the session goes on.
        """
        if self._connection is None:
            raise DatabaseAway(self._reason or "not connected")
        end = asyncio.get_running_loop().time() + limit_seconds
        if self._turn.locked() or self.waiting:
            await self._wait_for_turn(end, limit_seconds)
        else:
            await self._turn.acquire()  # at once
        try:
            return await self._run_alone(fn, end, limit_seconds)
        finally:
            self._turn.release()

    async def _wait_for_turn(self, end: float, limit_seconds: float) -> None:
        # A turn that comes at the last moment would end in a cut, and take the session from all who share it: only a statement
        # that had time of its own may do that.
        latest = end - OWN_SHARE * limit_seconds
        in_use = DatabaseAway(f"the session was in use for {limit_seconds - OWN_SHARE * limit_seconds:.3g} s")
        self.waiting += 1
        try:
            async with asyncio.timeout_at(latest):
                await self._turn.acquire()
        except TimeoutError:
            raise in_use from None
        finally:
            self.waiting -= 1
        if asyncio.get_running_loop().time() > latest:  # the loop was blocked, and both came at once
            self._turn.release()
            raise in_use

    async def _run_alone(
        self,
        fn: Callable[[AsyncConnection[TupleRow]], Coroutine[Any, Any, T]],
        end: float,
        limit_seconds: float,
    ) -> T:
        connection = self._connection
        if connection is None:  # lost while we waited for our turn
            raise DatabaseAway(self._reason or "not connected")
        loop = asyncio.get_running_loop()
        # psycopg watches the socket itself during a statement, and would take our reader away.
        self._unwatch()
        task = asyncio.create_task(fn(connection), name=f"statement on {self._name}")
        was_cut = False
        timer: asyncio.TimerHandle

        def cut() -> None:
            nonlocal was_cut, timer
            was_cut = True
            timer = cut_off(connection, task)

        def end_it() -> None:
            nonlocal timer
            if loop.time() - end < _BLOCKED_SECONDS:
                cut()
            else:  # the loop stood still, and the answer may be there, unread
                timer = loop.call_later(_READ_SECONDS, cut)

        timer = loop.call_at(end, end_it)
        try:
            await _settle(task)
        finally:
            timer.cancel()
            error = None if task.cancelled() else task.exception()
            if was_cut:
                self._lose(f"no answer within {limit_seconds:g} s")
            elif connection.closed or connection.pgconn.status == ConnStatus.BAD:
                self._lose(describe(error) if error is not None else "the connection broke")
            elif isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                # A session takes the database's default when it is made, and keeps it when that has long been lifted.
                self._lose(describe(error))
            elif connection.info.transaction_status != TransactionStatus.IDLE:
                self._lose("a statement left a transaction open")
            elif error is not None and self._failures + 1 >= _FAILURES_IN_A_ROW:
                self._lose(
                    f"{_FAILURES_IN_A_ROW} statements failed in a row, the last one: {describe(error)}"
                )
            else:
                self._failures = 0 if error is None else self._failures + 1
                self._watch(connection)
                if not self._is_proven:
                    self._is_proven = True
                    self._say(None)
        if (was_cut or self._connection is None) and (
            task.cancelled() or isinstance(task.exception(), psycopg.Error)
        ):
            raise DatabaseAway(self._reason or "not connected") from (
                None if task.cancelled() else task.exception()
            )
        return task.result()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._after is not None:
                await self._let_others_first(self._after)
            pause_seconds = self._pause_seconds
            try:
                connection = await connect(
                    self._dsn,
                    application_name=f"webhook-supervisor {self._name}",
                    transaction_timeout_seconds=_TRANSACTION_SECONDS,
                    # What stands before the database was judged at the first time; the lease judges it at every opening.
                    was_ours_alone=self._was_ours_alone,
                )
                self._was_ours_alone = True
                self._made_at = loop.time()
                try:
                    await self._use(connection)
                finally:
                    self._forget()
                    await connection.close()
                # What lasted is made again at once; what did not would only be lost again, in a loop without a pause.
                lasted = loop.time() - self._made_at >= _RECONNECT_SECONDS
                pause_seconds = 0.0 if lasted else _RECONNECT_SECONDS
            except (psycopg.Error, TimeoutError) as exc:
                self._tell(describe(exc))
            if not self._reopens.is_set():
                await self._reopens.wait()
            elif pause_seconds:
                await self._wait_unless_hurried(pause_seconds)

    @property
    def _pause_seconds(self) -> float:
        return _RECONNECT_SECONDS if self._after is None else _LAST_RECONNECT_SECONDS

    async def _let_others_first(self, after: After) -> None:
        while (left := after.seconds - after.link.lasts_seconds) > 0:
            if not self._hurries.is_set():
                await self._wait_unless_hurried(left)
            elif after.link.connected:
                break
            else:
                await after.link.wait_connected()
        self._hurries.clear()

    async def _wait_unless_hurried(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurries.wait()

    async def _use(self, connection: AsyncConnection[TupleRow]) -> None:
        """Offers the session until it is lost."""
        if self._listen is not None:
            connection.add_notify_handler(lambda _: self._notify())
            async with asyncio.timeout(CONNECT_LIMIT_SECONDS):
                await connection.execute(f"LISTEN {self._listen}".encode())
        self._lost.clear()
        self._hurries.clear()  # of a hurry that came while it was made: the next loss is another matter
        self._failures = 0
        self._connection = connection
        self._descriptor = connection.fileno()
        self._watch(connection)
        self._tell(None)
        self._notify()
        await self._lost.wait()

    def _notify(self) -> None:
        if self._on_notify is not None:
            self._on_notify()

    def _watch(self, connection: AsyncConnection[TupleRow]) -> None:
        """Between statements: sees the end of the session, and what it was notified of."""
        asyncio.get_running_loop().add_reader(self._descriptor, self._read, connection)
        self._watching = True

    def _unwatch(self) -> None:
        # Only what is ours. When a session breaks in a statement, libpq closes the descriptor, and by now its number may be
        # that of a request that has come in.
        if self._watching:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._watching = False

    def _read(self, connection: AsyncConnection[TupleRow]) -> None:
        try:
            connection.pgconn.consume_input()
            notified = False
            while connection.pgconn.notifies() is not None:
                notified = True
        except psycopg.OperationalError as exc:
            self._lose(describe(exc))
            return
        if connection.pgconn.status == ConnStatus.BAD:
            self._lose("the server closed the connection")
        elif notified:
            self._notify()

    def _lose(self, reason: str) -> None:
        """The session is of no use; `_keep` closes it and makes another."""
        self._forget()
        self._tell(reason)
        self._lost.set()

    def _forget(self) -> None:
        # At once: where libpq has closed the descriptor by itself, the next socket of this process gets its number.
        self._unwatch()
        self._connection = None

    def _tell(self, reason: str | None) -> None:
        if reason == self._reason:
            return
        self._reason = reason
        self._changed.set()
        if reason is not None or self._is_proven:
            self._say(reason)
        if reason is None:
            self._is_proven = False

    def _say(self, reason: str | None) -> None:
        """Where the server takes sessions and no writes, each fails as the one before, every second: that is said once."""
        if reason == self._said:
            return
        self._said = reason
        if reason is None:
            _log.info("connected", link=self._name)
        else:
            then = f"trying again every {self._pause_seconds:g} s"
            if not self._reopens.is_set():
                then = "trying again when it is needed"
            elif self._after is None:
                then = "trying again every second"
            _log.warning(f"no connection, {then}", link=self._name, reason=reason)


async def _settle(task: asyncio.Task[Any]) -> None:
    """Waits for the end of a task whatever happens to the caller, whose cancellation is passed on afterwards."""
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            interruption = exc
    if interruption is not None:
        if not task.cancelled():
            task.exception()  # seen: the caller does not want it any more
        raise interruption
