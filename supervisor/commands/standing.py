"""Who owns, who is there, what waits: what the database knows of all instances, read at one time.

An instance is there if the server has its session still; that it holds the lock, or waits for it, the server says as well.

Not promised: that it is so a moment later, or that an instance which the network has parted from the server is not listed.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row, dict_row

from shared import database
from shared.config import Config
from shared.errors import CommandFailed
from shared.secret import digest
from shared.wire import InboxDepth

_STATEMENT_SECONDS = 15.0
_EMPTY = InboxDepth(pending=0, in_flight=0, dead=0, oldest_pending_seconds=0.0)
_THERE = "SELECT to_regclass('webhook_supervisor.inbox') IS NOT NULL"

_TERM = """
SELECT number, instance_id, deploy_id, began_at, ended_at
  FROM webhook_supervisor.terms WHERE bot_id = %(bot)s"""

_IS_LOCK = f"""{database.IS_OF_KEY}
       AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"""  # noqa: S608 - put together from constants

_INSTANCES = f"""
SELECT i.instance_id, i.deploy_id, i.ready,
       EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = i.backend_pid AND l.granted AND {_IS_LOCK}) AS holds,
       EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = i.backend_pid AND NOT l.granted AND {_IS_LOCK}) AS waits,
       EXISTS (SELECT FROM pg_catalog.pg_stat_activity a
                WHERE a.pid = i.backend_pid AND a.datname = current_database()) AS is_present,
       greatest(extract(epoch FROM i.candidate_after - clock_timestamp())::float8, 0) AS abstains_seconds,
       i.first_announced_at AS since,
       extract(epoch FROM clock_timestamp() - i.announced_at)::float8 AS silent_seconds
  FROM webhook_supervisor.instances i
 WHERE i.bot_id = %(bot)s AND i.announced_at > clock_timestamp() - %(listed)s::interval
 ORDER BY i.first_announced_at, i.instance_id"""  # noqa: S608 - the same

_LOCK = f"SELECT l.pid FROM pg_catalog.pg_locks l WHERE l.granted AND {_IS_LOCK}"  # noqa: S608 - the same

# One statement for each state, so that each is answered from its index: what is done is most of the table. A dead letter that
# is retried keeps its seq, and waits from then on: the first by seq need not be the oldest.
_INBOX = f"""
SELECT (SELECT count(*) FROM webhook_supervisor.inbox WHERE bot_id = %(bot)s AND state = 'pending') AS pending,
       (SELECT count(*) FROM webhook_supervisor.inbox WHERE bot_id = %(bot)s AND state = 'claimed') AS in_flight,
       (SELECT count(*) FROM webhook_supervisor.inbox WHERE bot_id = %(bot)s AND state = 'dead') AS dead,
       (SELECT greatest(coalesce(extract(epoch FROM clock_timestamp() - min(p.received_at))::float8, 0), 0)
          FROM (SELECT received_at FROM webhook_supervisor.inbox
                 WHERE bot_id = %(bot)s AND state = 'pending' ORDER BY seq LIMIT {database.OLDEST_ROWS}) p
       ) AS oldest_pending_seconds
"""  # noqa: S608 - the same

_REGISTRATION = """
SELECT recorded_at, confirmed_at,
       path_hash = %(path)s AND secret_hash = %(secret)s AS is_ours
  FROM webhook_supervisor.registrations WHERE bot_id = %(bot)s ORDER BY superseded_at IS NOT NULL, recorded_at DESC LIMIT 1"""


@dataclass(frozen=True, slots=True)
class Term:
    """The last term that began; `ended_at` is set by its clean end."""

    number: int
    instance_id: str
    deploy_id: str | None
    began_at: datetime.datetime
    ended_at: datetime.datetime | None


@dataclass(frozen=True, slots=True)
class Instance:
    """One start of an instance that announced itself lately (database.LISTED).

    Attributes:
        is_present: its session is there.
        abstains_seconds: for so long it is no candidate for a hand-over; 0: it is one. It gave up the lock, or its bot was told
            to wait. It may wait for the lock all the same, or hold it, where nobody else could own.
    """

    instance_id: str
    deploy_id: str | None
    ready: bool
    holds: bool
    waits: bool
    is_present: bool
    abstains_seconds: float
    since: datetime.datetime
    silent_seconds: float

    @property
    def abstains(self) -> bool:
        """Whether it is no candidate now. For the holder of the lock that is of no account."""
        return self.abstains_seconds > 0 and not self.holds


@dataclass(frozen=True, slots=True)
class Registration:
    """The last one that was recorded; `is_ours`: it is the one that this environment would register."""

    recorded_at: datetime.datetime
    confirmed_at: datetime.datetime | None
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """Everything about one bot.

    Attributes:
        term: None if nobody ever owned.
        instances: oldest first.
        lock_pid: the server's process whose session holds the lock; None if nobody's does.
        inbox: its depth; `oldest_pending_seconds` is 0 where nothing waits.
        registration: None if nobody ever registered.
    """

    term: Term | None = None
    instances: tuple[Instance, ...] = ()
    lock_pid: int | None = None
    inbox: InboxDepth = _EMPTY
    registration: Registration | None = None

    @property
    def owner(self) -> Instance | None:
        """Who holds the lock and has begun a term with it; None if nobody has, also for the moment of a take-over."""
        return next(
            (
                instance
                for instance in self.instances
                if instance.holds
                and self.term is not None
                and self.term.ended_at is None
                and self.term.instance_id == instance.instance_id
            ),
            None,
        )

    @property
    def present(self) -> tuple[Instance, ...]:
        """The instances that are there."""
        return tuple(instance for instance in self.instances if instance.is_present)

    @property
    def unfit(self) -> tuple[Instance, ...]:
        """The instances that abstain, of the owner's deploy or a younger one (by the oldest instance that is there).

        One of an older deploy is no trouble: the newer code owns.
        """
        owner = self.owner
        if owner is None or not owner.is_present:
            return ()
        began = self._began_at(owner.deploy_id)
        return tuple(i for i in self.present if i.abstains and self._began_at(i.deploy_id) >= began)

    def _began_at(self, deploy_id: str | None) -> datetime.datetime:
        return min(i.since for i in self.present if i.deploy_id == deploy_id)


@asynccontextmanager
async def session(config: Config, *, may_write: bool = False) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """A session of the command's own.

    Args:
        config: whose database.
        may_write: else the server itself refuses whatever would change something.

    Raises:
        CommandFailed: there is none, or it ended under a statement; says why.
    """
    settings = {} if may_write else {"default_transaction_read_only": "on"}
    try:
        connection = await database.connect(
            config.database_url.reveal(),
            application_name="webhook-supervisor command",
            statement_timeout_seconds=_STATEMENT_SECONDS,
            settings=settings,
        )
    except (psycopg.Error, OSError, TimeoutError) as exc:
        raise _unusable(exc) from exc
    try:
        async with connection:
            yield connection
    except psycopg.Error as exc:
        # What else the command meets, a reader that has gone for one, is not the database's.
        raise _unusable(exc) from exc


def _unusable(error: Exception) -> CommandFailed:
    return CommandFailed(f"the database cannot be used: {database.describe(error)}")


async def has_tables(connection: AsyncConnection[TupleRow]) -> bool:
    """Whether any instance has ever used the database: the first one makes the tables."""
    [[there]] = await (await connection.execute(_THERE)).fetchall()
    return bool(there)


async def read_standing(connection: AsyncConnection[TupleRow], config: Config) -> Standing:
    """How things stand; an empty one where no instance has ever used the database.

    Raises:
        psycopg.Error: see `session`, which translates it.
    """
    if not await has_tables(connection):
        return Standing()
    values: dict[str, Any] = {
        "bot": config.bot_id,
        **database.oids_of(database.lock_key(config.bot_id)),
        "listed": database.LISTED,
        "path": digest(config.webhook_path.reveal().encode()),
        "secret": digest(config.webhook_secret.reveal().encode()),
    }
    async with connection.cursor(row_factory=class_row(Term)) as terms:
        term = await (await terms.execute(_TERM, values)).fetchone()
    async with connection.cursor(row_factory=class_row(Instance)) as found:
        instances = await (await found.execute(_INSTANCES.encode(), values)).fetchall()
    async with connection.cursor(row_factory=dict_row) as locks:
        lock = await (await locks.execute(_LOCK.encode(), values)).fetchone()
    async with connection.cursor(row_factory=class_row(InboxDepth)) as depths:
        depth = await (await depths.execute(_INBOX.encode(), values)).fetchone()
    async with connection.cursor(row_factory=class_row(Registration)) as registrations:
        registration = await (await registrations.execute(_REGISTRATION, values)).fetchone()
    assert depth is not None
    return Standing(term, tuple(instances), None if lock is None else lock["pid"], depth, registration)
