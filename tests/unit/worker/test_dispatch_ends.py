"""How a term ends: drained, at its deadline, superseded; and what becomes of what was in flight."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import pytest

from shared.wire import DRAIN_GRACE_SECONDS
from tests.unit.worker.dispatch_scene import Scene, ignores_cancellation_for, takes
from tests.unit.worker.virtual_time import block, now, run
from webhook_worker.countdown import Countdown
from webhook_worker.lanes import Ending, State
from webhook_worker.outcomes import Done, Failed, Outcome


def test_a29_a_drain_waits_for_handlers_and_claims_nothing_more() -> None:
    """What runs is finished and committed; what waits is left for the next owner."""

    async def main() -> None:
        scene = Scene(concurrency=2)
        for update_id in range(5):
            scene.send(update_id, update_id, takes(8))
        scene.start()
        await scene.until(lambda: scene.bot.running == 2)
        began_at = now()
        assert await scene.dispatcher.end(20) == 0
        assert 7 < now() - began_at < 9
        assert await scene.ending() is Ending.ENDED
        states = [row.state for row in scene.store.rows.values()]
        assert states.count(State.DONE) == 2
        assert states.count(State.PENDING) == 3
        assert len(scene.bot.runs) == 2

    run(main)


def test_a29_a_drain_that_is_shortened_ends_sooner() -> None:
    """The supervisor was asked to stop after it had begun; what is cancelled goes back. Longer it does not become."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 1, takes(100))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        began_at = now()
        ending = asyncio.create_task(scene.dispatcher.end(60))
        await asyncio.sleep(10)
        scene.dispatcher.shorten_drain(90)
        scene.dispatcher.shorten_drain(2)
        assert await ending == 1
        assert 12 <= now() - began_at < 12.5
        await scene.ending()

    run(main)


@pytest.mark.parametrize("turns", range(1, 6))
def test_b04_what_takes_some_turns_to_end_past_the_deadline_goes_back_all_the_same(turns: int) -> None:
    """The loop was blocked, and there is one settlement left: whoever landed while it was under way became a suspect."""

    async def closes(attempt: int) -> Outcome:
        try:
            await asyncio.sleep(60)
        finally:
            for _ in range(turns):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
        return Done()

    async def main() -> None:
        scene = Scene(deadline=now() + 8)
        scene.send(1, 1, closes)
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        block(20)
        assert await scene.ending() is Ending.DEADLINE
        assert (scene.row(1).state, scene.row(1).attempts) == (State.PENDING, 0)

    run(main)


def test_b20_what_the_drain_cancels_goes_back_and_costs_no_attempt() -> None:
    """Bounded; the next owner runs it, and it does not count."""

    async def main() -> None:
        scene = Scene()
        for update_id in range(3):
            scene.send(update_id, update_id, takes(100))
        scene.start()
        await scene.until(lambda: scene.bot.running == 3)
        began_at = now()
        assert await scene.end(5) == 3
        assert 5 <= now() - began_at < 5.5
        for row in scene.store.rows.values():
            assert (row.state, row.attempts, row.starts, row.term) == (State.PENDING, 0, 1, None)
        successor = scene.crash()
        successor.bot.scripts.clear()
        successor.start()
        await successor.until_quiet()
        assert sorted((run.update_id, run.attempt) for run in successor.bot.runs) == [(0, 2), (1, 2), (2, 2)]
        assert successor.suspects == []
        await successor.end()

    run(main)


def test_a_handler_that_was_cancelled_and_had_finished_counts_as_done() -> None:
    """And one that answers its interruption with an error was interrupted, and has not failed."""

    async def main() -> None:
        scene = Scene()

        async def answers(outcome: Outcome) -> Outcome:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                return outcome
            return Done()

        scene.send(1, 7, lambda attempt: answers(Done()))
        scene.send(2, 8, lambda attempt: answers(Failed("Traceback: CancelledError")))
        scene.start()
        await scene.until(lambda: scene.bot.running == 2)
        assert await scene.end(0) == 1
        assert scene.row(1).state is State.DONE
        assert (scene.row(2).state, scene.row(2).attempts) == (State.PENDING, 0)

    run(main)


def test_end_returns_only_when_nothing_runs() -> None:
    """What ignores its cancellation is waited for, and stays claimed: nobody else starts it; its end counts all the same."""

    async def main() -> None:
        scene = Scene()

        scene.send(1, 7, ignores_cancellation_for(60))
        scene.send(2, 8, takes(100))
        scene.start()
        await scene.until(lambda: scene.bot.running == 2)
        ending = asyncio.create_task(scene.dispatcher.end(5))
        await asyncio.sleep(10)
        assert not ending.done()
        assert scene.dispatcher.running == 1
        assert (scene.row(1).state, scene.row(2).state) == (State.CLAIMED, State.PENDING)
        assert await ending == 1
        assert scene.bot.running == 0
        assert scene.row(1).state is State.DONE
        await scene.ending()

    run(main)


def test_x_what_ignores_the_end_of_its_term_is_started_by_no_other_while_it_runs() -> None:
    """The lock's session was lost meanwhile: another term begins beside. It runs the update when the first process is dead."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, ignores_cancellation_for(6))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        ending = asyncio.create_task(scene.dispatcher.end(0))
        await asyncio.sleep(4)
        scene.store.term = str(uuid.uuid4())
        successor = Scene(store=scene.store, recover_at=now() + 8)
        successor.start()
        await asyncio.sleep(1)
        assert scene.bot.running == 1
        assert successor.bot.runs == []
        assert await ending == 0
        await successor.until_quiet()
        (run_again,) = successor.bot.runs
        assert run_again.attempt == 2
        await successor.end()

    run(main)


def test_a_handler_that_outlives_its_time_and_its_term_is_not_started_again() -> None:
    """It had been told that its time is over; that the term ends before it counts as stubborn makes no difference."""

    async def main() -> None:
        scene = Scene(handler_timeout_seconds=20.0)
        scene.send(1, 7, ignores_cancellation_for(300))
        scene.start()
        await asyncio.sleep(22)
        ending = asyncio.create_task(scene.dispatcher.end(0))
        await asyncio.sleep(3)
        successor = scene.crash()
        ending.cancel()
        successor.start()
        await successor.until_quiet()
        assert successor.bot.runs == []
        assert (scene.row(1).state, scene.row(1).starts) == (State.DEAD, 1)
        assert "ignored its cancellation" in str(scene.row(1).error)
        await successor.end()

    run(main)


def test_end_before_run_and_twice() -> None:
    """A term that ends before it dispatched dispatches nothing."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7)
        assert await scene.dispatcher.end(5) == 0
        scene.start()
        assert await scene.ending() is Ending.ENDED
        assert await scene.dispatcher.end(5) == 0
        assert scene.bot.runs == []

    run(main)


def test_x_handlers_have_ended_when_the_deadline_comes() -> None:
    """Nobody extends it: they are cancelled a little before, and what they ran goes back."""

    async def main() -> None:
        deadline = now() + 8
        scene = Scene(deadline=deadline)
        scene.send(1, 7, takes(100))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        assert await scene.ending() is Ending.DEADLINE
        assert now() < deadline
        (cut,) = scene.bot.runs
        assert cut.ended_at is not None
        assert cut.ended_at < deadline
        assert (scene.row(1).state, scene.row(1).attempts) == (State.PENDING, 0)
        scene.send(2, 8)
        await asyncio.sleep(10)
        assert len(scene.bot.runs) == 1

    run(main)


def test_an_extended_deadline_lets_handlers_go_on() -> None:
    """As long as the supervisor confirms it."""

    async def main() -> None:
        scene = Scene(deadline=now() + 8)
        scene.send(1, 7, takes(100))
        scene.start()
        while scene.bot.running or not scene.bot.runs:
            scene.confirmed.extend(now() + 8)
            await asyncio.sleep(2)
        assert scene.row(1).state is State.DONE
        await scene.end()

    run(main)


def test_x_a_machine_that_slept_past_the_deadline_takes_no_step_more() -> None:
    """The clock of the deadline runs on in suspend, the loop's timers do not: a handler that wakes up first sees the end."""

    async def main() -> None:
        scene = Scene(deadline=now() + 8)
        steps = []

        async def walks(attempt: int) -> Outcome:
            while True:
                await asyncio.sleep(0.01)
                steps.append(scene.clock())

        scene.send(1, 7, walks)
        scene.start()
        await scene.until(lambda: len(steps) > 50)
        scene.clock_offset = 3600.0
        scene.confirmed.extend(scene.clock() + 8)
        assert await scene.ending() is Ending.DEADLINE
        assert max(steps) < scene.deadline
        assert scene.row(1).state is State.PENDING

    run(main)


def test_x_what_was_told_that_the_deadline_has_passed_is_told_so_for_good() -> None:
    """The dispatcher's comes a little before the term's, and an extension between the two is received in time."""
    told = []
    deadline = 7.5
    countdown = Countdown(
        clock=lambda: 7.6,
        deadline=lambda: deadline,
        margin_seconds=0.5,
        on_stop=lambda: None,
        interrupt_all=lambda: told.append("interrupted"),
    )
    assert countdown.is_past_deadline()
    deadline = 15.5
    assert countdown.is_past_deadline()
    assert countdown.ending is Ending.DEADLINE
    assert "interrupted" in told


def test_x_nothing_starts_after_a_claim_that_took_too_long() -> None:
    """The clock is read after every await: what was claimed past the deadline goes back without having run."""

    async def main() -> None:
        scene = Scene(deadline=now() + 8)
        scene.start()
        await asyncio.sleep(1)
        await scene.until(lambda: scene.clock() > scene.deadline - 2.0)
        scene.inbox.delay_seconds = lambda: 1.9
        scene.send(1, 7)
        await scene.until(lambda: scene.row(1).state is State.CLAIMED)
        scene.inbox.delay_seconds = lambda: 0.001
        assert await scene.ending() is Ending.DEADLINE
        assert scene.bot.runs == []
        assert (scene.row(1).state, scene.row(1).attempts) == (State.PENDING, 0)

    run(main)


def test_f_a_superseded_term_stops_at_once_and_commits_nothing() -> None:
    """The database says so with the next statement: handlers are cancelled, their rows are the next owner's."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, takes(100))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        scene.store.term = "another"
        scene.send(2, 8)
        assert await scene.ending() is Ending.SUPERSEDED
        assert scene.bot.running == 0
        assert scene.row(1).state is State.CLAIMED
        assert scene.row(2).state is State.PENDING
        assert await scene.dispatcher.end(5) == 0

    run(main)


def test_f_an_idle_dispatcher_notices_within_a_second_that_its_term_is_over() -> None:
    """Its poll says so, though there is nothing to claim."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, takes(100))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        scene.store.term = "another"
        began_at = now()
        assert await scene.ending() is Ending.SUPERSEDED
        assert now() - began_at <= 1.2

    run(main)


def test_a_drain_ends_at_the_deadline() -> None:
    """Ownership that lapses in the middle of a drain is not stretched by it."""

    async def main() -> None:
        deadline = now() + 8
        scene = Scene(deadline=deadline)
        scene.send(1, 7, takes(100))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        assert await scene.dispatcher.end(20) == 1
        assert await scene.ending() is Ending.DEADLINE
        assert now() < deadline

    run(main)


def test_the_end_is_bounded_while_the_database_is_away() -> None:
    """What could not be committed is left, and runs again under the next term."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, takes(1))
        scene.send(2, 8, takes(100))
        scene.start()
        await scene.until(lambda: scene.bot.running == 2)
        scene.inbox.away = True
        began_at = now()
        assert await scene.end(5) == 0
        assert now() - began_at < 10
        assert scene.bot.running == 0
        assert scene.row(1).state is scene.row(2).state is State.CLAIMED

    run(main)


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize(("drain_seconds", "left_seconds"), [(20.0, 4.5), (3.0, 4.5), (1.0, 2.5), (0.0, 1.5)])
def test_an_end_without_the_database_leaves_the_bot_time_for_its_last_save(
    drain_seconds: float, left_seconds: float, hangs: bool
) -> None:
    """No handler runs any more, and what has ended cannot be settled: that is not tried until the process is killed."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, takes(1))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        scene.inbox.away = True
        await asyncio.sleep(10)
        if hangs:
            scene.inbox.delay_seconds = lambda: 1000.0
        kill_at = now() + drain_seconds + DRAIN_GRACE_SECONDS
        await scene.end(drain_seconds)
        took_longer = 1.0 if hangs else 0.2  # a statement's limit, the pause between two tries
        assert kill_at - now() >= left_seconds - took_longer
        assert scene.row(1).state is State.CLAIMED

    run(main)


def test_the_database_may_come_back_during_most_of_the_drain() -> None:
    """Then what has ended is settled, and runs no second time."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, takes(1))
        scene.start()
        await scene.until(lambda: scene.bot.running == 1)
        scene.inbox.away = True
        await asyncio.sleep(10)
        ending = asyncio.create_task(scene.end(20.0))
        await asyncio.sleep(18.0)
        scene.inbox.away = False
        await ending
        assert scene.row(1).state is State.DONE

    run(main)


@pytest.mark.parametrize("drain_seconds", [0.0, 5.0, 100.0])
def test_the_end_is_bounded_while_the_database_hangs(drain_seconds: float) -> None:
    """The statement under way has its limit, others no more than a second; nothing goes on past the deadline."""

    async def main() -> None:
        deadline = now() + 8
        scene = Scene(deadline=deadline)
        scene.send(1, 7, takes(0.5))
        scene.send(2, 8, takes(100))
        scene.start()
        await scene.until(lambda: scene.bot.running == 2)
        scene.inbox.delay_seconds = lambda: 1000.0
        await asyncio.sleep(1)
        began_at = now()
        assert await scene.end(drain_seconds) == 0
        assert now() - began_at <= min(max(drain_seconds, 5.0) + 3.0, deadline + 1.0 - began_at)
        assert scene.bot.running == 0

    run(main)


def test_what_was_claimed_without_our_knowledge_goes_back_too() -> None:
    """The answer of the last claim was lost, and then the term ended: nothing is left claimed."""

    async def main() -> None:
        scene = Scene()
        scene.start()
        await asyncio.sleep(1)
        scene.inbox.lose_answers = 1
        scene.send(1, 7)
        await scene.until(lambda: scene.row(1).state is State.CLAIMED)
        assert await scene.end(5) == 1
        assert (scene.row(1).state, scene.row(1).attempts) == (State.PENDING, 0)
        assert scene.bot.runs == []

    run(main)
