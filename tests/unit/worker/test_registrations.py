"""The shared look-up of registrations: who waits for which, how often it is made, and what a failure means."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from shared.database import DatabaseAway
from shared.secret import digest
from webhook_worker.registrations import LookupFailed, Registrations
from webhook_worker.verify import Registration, Standing, registration_of

OWN = registration_of("p" * 16, "s" * 16)
OTHER = Registration(digest(b"q" * 16), digest(b"t" * 16), Standing.RECORDED)


class World:
    """A clock that moves when somebody sleeps, and a database that answers when it is told to."""

    def __init__(self, max_waiting: int = 200) -> None:
        self.time = 100.0
        self.fetches: list[tuple[float, asyncio.Future[Sequence[Registration]]]] = []
        self.began = asyncio.Event()
        self.registrations = Registrations(
            OWN, self.fetch, clock=lambda: self.time, sleep=self.sleep, max_waiting=max_waiting
        )

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)

    async def fetch(self) -> Sequence[Registration]:
        answer: asyncio.Future[Sequence[Registration]] = asyncio.get_running_loop().create_future()
        self.fetches.append((self.time, answer))
        self.began.set()
        return await answer

    async def next_fetch(self) -> asyncio.Future[Sequence[Registration]]:
        await asyncio.wait_for(self.began.wait(), 10)
        self.began.clear()
        return self.fetches[-1][1]


async def test_all_who_wait_share_one_lookup() -> None:
    """A burst of requests is one statement."""
    world = World()
    waiting = [asyncio.create_task(world.registrations.refresh()) for _ in range(50)]
    (await world.next_fetch()).set_result([OTHER])
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert len(world.fetches) == 1
    assert world.registrations.known == (OWN, OTHER)


async def test_b28_who_comes_during_a_lookup_waits_for_the_next() -> None:
    """Its registration may have been recorded after the one under way took its snapshot."""
    world = World()
    first = asyncio.create_task(world.registrations.refresh())
    answer = await world.next_fetch()
    late = asyncio.create_task(world.registrations.refresh())
    await asyncio.sleep(0)
    answer.set_result([])
    await asyncio.wait_for(first, 10)
    assert not late.done()
    (await world.next_fetch()).set_result([OTHER])
    await asyncio.wait_for(late, 10)
    assert OTHER in world.registrations.known


async def test_b29_lookups_begin_at_most_once_a_second() -> None:
    """A flood of forged requests costs one statement a second."""
    world = World()
    for _ in range(5):
        waiting = asyncio.create_task(world.registrations.refresh())
        (await world.next_fetch()).set_result([])
        await asyncio.wait_for(waiting, 10)
    times = [time for time, _ in world.fetches]
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(times))


async def test_no_more_than_the_bound_wait() -> None:
    """The rest is told at once that it is not known."""
    world = World(max_waiting=3)
    waiting = [asyncio.create_task(world.registrations.refresh()) for _ in range(3)]
    answer = await world.next_fetch()
    with pytest.raises(LookupFailed):
        await world.registrations.refresh()
    answer.set_result([])
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    # And there is room again.
    again = asyncio.create_task(world.registrations.refresh())
    (await world.next_fetch()).set_result([])
    await asyncio.wait_for(again, 10)


async def test_a_failed_lookup_is_said_to_all_who_wait_and_changes_nothing() -> None:
    """The request gets 503; the next look-up may succeed."""
    world = World()
    waiting = [asyncio.create_task(world.registrations.refresh()) for _ in range(3)]
    (await world.next_fetch()).set_exception(DatabaseAway("connection refused"))
    for failed in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10):
        assert isinstance(failed, LookupFailed)
        assert "connection refused" in str(failed)
    assert world.registrations.known == (OWN,)


async def test_our_own_registration_stays_ours() -> None:
    """Also when the database has it, and calls it superseded by somebody else's."""
    world = World()
    waiting = asyncio.create_task(world.registrations.refresh())
    superseded = Registration(OWN.path_hash, OWN.secret_hash, Standing.SUPERSEDED)
    (await world.next_fetch()).set_result([OTHER, superseded])
    await asyncio.wait_for(waiting, 10)
    assert world.registrations.known == (OWN, OTHER)


async def test_what_is_gone_from_the_database_is_not_known_any_more() -> None:
    """A secret that was rotated away is refused in the end."""
    world = World()
    for rows in ([OTHER], []):
        world.registrations.refresh_soon()
        (await world.next_fetch()).set_result(rows)
        async with asyncio.timeout(10):
            while len(world.registrations.known) != 1 + len(rows):
                await asyncio.sleep(0)
    assert world.registrations.known == (OWN,)


async def test_what_was_looked_up_is_fresh_for_seconds_and_a_failure_does_not_renew_it() -> None:
    """Counted from the begin of the look-up, since that is what it saw."""
    world = World()
    assert not world.registrations.is_fresh
    waiting = asyncio.create_task(world.registrations.refresh())
    answer = await world.next_fetch()
    world.time += 4.0
    answer.set_result([OTHER])
    await asyncio.wait_for(waiting, 10)
    assert world.registrations.is_fresh
    waiting = asyncio.create_task(world.registrations.refresh())
    (await world.next_fetch()).set_exception(DatabaseAway("connection refused"))
    with pytest.raises(LookupFailed):
        await asyncio.wait_for(waiting, 10)
    assert world.registrations.is_fresh
    world.time += 1.5
    assert not world.registrations.is_fresh


async def test_a_waiting_request_that_goes_away_takes_nobody_along() -> None:
    """The look-up belongs to all of them."""
    world = World()
    gone, stays = (asyncio.create_task(world.registrations.refresh()) for _ in range(2))
    answer = await world.next_fetch()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    answer.set_result([OTHER])
    await asyncio.wait_for(stays, 10)
