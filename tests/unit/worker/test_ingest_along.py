"""What an idle dispatcher stores along with its claim, the flusher does not; everything else it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tests.unit.worker.test_ingest_gathering import COMMIT_SECONDS, Writer, flushing
from tests.unit.worker.virtual_time import run
from webhook_worker.ingest import Ingest, Row


class Dispatcher:
    """Is idle, or not; says what became of what it took."""

    def __init__(self) -> None:
        self.idle = True
        self.took: list[list[int]] = []
        self.answers: list[asyncio.Future[bool]] = []
        self.on_stored: list[Callable[[list[int]], None]] = []
        self.wakes = 0

    def store_along(
        self, rows: Sequence[Row], on_stored: Callable[[list[int]], None]
    ) -> asyncio.Future[bool] | None:
        if not self.idle:
            return None
        self.took.append([row.update_id for row in rows])
        self.on_stored.append(on_stored)
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]

    def wake(self) -> None:
        self.wakes += 1


class Scene:
    """A worker's ingest, beside its dispatcher."""

    def __init__(self, dispatcher: Dispatcher, writer: Writer, ingest: Ingest) -> None:
        self.dispatcher, self.writer, self.ingest = dispatcher, writer, ingest

    @property
    def inserts(self) -> list[int]:
        """How many rows the flusher itself has stored, each time."""
        return [count for _, count in self.writer.flushes]


def play(act: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    """Acts beside an ingest that is ready, in virtual time."""

    async def main() -> None:
        dispatcher, writer = Dispatcher(), Writer()
        async with flushing(writer, wake=dispatcher.wake, store_along=dispatcher.store_along) as ingest:
            await act(Scene(dispatcher, writer, ingest))

    run(main)


def test_what_the_dispatcher_stored_is_answered_and_nobody_is_woken() -> None:
    """It has seen to what was new already."""

    async def act(scene: Scene) -> None:
        storing = scene.ingest.store(1, None, b"{}")
        await asyncio.sleep(COMMIT_SECONDS)
        assert scene.dispatcher.took == [[1]]
        assert not storing.done()
        # At once: the loop may be blocked by a handler before it turns again.
        scene.dispatcher.on_stored[0]([1])
        assert storing.done()
        scene.dispatcher.answers[0].set_result(True)
        await asyncio.sleep(COMMIT_SECONDS)
        assert (scene.inserts, scene.dispatcher.wakes) == ([], 0)

    play(act)


def test_what_it_did_not_store_the_flusher_stores() -> None:
    """And wakes it."""

    async def act(scene: Scene) -> None:
        storing = scene.ingest.store(1, None, b"{}")
        await asyncio.sleep(COMMIT_SECONDS)
        scene.dispatcher.answers[0].set_result(False)
        await storing
        assert (scene.inserts, scene.dispatcher.wakes) == ([1], 1)

    play(act)


def test_beside_a_dispatcher_that_is_busy_the_flusher_stores() -> None:
    """As ever."""

    async def act(scene: Scene) -> None:
        scene.dispatcher.idle = False
        await scene.ingest.store(1, None, b"{}")
        assert (scene.inserts, scene.dispatcher.wakes, scene.dispatcher.took) == ([1], 1, [])

    play(act)


def test_the_probe_of_an_empty_buffer_is_the_flushers_own() -> None:
    """It finds out whether its own session works."""

    async def act(scene: Scene) -> None:
        assert scene.dispatcher.took == []

    play(act)


def test_a_dispatcher_whose_session_hangs_is_not_waited_for() -> None:
    """The flusher stores it a second later; should both have, the key tells."""

    async def act(scene: Scene) -> None:
        storing = scene.ingest.store(1, None, b"{}")
        await asyncio.sleep(0.9)
        assert (storing.done(), scene.inserts) == (False, [])
        await storing
        assert scene.inserts == [1]
        scene.dispatcher.on_stored[0]([])
        scene.dispatcher.answers[0].set_result(True)

    play(act)
