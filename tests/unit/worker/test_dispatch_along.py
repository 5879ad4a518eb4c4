"""Updates that an idle dispatcher stores and claims in one exchange; and when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.worker.dispatch_scene import Scene, takes
from tests.unit.worker.virtual_time import now, run
from webhook_worker.exchange import ALONG_ROWS
from webhook_worker.ingest import Row
from webhook_worker.lanes import Ending, State
from webhook_worker.pace import GATHER_SECONDS

ROUND_TRIP_SECONDS = 0.01


def rows(*update_ids: int, lane: int | None = None) -> list[Row]:
    return [Row(number, lane, str(number).encode(), lambda reason: None) for number in update_ids]


def along(scene: Scene, *update_ids: int, lane: int | None = None) -> Along | None:
    """Offers them."""
    new: list[int] = []
    are_stored = scene.dispatcher.store_along(rows(*update_ids, lane=lane), new.extend)
    return None if are_stored is None else Along(new, are_stored)


@dataclass
class Along:
    """What is told about updates that were taken: which were new; in the end, whether they are stored."""

    new: list[int]
    are_stored: asyncio.Future[bool]

    async def told(self) -> list[int] | None:
        return self.new if await self.are_stored else None


async def idle(**settings: Any) -> Scene:
    """A dispatcher that rests."""
    scene = Scene(**settings)
    scene.inbox.delay_seconds = lambda: ROUND_TRIP_SECONDS
    scene.start()
    await asyncio.sleep(10 * ROUND_TRIP_SECONDS)
    scene.inbox.calls.clear()
    return scene


def test_a_lone_update_is_stored_and_begun_with_one_round_trip() -> None:
    """Its sender is told in the same moment."""

    async def main() -> None:
        scene = await idle()
        begun_at = now()
        stored = along(scene, 1)
        assert stored is not None
        assert await stored.told() == [1]
        await scene.until(lambda: len(scene.bot.runs) == 1)
        assert scene.bot.runs[0].began_at == pytest.approx(begun_at + ROUND_TRIP_SECONDS)
        await scene.until_quiet()
        await asyncio.sleep(5 * ROUND_TRIP_SECONDS)
        # The second settles it.
        assert scene.inbox.calls.count("exchange") == 2
        await scene.end()

    run(main)


def test_what_was_there_already_is_not_run_again() -> None:
    """Telegram sends an update again whose 200 it did not get."""

    async def main() -> None:
        scene = await idle()
        scene.send(1)
        await scene.until_quiet()
        await asyncio.sleep(1.5)
        stored = along(scene, 1, 2)
        assert stored is not None
        assert await stored.told() == [2]
        await scene.until_quiet()
        assert [each.update_id for each in scene.bot.runs] == [1, 2]
        await scene.end()

    run(main)


def test_it_is_not_done_beside_other_work() -> None:
    """While an exchange is under way, for more than a few, without a free slot, before the begin, or after the end."""

    async def main() -> None:
        assert along(Scene(), 1) is None
        scene = await idle(concurrency=1)
        assert along(scene, *range(1, ALONG_ROWS + 2)) is None
        first = along(scene, 1)
        assert first is not None
        assert along(scene, 2) is None
        scene.bot.default = takes(60.0)
        await first.told()
        await asyncio.sleep(5 * ROUND_TRIP_SECONDS)
        assert scene.bot.running == 1
        assert along(scene, 2) is None
        await scene.end()
        assert along(scene, 2) is None

    run(main)


def test_under_load_too_it_does_not_wait_for_more() -> None:
    """An exchange that claimed several is a sign of load, after which others come at a distance."""

    async def main() -> None:
        scene = await idle()
        scene.inbox.delay_seconds = lambda: GATHER_SECONDS / 5
        scene.bot.default = takes(60.0)
        several = along(scene, 1, 2)
        assert several is not None
        await several.told()
        while (stored := along(scene, 3)) is None:
            await asyncio.sleep(0)
        offered_at = now()
        assert await stored.told() == [3]
        assert now() - offered_at == pytest.approx(GATHER_SECONDS / 5)
        await scene.end()

    run(main)


def test_the_next_of_a_busy_lane_waits() -> None:
    """It is stored, and begun when the one before it is over."""

    async def main() -> None:
        scene = await idle()
        scene.bot.default = takes(1.0)
        for number in (1, 2):
            stored = along(scene, number, lane=7)
            assert stored is not None
            assert await stored.told() == [number]
            await asyncio.sleep(5 * ROUND_TRIP_SECONDS)
        assert [each.update_id for each in scene.bot.runs] == [1]
        await scene.until_quiet()
        assert [each.update_id for each in scene.bot.runs] == [1, 2]
        await scene.end()

    run(main)


def break_session(scene: Scene) -> None:
    scene.inbox.away = True


def haunt(scene: Scene) -> None:
    """The exchange happens, later than its answer is waited for."""
    scene.inbox.ghosts = 1
    scene.inbox.ghost_seconds = lambda: 0.5


def lose_answer(scene: Scene) -> None:
    scene.inbox.lose_answers = 1


def supersede(scene: Scene) -> None:
    scene.store.term = "another"


@pytest.mark.parametrize("trouble", [break_session, haunt, lose_answer])
def test_where_it_is_not_known_to_be_stored_the_sender_stores_it(trouble: Callable[[Scene], None]) -> None:
    """It may be there all the same; whoever stores it again does no harm, and it runs once."""

    async def main() -> None:
        scene = await idle()
        trouble(scene)
        stored = along(scene, 1)
        assert stored is not None
        assert await stored.told() is None
        scene.inbox.away = False
        if scene.store.insert(1, None, b"1") is not None:
            scene.dispatcher.wake()
        await scene.until_quiet()
        await asyncio.sleep(3.0)
        assert [each.update_id for each in scene.bot.runs] == [1]
        await scene.end()

    run(main)


def test_the_owner_of_the_present_term_runs_what_a_superseded_one_stored() -> None:
    """It is stored, so its sender may be answered."""

    async def main() -> None:
        scene = await idle()
        supersede(scene)
        stored = along(scene, 1)
        assert stored is not None
        assert await stored.told() == [1]
        assert await scene.ending() is Ending.SUPERSEDED
        assert scene.bot.runs == []
        assert scene.row(1).state is State.PENDING

    run(main)


def test_an_end_in_the_same_moment_leaves_it_to_the_sender() -> None:
    """At once, and not after the drain."""

    async def main() -> None:
        scene = await idle()
        scene.send(9, script=takes(5.0))
        await asyncio.sleep(10 * ROUND_TRIP_SECONDS)
        stored = along(scene, 1)
        assert stored is not None
        begun_at = now()
        ending = asyncio.create_task(scene.dispatcher.end(10.0))
        assert await stored.told() is None
        assert now() - begun_at < 1.0
        await ending
        await scene.ending()
        assert all(row.update_id != 1 for row in scene.store.rows.values())

    run(main)


def test_a_deadline_in_the_same_moment_leaves_it_to_the_sender() -> None:
    """Nothing is claimed past it."""

    async def main() -> None:
        scene = await idle()
        scene.clock_offset = 2_000_000.0
        stored = along(scene, 1)
        assert stored is None or await stored.told() is None
        assert await scene.ending() is Ending.DEADLINE
        assert scene.bot.runs == []

    run(main)


def test_the_sender_is_told_before_anything_of_it_runs() -> None:
    """A handler may block the event loop: Telegram is to have its answer by then."""

    async def main() -> None:
        scene = await idle()
        begun: list[int] = []
        stored = scene.dispatcher.store_along(rows(1), lambda new: begun.append(len(scene.bot.runs)))
        assert stored is not None
        await stored
        await scene.until_quiet()
        assert begun == [0]
        await scene.end()

    run(main)
