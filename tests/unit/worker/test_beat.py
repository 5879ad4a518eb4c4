"""The first beat of a worker: not before it knows whether it would store, and never later than the second would be due. And
the counts of the inbox that it tells."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, cast

import psycopg
import pytest
from structlog.testing import capture_logs

from shared import wire
from shared.database import DatabaseAway
from tests.unit.worker.test_ingest_gathering import COMMIT_SECONDS, Writer
from tests.unit.worker.virtual_time import now, run
from webhook_worker.beat import Beats
from webhook_worker.control import Control
from webhook_worker.early import EarlyReception
from webhook_worker.ingest import Ingest, Row

UNKNOWN = "no statement has succeeded yet"


class Silent(Writer):
    """A database that does not answer within so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def insert(self, rows: list[Row], *, notify: bool, limit_seconds: float) -> list[int]:  # type: ignore[override]
        """Stores them then."""
        await asyncio.sleep(self._seconds)
        return await super().insert(rows, notify=notify, limit_seconds=limit_seconds)


class Away(Writer):
    """No session."""

    connected = False
    reason = "connection refused"  # type: ignore[assignment]

    async def wait_connected(self) -> None:
        """There will be none."""
        await asyncio.Event().wait()


class Reception:
    """An ingest alone."""

    def __init__(self, ingest: Ingest) -> None:
        self.ingest = ingest

    async def open(self, group: asyncio.TaskGroup, listener: object) -> None:
        """As of the real one, what matters here."""
        group.create_task(self.ingest.run())


class Link:
    """A session of the early reception, or of the dispatch."""

    connected = True
    busy = False
    waiting = 0

    async def keep(self) -> None:
        """As long as it is needed."""
        await asyncio.Event().wait()


Told = list[tuple[float, wire.ToSupervisor]]


async def beat_as_worker(reception: Reception, told: Told) -> None:
    """As _Worker.live."""
    beats = Beats(
        tell=lambda message: told.append((now(), message)),
        fault=lambda: reception.ingest.fault,
        wait_tried=reception.ingest.wait_tried,
        polling_fault=lambda: None,
        unstored=lambda: 0,
        token_refused=lambda: False,
        completed=lambda: 0,
        dispatch_fault=lambda: None,
        links=(),
        inbox=cast(Any, None),
        has_session=lambda: True,
    )
    async with asyncio.TaskGroup() as group:
        await reception.open(group, None)
        told.append((now(), wire.Accepting()))
        group.create_task(beats.run())


async def beat_as_early_reception(reception: Reception, told: Told) -> None:
    """The thread's coroutine alone, without the thread."""

    class Recorder(Control):
        def __init__(self) -> None:
            """No socket."""

        def send(self, message: wire.ToSupervisor) -> None:
            told.append((now(), message))

    with socket.socket() as listener:
        early = EarlyReception(cast(Any, None), listener, Recorder())
    try:
        await early._receive(cast(Any, Link()), cast(Any, reception))
    finally:
        early._listener.close()
        early._loop.close()


def said(way: Any, writer: Writer, seconds: float) -> list[tuple[float, str | None]]:
    """How long after it accepted each beat of the first seconds came, and why nothing would be stored."""

    async def main() -> Told:
        told: Told = []
        ingest = Ingest(writer, dispatches_here=lambda: False, wake=lambda: None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await way(Reception(ingest), told)
        return told

    (accepted_at, _), *beats = run(main)
    return [
        (round(at - accepted_at, 3), beat.storing_reason) for at, beat in beats if isinstance(beat, wire.Beat)
    ]


ways = pytest.mark.parametrize("way", [beat_as_worker, beat_as_early_reception])


@ways
def test_a26_the_first_beat_knows_whether_updates_would_be_stored(way: Any) -> None:
    """Told at once it would say no, and be believed for a second."""
    assert said(way, Writer(), 2.5) == [(at, None) for at in (COMMIT_SECONDS, 1.002, 2.002)]


@ways
def test_a05_where_there_is_no_session_the_first_beat_says_so_at_once(way: Any) -> None:
    """Nothing would be found out by waiting."""
    assert said(way, Away(), 1.5) == [(at, "database away: connection refused") for at in (0.0, 1.0)]


@ways
def test_b06_a_silent_database_does_not_hold_the_beats_up(way: Any) -> None:
    """They are what a worker lives by."""
    expected = [(1.0, UNKNOWN), (2.0, UNKNOWN), (3.0, None)]
    assert said(way, Silent(2.5), 3.5) == expected


@ways
def test_a05_a_first_statement_that_fails_is_told_at_once(way: Any) -> None:
    """It is known that nothing would be stored."""
    writer = Writer()
    writer.reason_to_fail = "the server closed the connection"
    assert said(way, writer, 0.5) == [(0.0, "database away: the server closed the connection")]


class Counting:
    """An inbox that is asked every 5 s for its counts: the n-th answer, the last one from then on."""

    def __init__(self, answers: list[Exception | None]) -> None:
        self._answers = answers

    async def depth(self) -> wire.InboxDepth:
        """As of the real one."""
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is not None:
            raise answer
        return DEPTH


DEPTH = wire.InboxDepth(pending=1, in_flight=2, dead=3, oldest_pending_seconds=4.0)
NO_GRANT = psycopg.errors.InsufficientPrivilege()
WHY_NO_GRANT = "InsufficientPrivilege (SQLSTATE 42501)"


def counted(*answers: Exception | None, connected: bool = True) -> tuple[list[str], wire.InboxDepth | None]:
    """Why the log says that nothing was counted, line by line, and what the beat tells after all answers."""

    async def main() -> wire.InboxDepth | None:
        told: list[wire.ToSupervisor] = []
        beats = Beats(
            tell=told.append,
            fault=lambda: None,
            wait_tried=lambda limit_seconds: asyncio.sleep(0),
            polling_fault=lambda: None,
            dispatch_fault=lambda: None,
            unstored=lambda: 0,
            token_refused=lambda: False,
            completed=lambda: 0,
            links=(cast(Any, Link()),),  # that of the dispatch, which is of no use here
            inbox=cast(Any, Counting(list(answers))),
            has_session=lambda: connected,
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5 * len(answers)), asyncio.TaskGroup() as group:
                group.create_task(beats.count())
                group.create_task(beats.run())
        beat = told[-1]
        assert isinstance(beat, wire.Beat)
        return beat.inbox

    with capture_logs() as lines:
        depth = run(main)
    assert {line["event"] for line in lines} <= {"the inbox is not counted"}
    return [line["reason"] for line in lines], depth


def test_a_count_that_is_refused_is_told_once_for_each_reason() -> None:
    """The database is well, and /status has no counts: somebody has to say why, and not every 5 s."""
    late = DatabaseAway("canceling statement due to statement timeout (SQLSTATE 57014)")
    assert counted(NO_GRANT, NO_GRANT, late, NO_GRANT) == ([WHY_NO_GRANT, late.reason, WHY_NO_GRANT], None)


def test_a_count_that_is_refused_again_is_told_again() -> None:
    """It was well meanwhile."""
    assert counted(NO_GRANT, None, NO_GRANT, None) == ([WHY_NO_GRANT, WHY_NO_GRANT], DEPTH)


@pytest.mark.parametrize(
    ("error", "connected"),
    [(DatabaseAway("not connected yet"), False), (psycopg.errors.UndefinedTable(), True)],
)
def test_what_others_tell_is_not_told_by_the_count(error: Exception, connected: bool) -> None:
    """A session that is not there has a line of its link's, and tables that are not made yet are no fault at a first start."""
    assert counted(error, error, connected=connected) == ([], None)
