"""BOT_MODE=polling within a term: from when updates are fetched, and until when."""

import asyncio

import pytest

from shared import wire
from tests.unit.worker import virtual_time
from tests.unit.worker.term_world import HANG_SECONDS, LEAD, LOOKED_SECONDS, World

POLLING = wire.Lead(term="a", deadline=1000.0, recover_at=100.0, poll=True)


async def test_a28_updates_are_fetched_only_where_lead_says_so_and_no_longer_than_the_term() -> None:
    """The poll is over before the bot stops, and long before anybody is told that the term is."""
    world = World()
    task = asyncio.create_task(world.term.lead(POLLING))
    await world.until("poll")
    await world.until("start")
    assert "poll ended" not in world.events
    world.term.end(wire.EndTerm(drain_seconds=7))
    await world.until("poll ended")
    await world.finished(task)
    assert world.events.index("dispatch") < world.events.index("poll")
    assert world.events.index("poll ended") < world.events.index("stop")
    assert world.told == [wire.Dispatching(), wire.TermEnded()]

    other = World()
    task = asyncio.create_task(other.term.lead(LEAD))
    await other.until("start")
    other.term.end(wire.EndTerm(drain_seconds=0))
    await other.finished(task)
    assert "poll" not in other.events


def test_a28_an_owner_polls_only_when_no_earlier_one_can() -> None:
    """A frozen owner's call may still wait at Telegram until its deadline; the one that ends first begins never."""

    async def main() -> None:
        world = World()
        later = wire.Lead(term="a", deadline=1000.0, recover_at=150.0, poll=True)
        task = asyncio.create_task(world.term.lead(later))
        await world.until("dispatch")
        await asyncio.sleep(LOOKED_SECONDS)
        assert "poll" not in world.events
        world.time = 150.0
        await world.until("poll")
        world.term.end(wire.EndTerm(drain_seconds=0))
        await world.finished(task)

        other = World()
        task = asyncio.create_task(other.term.lead(later))
        await other.until("dispatch")
        other.term.end(wire.EndTerm(drain_seconds=0))
        await other.finished(task)
        assert "poll" not in other.events

    virtual_time.run(main)


async def test_a28_nothing_is_fetched_near_the_deadline() -> None:
    """By then the next owner may begin: the term ends of its own accord, and the poll with it."""
    world = World()
    task = asyncio.create_task(world.term.lead(POLLING))
    await world.until("poll")
    world.time = 999.5
    await world.until("poll ended")
    await world.finished(task)


async def test_a_poll_that_fails_ends_the_term_and_is_raised() -> None:
    """Only a bug of ours does that: the worker ends with it, and is replaced."""
    world = World()
    world.poll_fails = True
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(world.term.lead(POLLING), HANG_SECONDS)
    assert world.events.index("dispatched") < world.events.index("save")
