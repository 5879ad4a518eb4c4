"""What is true of the rows of `instances` and `registrations`: who is seen, and what is accepted. See ownership_contract.py."""

from __future__ import annotations

import dataclasses

from supervisor import messages as m
from tests.unit.supervisor.ownership_contract import (
    Instance,
    World,
    announce,
    answered,
    ask,
    id_of,
    peer,
    see_waiting,
    start,
    wait,
)
from webhook_worker.verify import Registration, Standing, registration_of

DAY_SECONDS = 86400.0


class AnnouncementContract:
    """Each test is given a world without an instance."""

    async def test_everybody_sees_everybody_and_itself(self, world: World) -> None:
        """As they announced themselves last."""
        one = await start(world, "one", DEPLOY_ID="code-1")
        two = await start(world, "two", token="another-token_another-token_another")
        await announce(one, ready=False)
        seen = await announce(two, ready=True)
        by_id = {p.instance_id: p for p in seen.peers}
        assert set(by_id) == {id_of(one), id_of(two)}
        for instance, ready in ((one, False), (two, True)):
            found = by_id[id_of(instance)]
            assert found.deploy_id == instance.config.identity.deploy_id
            assert found.token_fingerprint == instance.config.identity.token_fingerprint
            assert (found.ready, found.waiting, found.candidate) == (ready, False, True)
            assert found.handed_over_seconds is None
            assert found.age_seconds >= found.silent_seconds
        assert by_id[id_of(one)].silent_seconds > by_id[id_of(two)].silent_seconds
        assert by_id[id_of(two)].deploy_id is None
        assert by_id[id_of(one)].token_fingerprint != by_id[id_of(two)].token_fingerprint

    async def test_waiting_is_who_stands_in_the_queue(self, world: World) -> None:
        """Not before, not when it has the lock, not when its wait is over, and not the holder."""
        one, two = await start(world, "one"), await start(world, "two")
        await ask(one, m.TryLock, m.LockAcquired)
        assert not (await peer(one, two)).waiting
        await ask(two, m.WaitForLock, m.LockBusy, seconds=0.1)
        assert not (await peer(one, two)).waiting
        waiting = wait(two)
        await see_waiting(one, two)
        assert not (await peer(one, one)).waiting
        await ask(one, m.ReleaseLock, m.LockReleased)
        await answered(two, waiting, m.LockAcquired)
        assert not (await peer(one, two)).waiting

    async def test_who_abstains_is_no_candidate_until_that_is_over(self, world: World) -> None:
        """By the database's clock, also when it says nothing more; what it said last counts."""
        one, two = await start(world, "one"), await start(world, "two")
        assert (await peer(one, two)).candidate
        await announce(two, abstain_seconds=600.0)
        assert not (await peer(one, two)).candidate
        await world.pass_time(290.0)
        assert not (await peer(one, two)).candidate
        await announce(two, abstain_seconds=100.0)
        await world.pass_time(101.0)
        assert (await peer(one, two)).candidate

    async def test_a_restart_in_place_makes_nobody_younger(self, world: World) -> None:
        """Of one platform id and one deploy, all are as old as the first; of another, or elsewhere, as young as they are."""
        first = await start(world, "one", DEPLOY_ID="code-1")
        await world.pass_time(100.0)
        again = await start(world, "one", DEPLOY_ID="code-1")
        newer = await start(world, "one", DEPLOY_ID="code-2")
        nameless = await start(world, "one")
        elsewhere = await start(world, "two", DEPLOY_ID="code-1")
        ages = {p.instance_id: p.age_seconds for p in (await announce(again)).peers}
        assert len(ages) == 5
        assert ages[id_of(again)] == ages[id_of(first)] >= 100.0
        for young in (newer, nameless, elsewhere):
            assert ages[id_of(young)] < ages[id_of(first)] / 2
        await world.pass_time(100.0)
        last = await start(world, "one")
        ages = {p.instance_id: p.age_seconds for p in (await announce(again)).peers}
        assert ages[id_of(last)] == ages[id_of(nameless)] >= 100.0
        assert ages[id_of(first)] >= 200.0

    async def test_b17_a_rollback_at_a_place_that_keeps_its_name_is_young(self, world: World) -> None:
        """The code that was there before the one that is rolled back comes after it: old, it would be handed nothing."""
        await start(world, "one", DEPLOY_ID="code-1")
        await world.pass_time(100.0)
        second = await start(world, "one", DEPLOY_ID="code-2")
        await world.pass_time(7200.0)
        await announce(second)
        back = await start(world, "one", DEPLOY_ID="code-1")
        ages = {p.instance_id: p.age_seconds for p in (await announce(back)).peers}
        assert ages[id_of(second)] >= 7200.0
        assert ages[id_of(back)] < 3600.0
        await world.pass_time(200.0)
        again = await start(world, "one", DEPLOY_ID="code-1")
        restarted = await start(world, "one", DEPLOY_ID="code-2")
        ages = {p.instance_id: p.age_seconds for p in (await announce(again)).peers}
        assert ages[id_of(again)] == ages[id_of(back)] >= 200.0, "a restart in place"
        assert ages[id_of(back)] < 3600.0
        assert ages[id_of(restarted)] < 100.0, "silent when the other came: replaced"

    async def test_b17_a_restart_beside_newer_code_at_the_same_place_makes_nobody_younger(
        self, world: World
    ) -> None:
        """Both are there, under one name: what was restarted spoke after the other had come."""
        first = await start(world, "one", DEPLOY_ID="code-1")
        await world.pass_time(100.0)
        second = await start(world, "one", DEPLOY_ID="code-2")
        await announce(first)
        await world.pass_time(100.0)
        again = await start(world, "one", DEPLOY_ID="code-1")
        ages = {p.instance_id: p.age_seconds for p in (await announce(again)).peers}
        assert ages[id_of(again)] == ages[id_of(first)] > ages[id_of(second)] >= 100.0

    async def test_who_is_silent_is_not_seen_after_minutes_and_has_its_age_all_the_same(
        self, world: World
    ) -> None:
        """Silence is counted from the last announcement, age from the first."""
        one, two = await start(world, "one"), await start(world, "two")
        await world.pass_time(200.0)
        assert (await peer(two, one)).silent_seconds >= 200.0
        assert (await peer(two, two)).silent_seconds < 100.0
        await world.pass_time(200.0)
        assert [p.instance_id for p in (await announce(two)).peers] == [id_of(two)]
        again = await start(world, "one")
        assert (await peer(two, again)).age_seconds >= 400.0
        assert (await peer(one, one)).age_seconds >= 400.0

    async def test_who_was_silent_for_a_day_is_forgotten(self, world: World) -> None:
        """By whoever comes next: the code that comes back then is new."""
        first = await start(world, "one", DEPLOY_ID="code-1")
        await world.pass_time(0.9 * DAY_SECONDS)
        second = await start(world, "one", DEPLOY_ID="code-1")
        assert (await peer(second, second)).age_seconds >= 0.9 * DAY_SECONDS
        await world.pass_time(1.1 * DAY_SECONDS)
        third = await start(world, "one", DEPLOY_ID="code-1")
        assert (await peer(third, third)).age_seconds < 0.5 * DAY_SECONDS
        assert (await peer(first, first)).age_seconds < 0.5 * DAY_SECONDS


def _secrets(number: int) -> dict[str, str]:
    return {
        "WEBHOOK_SECRET_PATH": f"path-{number:04}-path-path-path",
        "WEBHOOK_SECRET_TOKEN": f"secret-{number:04}-secret-secret",
    }


def _registration(number: int, standing: Standing) -> Registration:
    path, secret = _secrets(number).values()
    return dataclasses.replace(registration_of(path, secret), standing=standing)


def recorded(number: int) -> Registration:
    return _registration(number, Standing.RECORDED)


def superseded(number: int) -> Registration:
    return _registration(number, Standing.SUPERSEDED)


async def record(instance: Instance) -> None:
    await ask(instance, m.RecordRegistration, m.RegistrationRecorded)


async def confirm(instance: Instance) -> None:
    await ask(instance, m.ConfirmRegistration, m.RegistrationConfirmed)


class RegistrationContract:
    """Each test is given a world without an instance. A look-up names the newest first."""

    async def test_b28_what_is_recorded_is_found_and_what_is_confirmed_supersedes(self, world: World) -> None:
        """Both are good while the new one is not confirmed, and for ten minutes more."""
        old, new = await start(world, "one", **_secrets(1)), await start(world, "two", **_secrets(2))
        assert list(await world.look_up()) == []
        await record(old)
        assert list(await world.look_up()) == [recorded(1)]
        await confirm(old)
        await record(new)
        assert list(await world.look_up()) == [recorded(2), recorded(1)]
        await confirm(new)
        assert list(await world.look_up()) == [recorded(2), superseded(1)]
        await world.pass_time(500.0)
        assert list(await world.look_up()) == [recorded(2), superseded(1)]
        await world.pass_time(101.0)
        assert list(await world.look_up()) == [recorded(2)]

    async def test_b28_rotated_twice_the_first_unconfirmed(self, world: World) -> None:
        """Whatever was recorded may be what Telegram has; the time of what was superseded runs from then."""
        one, two, three = [await start(world, str(n), **_secrets(n)) for n in (1, 2, 3)]
        await record(one)
        await confirm(one)
        await record(two)
        await record(three)
        assert list(await world.look_up()) == [recorded(3), recorded(2), recorded(1)]
        await confirm(three)
        await world.pass_time(400.0)
        await confirm(three)
        assert list(await world.look_up()) == [recorded(3), superseded(2), superseded(1)]
        await world.pass_time(201.0)
        assert list(await world.look_up()) == [recorded(3)]

    async def test_b28_rotated_back(self, world: World) -> None:
        """A secret that is registered again is as good as a new one, also when its time was over."""
        one, two = await start(world, "one", **_secrets(1)), await start(world, "two", **_secrets(2))
        for instance in (one, two):
            await record(instance)
            await confirm(instance)
        await world.pass_time(601.0)
        await record(one)
        assert list(await world.look_up()) == [recorded(1), recorded(2)]
        await confirm(one)
        assert list(await world.look_up()) == [recorded(1), superseded(2)]

    async def test_a_registration_is_one_whoever_makes_it(self, world: World) -> None:
        """Recorded again as it stands, it is no newer; instances with one configuration share it."""
        one, two = await start(world, "one", **_secrets(1)), await start(world, "two", **_secrets(2))
        again = await start(world, "three", **_secrets(1))
        await record(one)
        await record(two)
        await record(again)
        assert list(await world.look_up()) == [recorded(2), recorded(1)]
        await confirm(again)
        assert list(await world.look_up()) == [superseded(2), recorded(1)]

    async def test_what_is_confirmed_stands_even_where_its_time_was_over(self, world: World) -> None:
        """What Telegram has is never refused; a confirmation alone records nothing."""
        one, two = await start(world, "one", **_secrets(1)), await start(world, "two", **_secrets(2))
        await confirm(one)
        assert list(await world.look_up()) == []
        for instance in (one, two):
            await record(instance)
            await confirm(instance)
        await world.pass_time(601.0)
        await confirm(one)
        assert list(await world.look_up()) == [superseded(2), recorded(1)]

    async def test_a_look_up_names_the_newest_where_there_are_many(self, world: World) -> None:
        """Its work is bounded, whatever somebody recorded."""
        for number in range(18):
            instance = await world.boot(str(number), **_secrets(number))
            await ask(instance, m.OpenSession, m.SessionOpened)
            await record(instance)
            instance.close()
        assert list(await world.look_up()) == [recorded(number) for number in range(17, 1, -1)]
