"""What is true of an inbox: run on the model in memory, and on Postgres."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from typing import Protocol

import pytest

from tests.models.inbox import DAY_SECONDS, Row
from webhook_worker import lanes
from webhook_worker.claim_plan import Batch, ClaimRequest, Sweep
from webhook_worker.inbox import Arrivals, Inbox, Superseded
from webhook_worker.ingest import Row as Arrived
from webhook_worker.lanes import Claimed, Settlement, State, Verdict

DEAD = Verdict(State.DEAD, error="Traceback: it broke")
RETRY = Verdict(State.PENDING, refund=1, is_retry=True, retry_seconds=30.0, error="TimedOut")
TOLD = Verdict(State.PENDING, refund=1, is_retry=True, retry_seconds=30.0, is_told=True, error="RetryAfter")


class World(Protocol):
    """An inbox, and hands to arrange it with."""

    inbox: Inbox
    term: str

    async def insert(
        self, update_id: int, lane: int | None, body: bytes = b"{}", *, seq: int | None = None
    ) -> int | None:
        """Stores an update as ingest does; None when its key is there. `seq`: it was drawn some time ago."""
        ...

    async def row(self, seq: int) -> Row | None:
        """The row as it is; only what does not depend on the clock."""
        ...

    async def begin_term(self, term: str) -> None:
        """What the lease does when it begins a term."""
        ...

    async def end_term(self) -> None:
        """What the lease does at a clean end."""
        ...

    async def age(self, seq: int, seconds: float) -> None:
        """As if everything about the row had happened so much earlier."""
        ...


def settlements(claimed: Iterable[Claimed], verdict: Verdict = lanes.DONE) -> list[Settlement]:
    return [Settlement(one.seq, one.starts, verdict) for one in claimed]


async def exchange(
    world: World,
    settled: Iterable[Settlement] = (),
    *,
    free: int = 10,
    known: Iterable[int] = (),
    ahead: int = 0,
    sweep: Sweep | None = None,
) -> Batch:
    request = ClaimRequest(free, sweep or Sweep(), list(known), ahead)
    batch = await world.inbox.exchange(world.term, list(settled), request)
    assert batch is not None
    return batch


async def claim(world: World, *, free: int = 10, known: Iterable[int] = (), ahead: int = 0) -> list[int]:
    batch = await exchange(world, free=free, known=known, ahead=ahead)
    return [claimed.update_id for claimed in batch.claimed]


async def settle(world: World, claimed: Iterable[Claimed], verdict: Verdict = lanes.DONE) -> None:
    await world.inbox.exchange(world.term, settlements(claimed, verdict), None)


async def insert(
    world: World, update_id: int, lane: int | None, body: bytes = b"{}", *, seq: int | None = None
) -> int:
    stored = await world.insert(update_id, lane, body, seq=seq)
    assert stored is not None
    return stored


async def row(world: World, seq: int) -> Row:
    found = await world.row(seq)
    assert found is not None
    return found


class Coming(Arrivals):
    """Remembers which of them were new."""

    def __init__(self, rows: list[Arrived]) -> None:
        self.new: list[int] = []
        super().__init__(rows, self.new.extend, asyncio.get_running_loop().create_future())


def coming(*updates: tuple[int, int | None, bytes]) -> Coming:
    rows = [Arrived(*update, tell=lambda reason: None) for update in updates]
    return Coming(rows)


async def claimed_one(world: World, update_id: int) -> Claimed:
    await insert(world, update_id, 7)
    (claimed,) = (await exchange(world)).claimed
    return claimed


async def crash(world: World) -> str:
    """The owner is gone without a word, another begins; returns the new term."""
    term = str(uuid.uuid4())
    await world.begin_term(term)
    world.term = term
    return term


class InboxContract:
    """Each test is given a world with a term and an empty inbox."""

    async def test_a_claim_takes_the_head_of_each_lane_and_no_more_than_is_free(self, world: World) -> None:
        """The lowest seq of each lane; the second of a lane waits for the end of the first."""
        for update_id, lane in ((1, 7), (2, 7), (3, 8), (4, 9)):
            await insert(world, update_id, lane)
        first = await exchange(world, free=2)
        assert len(first.claimed) == 2
        assert not first.is_complete
        known = [one.seq for one in first.claimed]
        second = await exchange(world, known=known)
        both = [*first.claimed, *second.claimed]
        assert sorted(one.update_id for one in both) == [1, 3, 4]
        assert second.is_complete
        known = [one.seq for one in both]
        assert (await exchange(world, known=known)).claimed == ()
        batch = await exchange(world, settlements(both), known=known)
        assert [one.update_id for one in batch.claimed] == [2]

    async def test_updates_without_a_lane_wait_for_nobody(self, world: World) -> None:
        """Each is alone."""
        for update_id in (1, 2, 3):
            await insert(world, update_id, None)
        assert await claim(world) == [1, 2, 3]

    async def test_a_claim_counts_the_attempt_and_brings_the_body(self, world: World) -> None:
        """Counted and committed before any work can start."""
        seq = await insert(world, 5, 7, b'{"update_id":5}\x00\xff')
        (claimed,) = (await exchange(world)).claimed
        assert (claimed.seq, claimed.update_id, claimed.body) == (seq, 5, b'{"update_id":5}\x00\xff')
        assert (claimed.attempts, claimed.starts, claimed.retries) == (1, 1, 0)
        assert not claimed.is_suspect
        found = await row(world, seq)
        assert (found.state, found.attempts, found.starts, found.term) == (State.CLAIMED, 1, 1, world.term)

    @pytest.mark.parametrize("due", [False, True])
    async def test_a_row_that_becomes_visible_late_is_the_head_of_its_lane(
        self, world: World, due: bool
    ) -> None:
        """A lower seq can be committed after a higher one: it waits for what its lane runs, and then comes first."""
        higher = await insert(world, 2, 7, seq=1000)
        (claimed,) = (await exchange(world)).claimed
        lower = await insert(world, 1, 7, seq=500)
        assert await claim(world, known=[higher]) == [], "two of one lane"
        await settle(world, [claimed], RETRY if due else lanes.GIVE_BACK)
        if due:
            await world.age(higher, 31.0)
        (claimed,) = (await exchange(world)).claimed
        assert claimed.seq == lower
        await settle(world, [claimed], RETRY)
        assert await claim(world) == [], "the head waits for its retry, and its lane with it"

    async def test_done_takes_the_body_away_and_keeps_the_key(self, world: World) -> None:
        """What is done is kept for the window of deduplication, without its content."""
        seq = await insert(world, 5, 7)
        await settle(world, (await exchange(world)).claimed)
        found = await row(world, seq)
        assert (found.state, found.body, found.keyed) == (State.DONE, None, True)
        assert await world.insert(5, 7) is None

    async def test_a_dead_letter_keeps_body_and_traceback_and_its_lane_goes_on(self, world: World) -> None:
        """One that failed for good is no obstacle."""
        seq = await insert(world, 5, 7, b"body")
        await insert(world, 6, 7)
        batch = await exchange(world)
        batch = await exchange(world, settlements(batch.claimed, DEAD), known=[seq])
        assert [one.update_id for one in batch.claimed] == [6]
        found = await row(world, seq)
        assert (found.state, found.body, found.error) == (State.DEAD, b"body", "Traceback: it broke")

    async def test_a_retry_waits_with_its_lane_and_costs_no_attempt(self, world: World) -> None:
        """Nobody overtakes it; when it is due it is claimed with the same count of attempts."""
        seq = await insert(world, 5, 7)
        await insert(world, 6, 7)
        batch = await exchange(world)
        batch = await exchange(world, settlements(batch.claimed, RETRY), known=[seq])
        assert batch.claimed == ()
        assert batch.next_retry_seconds is not None
        assert 0 < batch.next_retry_seconds <= 30
        found = await row(world, seq)
        assert (found.state, found.attempts, found.retries, found.error) == (State.PENDING, 0, 1, "TimedOut")
        await world.age(seq, 31.0)
        batch = await exchange(world)
        (again,) = batch.claimed
        assert (again.update_id, again.attempts, again.starts, again.retries) == (5, 1, 2, 1)
        assert not again.is_ahead
        assert batch.next_retry_seconds is None

    async def test_b16_a_retry_is_due_when_the_databases_clock_was_set_back(self, world: World) -> None:
        """Its time is an hour away then, and would keep its lane for as long."""
        seq = await insert(world, 5, 7)
        await settle(world, (await exchange(world)).claimed, TOLD)
        assert await claim(world) == []
        await world.age(seq, -3600.0)
        assert await claim(world) == [5]

    async def test_a_retry_may_go_ahead_of_its_time_unless_telegram_named_it(self, world: World) -> None:
        """Only as many as are asked for, and never one whose time was told."""
        told, mine, other = await insert(world, 1, 7), await insert(world, 2, 8), await insert(world, 3, 9)
        claimed = (await exchange(world)).claimed
        await settle(world, [one for one in claimed if one.seq == told], TOLD)
        await settle(world, [one for one in claimed if one.seq != told], RETRY)
        assert await claim(world) == []
        batch = await exchange(world, ahead=1)
        assert len(batch.claimed) == 1
        (first,) = batch.claimed
        assert first.is_ahead
        batch = await exchange(world, ahead=5, known=[first.seq])
        assert {first.seq, *(one.seq for one in batch.claimed)} == {mine, other}
        assert (await row(world, told)).state is State.PENDING

    async def test_what_is_given_back_is_claimed_again_at_no_cost(self, world: World) -> None:
        """An orderly interruption costs no attempt; the start is remembered."""
        seq = await insert(world, 5, 7)
        await settle(world, (await exchange(world)).claimed, lanes.GIVE_BACK)
        found = await row(world, seq)
        assert (found.state, found.attempts, found.term) == (State.PENDING, 0, None)
        (again,) = (await exchange(world)).claimed
        assert (again.attempts, again.starts) == (1, 2)

    async def test_a_settlement_is_good_for_its_claim_alone(self, world: World) -> None:
        """Repeated, or executed late after the row was claimed again, it changes nothing."""
        seq = await insert(world, 5, 7)
        (first,) = (await exchange(world)).claimed
        await settle(world, [first], lanes.GIVE_BACK)
        await settle(world, [first], DEAD)
        assert (await row(world, seq)).state is State.PENDING
        (second,) = (await exchange(world)).claimed
        await settle(world, [first], DEAD)
        assert (await row(world, seq)).state is State.CLAIMED
        await settle(world, [second])
        await settle(world, [second], DEAD)
        assert (await row(world, seq)).state is State.DONE

    async def test_what_another_term_claimed_is_not_ours_to_settle(self, world: World) -> None:
        """Before it is claimed anew, nobody can say what became of it."""
        seq = await insert(world, 5, 7)
        lost = (await exchange(world)).claimed
        await crash(world)
        await settle(world, lost)
        assert (await row(world, seq)).state is State.CLAIMED

    @pytest.mark.parametrize("ended", [False, True])
    async def test_a_term_that_is_over_changes_nothing(self, world: World, ended: bool) -> None:
        """Superseded or cleanly ended: every change is refused, and says so."""
        seq, waiting = await insert(world, 5, 7), await insert(world, 6, 8)
        claimed, other = (await exchange(world)).claimed
        await settle(world, [other], lanes.GIVE_BACK)
        before = [await row(world, seq), await row(world, waiting)]
        if ended:
            await world.end_term()
        else:
            await world.begin_term(str(uuid.uuid4()))
        inbox, term = world.inbox, world.term
        for attempt in (
            inbox.exchange(term, [], ClaimRequest(5, Sweep(), [])),
            inbox.exchange(term, settlements([claimed]), None),
            inbox.exchange(term, settlements([claimed]), ClaimRequest(5, Sweep(), [])),
            inbox.claim_suspect(term, seq),
            inbox.bury(term, [seq], "no"),
            inbox.condemn(term, claimed, 5, "no"),
            inbox.peek(term, []),
        ):
            with pytest.raises(Superseded):
                await attempt
        assert [await row(world, seq), await row(world, waiting)] == before

    async def test_a_claim_that_nobody_knows_of_is_found_and_not_counted_again(self, world: World) -> None:
        """The answer of a claim was lost after its commit; also at the end, when nothing new is to be claimed."""
        seq = await insert(world, 5, 7)
        lost = (await exchange(world)).claimed
        assert await world.inbox.peek(world.term, [])
        for free in (10, 0):
            (found,) = (await exchange(world, free=free)).claimed
            assert (found.seq, found.attempts, found.starts) == (seq, 1, 1)
        assert found.starts == lost[0].starts
        assert (await exchange(world, known=[seq])).claimed == ()

    async def test_what_another_term_left_behind_is_started_by_itself_and_counted(self, world: World) -> None:
        """A claim does not touch it, its lane is blocked, other lanes go on."""
        seq, follower = await insert(world, 5, 7), await insert(world, 6, 7)
        await exchange(world)
        await crash(world)
        await insert(world, 8, 9)
        batch = await exchange(world)
        assert [one.update_id for one in batch.claimed] == [8]
        assert batch.has_suspects
        (suspect,) = await world.inbox.suspects(world.term)
        assert (suspect.seq, suspect.attempts) == (seq, 1)
        again = await world.inbox.claim_suspect(world.term, seq)
        assert again is not None
        assert (again.attempts, again.starts, again.is_suspect) == (2, 2, True)
        assert await world.inbox.claim_suspect(world.term, seq) is None
        known = [one.seq for one in batch.claimed]
        batch = await exchange(world, settlements([again]), known=[seq, *known])
        assert [one.seq for one in batch.claimed] == [follower]
        assert not batch.has_suspects
        assert await world.inbox.suspects(world.term) == ()

    @pytest.mark.parametrize("verdict", [lanes.GIVE_BACK, RETRY])
    async def test_a_suspect_that_did_not_finish_remains_one(self, world: World, verdict: Verdict) -> None:
        """Interrupted or put off, it still was in flight at a crash: it blocks its lane, and starts by itself when due."""
        seq = await insert(world, 5, 7)
        await insert(world, 6, 7)
        await exchange(world)
        await crash(world)
        again = await world.inbox.claim_suspect(world.term, seq)
        assert again is not None
        await settle(world, [again], verdict)
        assert (await row(world, seq)).attempts == 1
        if verdict is RETRY:
            assert await world.inbox.suspects(world.term) == ()
            await world.age(seq, 31.0)
        batch = await exchange(world, ahead=5)
        assert (batch.claimed, batch.has_suspects) == ((), True)
        (suspect,) = await world.inbox.suspects(world.term)
        assert (suspect.seq, suspect.attempts) == (seq, 1)
        third = await world.inbox.claim_suspect(world.term, seq)
        assert third is not None
        assert (third.attempts, third.starts) == (2, 3)

    async def test_suspects_are_buried_with_what_was_known_of_them(self, world: World) -> None:
        """The reason says why, and what was there before; only suspects can be buried."""
        seq, fresh = await insert(world, 5, 7), await insert(world, 6, 8)
        claimed = (await exchange(world)).claimed
        await world.inbox.condemn(world.term, claimed[0], 5, "ignored its cancellation")
        await settle(world, claimed[1:], lanes.GIVE_BACK)
        await crash(world)
        (suspect,) = await world.inbox.suspects(world.term)
        assert suspect.attempts == 5
        assert await world.inbox.bury(world.term, [seq, fresh], "started often enough") == (5,)
        found = await row(world, seq)
        assert (found.state, found.error) == (State.DEAD, "started often enough\nignored its cancellation")
        assert (await row(world, fresh)).state is State.PENDING

    async def test_every_lane_has_its_turn(self, world: World) -> None:
        """With one slot and ten lanes that never run dry, none waits for more than three rounds."""
        for update_id in range(100):
            await insert(world, update_id, update_id % 10)
        sweep, served = Sweep(), set[int]()
        ended: tuple[Claimed, ...] = ()
        for _ in range(30):
            known = [one.seq for one in ended]
            batch = await exchange(world, settlements(ended), free=1, known=known, sweep=sweep)
            sweep, ended = batch.sweep, batch.claimed
            served.update(one.lane_key for one in ended)
        assert served == set(range(10))

    async def test_a24_who_floods_a_bot_waits_behind_himself_alone(self, world: World) -> None:
        """Five hundred updates of one chat are all stored, and take one slot; who writes next to him is served at once."""
        for update_id in range(500):
            await insert(world, update_id, 7)
        for update_id in range(1000, 1003):
            await insert(world, update_id, update_id)
        batch = await exchange(world, free=8)
        assert {one.update_id for one in batch.claimed} == {0, 1000, 1001, 1002}
        # And when his first is done, one more of his.
        batch = await exchange(world, settlements(batch.claimed), free=8, sweep=batch.sweep)
        assert [one.update_id for one in batch.claimed] == [1]

    async def test_a_fresh_chat_does_not_wait_for_a_backlog(self, world: World) -> None:
        """Behind five hundred updates of five chats, the next chat in their order is served before they have had a round."""
        for update_id in range(500):
            await insert(world, update_id, 10 + update_id % 5)
        await insert(world, 1000, 99)
        sweep, known, served = Sweep(), list[int](), list[int]()
        for _ in range(4):
            batch = await exchange(world, free=1, known=known, sweep=sweep)
            sweep = batch.sweep
            known += [one.seq for one in batch.claimed]
            served += [one.update_id for one in batch.claimed]
        assert 1000 in served

    async def test_peek_says_whether_there_is_anything(self, world: World) -> None:
        """True for what waits, and for claims that are not known; else False."""
        assert not await world.inbox.peek(world.term, [])
        seq = await insert(world, 5, 7)
        assert await world.inbox.peek(world.term, [])
        claimed = (await exchange(world)).claimed
        assert not await world.inbox.peek(world.term, [seq])
        await settle(world, claimed)
        assert not await world.inbox.peek(world.term, [])

    async def test_depth_counts_what_waits_runs_and_is_dead(self, world: World) -> None:
        """And how long the oldest has waited."""
        empty = await world.inbox.depth()
        assert (empty.pending, empty.in_flight, empty.dead, empty.oldest_pending_seconds) == (0, 0, 0, 0)
        seqs = [await insert(world, update_id, update_id) for update_id in range(5)]
        claimed = (await exchange(world, free=3)).claimed
        await settle(world, claimed[:1])
        await settle(world, claimed[1:2], DEAD)
        waiting = [seq for seq in seqs if seq not in {one.seq for one in claimed}]
        await world.age(waiting[0], 100.0)
        depth = await world.inbox.depth()
        assert (depth.pending, depth.in_flight, depth.dead) == (2, 1, 1)
        assert 100 <= depth.oldest_pending_seconds < 200

    async def test_what_is_done_is_forgotten_after_the_window(self, world: World) -> None:
        """Before, the key tells a duplicate; after, the number may belong to another update."""
        young, old = await insert(world, 1, 7), await insert(world, 2, 8)
        await settle(world, (await exchange(world)).claimed)
        await world.age(young, 2.9 * DAY_SECONDS)
        await world.age(old, 3.1 * DAY_SECONDS)
        assert not await world.inbox.purge(30)
        assert await world.row(old) is None
        assert await world.row(young) is not None
        assert await world.insert(1, 7) is None
        assert await world.insert(2, 8) is not None

    async def test_a_dead_letter_outlives_its_key(self, world: World) -> None:
        """It is kept for DEAD_LETTER_DAYS, but an update_id that comes again after the window is another update."""
        seq = await insert(world, 5, 7)
        await settle(world, (await exchange(world)).claimed, DEAD)
        await world.inbox.purge(30)
        assert await world.insert(5, 7) is None
        await world.age(seq, 3.1 * DAY_SECONDS)
        await world.inbox.purge(30)
        again = await insert(world, 5, 7)
        assert again != seq
        assert (await row(world, seq)).error == "Traceback: it broke"
        await world.age(seq, 27 * DAY_SECONDS)
        await world.inbox.purge(30)
        assert await world.row(seq) is None
        assert (await row(world, again)).state is State.PENDING

    async def test_what_comes_is_stored_and_claimed_in_one(self, world: World) -> None:
        """As it came, in its order; what was there already is neither stored nor claimed again."""
        await settle(world, [await claimed_one(world, 1)])
        arrivals = coming((1, 7, b"again"), (5, 8, b"\xf0 first"), (4, None, b""), (6, 8, b"second"))
        request = ClaimRequest(10, Sweep(), [])
        batch = await world.inbox.exchange(world.term, [], request, arrivals)
        assert batch is not None
        assert (arrivals.new, arrivals.are_stored.result()) == ([5, 4, 6], True)
        found = {one.update_id: one for one in batch.claimed}
        assert set(found) == {5, 4}
        assert (found[5].body, found[5].lane_key, found[4].body) == (b"\xf0 first", 8, b"")
        assert (found[5].starts, found[5].attempts) == (1, 1)
        # The second of the lane comes after the first, in the exchange that settles it.
        batch = await world.inbox.exchange(
            world.term, settlements([found[5]]), request, coming((7, 8, b"third"))
        )
        assert batch is not None
        assert [one.update_id for one in batch.claimed if one.update_id != 4] == [6]

    async def test_what_comes_without_a_free_slot_is_stored(self, world: World) -> None:
        """And waits to be claimed."""
        arrivals = coming((5, 8, b"{}"))
        assert await world.inbox.exchange(world.term, [], None, arrivals) is None
        assert (arrivals.new, arrivals.are_stored.result()) == ([5], True)
        assert await claim(world) == [5]

    async def test_what_comes_to_a_term_that_is_over_is_stored_and_not_claimed(self, world: World) -> None:
        """Its sender is told; the next owner handles it."""
        over = world.term
        await crash(world)
        arrivals = coming((5, 8, b"{}"))
        with pytest.raises(Superseded):
            await world.inbox.exchange(over, [], ClaimRequest(10, Sweep(), []), arrivals)
        assert (arrivals.new, arrivals.are_stored.result()) == ([5], True)
        assert await claim(world) == [5]
