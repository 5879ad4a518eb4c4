"""The worker's sessions with the database: how many there are, what each is for, and from when until when.

    DB_POOL_SIZE 1   one for all
                 2   ingest, look-ups, LISTEN | dispatch
                 3   ingest | look-ups, LISTEN | dispatch      in a worker that starts beside another: as 2
         4 or more   ingest | look-ups, LISTEN | dispatch

While one worker replaces another both have theirs, and an instance has at most DB_POOL_SIZE + 2, its lock's session among them
(README.md). Only one of the two dispatches, so only one has a session for that:

    the old one   ─── dispatch ───┤ its term is over
    the new one                     Lead ├─── dispatch ───

    DB_POOL_SIZE       1           2           3           4 or more
    old + new + lock   1 + 1 + 1   2 + 1 + 1   3 + 1 + 1   3 + 2 + 1      before, and
                                   1 + 2 + 1   2 + 2 + 1   2 + 3 + 1      after

A worker that is not told to lead opens it when the old one must be gone, so that a take-over finds it warm.

**Where sessions are few**, and all instances come back at once after a restart of the database, two of each instance do for
everything: that of its lock, and that of the ingest. That of the look-ups, which also listens for the dispatch, and that of the
dispatch come when the ingest's has lasted for 3 s, or at Lead; never before it is there. A session of the dispatch that is lost
before Lead stays so until then. While either is missing the ingest's does its work (`Covered`).

Not promised: the limit while there are three workers, one of which is killed or is replaced before it has replaced another; nor
in the two seconds in which an instance that has just started also has the session of its early reception (early.py), and for
some milliseconds a second one of its lease's first opening (supervisor/suitability.py): one too many, with a size below 4.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared import wire
from shared.config import Config
from shared.database import After, Link, work_channel

T = TypeVar("T")

_OTHERS_FIRST_SECONDS = 3.0
"""How long the ingest's session has to last before the others are made. The lock's is tried every second."""

_PREDECESSOR_SECONDS = 30.0
"""Beside its drain, how long the other may be there once we accept: some 11 s; then it is killed (workers_plan.py)."""

FIRST_CONNECT_SECONDS = 3.0
"""How long whoever needs a session waits for the first attempt: connecting takes seven round trips and more. A start goes on
without one, since a PASSIVE instance must be healthy (a04, a12); a dispatcher takes the database for away then, and says so."""


class Covered:
    """A session of somebody's own, and while there is none, another's: statements take turns there, as with a size of 1.

    Not promised: that what failed on the one has ended when the next runs on the other. That is so after any loss of a session,
    and whoever repeats a statement must be able to.
    """

    def __init__(self, own: Link, other: Link) -> None:
        """Of the one that is opened for it, and the other that is there."""
        self._own = own
        self._other = other

    @property
    def connected(self) -> bool:
        """Whether there is one of them, as far as is known."""
        return self._own.connected or self._other.connected

    async def run(
        self, fn: Callable[[AsyncConnection[TupleRow]], Coroutine[Any, Any, T]], limit_seconds: float
    ) -> T:
        """See Link.run."""
        # Where both are missing, too: the other, which comes first, was tried last, and says why it cannot be had.
        link = self._own if self._own.connected else self._other
        return await link.run(fn, limit_seconds)


class Links:
    """All of one worker.

    Attributes:
        ingest: stores.
        lookups, dispatch: as above; may be that of the ingest.
        for_lookups, for_dispatch: these, or that of the ingest while they are missing.
    """

    def __init__(
        self,
        config: Config,
        *,
        starts_alone: bool,
        on_notify: Callable[[], None],
        predecessor_seconds: float = _PREDECESSOR_SECONDS,
        others_first_seconds: float = _OTHERS_FIRST_SECONDS,
    ) -> None:
        """Does nothing yet.

        Args:
            config: the size, the database, and whose inbox it is.
            starts_alone: no other worker of the instance receives.
            on_notify: see Link; there may be new work.
            predecessor_seconds: how long, beside its drain, another worker may be there once this one accepts.
            others_first_seconds: how long the ingest's session has to last before the others are made.
        """

        def link(name: str, *, listens: bool = False, after: After | None = None) -> Link:
            return Link(
                config.database_url.reveal(),
                name=name,
                listen=work_channel(config.bot_id) if listens else None,
                on_notify=on_notify if listens else None,
                after=after,
            )

        size = config.db_pool_size
        looks_up_apart = size >= 4 or (size == 3 and starts_alone)
        self.ingest = link("worker ingest" if size > 1 else "worker", listens=not looks_up_apart)
        after = After(self.ingest, others_first_seconds)
        self.lookups = self.ingest
        if looks_up_apart:
            self.lookups = link("worker look-ups", listens=True, after=after)
        self.dispatch = link("worker dispatch", after=after) if size > 1 else self.ingest
        self.for_lookups = Covered(self.lookups, self.ingest)
        self.for_dispatch = Covered(self.dispatch, self.ingest)
        self._starts_alone = starts_alone
        self._late_seconds = config.drain_seconds + predecessor_seconds
        self._group: asyncio.TaskGroup | None = None
        self._dispatch_life: asyncio.Task[None] | None = None
        self._dispatch_is_over = False

    @property
    def distinct(self) -> list[Link]:
        """Each once, open or not."""
        return list(dict.fromkeys((self.ingest, self.lookups, self.dispatch)))

    def open(self, group: asyncio.TaskGroup) -> None:
        """Begins to connect those that are there from the start; they are tasks of the group."""
        self._group = group
        for link in dict.fromkeys((self.ingest, self.lookups)):
            group.create_task(_live(link), name="link")
        if self._starts_alone:
            self._warm_dispatch()

    async def open_late(self) -> None:
        """From when this worker accepts: returns when the one that it may have replaced is gone, and all are open."""
        await asyncio.sleep(self._late_seconds)
        self._warm_dispatch()

    def _warm_dispatch(self) -> None:
        if self._dispatch_life is None and self.dispatch is not self.ingest:
            self.dispatch.rest_once_lost()
            self._open_dispatch()

    # ------------------------------------------------------------------------------------------------- as term.TermLinks

    def open_dispatch(self) -> None:
        """Begins to connect, unless it has; never again once it was closed. What is lost from now on is made again."""
        self.dispatch.reopen()
        for link in (self.dispatch, self.lookups):
            link.hurry()
        self._open_dispatch()

    def _open_dispatch(self) -> None:
        assert self._group is not None
        if self._dispatch_life is None and self.dispatch is not self.ingest and not self._dispatch_is_over:
            self._dispatch_life = self._group.create_task(_live(self.dispatch), name="link")

    async def wait_dispatch_tried(self) -> None:
        """Returns when the first attempt to connect has come to something, or takes too long.

        While the ingest's session cannot be had, that of the dispatch is not tried.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_CONNECT_SECONDS):
                await self.ingest.wait_tried(FIRST_CONNECT_SECONDS)
                if self.ingest.connected:
                    await self.dispatch.wait_tried(FIRST_CONNECT_SECONDS)

    async def close_dispatch(self) -> None:
        """Nothing is dispatched here any more; returns when the session is closed.

        A statement that comes later all the same is not refused: it goes to the ingest's session (`for_dispatch`). What keeps
        it from changing anything once its term is over is the fence, here as there.
        """
        self._dispatch_is_over = True
        if self._dispatch_life is not None:
            self._dispatch_life.cancel()
            await asyncio.wait({self._dispatch_life})


def pool_use(links: Sequence[Link], unstored: int) -> wire.PoolUse:
    """As a Beat tells it.

    Args:
        links: each once.
        unstored: how many updates wait to be stored.
    """
    return wire.PoolUse(
        size=sum(link.connected for link in links),
        in_use=sum(link.busy for link in links),
        waiting=sum(link.waiting for link in links),
        unstored=unstored,
    )


async def _live(link: Link) -> None:
    async with link:
        await link.keep()
