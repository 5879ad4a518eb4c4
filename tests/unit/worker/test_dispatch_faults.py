"""Crashes of owners, and the database away in the middle of everything."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.unit.worker.dispatch_scene import Scene, ignores_cancellation_for, takes
from tests.unit.worker.virtual_time import now, run
from webhook_worker.lanes import State
from webhook_worker.outcomes import Done, Outcome


def test_b31_a_minute_without_database_loses_nothing_and_doubles_nothing() -> None:
    """Handlers go on and their ends are kept; nothing starts without a committed claim; resumed within 3 s."""

    async def main() -> None:
        scene = Scene(concurrency=8)
        for update_id in range(40):
            scene.send(update_id, update_id % 20, takes(3))
        scene.start()
        await scene.until(lambda: scene.bot.running == 8)
        scene.inbox.away = True
        await asyncio.sleep(60)
        assert scene.bot.running == 0
        assert len(scene.bot.runs) == 8
        assert sum(row.state is State.CLAIMED for row in scene.store.rows.values()) == 8
        tries = len(scene.inbox.calls)
        assert tries <= 70
        assert scene.dispatcher.fault is not None
        scene.inbox.away = False
        assert await scene.until(lambda: scene.bot.running == 8) <= 3.0
        assert scene.dispatcher.fault is None
        await scene.until_quiet()
        assert len(scene.bot.runs) == 40
        assert all(row.state is State.DONE for row in scene.store.rows.values())
        await scene.end()

    run(main)


@pytest.mark.parametrize("is_idle", [False, True], ids=["busy", "idle"])
def test_b14_a_recovery_that_fails_alone_is_no_database_that_is_away(is_idle: bool) -> None:
    """An owner whose updates are handled is not to be given up; with nothing to handle, an exchange finds out."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, takes(10))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        successor = scene.crash()
        successor.inbox.away_for = frozenset({"suspects"})
        successor.start()
        for update_id in range(2, 12):
            if not is_idle:
                successor.send(update_id, update_id)
            await asyncio.sleep(1.9)
            assert successor.dispatcher.fault is None
        assert successor.inbox.calls.count("suspects") > 10
        successor.inbox.away = True
        await successor.until(lambda: successor.dispatcher.fault is not None, 3)
        successor.inbox.away, successor.inbox.away_for = False, frozenset()
        await successor.until_quiet()
        await successor.end()

    run(main)


@pytest.mark.parametrize("after_calls", range(12))
def test_an_answer_lost_at_any_statement_doubles_nothing(after_calls: int) -> None:
    """Committed, and the connection broke before the answer: claims are found, settlements repeated, nothing counted twice."""

    async def main() -> None:
        scene = Scene(concurrency=2)
        for update_id in range(12):
            scene.send(update_id, update_id % 4)
        scene.start()
        await scene.until(lambda: len(scene.inbox.calls) > after_calls)
        scene.inbox.lose_answers = 2
        await scene.until_quiet()
        assert sorted(run.update_id for run in scene.bot.runs) == list(range(12))
        assert [run.attempt for run in scene.bot.runs] == [1] * 12
        assert all(row.attempts == 1 for row in scene.store.rows.values())
        assert len(scene.store.commits) == 12
        await scene.end()

    run(main)


def test_b02_what_was_in_flight_at_a_crash_runs_again_one_at_a_time() -> None:
    """From recover_at on; fresh lanes at once and beside it; the lanes of suspects wait; the supervisor is told."""

    async def main() -> None:
        scene = Scene(concurrency=4)
        for update_id in range(4):
            scene.send(update_id, update_id, takes(10))
        scene.start()
        await scene.until(lambda: scene.bot.running == 4)
        for update_id in range(4, 8):
            scene.send(update_id, update_id - 4)
        recover_at = now() + 8
        successor = scene.crash(recover_at, concurrency=4)
        successor.start()
        for update_id in range(8, 12):
            successor.send(update_id, update_id, takes(0.01))
        await successor.until(
            lambda: all(successor.row(update_id).state is State.DONE for update_id in range(8, 12)), 1
        )
        assert successor.suspects == []
        await successor.until_quiet()
        again = [run for run in successor.bot.runs if run.update_id < 4]
        assert [run.update_id for run in again] == [0, 1, 2, 3]
        assert [run.attempt for run in again] == [2] * 4
        assert again[0].began_at >= recover_at
        for one, next_one in itertools.pairwise(again):
            assert one.ended_at is not None
            assert one.ended_at <= next_one.began_at
        for follower in range(4, 8):
            (only,) = successor.bot.runs_of(follower)
            assert only.began_at >= (again[follower - 4].ended_at or 0)
        await successor.until(lambda: successor.suspects == [True, False] * 4, 1)
        await successor.end()

    run(main)


@pytest.mark.parametrize("wait_seconds", [0, 8])
def test_b02_with_one_slot_nothing_runs_beside_what_was_in_flight_at_a_crash(wait_seconds: float) -> None:
    """DISPATCH_CONCURRENCY=1 means one at a time, also for what was begun with more; neither kind keeps the other waiting."""

    async def main() -> None:
        scene = Scene(concurrency=3)
        for update_id in range(3):
            scene.send(update_id, update_id, takes(10))
        scene.start()
        await scene.until(lambda: scene.bot.running == 3)
        recover_at = now() + wait_seconds
        successor = scene.crash(recover_at, concurrency=1)
        for update_id in range(3, 30):
            successor.send(update_id, update_id, takes(1))
        successor.bot.scripts |= dict.fromkeys(range(3), takes(1))
        successor.start()
        await successor.until(lambda: all(successor.row(number).state is State.DONE for number in range(3)))
        assert now() < recover_at + 10
        await successor.until_quiet()
        assert successor.bot.most_at_once == 1
        assert sorted(run.update_id for run in successor.bot.runs) == list(range(30))
        await successor.end()

    run(main)


def test_b02_with_one_slot_a_suspect_starts_when_all_that_ran_before_it_is_settled() -> None:
    """Also where handlers land at once: what is claimed when it crashes the process was in flight then, and would run again."""

    async def main() -> None:
        scene = Scene(concurrency=1)
        scene.send(1, 1, takes(1000))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        successor = scene.crash(now() + 1.005, concurrency=1)
        successor.inbox.delay_seconds = lambda: 0.01
        claimed: list[int] = []

        async def looks(attempt: int) -> Outcome:
            rows = successor.store.rows.values()
            claimed.extend(row.update_id for row in rows if row.state is State.CLAIMED)
            return Done()

        async def waits_for_nothing(attempt: int) -> Outcome:
            return Done()

        successor.bot.scripts[1] = looks
        for update_id in range(2, 300):
            successor.send(update_id, update_id, waits_for_nothing)
        successor.start()
        await successor.until_quiet()
        assert claimed == [1]
        assert successor.bot.runs[-1].update_id != 1
        await successor.end()

    run(main)


def test_the_supervisor_is_told_before_a_suspect_starts_and_after_its_end_is_committed() -> None:
    """A crash in between is the suspect's doing, one before or after is not."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, takes(10))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        successor = scene.crash()
        told = []

        async def looks(attempt: int) -> Outcome:
            told.append(list(successor.suspects))
            await asyncio.sleep(1)
            return Done()

        successor.bot.scripts[1] = looks
        successor.start()
        await successor.until(lambda: successor.bot.running == 1)
        successor.inbox.away = True
        await asyncio.sleep(30)
        assert successor.bot.running == 0
        assert successor.suspects == [True], "its end is not committed"
        successor.inbox.away = False
        await successor.until(lambda: successor.suspects == [True, False])
        assert successor.row(1).state is State.DONE
        assert told == [[True]]
        await successor.end()

    run(main)


def test_b25_a_poison_update_is_dead_lettered_and_its_neighbours_are_handled() -> None:
    """It kills its process at every start: counted before it runs, run alone after the first time, given up at the limit."""

    async def main() -> None:
        died = asyncio.Event()

        async def poison(attempt: int) -> Outcome:
            died.set()
            await asyncio.sleep(1000)
            return Done()

        scene = Scene(concurrency=4, max_attempts=3)
        for update_id in range(4):
            scene.send(update_id, update_id, poison if update_id == 1 else takes(5))
        scene.send(9, 1, takes(0.01))
        crashes = 0
        while True:
            scene.start()
            quiet = asyncio.create_task(scene.until_quiet())
            death = asyncio.create_task(died.wait())
            await asyncio.wait({quiet, death}, return_when=asyncio.FIRST_COMPLETED)
            if quiet.done():
                death.cancel()
                break
            quiet.cancel()
            await asyncio.sleep(0.5)
            died.clear()
            crashes += 1
            scene = scene.crash(concurrency=4, max_attempts=3)
        assert crashes == 3
        row = scene.row(1)
        assert row.state is State.DEAD
        assert "MAX_ATTEMPTS=3 starts" in str(row.error)
        for update_id in (0, 2, 3, 9):
            assert scene.row(update_id).state is State.DONE
            assert scene.row(update_id).attempts <= 2
        await scene.end()

    run(main)


def test_innocents_come_before_the_poison() -> None:
    """Fewest attempts first: what was caught in one crash is tried before what was in two."""

    async def main() -> None:
        scene = Scene(concurrency=4)
        for update_id in range(4):
            scene.send(update_id, update_id, takes(50))
        scene.start()
        await scene.until(lambda: scene.bot.running == 4)
        scene.row(0).attempts = 3
        scene.row(2).attempts = 2
        successor = scene.crash(concurrency=4)
        successor.bot.scripts.clear()
        successor.start()
        await successor.until_quiet()
        assert [run.update_id for run in successor.bot.runs] == [1, 3, 2, 0]
        await successor.end()

    run(main)


def test_a_suspect_that_was_claimed_without_our_knowledge_runs_alone_too() -> None:
    """The answer of its claim was lost: found again, still one at a time, counted once."""

    async def main() -> None:
        scene = Scene(concurrency=4)
        for update_id in range(3):
            scene.send(update_id, update_id, takes(10))
        scene.start()
        await scene.until(lambda: scene.bot.running == 3)
        successor = scene.crash(concurrency=4)
        successor.start()
        await successor.until(lambda: "claim_suspect" in successor.inbox.calls)
        successor.inbox.lose_answers = 1
        await successor.until_quiet()
        await successor.until(lambda: successor.suspects == [True, False] * 3, 1)
        assert [row.attempts for row in successor.store.rows.values()] == [2, 2, 2]
        await successor.end()

    run(main)


def test_a_suspect_that_hangs_for_ever_does_not_hold_up_the_others() -> None:
    """It is cancelled; if it ignores that, the process is replaced, and it is not started again."""

    async def main() -> None:
        scene = Scene(concurrency=4, handler_timeout_seconds=30)
        for update_id in range(3):
            scene.send(update_id, update_id, takes(10))
        scene.start()
        await scene.until(lambda: scene.bot.running == 3)
        successor = scene.crash(concurrency=4, handler_timeout_seconds=30)

        successor.bot.scripts[0] = ignores_cancellation_for(300)
        successor.start()
        with pytest.raises(ExceptionGroup):
            await successor.ending()
        last = successor.crash(concurrency=4)
        last.bot.scripts.clear()
        last.start()
        await last.until_quiet()
        assert last.row(0).state is State.DEAD
        assert last.row(1).state is last.row(2).state is State.DONE
        assert [run.update_id for run in last.bot.runs if run.update_id == 0] == []
        await last.end()

    run(main)


def test_under_load_suspects_have_their_turn() -> None:
    """A backlog that never ends does not keep recovery waiting."""

    async def main() -> None:
        scene = Scene(concurrency=2)
        scene.send(0, 0, takes(10))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        successor = scene.crash(concurrency=2)
        for update_id in range(1, 2000):
            successor.send(update_id, update_id % 10, takes(0.05))
        successor.bot.scripts[0] = takes(0.01)
        successor.start()
        assert await successor.until(lambda: successor.row(0).state is State.DONE) < 5
        await successor.end()

    run(main)
