"""The order of a term's life, against fakes that end when they are told to."""

import asyncio

import pytest
import telegram.error

from shared import wire
from tests.unit.worker import virtual_time
from tests.unit.worker.term_world import HANG_SECONDS, LEAD, LOOKED_SECONDS, World
from webhook_worker.bot import TASKS_SECONDS
from webhook_worker.bot_start import TokenUnknown
from webhook_worker.failures import MAX_RETRY_AFTER_SECONDS
from webhook_worker.outcomes import RetryUpdate


async def test_a_whole_term_in_its_order() -> None:
    """Dispatch before timers, handlers before the bot's stop, the word that it is over after everything."""
    world = World()
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("start")
    assert world.term.dispatches
    world.term.wake()
    assert world.term.store_along([], print) is not None
    world.term.end(wire.EndTerm(drain_seconds=7))
    assert not world.term.dispatches
    assert world.term.store_along([], print) is None
    await world.finished(task)
    assert world.events == [
        "open",
        "initialize",
        "dispatch",
        "start",
        "wake",
        "store along",
        "drain 7",
        "dispatched",
        "stop",
        "threads",
        "over",
        "close, told 1",
    ]
    assert world.told == [wire.Dispatching(), wire.TermEnded()]
    assert world.bot.tasks_seconds == TASKS_SECONDS


async def test_ends_that_are_asked_for_again_are_answered_again() -> None:
    """And at most shorten the drain: the supervisor was asked to stop meanwhile."""
    world = World()
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("start")
    world.term.end(wire.EndTerm(drain_seconds=7))
    world.term.end(wire.EndTerm(drain_seconds=9))
    world.term.end(wire.EndTerm(drain_seconds=5))
    assert "drain 7" not in world.events, "its task has not had a turn"
    await world.finished(task)
    world.term.end(wire.EndTerm(drain_seconds=9))
    assert world.told[1:] == [wire.TermEnded()] * 2
    assert [event for event in world.events if event.startswith(("drain", "shorten"))] == [
        "shorten 9",
        "shorten 5",
        "drain 5",
    ]


def test_with_persistence_everything_waits_until_the_owner_before_is_surely_gone() -> None:
    """It may still be flushing what we would load."""

    async def main() -> None:
        world = World()
        world.bot.has_persistence = True
        world.time = 50.0
        task = asyncio.create_task(world.term.lead(LEAD))
        await asyncio.sleep(LOOKED_SECONDS)
        assert world.events == ["open"]
        world.time = 100.0
        await world.until("start")
        world.term.end(wire.EndTerm(drain_seconds=0))
        await world.finished(task)

    virtual_time.run(main)


def test_without_persistence_only_timers_wait() -> None:
    """Fresh updates are dispatched at once."""

    async def main() -> None:
        world = World()
        world.time = 50.0
        task = asyncio.create_task(world.term.lead(LEAD))
        await world.until("dispatch")
        assert world.dispatcher is not None
        assert world.dispatcher.recover_at == 100.0
        await asyncio.sleep(LOOKED_SECONDS)
        assert "start" not in world.events
        world.time = 100.0
        await world.until("start")
        world.term.end(wire.EndTerm(drain_seconds=0))
        await world.finished(task)

    virtual_time.run(main)


@pytest.mark.parametrize("deadline", [False, True])
async def test_an_end_while_the_bot_comes_up_is_not_kept_waiting(deadline: bool) -> None:
    """Telegram may be away for an hour; nothing is dispatched, the bot is stopped all the same."""
    world = World()
    world.bot.initialize_waits_for = asyncio.Event()
    task = asyncio.create_task(world.term.lead(LEAD))
    await asyncio.sleep(0)
    if deadline:
        world.time = 999.5
    else:
        world.term.end(wire.EndTerm(drain_seconds=7))
    await world.finished(task)
    assert world.events == ["open", "stop", "threads", "over", "close, told 0"]
    assert world.told == [wire.TermEnded()]


@pytest.mark.parametrize("deadline", [False, True])
async def test_dispatch_begins_with_a_session_and_an_end_does_not_wait_for_one(deadline: bool) -> None:
    """A dispatcher that found none would rest for a second."""
    world = World()
    world.links.is_tried.clear()
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("initialize")
    world.links.is_tried.set()
    await world.until("dispatch")
    world.term.end(wire.EndTerm(drain_seconds=0))
    await world.finished(task)
    other = World()
    other.links.is_tried.clear()
    task = asyncio.create_task(other.term.lead(LEAD))
    await other.until("initialize")
    if deadline:
        other.time = 999.5
    else:
        other.term.end(wire.EndTerm(drain_seconds=7))
    await other.finished(task)
    assert other.events == ["open", "initialize", "stop", "threads", "over", "close, told 0"]
    assert other.told == [wire.TermEnded()]


async def test_a_session_that_does_not_close_does_not_keep_the_term_from_ending_at_its_deadline() -> None:
    """Nothing of the bot runs any more, and the supervisor kills who has not said so."""
    world = World()
    world.links.may_close.clear()
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("start")
    world.time = 999.0
    await world.until("over")
    await world.until_told(wire.TermEnded())
    assert not task.done()
    world.links.may_close.set()
    await world.finished(task)


def test_the_dispatcher_has_to_be_done_before_the_deadline_and_hears_of_extensions() -> None:
    """What is between is for the bot to stop."""

    async def main() -> None:
        world = World()
        task = asyncio.create_task(world.term.lead(LEAD))
        await world.until("start")
        assert world.dispatcher is not None
        assert world.dispatcher.deadline() == 999.5
        world.deadline.extend(2000.0)
        world.deadline.extend(1500.0)
        assert world.dispatcher.deadline() == 1999.5
        assert world.term.owned_until == 2000.0
        world.time = 1500.0
        await asyncio.sleep(LOOKED_SECONDS)
        assert not task.done()
        world.time = 1999.0
        await world.finished(task)
        assert "drain 0" in world.events
        assert world.bot.tasks_seconds == 0.75, "what jobs get is within the deadline too"

    virtual_time.run(main)


async def test_b14_a_database_that_is_away_for_the_dispatcher_is_told_while_something_is_dispatched() -> None:
    """For an owner who may be given another worker, or another owner; at the end of its term that is on its way."""
    world = World()
    assert world.term.dispatch_fault is None
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("start")
    assert world.dispatcher is not None
    assert world.term.dispatch_fault is None
    world.dispatcher.fault = "too many connections"
    assert world.term.dispatch_fault == "too many connections"
    world.term.end(wire.EndTerm(drain_seconds=0))
    assert world.term.dispatch_fault is None
    await world.finished(task)


@pytest.mark.parametrize(
    ("drained_after", "tasks_seconds", "flush_in_seconds"),
    [(0.0, 3.0, 22.5), (20.0, 1.5, 2.5), (21.5, 0.0, 1.0), (23.0, 0.0, 0.0)],
)
async def test_the_stop_of_the_bot_fits_into_what_the_supervisor_allows_after_the_drain(
    drained_after: float, tasks_seconds: float, flush_in_seconds: float
) -> None:
    """It kills then, and what is not flushed is lost: jobs get what is left, and a second is kept for post_stop."""
    world = World()
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("start")
    assert world.dispatcher is not None
    world.dispatcher.bookkeeping.clear()
    world.term.end(wire.EndTerm(drain_seconds=20))
    world.time += drained_after
    world.dispatcher.bookkeeping.set()
    await world.finished(task)
    assert (world.bot.tasks_seconds, world.bot.flush_in_seconds) == (tasks_seconds, flush_in_seconds)


async def test_b31_bookkeeping_without_a_database_does_not_cost_the_worker_its_life() -> None:
    """No handler runs: the term is over in time, whatever the dispatcher still tries to write down."""
    world = World()
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("start")
    assert world.dispatcher is not None
    world.dispatcher.bookkeeping.clear()
    world.time = 999.0
    await world.until("over")
    world.time = 1000.0
    await world.until_told(wire.TermEnded())
    world.dispatcher.bookkeeping.set()
    await world.finished(task)
    assert world.told.count(wire.TermEnded()) == 1


def test_x_far_from_the_deadline_the_bookkeeping_is_waited_for() -> None:
    """What goes back to the queue is there before anybody is told that the term is over."""

    async def main() -> None:
        world = World()
        task = asyncio.create_task(world.term.lead(LEAD))
        await world.until("start")
        assert world.dispatcher is not None
        world.dispatcher.bookkeeping.clear()
        world.term.end(wire.EndTerm(drain_seconds=0))
        await asyncio.sleep(LOOKED_SECONDS)
        assert "stop" not in world.events
        world.dispatcher.bookkeeping.set()
        await world.finished(task)

    virtual_time.run(main)


@pytest.mark.parametrize("step", ["initialize", "start"])
async def test_a_bot_that_does_not_come_up_fails_the_term(step: str) -> None:
    """The reason is told without secrets; the dispatcher has ended, the bot was stopped; the worker lives on."""
    world = World()
    world.bot.failures[step] = ValueError("a secret\nsecond line")
    await asyncio.wait_for(world.term.lead(LEAD), HANG_SECONDS)
    assert world.told[-1] == wire.LeadFailed("ValueError: a *** second line")
    is_told = int(step == "start")
    assert world.events[-4:] == ["stop", "threads", "over", f"close, told {is_told}"]
    assert ("dispatched" in world.events) == (step == "start")


@pytest.mark.parametrize(
    ("error", "transient", "told_seconds"),
    [
        (telegram.error.TimedOut(), True, None),
        (ConnectionRefusedError("no database"), True, None),
        (RetryUpdate("the shop is closed", 60), True, 60.0),
        (RetryUpdate("for ever", 1e9), True, MAX_RETRY_AFTER_SECONDS),
        (telegram.error.BadRequest("command is too long"), False, None),
        (RuntimeError("the shop is closed"), False, None),
    ],
)
async def test_b31_a_bot_that_found_something_away_says_that_it_may_come_back(
    error: Exception, transient: bool, told_seconds: float | None
) -> None:
    """And when, if it was told. The supervisor tries again then, and does not take it for a crash."""
    world = World()
    world.bot.failures["initialize"] = error
    await asyncio.wait_for(world.term.lead(LEAD), HANG_SECONDS)
    failed = world.told[-1]
    assert isinstance(failed, wire.LeadFailed)
    assert (failed.transient, failed.retry_after_seconds) == (transient, told_seconds)
    assert not failed.of_get_me


@pytest.mark.parametrize("seconds", [60, None])
async def test_b23_a_bot_that_was_told_to_wait_before_getme_was_answered_says_so(seconds: int | None) -> None:
    """The supervisor asks it as well, and is to wait too. What was not told to wait was merely away."""
    world = World()
    world.bot.is_identified = False
    world.bot.failures["initialize"] = RetryUpdate("getMe", seconds)
    await asyncio.wait_for(world.term.lead(LEAD), HANG_SECONDS)
    failed = world.told[-1]
    assert isinstance(failed, wire.LeadFailed)
    assert failed.of_get_me == (seconds is not None)


async def test_b04_nothing_begins_in_a_process_that_stood_still_past_its_deadline() -> None:
    """It goes on with what it waited for before anybody has looked at the deadline: timers would run beside another owner's."""
    world = World()
    task = asyncio.create_task(world.term.lead(wire.Lead(term="a", deadline=1000.0, recover_at=150.0)))
    await world.until("dispatch")
    world.time = 1001.0
    await world.finished(task)
    assert "start" not in world.events
    late = World()
    late.time = 1001.0
    await asyncio.wait_for(late.term.lead(LEAD), HANG_SECONDS)
    assert "initialize" not in late.events


def test_b32_no_job_begins_in_a_process_that_stood_still_past_its_deadline() -> None:
    """Its scheduler may find one due before anybody has looked. Who refuses it ends the term, since nobody makes up for it."""

    async def main() -> None:
        world = World()
        task = asyncio.create_task(world.term.lead(LEAD))
        await world.until("start")
        assert world.bot.may_begin_job()
        world.time = 999.3
        assert not world.bot.may_begin_job()
        world.deadline.extend(2000.0)
        await world.finished(task)
        assert world.told[-1] == wire.TermEnded()

    virtual_time.run(main)


async def test_b24_a_refused_token_is_told_before_the_failure() -> None:
    """The supervisor must know why before it decides about a restart."""
    world = World()
    world.bot.failures["initialize"] = TokenUnknown()
    await asyncio.wait_for(world.term.lead(LEAD), HANG_SECONDS)
    reason = f"InvalidToken: {TokenUnknown()}"
    assert world.told == [wire.TokenRefused(), wire.LeadFailed(reason)]


async def test_hooks_that_raise_at_the_stop_do_not_keep_the_term_from_ending() -> None:
    """The bot is stopped all the same."""
    world = World()
    world.bot.failures["stop"] = ExceptionGroup("hooks", [ValueError("x")])
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("start")
    world.term.end(wire.EndTerm(drain_seconds=0))
    await world.finished(task)
    assert world.told[-1] == wire.TermEnded()


@pytest.mark.parametrize("trouble", ["", "fails", "hangs", "no time left"])
async def test_a_bug_in_the_dispatcher_comes_out(trouble: str) -> None:
    """The process ends by it; nobody is told that the term ended cleanly. Persistence gets what the updates have left, if
    it can take it: they are done, and nobody runs them again."""
    world = World()
    if trouble == "fails":
        world.bot.failures["save"] = OSError("disk full")
    if trouble == "hangs":
        world.bot.saves.clear()
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("start")
    assert world.dispatcher is not None
    world.dispatcher.failure = ZeroDivisionError()
    world.term.end(wire.EndTerm(drain_seconds=0))
    if trouble == "no time left":
        world.time = 103.0
    with pytest.raises(ZeroDivisionError):
        await world.finished(task)
    assert ("save" in world.events) == (trouble != "no time left")
    assert "over" not in world.events
    assert world.told == [wire.Dispatching()]


async def test_a_bug_in_the_drain_comes_out() -> None:
    """The dispatcher does not end by it: it would run for as long as the term is confirmed, and the log say nothing."""
    world = World()
    task = asyncio.create_task(world.term.lead(LEAD))
    await world.until("start")
    assert world.dispatcher is not None
    world.dispatcher.drain_failure = ZeroDivisionError()
    world.term.end(wire.EndTerm(drain_seconds=0))
    with pytest.raises(ZeroDivisionError):
        await world.finished(task)
    assert "save" in world.events
    assert "over" not in world.events


async def test_an_end_that_is_read_together_with_the_beginning_ends_that_term() -> None:
    """Before its task has taken a step: nothing of the bot has begun, and the lifeline is told."""
    world = World()
    life = world.term.lead(LEAD)
    assert world.term.owned_until == LEAD.deadline
    world.term.end(wire.EndTerm(drain_seconds=0))
    await world.finished(asyncio.create_task(life))
    assert world.told == [wire.TermEnded()]
    assert world.events == ["open", "stop", "threads", "over", "close, told 0"]


async def test_it_leads_once() -> None:
    """A second Lead, or one after the end was asked for, begins nothing."""
    world = World()
    world.term.end(wire.EndTerm(drain_seconds=0))
    await world.term.lead(LEAD)
    assert world.told == [wire.TermEnded()]
    assert set(world.events) == {"over"}, (
        "the lifeline has seen that Lead, and kills at its deadline otherwise"
    )
    other = World()
    task = asyncio.create_task(other.term.lead(LEAD))
    await other.until("start")
    await other.term.lead(wire.Lead(term="b", deadline=9000.0, recover_at=0.0))
    assert other.events.count("initialize") == 1
    other.term.end(wire.EndTerm(drain_seconds=0))
    await other.finished(task)
