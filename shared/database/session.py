"""Sessions with our settings.

A session is direct, in autocommit, in UTF-8, commits synchronously, and gives up a silent network within seconds. Every
statement of ours names its tables in full (`webhook_supervisor.inbox`): `search_path` is left to the operator.

A server that is too old, and a pooler's session, which others use after us, are refused before anything is set (pooler.py).

Not promised: that the server is suitable (writable, and direct also where a pooler tells the server's own pid). The lease finds
that out.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import AsyncConnection, conninfo
from psycopg.pq import ConnStatus
from psycopg.rows import TupleRow

from shared.database import pooler
from shared.errors import SupervisorError

_CLIENT_SETTINGS = {
    # A silent network is noticed 5 s after the last byte when idle, 3 s after a statement was sent; without
    # tcp_user_timeout a statement waits for minutes (libpq, "Parameter Key Words"; measured).
    "keepalives_idle": "2",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "3000",
    "connect_timeout": "5",
}
_SERVER_SETTINGS = {
    # The server's side of a client that vanished without a goodbye: 6 + 3 x 2 = 12 s, and not the system's two hours, after
    # which a network that comes and goes would have used up max_connections. Of the lock's session it is a lease: it must be
    # longer than an owner believes in its lock (supervisor/state.py, DEADLINE_SECONDS).
    "tcp_keepalives_idle": "6",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "12s",
    # How values are written, whatever the operator's other applications like. psycopg reads times in this style alone, and
    # complains of a time zone that Python does not know; fewer digits would make one age of many; and without nulls in arrays
    # no update without a chat could be stored.
    "datestyle": "ISO",
    "timezone": "UTC",
    "extra_float_digits": "1",
    "array_nulls": "on",
}
# Name look-up and several addresses included, which connect_timeout does not bound.
CONNECT_LIMIT_SECONDS = 15.0


OLDEST_SERVER = 140000
"""client_connection_check_interval and idle_session_timeout came with 14; 11 and older refuse what every session sets."""

_BOUNDS_TRANSACTIONS_SINCE = 170000

POOLED = (
    "leads through a pooler in transaction mode (PgBouncer or alike), which gives a session's lock to others; "
    "use the direct address of the database (on Render the internal URL, on Heroku DATABASE_URL, on Neon the host without "
    "-pooler, elsewhere usually port 5432)"
)
"""Continues "DATABASE_URL"."""


class DatabaseAway(SupervisorError):
    """There is no database at the moment, or it did not answer in time. Repeat later; what was sent may have happened."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnsuitableServer(psycopg.OperationalError):
    """Reached, and no place for a session of ours, of which nothing was set. The text continues "DATABASE_URL"."""


def work_channel(bot_id: int) -> str:
    """The NOTIFY channel that says "there is new work in the bot's inbox"; needs no quoting in SQL."""
    return f"webhook_supervisor_{bot_id}"


def client_settings(dsn: str, application_name: str) -> dict[str, str]:
    """The operator's DSN, completed with our time limits where it has none of its own; of several hosts, with the wish for one
    that can be written to: after a failover the first may be a standby, and psycopg would be content with it.

    Raises:
        psycopg.ProgrammingError: the DSN cannot be parsed.
    """
    given = {name: str(value) for name, value in conninfo.conninfo_to_dict(dsn).items() if value is not None}
    ours = {**_CLIENT_SETTINGS, "application_name": application_name}
    if any("," in given.get(name, "") for name in ("host", "hostaddr")):
        ours["target_session_attrs"] = "read-write"
    return {**ours, **given, "client_encoding": "UTF8"}


async def connect(
    dsn: str,
    *,
    application_name: str,
    statement_timeout_seconds: float = 15.0,
    transaction_timeout_seconds: float = 0.0,
    settings: Mapping[str, str] | None = None,
    was_ours_alone: bool = False,
) -> AsyncConnection[TupleRow]:
    """Opens a session with our settings, in autocommit.

    The settings are made by a statement and not as startup options: a pooler refuses those with words that do not tell the
    operator what is wrong.

    Args:
        dsn: the operator's.
        application_name: what pg_stat_activity shows, unless the DSN says otherwise.
        statement_timeout_seconds: the server's own limit, behind that of a Link; 0 for none.
        transaction_timeout_seconds: the same for a whole transaction, where the server has one (`bounds_transactions`).
        settings: more server settings for the session, by their names.
        was_ours_alone: a session that was opened before in the same way was found to be ours alone. Where the pid that is told
            is made up, it is then enough that the server's own does not change: no second connection for a moment.

    Raises:
        UnsuitableServer: too old, or a pooler, which would keep our settings for its other clients.
        psycopg.Error: no session; `describe` says why in one line. Repeat in a second.
        TimeoutError: not within 15 s; the same.
    """
    server_settings = {
        **_SERVER_SETTINGS,
        "statement_timeout": f"{statement_timeout_seconds * 1000:.0f}ms",
        "idle_in_transaction_session_timeout": "10s",
        # The fence of the inbox is built on it (docs/decisions.md), whatever the default of the database is.
        "default_transaction_isolation": "read committed",
        **(settings or {}),
    }
    async with asyncio.timeout(CONNECT_LIMIT_SECONDS):
        connection = await _open(dsn, application_name)
        try:
            version = connection.info.server_version  # told at the start
            if version < OLDEST_SERVER:
                raise UnsuitableServer(
                    f"leads to Postgres {version // 10000}; 14 or newer is needed for a session's lease"
                )
            if bounds_transactions(connection):
                server_settings["transaction_timeout"] = f"{transaction_timeout_seconds * 1000:.0f}ms"
            if not await _set(connection, server_settings, connection.info.backend_pid):
                # Made up by somebody in between, who may all the same give us a session of our own (pooler.py).
                pid = (
                    await pooler.find_stable_pid(connection)
                    if was_ours_alone
                    else await pooler.find_own_pid(connection, lambda: _open(dsn, application_name))
                )
                if pid is None or not await _set(connection, server_settings, pid):
                    raise UnsuitableServer(POOLED)
        except BaseException:
            await connection.close()
            raise
    return connection


async def is_ours_alone(connection: AsyncConnection[TupleRow], dsn: str) -> bool:
    """Whether a session is lent to nobody else; opens a second connection for a moment.

    Args:
        connection: made by `connect`.
        dsn: where that led.

    Raises:
        psycopg.Error, TimeoutError: the database went away.
    """
    async with asyncio.timeout(CONNECT_LIMIT_SECONDS):
        second = "webhook-supervisor probe"
        return await pooler.find_own_pid(connection, lambda: _open(dsn, second)) is not None


async def _open(dsn: str, application_name: str) -> AsyncConnection[TupleRow]:
    """A session in which nothing is set yet."""
    try:
        return await AsyncConnection.connect(
            conninfo.make_conninfo(**client_settings(dsn, application_name)), autocommit=True
        )
    except UnicodeError as exc:  # a host name that cannot be one, says the codec of host names
        raise psycopg.OperationalError(f"failed to resolve host: {exc}") from exc


async def _set(connection: AsyncConnection[TupleRow], settings: Mapping[str, str], pid: int) -> bool:
    """Sets everything, in the server's session of that pid and in no other; whether it was in that one."""
    cursor = await connection.execute(
        # A pooler lends sessions that other applications get after us: what we set would end their statements. Asked in the
        # statement that sets, since a round trip may take seconds (b09), and since the next statement may be given another
        # session.
        "SELECT set_config(name, value, false) FROM unnest(%(names)s::text[], %(values)s::text[]) AS s (name, value)"
        " WHERE pg_backend_pid() = %(pid)s"
        # A stricter level than "on" is the operator's wish; a weaker one could lose what was answered 200.
        " UNION ALL SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE pg_backend_pid() = %(pid)s AND current_setting('synchronous_commit') <> 'remote_apply'"
        # An operator's limit on idle sessions would end ours whenever a bot is quiet.
        " UNION ALL SELECT set_config('idle_session_timeout', '0', false)"
        " WHERE pg_backend_pid() = %(pid)s AND 'idle_session_timeout' <> ALL (%(names)s)",
        {"names": list(settings), "values": list(settings.values()), "pid": pid},
    )
    return cursor.rowcount > 0


def bounds_transactions(connection: AsyncConnection[TupleRow]) -> bool:
    """Whether the server can end a transaction whose client fell silent in the middle of it (transaction_timeout, Postgres 17).

    Its other limits run only between the messages of a pipeline that end in a Sync: of a client that was frozen or cut off
    when it had sent half of one, the server keeps transaction and locks for as long as TCP lives (measured on 18.4).
    """
    return connection.info.server_version >= _BOUNDS_TRANSACTIONS_SINCE


_NOT_WRITABLE = "no server of those in DATABASE_URL can be written to at the moment"
_STANDBY_WANTED = "target_session_attrs asks for a standby server, and this is the primary: leave it out"


def describe(error: BaseException) -> str:
    """One line for logs and health that says what is wrong with the database, without secrets and without data.

    libpq's text is passed on only where it cannot hold a piece of the DSN: a password with an unescaped `@` ends up in what
    libpq takes for the host.
    """
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        # Only the primary message: the detail quotes the row.
        return f"{error.diag.message_primary or type(error).__name__} (SQLSTATE {error.sqlstate})"
    text = str(error)
    if isinstance(error, UnsuitableServer):
        return f"DATABASE_URL {text}"
    refused = re.findall(r"FATAL:\s+(.+)", text)
    if refused:
        return f"refused by the server: {refused[-1].strip()}"
    if isinstance(error, psycopg.ProgrammingError):
        return "DATABASE_URL cannot be parsed: expected a libpq URL (postgresql://user:password@host:port/name) or DSN"
    known = (
        ("failed to resolve host", "the host name in DATABASE_URL does not resolve"),
        ("could not translate host name", "the host name in DATABASE_URL does not resolve"),
        ("session is read-only", _NOT_WRITABLE),
        ("server is in hot standby mode", _NOT_WRITABLE),
        # Of DATABASE_URL it is known at the start (dsn.py); it may also stand in PGTARGETSESSIONATTRS.
        ("session is not read-only", _STANDBY_WANTED),
        ("server is not in hot standby mode", _STANDBY_WANTED),
        ("Connection refused", "connection refused: nothing listens at the address in DATABASE_URL"),
        ("timeout expired", "no answer from the server in time"),
        ("No such file or directory", "connection refused: no server at the socket in DATABASE_URL"),
        ("server closed the connection", "the server closed the connection"),
        ("SSL", "no TLS connection to the server as sslmode asks for it"),
        ("the connection is closed", "the connection is closed"),
        ("connection socket closed", "the connection is closed"),
    )
    for piece, words in known:
        if piece in text:
            return words
    if isinstance(error, TimeoutError):
        return "no answer from the server in time"
    return f"no connection ({type(error).__name__})"


_CANCEL_AFTER_CUT_SECONDS = 0.5


def cut_off(connection: AsyncConnection[TupleRow], task: asyncio.Task[Any]) -> asyncio.TimerHandle:
    """Ends the statement that a task has under way, whatever the server does; its connection is broken then.

    The order matters. A task that is cancelled in a statement asks the server to cancel it, and waits for seconds where the
    server is silent or the network is gone (measured: 5 and 11 s); once the socket is shut down, the statement ends by itself.

    Returns:
        What cancels the task if it goes on all the same; to be cancelled when it has ended.
    """
    # The descriptor stays the connection's until it is finished: closed here, its number could be taken by another. Unless
    # libpq has closed it: then it is another's by now.
    if connection.pgconn.status != ConnStatus.BAD:
        _shut_down(connection.fileno())
    return asyncio.get_running_loop().call_later(_CANCEL_AFTER_CUT_SECONDS, task.cancel)


def _shut_down(descriptor: int) -> None:
    """Ends the traffic on a socket without giving its descriptor back."""
    borrowed = socket.socket(fileno=descriptor)
    try:
        borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        # Not connected any more: what we wanted.
        return
    finally:
        borrowed.detach()
