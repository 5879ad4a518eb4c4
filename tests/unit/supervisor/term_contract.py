"""What is true of the row of `terms`: who may begin the next term, and when it may recover. See ownership_contract.py."""

from __future__ import annotations

import uuid

import pytest

from supervisor import messages as m
from tests.unit.supervisor.ownership_contract import (
    PATIENCE_SECONDS,
    Instance,
    World,
    acquire,
    announce,
    answered,
    ask,
    id_of,
    leave,
    peer,
    see_waiting,
    start,
    wait,
)

LONG, SHORT = 8.0, 5.0
"""Lengths of deadlines, which are told apart."""


async def begin(instance: Instance, deadline_seconds: float = LONG, reaped: str | None = None) -> m.TermBegun:
    """The lock's holder begins a term."""
    return await ask(
        instance, m.BeginTerm, m.TermBegun, deadline_seconds=deadline_seconds, reaped_term=reaped
    )


def wait_to_begin(instance: Instance, seconds: float = PATIENCE_SECONDS) -> int:
    """Begins to wait for the lock, and for a term with it; returns the id of the action."""
    id_ = instance.take_id()
    then = m.BeginTerm(id=id_, deadline_seconds=LONG, reaped_term=None)
    instance.begin(m.WaitForLock(id=id_, seconds=seconds, then=then))
    return id_


async def own(world: World, name: str, deadline_seconds: float = LONG) -> tuple[Instance, m.TermBegun]:
    """An instance that holds the lock, and its term."""
    instance = await start(world, name)
    await acquire(instance)
    return instance, await begin(instance, deadline_seconds)


async def close(
    instance: Instance, term: str, successor: Instance | None = None, *, recovered: bool = True
) -> None:
    """The end of a term whose worker is gone; the lock stays."""
    reason = m.EndReason.STOPPING if successor is None else m.EndReason.HANDED_OVER
    name = None if successor is None else id_of(successor)
    await ask(
        instance, m.CloseTerm, m.TermClosed, term=term, reason=reason, successor=name, recovered=recovered
    )


async def denied(instance: Instance) -> str:
    """In whose favour it may not begin."""
    answer = await ask(instance, m.BeginTerm, m.TermDenied, deadline_seconds=LONG, reaped_term=None)
    return answer.successor


class TermContract:
    """Each test is given a world without an instance."""

    async def test_the_first_term_recovers_at_once(self, world: World) -> None:
        """Nothing was before it."""
        _, first = await own(world, "one")
        assert first.recover_after_seconds == 0.0
        assert first.number > 0
        uuid.UUID(first.term)

    @pytest.mark.parametrize("how", ["releases", "is killed", "is ended by the server"])
    async def test_a_term_begins_with_the_lock_that_is_waited_for(self, world: World, how: str) -> None:
        """Whoever had it and however it is freed; the term is as any other, and the lock is held."""
        one, first = await own(world, "one")
        two = await start(world, "two")
        waiting = wait_to_begin(two)
        await see_waiting(one, two)
        await leave(world, one, how)
        second = await answered(two, waiting, m.TermBegun)
        assert second.number == first.number + 1
        assert second.term != first.term
        assert second.recover_after_seconds == LONG
        assert (await announce(two)).holder == id_of(two)
        three = await start(world, "three")
        await ask(three, m.TryLock, m.LockBusy)
        await close(two, second.term)
        await ask(two, m.ReleaseLock, m.LockReleased)
        third = await answered(three, wait_to_begin(three), m.TermBegun)
        assert (third.number, third.recover_after_seconds) == (second.number + 1, 0.0)

    async def test_a_wait_in_vain_begins_nothing(self, world: World) -> None:
        """Nor does it later, when the lock is free."""
        one, first = await own(world, "one")
        two = await start(world, "two")
        await answered(two, wait_to_begin(two, seconds=0.1), m.LockBusy)
        assert (await announce(two)).holder == id_of(one)
        await close(one, first.term)
        await ask(one, m.ReleaseLock, m.LockReleased)
        assert (await announce(two)).holder is None
        await acquire(two)
        assert (await begin(two)).number == first.number + 1

    async def test_who_waits_and_is_not_the_named_successor_holds_the_lock_without_a_term(
        self, world: World
    ) -> None:
        """It gives the lock back, and the successor begins with it."""
        old, first = await own(world, "one")
        bystander, successor = await start(world, "two"), await start(world, "three")
        waits = []
        for instance in (bystander, successor):
            waits.append(wait_to_begin(instance))
            await see_waiting(old, instance)
        await close(old, first.term, successor)
        await ask(old, m.ReleaseLock, m.LockReleased)
        assert (await answered(bystander, waits[0], m.TermDenied)).successor == id_of(successor)
        await ask(old, m.TryLock, m.LockBusy)
        await ask(bystander, m.ReleaseLock, m.LockReleased)
        assert (await answered(successor, waits[1], m.TermBegun)).number == first.number + 1

    async def test_numbers_grow_and_names_are_new(self, world: World) -> None:
        """Whoever begins, and however the one before ended."""
        one, first = await own(world, "one")
        again = await begin(one)
        await close(one, again.term)
        await ask(one, m.ReleaseLock, m.LockReleased)
        _, third = await own(world, "two")
        assert first.number < again.number < third.number
        assert len({first.term, again.term, third.term}) == 3

    async def test_after_a_clean_end_the_next_recovers_at_once(self, world: World) -> None:
        """Nothing of the one before is in flight."""
        one, first = await own(world, "one")
        await close(one, first.term)
        await ask(one, m.ReleaseLock, m.LockReleased)
        _, second = await own(world, "two")
        assert second.recover_after_seconds == 0.0

    @pytest.mark.parametrize("how", ["releases", "is killed", "is ended by the server"])
    async def test_after_an_unclean_end_the_next_waits_for_the_old_deadline(
        self, world: World, how: str
    ) -> None:
        """The length that the term before was given, not its own; nothing that passes shortens it."""
        one, _ = await own(world, "one", LONG)
        await leave(world, one, how)
        await world.pass_time(60.0)
        two, second = await own(world, "two", SHORT)
        assert second.recover_after_seconds == LONG
        assert (await begin(two)).recover_after_seconds == SHORT

    async def test_a_term_of_our_own_whose_worker_is_reaped_is_not_waited_for(self, world: World) -> None:
        """Only the last one, by its name."""
        one, first = await own(world, "one")
        second = await begin(one, reaped=first.term)
        assert second.recover_after_seconds == 0.0
        assert (await begin(one, reaped=first.term)).recover_after_seconds == LONG

    async def test_a_recovery_that_is_not_over_is_passed_on(self, world: World) -> None:
        """A clean end before the deadline of an earlier owner has passed: the next one waits all the same."""
        one, _ = await own(world, "one", LONG)
        one.close()
        two, second = await own(world, "two", SHORT)
        await close(two, second.term, recovered=False)
        assert (await announce(two)).holder == id_of(two)
        await ask(two, m.ReleaseLock, m.LockReleased)
        three, third = await own(world, "three", LONG)
        assert third.recover_after_seconds == SHORT
        await close(three, third.term)
        assert (await begin(three)).recover_after_seconds == 0.0

    @pytest.mark.parametrize(("recovered", "recover_after_seconds"), [(True, 0.0), (False, LONG)])
    async def test_only_the_named_successor_begins_the_next_term(
        self, world: World, recovered: bool, recover_after_seconds: float
    ) -> None:
        """Others are told in whose favour, the one who named it too; being denied costs no number."""
        old, first = await own(world, "one")
        bystander, successor = await start(world, "two"), await start(world, "three")
        await close(old, first.term, successor, recovered=recovered)
        assert await denied(old) == id_of(successor)
        await ask(old, m.ReleaseLock, m.LockReleased)
        await ask(bystander, m.TryLock, m.LockAcquired)
        assert await denied(bystander) == id_of(successor)
        assert await denied(bystander) == id_of(successor)
        waiting = wait(successor)
        await see_waiting(bystander, successor)
        await ask(bystander, m.ReleaseLock, m.LockReleased)
        await answered(successor, waiting, m.LockAcquired)
        second = await begin(successor)
        assert second.recover_after_seconds == recover_after_seconds
        assert second.number == first.number + 1

    async def test_a_successor_that_does_not_come_keeps_nobody_out_for_long(self, world: World) -> None:
        """It was named for some seconds; the end was as clean as before."""
        old, first = await own(world, "one")
        successor, bystander = await start(world, "two"), await start(world, "three")
        await close(old, first.term, successor)
        await ask(old, m.ReleaseLock, m.LockReleased)
        await acquire(bystander)
        await denied(bystander)
        await world.pass_time(6.0)
        assert (await begin(bystander)).recover_after_seconds == 0.0

    async def test_b17_a_successor_that_is_told_to_stop_keeps_nobody_out(self, world: World) -> None:
        """As soon as it has said that it is not ready, wherever it is in the queue then."""
        old, first = await own(world, "one")
        successor, bystander = await start(world, "two"), await start(world, "three")
        begins = wait_to_begin(successor)
        await see_waiting(old, successor)
        await close(old, first.term, successor)
        successor.cut_wait()
        await answered(successor, begins, m.LockBusy)
        assert await denied(old) == id_of(successor)
        await announce(successor, ready=False)
        await ask(old, m.ReleaseLock, m.LockReleased)
        await acquire(bystander)
        assert (await begin(bystander)).number == first.number + 1

    async def test_b16_a_successor_keeps_nobody_out_when_the_clock_is_set_back(self, world: World) -> None:
        """Else nobody could begin for as long as it was set back."""
        old, first = await own(world, "one")
        successor = await start(world, "two")
        await close(old, first.term, successor)
        await denied(old)
        await world.pass_time(-3600.0)
        assert (await begin(old)).recover_after_seconds == 0.0

    async def test_a_successor_is_named_for_one_term(self, world: World) -> None:
        """When it has begun, whoever gets the lock next begins."""
        old, first = await own(world, "one")
        successor = await start(world, "two")
        await close(old, first.term, successor)
        await ask(old, m.ReleaseLock, m.LockReleased)
        await acquire(successor)
        second = await begin(successor)
        await close(successor, second.term)
        await ask(successor, m.ReleaseLock, m.LockReleased)
        await acquire(old)
        await begin(old)

    async def test_a_term_that_is_over_cannot_be_closed(self, world: World) -> None:
        """An owner that was superseded changes nothing about the term after its own, and hands nothing over."""
        one, first = await own(world, "one")
        await world.end_session(one)
        assert isinstance(await one.next_event(), m.SessionLost)
        two, _ = await own(world, "two", SHORT)
        await ask(one, m.OpenSession, m.SessionOpened)
        await close(one, first.term, one)
        assert (await announce(one)).holder == id_of(two)
        assert (await begin(two)).recover_after_seconds == SHORT

    async def test_the_holder_is_told_by_the_row_of_terms(self, world: World) -> None:
        """Nobody before the first term and after a clean end; one that ended in any other way, until the next begins."""
        watcher, one = await start(world, "one"), await start(world, "two")
        assert (await announce(watcher)).holder is None
        await ask(one, m.TryLock, m.LockAcquired)
        assert (await announce(watcher)).holder is None
        first = await begin(one)
        assert (await announce(watcher)).holder == id_of(one)
        await close(one, first.term)
        assert (await announce(watcher)).holder is None
        await begin(one)
        one.close()
        assert (await announce(watcher)).holder == id_of(one)
        await acquire(watcher)
        await begin(watcher)
        assert (await announce(watcher)).holder == id_of(watcher)

    async def test_who_names_a_successor_has_handed_over(self, world: World) -> None:
        """Seen by all, also after its next announcements; an end without a successor is no hand-over."""
        one, first = await own(world, "one")
        two = await start(world, "two")
        await close(one, first.term)
        assert (await peer(two, one)).handed_over_seconds is None
        await close(one, (await begin(one)).term, two)
        await world.pass_time(30.0)
        await announce(one)
        seen = (await peer(two, one)).handed_over_seconds
        assert seen is not None
        assert seen >= 30.0
        assert (await peer(one, two)).handed_over_seconds is None

    async def test_a_request_to_hand_over_is_told_to_the_owner_of_the_open_term(self, world: World) -> None:
        """With its age, at every heartbeat; the later of two counts, and nothing of the row is changed by it."""
        one, _ = await own(world, "one")
        two = await start(world, "two")
        assert (await announce(one)).handover_requested_seconds is None
        assert await world.request_handover() == await world.owner() == id_of(one)
        await world.pass_time(30.0)
        for instance in (one, two, one):
            seen = (await announce(instance)).handover_requested_seconds
            assert seen is not None
            assert seen >= 30.0
        assert (await announce(one)).holder == id_of(one)
        assert await world.request_handover() == id_of(one)
        renewed = (await announce(one)).handover_requested_seconds
        assert renewed is not None
        assert renewed < 30.0

    async def test_a_request_to_hand_over_is_of_one_term(self, world: World) -> None:
        """It is not told of one that is closed, and the next term has none, whoever begins it."""
        one, first = await own(world, "one")
        await world.request_handover()
        await close(one, first.term)
        assert (await announce(one)).handover_requested_seconds is None
        await begin(one)
        assert (await announce(one)).handover_requested_seconds is None
        assert await world.request_handover() == id_of(one)
        one.close()
        two, _ = await own(world, "two")
        assert (await announce(two)).handover_requested_seconds is None
        assert await world.owner() == id_of(two)

    async def test_nobody_is_asked_to_hand_over_where_nobody_owns(self, world: World) -> None:
        """Before the first term and after a clean end; whoever begins then was not asked."""
        one = await start(world, "one")
        assert await world.request_handover() is None
        assert await world.owner() is None
        await acquire(one)
        first = await begin(one)
        assert (await announce(one)).handover_requested_seconds is None
        await close(one, first.term)
        assert await world.request_handover() is None
        assert await world.owner() is None
        await begin(one)
        assert (await announce(one)).handover_requested_seconds is None
