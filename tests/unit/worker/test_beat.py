"""The first beat of a worker: not before it knows whether it would store, and never later than the second would be due."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, cast

import pytest

from shared import wire
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
    """A session of the early reception."""

    connected = busy = False
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
        links=(),
        inbox=cast(Any, None),
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
