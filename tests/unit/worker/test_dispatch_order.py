"""What runs when, and how often: lanes, slots, order, completion."""

from __future__ import annotations

import asyncio
import gc
from random import Random

import pytest

from tests.unit.worker.dispatch_scene import Scene, takes
from tests.unit.worker.virtual_time import now, run
from webhook_worker.flight import Flight
from webhook_worker.lanes import Ending, State
from webhook_worker.outcomes import Done, Outcome
from webhook_worker.pace import GATHER_SECONDS


def test_a22_done_is_written_after_the_work_and_not_before() -> None:
    """A row is claimed while its handler runs, and done only when it has ended."""

    async def main() -> None:
        scene = Scene()
        seen = []

        async def look(attempt: int) -> Outcome:
            seen.append(scene.row(1).state)
            await asyncio.sleep(5)
            seen.append(scene.row(1).state)
            return Done()

        scene.send(1, 7, look)
        scene.start()
        await scene.until_quiet()
        assert seen == [State.CLAIMED, State.CLAIMED]
        assert scene.row(1).state is State.DONE
        assert await scene.end() == 0

    run(main)


def test_a25_every_update_is_handled_once_per_success() -> None:
    """Two hundred updates, one run each, also when a key comes again."""

    async def main() -> None:
        scene = Scene()
        scene.start()
        for update_id in range(200):
            scene.send(update_id, update_id % 7)
            assert scene.store.insert(update_id, 3) is None
        await scene.until_quiet()
        assert sorted(run.update_id for run in scene.bot.runs) == list(range(200))
        assert len(scene.store.commits) == 200
        await scene.end()

    run(main)


@pytest.mark.parametrize("seed", range(10))
def test_lanes_keep_their_order_and_run_side_by_side(seed: int) -> None:
    """Handlers of any length: within a lane in the order of arrival and one at a time; beside each other up to the limit."""

    async def main() -> None:
        random = Random(seed)
        scene = Scene(concurrency=6)
        scene.start()
        for update_id in range(150):
            lane = random.choice([1, 2, 3, 4, 5, 6, 7, 8, None])
            seconds = random.choice([0.0, 0.001, 0.1, 3.0])
            scene.send(update_id, lane, takes(seconds))
            if random.random() < 0.3:
                await asyncio.sleep(random.random())
        await scene.until_quiet()
        for lane in range(1, 9):
            runs = [run for run in scene.bot.runs if scene.row(run.update_id).lane == lane]
            assert [run.update_id for run in runs] == sorted(run.update_id for run in runs)
        assert scene.bot.most_at_once == 6
        await scene.end()

    run(main)


def test_slots_are_the_limit() -> None:
    """No more handlers than DISPATCH_CONCURRENCY, and no claim beyond: bodies wait in the database."""

    async def main() -> None:
        scene = Scene(concurrency=3)
        scene.bot.default = takes(10)
        for update_id in range(50):
            scene.send(update_id, update_id)
        scene.start()
        await scene.until(lambda: scene.bot.running == 3)
        await asyncio.sleep(5)
        assert sum(row.state is State.CLAIMED for row in scene.store.rows.values()) == 3
        assert scene.dispatcher.running == scene.bot.most_at_once == 3
        await scene.end()

    run(main)


def test_a_wake_starts_work_at_once_and_a_lost_one_costs_a_second() -> None:
    """The poll is behind the wake."""

    async def main() -> None:
        scene = Scene()
        scene.start()
        await asyncio.sleep(10.5)
        scene.send(1, 7)
        assert await scene.until(lambda: len(scene.bot.runs) == 1) < 0.05
        await scene.until_quiet()
        await asyncio.sleep(10.5)
        scene.store.insert(2, 7, b"2")
        assert await scene.until(lambda: len(scene.bot.runs) == 2) <= 1.1
        await scene.end()

    run(main)


def test_a_wake_that_comes_while_the_inbox_is_asked_is_not_lost() -> None:
    """What is answered may be older than the update; it says nothing about what has come since."""

    async def main() -> None:
        scene = Scene()
        scene.start()
        await asyncio.sleep(10.5)
        scene.inbox.calls.clear()
        scene.inbox.delay_seconds = lambda: 0.2
        await scene.until(lambda: scene.inbox.calls == ["peek"])
        await asyncio.sleep(0.15)  # it has looked, and its answer is on its way
        scene.send(1, 7)
        assert await scene.until(lambda: len(scene.bot.runs) == 1) < 0.5
        await scene.end()

    run(main)


def test_wakes_are_coalesced() -> None:
    """A thousand wakes are one claim, not a thousand."""

    async def main() -> None:
        scene = Scene()
        scene.start()
        await asyncio.sleep(10.5)
        scene.inbox.calls.clear()
        for _ in range(1000):
            scene.dispatcher.wake()
        await asyncio.sleep(0.1)
        assert scene.inbox.calls.count("exchange") <= 2
        await scene.end()

    run(main)


def test_an_idle_dispatcher_leaves_the_database_alone() -> None:
    """Ten minutes without updates: a read a second, and nothing that writes but the purge."""

    async def main() -> None:
        scene = Scene()
        scene.start()
        await asyncio.sleep(10)
        scene.inbox.calls.clear()
        await asyncio.sleep(600)
        assert scene.inbox.calls.count("peek") <= 601
        assert set(scene.inbox.calls) == {"peek", "purge"}
        assert scene.inbox.calls.count("purge") <= 11
        await scene.end()

    run(main)


def test_blocked_work_is_no_busy_loop() -> None:
    """All lanes busy for minutes with work behind them: a claim now and then."""

    async def main() -> None:
        scene = Scene()
        scene.bot.default = takes(250)
        for update_id in range(6):
            scene.send(update_id, update_id % 2)
        scene.start()
        await scene.until(lambda: scene.bot.running == 2)
        scene.inbox.calls.clear()
        await asyncio.sleep(200)
        assert len(scene.inbox.calls) < 500
        await scene.end()

    run(main)


def test_the_next_of_a_lane_starts_with_the_commit_of_the_last() -> None:
    """No poll and no second round trip in between."""

    async def main() -> None:
        scene = Scene()
        for update_id in range(20):
            scene.send(update_id, 7)
        scene.start()
        began_at = now()
        await scene.until_quiet()
        # 20 handlers of 10 ms, 21 exchanges of 1 ms.
        assert now() - began_at < 0.3
        assert await scene.end() == 0
        assert await scene.ending() is Ending.ENDED

    run(main)


def test_under_load_what_lands_is_settled_together_and_a_lone_update_at_once() -> None:
    """Five updates a millisecond, each in its own chat: an exchange every 5 ms does for all."""

    async def main() -> None:
        scene = Scene(concurrency=1000)
        scene.start()
        scene.send(1, 1, takes(0.0))
        await asyncio.sleep(0)
        sent_at = now()
        await scene.until_quiet()
        assert scene.store.commits[-1].at - sent_at < GATHER_SECONDS
        begun_at = now()
        for number in range(2, 5002):
            scene.send(number, number)
            await asyncio.sleep(0.0002)
        await scene.until_quiet()
        exchanges = {commit.at for commit in scene.store.commits if commit.at > begun_at}
        assert len(exchanges) <= 1.1 / GATHER_SECONDS
        await scene.end()

    run(main)


def test_a_backlog_of_handlers_that_wait_for_nothing_is_settled_in_full_exchanges() -> None:
    """Also when some of the first took longer: they would take turns with the others, in exchanges of a part each."""
    slots, updates = 8, 400

    async def main() -> None:
        scene = Scene(concurrency=slots)
        scene.inbox.delay_seconds = lambda: 0.01

        async def waits_for_nothing(attempt: int) -> Outcome:
            return Done()

        for update_id in range(updates):
            scene.send(update_id, update_id, takes(0.005) if update_id < slots / 2 else waits_for_nothing)
        scene.start()
        await scene.until_quiet()
        assert scene.inbox.calls.count("exchange") <= updates / slots + 3
        await scene.end()

    run(main)


def test_what_is_over_is_freed_at_once() -> None:
    """Without the garbage collector: a body may have a mebibyte, and many are over before that comes.

    Also where a handler has left a task behind, which keeps its context.
    """
    left: list[asyncio.Task[bool]] = []

    async def leaves_a_task(attempt: int) -> Outcome:
        left.append(asyncio.create_task(asyncio.Event().wait()))
        return Done()

    async def main() -> None:
        scene = Scene()
        scene.bot.default = leaves_a_task
        scene.start()
        gc.collect()  # what other tests have left
        gc.disable()
        try:
            for update_id in range(50):
                scene.send(update_id, update_id)
            await scene.until_quiet()
            await asyncio.sleep(1)
            assert len(left) == 50
            assert [found for found in gc.get_objects() if type(found) is Flight] == []
        finally:
            gc.enable()
        await scene.end()

    run(main)
