"""What is true of ownership in Postgres: run on the simulated lease and its model, and on the lease and Postgres itself.

Here are the world that both have to offer, and the lock; terms, announcements and registrations are in term_contract.py and
announcement_contract.py.

Nothing here depends on how fast a statement is. A wait that is to be granted lasts `PATIENCE_SECONDS`, less than the statement
timeout of the session; ages are compared with each other, or with time that the world let pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import pytest

from shared import config as configuration
from shared.config import Config
from supervisor import messages as m
from webhook_worker.verify import Registration

PATIENCE_SECONDS = 4.0
TOKEN = "ownership-contract-token_ownership"
"""Without the bot's id."""

_LOOKS = 2000

E = TypeVar("E", bound=m.Event | m.Answered)


class Instance(Protocol):
    """An instance whose core is the test: it does one SessionAction at a time."""

    config: Config

    def take_id(self) -> int:
        """For the next action."""
        ...

    def begin(self, action: m.OpenSession | m.SessionStatement) -> None:
        """Begins it; the event that answers comes later."""
        ...

    def cut_wait(self) -> None:
        """Asks for the end of the wait for the lock that is under way."""
        ...

    async def next_event(self) -> m.Event:
        """The next that the lease has posted, or will; fails where none comes."""
        ...

    def close(self) -> None:
        """Closes the session at once, as the kernel does when the process is killed; nothing answers."""
        ...


class World(Protocol):
    """One Postgres, and hands to arrange it with."""

    async def boot(self, name: str, *, token: str = TOKEN, **variables: str) -> Instance:
        """An instance of the bot, without a session; `name` is its platform's, `variables` those of INTERFACE.md."""
        ...

    async def end_session(self, instance: Instance) -> None:
        """The server ends it."""
        ...

    async def pass_time(self, seconds: float) -> None:
        """As if everything in the tables had been written so much earlier."""
        ...

    async def request_handover(self) -> str | None:
        """Asks the owner to hand over, as a person does; who that is."""
        ...

    async def owner(self) -> str | None:
        """As a person sees it."""
        ...

    async def look_up(self) -> Sequence[Registration]:
        """What a worker is told that looks up what is registered."""
        ...


def config_of(database_url: str, bot_id: int, token: str, name: str, **variables: str) -> Config:
    """The configuration of an instance, the same in every world but for the database."""
    environ = {
        "TELEGRAM_BOT_TOKEN": f"{bot_id}:{token}",
        "DATABASE_URL": database_url,
        "WEBHOOK_BASE_URL": "https://bot.example.com",
        "INSTANCE_ID": name,
        **variables,
    }
    return configuration.load(environ, stdin_is_terminal=False, stdout_is_terminal=False)


def id_of(instance: Instance) -> str:
    """What it is called in the tables."""
    return instance.config.identity.instance_id


async def answered(instance: Instance, id_: int, kind: type[E]) -> E:
    """The next event, which is of this kind and answers that action."""
    event = await instance.next_event()
    assert isinstance(event, kind), event
    assert getattr(event, "id", None) == id_
    if isinstance(event, m.Answered):
        assert event.sent_at <= event.at
    return event


async def ask(
    instance: Instance,
    action: Callable[..., m.OpenSession | m.SessionStatement],
    answer: type[E],
    **fields: object,
) -> E:
    """Carries an action out, which is answered by this kind of event."""
    id_ = instance.take_id()
    instance.begin(action(id=id_, **fields))
    return await answered(instance, id_, answer)


async def start(world: World, name: str, *, token: str = TOKEN, **variables: str) -> Instance:
    """An instance with a session, whose row is written."""
    instance = await world.boot(name, token=token, **variables)
    await ask(instance, m.OpenSession, m.SessionOpened)
    await announce(instance)
    return instance


async def announce(instance: Instance, *, ready: bool = True, abstain_seconds: float = 0.0) -> m.Announced:
    return await ask(instance, m.Announce, m.Announced, ready=ready, abstain_seconds=abstain_seconds)


async def peer(watcher: Instance, whose: Instance) -> m.Peer:
    """An instance as another sees it, or itself."""
    (found,) = [p for p in (await announce(watcher)).peers if p.instance_id == id_of(whose)]
    return found


def wait(instance: Instance) -> int:
    """Begins to wait for the lock; returns the id of the action."""
    id_ = instance.take_id()
    instance.begin(m.WaitForLock(id=id_, seconds=PATIENCE_SECONDS))
    return id_


async def see_waiting(watcher: Instance, waiter: Instance) -> None:
    """Returns when the waiter stands in the queue."""
    for _ in range(_LOOKS):
        if (await peer(watcher, waiter)).waiting:
            return
    raise AssertionError(f"{id_of(waiter)} is never seen in the queue")


async def acquire(instance: Instance) -> None:
    """Gets the lock, which nobody will hold for long; the server may not have noticed yet that its holder is gone."""
    for _ in range(100):
        id_ = instance.take_id()
        instance.begin(m.WaitForLock(id=id_, seconds=0.5))
        if isinstance(await answered(instance, id_, m.Answered), m.LockAcquired):
            return
    raise AssertionError(f"{id_of(instance)} never gets the lock")


async def leave(world: World, instance: Instance, how: str) -> None:
    """Its lock is freed, or its place in the queue, by itself or by the server."""
    if how == "releases":
        await ask(instance, m.ReleaseLock, m.LockReleased)
    elif how == "is killed":
        instance.close()
    else:
        await world.end_session(instance)


class LockContract:
    """Each test is given a world without an instance."""

    async def test_one_holds_the_lock_and_the_others_are_told_that_it_is_busy(self, world: World) -> None:
        """Tried or waited for; whoever holds it may ask again."""
        one, two = await start(world, "one"), await start(world, "two")
        await ask(one, m.TryLock, m.LockAcquired)
        await ask(two, m.TryLock, m.LockBusy)
        await ask(two, m.WaitForLock, m.LockBusy, seconds=0.1)
        await ask(one, m.TryLock, m.LockAcquired)
        await ask(one, m.WaitForLock, m.LockAcquired, seconds=0.1)

    async def test_a_free_lock_is_not_waited_for(self, world: World) -> None:
        """It is there at once, and excludes."""
        one, two = await start(world, "one"), await start(world, "two")
        await ask(one, m.WaitForLock, m.LockAcquired, seconds=PATIENCE_SECONDS)
        await ask(two, m.TryLock, m.LockBusy)

    async def test_a_release_frees_the_lock_however_often_it_was_taken(self, world: World) -> None:
        """Locks of a session nest; a holder passes by the queue, and one release ends it all."""
        one, two = await start(world, "one"), await start(world, "two")
        await ask(one, m.TryLock, m.LockAcquired)
        await ask(one, m.TryLock, m.LockAcquired)
        waiting = wait(two)
        await see_waiting(one, two)
        await ask(one, m.WaitForLock, m.LockAcquired, seconds=0.1)
        await ask(one, m.ReleaseLock, m.LockReleased)
        await answered(two, waiting, m.LockAcquired)
        await ask(one, m.TryLock, m.LockBusy)

    async def test_a_release_of_what_is_not_held_harms_nobody(self, world: World) -> None:
        """A standby that leaves takes nothing from the owner."""
        one, two = await start(world, "one"), await start(world, "two")
        await ask(one, m.TryLock, m.LockAcquired)
        await ask(two, m.ReleaseLock, m.LockReleased)
        await ask(two, m.TryLock, m.LockBusy)

    @pytest.mark.parametrize("how", ["releases", "is killed", "is ended by the server"])
    async def test_a_waiter_gets_the_lock_when_its_holder(self, world: World, how: str) -> None:
        """However it is freed, and without asking again; it was sent for after that."""
        one, two = await start(world, "one"), await start(world, "two")
        held = await ask(one, m.TryLock, m.LockAcquired)
        waiting = wait(two)
        await see_waiting(one, two)
        seen = await announce(one)
        await leave(world, one, how)
        got = await answered(two, waiting, m.LockAcquired)
        assert held.sent_at < seen.sent_at < got.sent_at, "an acquired lock counts from when it was held"
        await ask(two, m.TryLock, m.LockAcquired)

    async def test_first_in_the_queue_is_first_served(self, world: World) -> None:
        """One after the other, in the order in which they came."""
        holder = await start(world, "one")
        await ask(holder, m.TryLock, m.LockAcquired)
        queue = [await start(world, name) for name in ("two", "three")]
        waits = []
        for instance in queue:
            waits.append(wait(instance))
            await see_waiting(holder, instance)
        await ask(holder, m.ReleaseLock, m.LockReleased)
        await answered(queue[0], waits[0], m.LockAcquired)
        assert (await peer(queue[0], queue[1])).waiting
        await ask(queue[0], m.ReleaseLock, m.LockReleased)
        await answered(queue[1], waits[1], m.LockAcquired)

    async def test_who_has_waited_in_vain_is_out_of_the_queue(self, world: World) -> None:
        """It is given nothing later; the answer counts from after the wait."""
        one, two = await start(world, "one"), await start(world, "two")
        await ask(one, m.TryLock, m.LockAcquired)
        before = await announce(two)
        busy = await ask(two, m.WaitForLock, m.LockBusy, seconds=0.5)
        assert busy.sent_at - before.at > 0.25
        assert not (await peer(one, two)).waiting
        await ask(one, m.ReleaseLock, m.LockReleased)
        await ask(one, m.TryLock, m.LockAcquired)

    @pytest.mark.parametrize("how", ["is killed", "is ended by the server"])
    async def test_the_queue_goes_on_when_one_in_it(self, world: World, how: str) -> None:
        """Who is gone does not keep the lock from those behind it."""
        holder, gone, behind = [await start(world, name) for name in ("one", "two", "three")]
        await ask(holder, m.TryLock, m.LockAcquired)
        lost = wait(gone)
        await see_waiting(holder, gone)
        wait(behind)
        await see_waiting(holder, behind)
        await leave(world, gone, how)
        if how == "is ended by the server":
            await answered(gone, lost, m.SessionFailed)
        await ask(holder, m.ReleaseLock, m.LockReleased)
        if isinstance(await behind.next_event(), m.LockBusy):  # a wait is shorter than a busy server may need
            await acquire(behind)
        await ask(holder, m.TryLock, m.LockBusy)

    async def test_a_session_that_the_server_ends_is_lost_and_answers_no_more(self, world: World) -> None:
        """Told once, between statements, by the id of its opening; whatever is asked then fails, until another is opened."""
        one = await world.boot("one")
        opened = await ask(one, m.OpenSession, m.SessionOpened)
        await world.end_session(one)
        lost = await one.next_event()
        assert isinstance(lost, m.SessionLost)
        assert lost.session == opened.id
        failed = await ask(one, m.TryLock, m.SessionFailed)
        assert not failed.refused
        await ask(one, m.OpenSession, m.SessionOpened)
        await ask(one, m.TryLock, m.LockAcquired)

    async def test_a07_a_session_closed_under_a_wait_answers_nothing_and_keeps_nothing(
        self, world: World
    ) -> None:
        """Neither the event of the wait comes later, nor is the lock anybody's."""
        one, two = await start(world, "one"), await start(world, "two")
        await ask(one, m.TryLock, m.LockAcquired)
        wait(two)
        await see_waiting(one, two)
        two.close()
        await ask(one, m.ReleaseLock, m.LockReleased)
        await ask(two, m.OpenSession, m.SessionOpened)
        await acquire(two)
        await ask(one, m.TryLock, m.LockBusy)

    async def test_a10_instances_with_other_tokens_of_the_bot_exclude_each_other(self, world: World) -> None:
        """The lock is the bot's; a rotation of the token makes no second owner."""
        one = await start(world, "one", token="the-token-before_the-token-before-it")
        two = await start(world, "two", token="the-token-after_the-token-after-it-it")
        await ask(one, m.TryLock, m.LockAcquired)
        await ask(two, m.TryLock, m.LockBusy)
