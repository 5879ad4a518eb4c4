"""What becomes of updates whose handlers fail, wait, hang, or are put off by an outage."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from tests.unit.worker.dispatch_scene import Scene, Script, ignores_cancellation_for, takes
from tests.unit.worker.virtual_time import now, run
from webhook_worker import code_place, lanes
from webhook_worker.flight import HandlersStuck
from webhook_worker.lanes import State
from webhook_worker.outage import ASK_SECONDS
from webhook_worker.outcomes import Done, Failed, Outcome, Transient
from webhook_worker.pace import REFUSED_SECONDS


def fails_until(moment: float, seconds: float = 0.01) -> Script:
    """Transient failures until then."""

    async def script(attempt: int) -> Outcome:
        await asyncio.sleep(seconds)
        return Transient("NetworkError: away") if now() < moment else Done()

    return script


def place_of(function: Callable[..., object], *, line: int) -> str:
    """Of so many lines below its first one."""
    return code_place.shown(inspect.getfile(function), inspect.getsourcelines(function)[1] + line)


def test_a_failure_is_a_dead_letter_with_its_traceback_and_the_lane_goes_on() -> None:
    """Kept for the operator, no obstacle for the chat."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, takes(0.01, Failed("Traceback (most recent call last):\nValueError: no\x00pe")))
        scene.send(2, 7)
        scene.start()
        await scene.until_quiet()
        row = scene.row(1)
        assert (row.state, row.body) == (State.DEAD, b"1")
        assert row.error == "Traceback (most recent call last):\nValueError: no\\x00pe"
        assert scene.row(2).state is State.DONE
        await scene.end()

    run(main)


def test_b21_what_is_completed_is_counted_once_it_is_committed() -> None:
    """The supervisor takes it for a sign that the bot works: no failure, no retry, nothing that is given back counts."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 1, takes(0.01, Failed("Traceback")))
        scene.send(2, 2, takes(0.01, Transient("away", 1000.0)))
        scene.send(3, 3, takes(1000))
        scene.send(4, 4, takes(5))
        scene.start()
        await scene.until(lambda: scene.bot.running == 2)
        scene.inbox.away = True
        await scene.until(lambda: scene.bot.running == 1)
        await asyncio.sleep(3)
        assert scene.dispatcher.completed == 0
        scene.inbox.away = False
        await scene.until(lambda: scene.row(4).state is State.DONE)
        assert await scene.end() == 1
        assert scene.dispatcher.completed == 1

    run(main)


def test_a_transient_failure_keeps_the_lane_waiting_and_costs_no_attempt() -> None:
    """Again with backoff; nobody overtakes it in its lane, other lanes go on; more starts than MAX_ATTEMPTS are fine."""

    async def main() -> None:
        scene = Scene(max_attempts=2)
        scene.send(1, 7, fails_until(now() + 60))
        scene.send(2, 7)
        scene.send(3, 8)
        scene.start()
        await scene.until(lambda: scene.row(3).state is State.DONE, 1.0)
        await scene.until_quiet()
        assert [run.update_id for run in scene.bot.runs if run.update_id != 3][-1] == 2
        runs = scene.bot.runs_of(1)
        assert 5 <= len(runs) <= 12
        assert [run.attempt for run in runs] == list(range(1, len(runs) + 1))
        assert scene.row(1).state is State.DONE
        assert scene.row(1).attempts == 1
        await scene.end()

    run(main)


def test_b24_a_refused_token_is_not_hammered_and_nothing_is_lost() -> None:
    """A backlog in a hundred chats: one update tries now and then. When the token is good again, all go on soon."""

    async def main() -> None:
        scene = Scene(concurrency=4)
        refused_until = now() + 600

        async def calls(attempt: int) -> Outcome:
            await asyncio.sleep(0.05)
            return Done() if now() >= refused_until else Transient("Unauthorized", is_token_refused=True)

        scene.bot.default = calls
        for number in range(100):
            scene.send(number, number)
        scene.start()
        await asyncio.sleep(590)
        assert 15 <= len(scene.bot.runs) <= 4 + 590 / REFUSED_SECONDS
        took_seconds = await scene.until_quiet() - 10
        assert took_seconds <= REFUSED_SECONDS + lanes.RETRY_MAX_SECONDS + 5
        assert all(row.attempts <= 1 for row in scene.store.rows.values())
        await scene.end()

    run(main)


def test_telegrams_retry_after_is_obeyed() -> None:
    """Never earlier than told, also when others recover meanwhile; not much later."""

    async def main() -> None:
        scene = Scene()

        async def flooded(attempt: int) -> Outcome:
            return Transient("RetryAfter", 40.0) if attempt == 1 else Done()

        scene.send(1, 7, flooded)
        scene.send(2, 8, fails_until(now() + 5))
        scene.send(3, 9, fails_until(now() + 5))
        scene.start()
        await scene.until_quiet()
        first, second = scene.bot.runs_of(1)
        assert 40.0 <= second.began_at - first.began_at <= 42.0
        await scene.end()

    run(main)


@pytest.mark.parametrize(
    ("lanes", "outage_seconds"),
    # Not all in one phase of the questions: the worst is to come back as one of them fails.
    [(1, 3600), (1, 3600.3), (1, 3601), (2, 3600.3), (5, 1800.3), (20, 900), (300, 120)],
)
def test_b31_an_outage_of_telegram_loses_nothing_and_is_over_soon(lanes: int, outage_seconds: float) -> None:
    """Nothing is dead-lettered; resumed within 3 s, however few wait; neither handlers nor Telegram are hammered."""

    async def main() -> None:
        scene = Scene(concurrency=32)
        back_at = now() + outage_seconds
        scene.bot.default = fails_until(back_at, 0.2)
        scene.telegram = fails_until(back_at, 0.05)
        for update_id in range(2 * lanes):
            scene.send(update_id, update_id % lanes)
        scene.start()
        await asyncio.sleep(back_at - now())
        assert len(scene.bot.runs) < (10 + outage_seconds / 15) * lanes, "hammered"
        assert outage_seconds / ASK_SECONDS - 5 <= len(scene.asked_at) <= outage_seconds / ASK_SECONDS + 1
        done = [State.DONE]
        resumed = await scene.until(lambda: any(row.state in done for row in scene.store.rows.values()))
        assert resumed <= 3.0
        everything = await scene.until_quiet()
        assert everything <= 10.0
        assert all(row.state is State.DONE for row in scene.store.rows.values())
        await scene.end()

    run(main)


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "swallows"])
def test_b31_what_began_in_the_outage_and_fails_after_it_does_not_wait(hangs: bool) -> None:
    """A call that hangs when Telegram comes back is given up seconds later: of the time after that, 3 s."""

    async def main() -> None:
        scene = Scene()
        back = asyncio.Event()

        async def times_out(attempt: int) -> Outcome:
            if back.is_set():
                return Done()
            await asyncio.sleep(20)
            return Transient("TimedOut")

        async def is_away(question: int) -> Outcome:
            if hangs and not back.is_set():
                await asyncio.sleep(1000)
            return Done() if back.is_set() else Transient("ConnectError")

        scene.bot.default, scene.telegram = times_out, is_away
        scene.send(1, 7)
        scene.start()
        await asyncio.sleep(600)
        await scene.until(lambda: scene.bot.running == 0)
        await scene.until(lambda: scene.bot.running == 1)
        back.set()
        await scene.until_quiet()
        *_, failed, done = scene.bot.runs
        assert failed.ended_at is not None
        assert done.began_at - failed.ended_at <= 3.0
        await scene.end()

    run(main)


def test_b31_a_named_time_outlasts_the_outage() -> None:
    """The return of Telegram lets nobody go who was told a time; and getMe is not asked before its own."""

    async def main() -> None:
        scene = Scene()
        back_at = now() + 60

        async def is_flooded(question: int) -> Outcome:
            if now() < back_at:
                return Transient("NetworkError")
            return Transient("RetryAfter", 25.0) if now() < back_at + 20 else Done()

        async def flooded(attempt: int) -> Outcome:
            return Transient("RetryAfter", 300.0) if attempt == 1 else Done()

        scene.telegram = is_flooded
        scene.send(1, 7, flooded)
        scene.send(2, 8, fails_until(back_at + 20))
        scene.start()
        await scene.until_quiet()
        first, second = scene.bot.runs_of(1)
        assert 300.0 <= second.began_at - first.began_at <= 302.0
        told_at = [asked_at for asked_at in scene.asked_at if asked_at >= back_at]
        assert told_at[1] - told_at[0] >= 25.0
        await scene.end()

    run(main)


def test_b31_an_update_with_trouble_of_its_own_is_not_hammered() -> None:
    """Telegram answers: another service is away, and nothing tells when it is back but the update's own retries."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, fails_until(now() + 3000))
        scene.start()
        await scene.until_quiet()
        runs = len(scene.bot.runs_of(1))
        assert 100 < runs < 10 + 3000 / 15
        assert len(scene.asked_at) <= runs
        await scene.end()

    run(main)


def test_b31_nobody_asks_once_the_term_ends() -> None:
    """During the drain nothing is claimed; after it, it is the next owner's to know."""

    async def main() -> None:
        scene = Scene()
        scene.telegram = takes(0.05, Transient("away"))
        scene.send(2, 8, fails_until(now() + 20))
        scene.send(3, 9, takes(50))
        scene.start()
        await asyncio.sleep(10)
        asked = len(scene.asked_at)
        assert asked > 3
        await scene.end(30)
        await asyncio.sleep(60)
        assert len(scene.asked_at) == asked

    run(main)


def test_b31_a_bot_that_is_well_asks_nothing() -> None:
    """No update fails transiently: getMe is no part of the traffic."""

    async def main() -> None:
        scene = Scene()
        for update_id in range(100):
            scene.send(update_id, update_id % 7, takes(0.01, Failed("Traceback")) if update_id % 3 else None)
        scene.start()
        await scene.until_quiet()
        await asyncio.sleep(600)
        assert scene.asked_at == []
        await scene.end()

    run(main)


def test_one_lane_that_fails_for_ever_is_not_hammered_because_others_are_well() -> None:
    """Successes of updates that never failed bring nobody's retry forward."""

    async def main() -> None:
        scene = Scene()
        scene.send(0, 0, fails_until(now() + 7200))
        scene.start()
        for update_id in range(1, 600):
            scene.send(update_id, 1 + update_id % 5)
            await asyncio.sleep(1)
        assert len(scene.bot.runs_of(0)) < 50
        await scene.end()

    run(main)


def test_what_fails_transiently_for_a_day_is_a_dead_letter() -> None:
    """Telegram itself would have given it up."""

    async def main() -> None:
        scene = Scene()
        scene.send(1, 7, fails_until(now() + 1e9))
        scene.send(2, 7)
        scene.row(1).received_at -= 24 * 3600 - 100
        scene.row(1).retries = 3_800
        scene.start()
        await scene.until(lambda: scene.row(1).state is State.DEAD, 200)
        assert now() - scene.row(1).received_at >= 24 * 3600
        assert "given up, 24 h and more" in str(scene.row(1).error)
        await scene.until(lambda: scene.row(2).state is State.DONE, 5)
        await scene.end()

    run(main)


def test_b31_an_outage_after_a_weekend_without_a_worker_dead_letters_nothing() -> None:
    """All of the backlog is older than a day by then, and one time-out would be the end of it."""

    async def main() -> None:
        scene = Scene()
        outage_ends_at = now() + 3600
        for update_id in range(1, 6):
            scene.send(update_id, update_id % 3, fails_until(outage_ends_at))
            scene.row(update_id).received_at -= 3 * 24 * 3600
        scene.start()
        await scene.until(lambda: all(scene.row(n).state is State.DONE for n in range(1, 6)), 3700)
        await scene.end()

    run(main)


def test_a_handler_that_takes_too_long_is_cancelled_and_a_dead_letter() -> None:
    """HANDLER_TIMEOUT_SECONDS: an error of the update; its lane goes on."""

    async def main() -> None:
        scene = Scene(handler_timeout_seconds=30.0)
        scene.send(1, 7, takes(1000))
        scene.send(2, 7)
        scene.start()
        await scene.until_quiet()
        (cut,) = scene.bot.runs_of(1)
        assert cut.ended_at is not None
        assert 30.0 <= cut.ended_at - cut.began_at < 31.0
        assert scene.row(1).state is State.DEAD
        assert "longer than 30 s (HANDLER_TIMEOUT_SECONDS)" in str(scene.row(1).error)
        assert scene.row(2).state is State.DONE
        await scene.end()

    run(main)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (takes(0.01, Failed("Traceback:\n  ...\nValueError: no pie\n")), "ValueError: no pie"),
        (takes(0.01, Failed("Traceback\nValueError: " + "x" * 9000)), "ValueError: " + "x" * 488),
        (
            takes(1000),
            "the handler took longer than 30 s (HANDLER_TIMEOUT_SECONDS): waited at "
            f"{place_of(takes, line=4)} in script",
        ),
        (
            ignores_cancellation_for(31, Failed("Traceback\nKeyError: 'late'")),
            "the handler took longer than 30 s (HANDLER_TIMEOUT_SECONDS), and ended with: KeyError: 'late'",
        ),
    ],
    ids=["raises", "raises much", "takes too long", "takes too long and raises"],
)
def test_the_line_of_a_dead_letter_says_why(script: Script, reason: str) -> None:
    """In one line: of a time-out the log has no other word."""

    async def main() -> None:
        scene = Scene(handler_timeout_seconds=30.0)
        scene.send(1, 7, script)
        with capture_logs() as lines:
            scene.start()
            await scene.until_quiet()
            await scene.end()
        [line] = [line for line in lines if line["event"] == "update is a dead letter"]
        assert line == {
            "event": "update is a dead letter",
            "tag": "DISPATCH",
            "log_level": "error",
            "update_id": 1,
            "starts": 1,
            "reason": reason,
        }

    run(main)


def test_a_handler_that_was_done_when_its_time_was_over_is_done() -> None:
    """It answered its cancellation by finishing the work."""

    async def main() -> None:
        scene = Scene(handler_timeout_seconds=30.0)

        async def finishes(attempt: int) -> Outcome:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
            return Done()

        scene.send(1, 7, finishes)
        scene.start()
        await scene.until_quiet()
        assert scene.row(1).state is State.DONE
        await scene.end()

    run(main)


def test_x_a_handler_that_ignores_its_cancellation_never_runs_twice_at_one_time() -> None:
    """Its lane stays blocked until it has really ended; others go on; then it is a dead letter."""

    async def main() -> None:
        scene = Scene(handler_timeout_seconds=30.0, concurrency=2)
        scene.send(1, 7, ignores_cancellation_for(200, Failed("Traceback: too late")))
        scene.send(2, 7)
        scene.start()
        for update_id in range(3, 20):
            scene.send(update_id, 8)
        await asyncio.sleep(100)
        row = scene.row(1)
        assert row.state is State.CLAIMED
        assert row.attempts == 5, "not to be started again if the process ends now"
        assert "ignored its cancellation" in str(row.error)
        assert scene.row(2).state is State.PENDING
        assert all(scene.row(update_id).state is State.DONE for update_id in range(3, 20))
        await scene.until_quiet()
        assert scene.row(1).state is State.DEAD
        assert scene.row(2).state is State.DONE
        assert len(scene.bot.runs_of(1)) == 1
        await scene.end()

    run(main)


def test_b25_handlers_that_ignore_their_cancellation_in_every_slot_end_the_process() -> None:
    """Nothing of what they ran is run again: the next owner finds it condemned, and dead-letters it."""

    async def main() -> None:
        scene = Scene(handler_timeout_seconds=30.0, concurrency=2)
        scene.send(1, 7, ignores_cancellation_for(300))
        scene.send(2, 8, ignores_cancellation_for(300))
        scene.send(3, 9)
        scene.start()
        with pytest.raises(ExceptionGroup) as caught:
            await scene.ending()
        assert caught.group_contains(HandlersStuck)
        successor = scene.crash()
        successor.start()
        await successor.until_quiet()
        assert scene.row(1).state is scene.row(2).state is State.DEAD
        assert [run.update_id for run in successor.bot.runs] == [3]
        await successor.end()

    run(main)


def test_a_bug_ends_the_dispatch_and_is_nobodys_dead_letter() -> None:
    """A handler must report; one that raises is broken, and so is the process."""

    async def main() -> None:
        scene = Scene()

        async def raises(attempt: int) -> Outcome:
            raise RuntimeError("not initialised")

        scene.send(1, 7, raises)
        scene.start()
        with pytest.raises(ExceptionGroup) as caught:
            await scene.ending()
        assert caught.group_contains(RuntimeError)
        assert scene.row(1).state is State.CLAIMED

    run(main)


def test_a_bug_in_the_question_to_telegram_ends_the_dispatch() -> None:
    """It is no answer, and the process is replaced, with the traceback in its log."""

    async def main() -> None:
        scene = Scene()

        async def raises(question: int) -> Outcome:
            raise TypeError

        scene.telegram = raises
        scene.send(1, 7, fails_until(now() + 100))
        scene.start()
        with pytest.raises(ExceptionGroup) as caught:
            await scene.ending()
        assert caught.group_contains(TypeError)

    run(main)


def test_b31_a_failure_beside_a_claim_ahead_of_time_does_not_end_the_dispatch() -> None:
    """What is claimed ahead, and the failure that says that nothing more may be, come in one exchange."""

    async def main() -> None:
        scene = Scene(concurrency=4)
        switch_at = now() + 200.0

        async def recovers(attempt: int) -> Outcome:
            if attempt == 1:
                return Transient("away")
            await asyncio.sleep(switch_at - now())
            return Done()

        async def fails_late(attempt: int) -> Outcome:
            if attempt == 1:
                await asyncio.sleep(switch_at + 0.01 - now())
            return Transient("away") if now() < switch_at + 100 else Done()

        async def fails(attempt: int) -> Outcome:
            return Transient("away") if now() < switch_at + 100 else Done()

        scene.send(1, 1, recovers)
        scene.send(2, 2, fails_late)
        scene.send(3, 3, fails)
        scene.start()
        await scene.until_quiet()
        assert {row.state for row in scene.store.rows.values()} == {State.DONE}
        await scene.end()

    run(main)
