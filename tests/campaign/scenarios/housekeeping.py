"""Thousands of deploys, kills and restarts: what do they leave behind?

    python -m tests.campaign loop --repetitions 10000

A step is one deploy, kill -9 or restart of an instance, with the start of what takes its place; some of the kills hit that
start. Six instances are live, and all of them are hit at once; one beside them lives through everything (`eldest`): it owns
whenever the others are gone, and hands over when they are back, so that what a supervisor or a database session collects in
time is seen. Everything is counted at rest, after the first steps and at the end (tests/campaign/remains.py).

Updates that were handled are kept for days, instances that are gone for one: in the long campaign rows of a week ago are
made at the end, and must go.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Callable
from dataclasses import replace

from deploy.local.platform.records import Release
from deploy.local.platform.service import Timing
from tests.campaign.field import HANG, Field
from tests.campaign.hosting import Hosting, hosted
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.remains import Remains, instance_processes, take_remains
from tests.campaign.scenario import Need, scenario
from tests.end_to_end.instance import eventually

LINUX = (Need.LINUX,)
_LIVE = 6
_ELDEST = "eldest"
_PER_SECOND = 10.0
"""Of updates: hours of it must be judged."""

_SHARE_OWNED = 0.2
_WARM_UP_STEPS = 6
_OLD_ROWS = 5_000
_SHOWN_EVERY = 500
_PROCESSES_OF_AN_INSTANCE = 3
"""The guard, which stands for the container; the supervisor; the worker."""

_TIMING = replace(
    Timing(),
    overlap_seconds=2.0,
    respawn_seconds=0.01,
    probe_interval_seconds=0.5,
    shutdown_delay_seconds=40.0,
)
"""A platform in a hurry: the loop is about what is left behind, not about answers."""


class Loop:
    """The steps, and how many there were."""

    def __init__(self, field: Field, hosting: Hosting, chance: random.Random) -> None:
        """Nothing is live yet."""
        self._field = field
        self._hosting = hosting
        self._chance = chance
        self._begin = time.monotonic()
        self._shown = 0
        self.steps = 0

    async def take(self) -> None:
        """One deploy, or both live instances killed or restarted; returns when two are live again."""
        platform = self._hosting.platform
        if self._chance.random() < 0.25:
            number = await self._hosting.deploy(Release(f"v{self.steps}"), count=_LIVE)
            self.steps += 1
            # The old ones end while the next steps are taken.
            await platform.wait_until(lambda: len(platform.routed) == _LIVE, limit_seconds=HANG)
            self._forget(number)
        else:
            names = platform.routed
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(self._upset(name))
            await platform.wait_until(lambda: set(platform.routed) == set(names), limit_seconds=HANG)
        if self._chance.random() < _SHARE_OWNED:
            # Otherwise the next step mostly finds the lock with the eldest, to whom it fell in this one.
            await self._hosting.wait_until_owned(platform.slot(platform.routed[0]).deploy)
        if self.steps - self._shown >= _SHOWN_EVERY:
            self._shown = self.steps
            print(f"    {self}", flush=True)

    async def _upset(self, name: str) -> None:
        """Restarts one, or kills it, and perhaps kills what takes its place; returns when it lives and is let live."""
        platform = self._hosting.platform
        lives_again = self._lives_again(name)
        if self._chance.random() < 0.4:
            self._field.inject("restart", self._hosting.instance(name))
            platform.restart(name)
            self.steps += 1
        else:
            await self._kill(name)
            if self._chance.random() < 0.5:
                await platform.wait_until(lives_again, limit_seconds=HANG)
                await asyncio.sleep(self._chance.uniform(0.0, 1.0))  # a moment of its start
                lives_again = self._lives_again(name)
                await self._kill(name)
        await platform.wait_until(lives_again, limit_seconds=HANG)

    async def _kill(self, name: str) -> None:
        await self._hosting.kill(name)
        self.steps += 1

    def _lives_again(self, name: str) -> Callable[[], bool]:
        """Whether an instance has another process than now."""
        slot = self._hosting.platform.slot(name)
        life = slot.life
        return lambda: slot.life > life and slot.pid != 0

    def __str__(self) -> str:
        per_hour = self.steps / (time.monotonic() - self._begin) * 3600
        return f"{self.steps} steps, {per_hour:.0f} an hour, {_cpu_seconds() / max(1, self.steps):.1f} s of CPU each"

    async def rest(self, eldest: Instance) -> Remains:
        """Waits until everything that ends has ended, and counts what is there."""
        platform, field = self._hosting.platform, self._field
        [newest] = {platform.slot(name).deploy for name in platform.routed}
        await self._hosting.wait_until_alone(newest)
        self._forget(newest)
        await self._hosting.wait_until_owned(newest)
        await field.steady()
        expected = _PROCESSES_OF_AN_INSTANCE * (_LIVE + 1)

        async def is_at_rest() -> bool:
            return (
                len(instance_processes(field.history_folder)) == expected
                and await self._is_accepting(eldest)
                and await self._late_sessions() == 2 * (_LIVE + 1)
            )

        try:
            await eventually(is_at_rest, f"{expected} processes")
        except AssertionError:
            found = instance_processes(field.history_folder)
            field.object(
                Invariant.HYGIENE,
                f"{len(found)} processes of instances at rest, not {expected}: {found}; "
                f"{await self._late_sessions()} sessions for look-ups and dispatch, not {2 * (_LIVE + 1)}",
            )
        return await take_remains(field, eldest)

    async def _late_sessions(self) -> int:
        """Each worker has two that come some seconds after it has begun to receive (webhook_worker/links.py)."""
        [[count]] = await self._field.recorder.fetch(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name IN ('webhook-supervisor worker look-ups', 'webhook-supervisor worker dispatch')"
        )
        return int(count)

    async def _is_accepting(self, instance: Instance) -> bool:
        status = await instance.try_status()
        return status is not None and bool(status["worker"]["ready"])

    def _forget(self, newest: int) -> None:
        """What an instance that is gone has written is on disk; its lines need not be in memory."""
        alive = {slot.name for slot in self._hosting.platform.slots}
        for name, instance in list(self._field.instances.items()):
            if name != _ELDEST and name not in alive and not instance.is_running:
                del self._field.instances[name]


def _cpu_seconds() -> float:
    """Of everything that we started and that has ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@scenario(
    id="loop",
    title="deploys, kills, restarts leave nothing",
    repetitions=10_000,
    short=25,
    needs=LINUX,
    recovers_each=False,  # six instances are hit in one moment
    answers=False,  # and six starts at once take two cores for longer than a probe's limit, now and then in 10,000 steps
)
async def loop(field: Field, chance: random.Random) -> None:
    """No process, zombie, descriptor, session, lock or growing table."""
    async with (
        hosted(field, timing=_TIMING, environment={"LINGER_SECONDS": "1"}) as hosting,
        field.flowing(_PER_SECOND),
    ):
        eldest = field.prepare(_ELDEST, LINGER_SECONDS="1")
        await eldest.start()
        hosting.follow(eldest)
        await eldest.wait_until_healthy()
        await hosting.deploy(Release("v0"), count=_LIVE)
        steps = Loop(field, hosting, chance)
        while steps.steps < min(_WARM_UP_STEPS, field.repetitions):
            await steps.take()
        before = await steps.rest(eldest)
        while steps.steps < field.repetitions:
            await steps.take()
        print(f"    {steps}", flush=True)
        after = await steps.rest(eldest)
        print(f"    after {_WARM_UP_STEPS} steps: {before}\n    at the end: {after}", flush=True)
        for what in after.compare(before):
            field.object(Invariant.HYGIENE, f"left behind by {steps.steps} steps: {what}")
        if after.rows["terms"] != 1 or after.rows["registrations"] != before.rows["registrations"]:
            field.object(Invariant.HYGIENE, f"tables that grow: {after.rows}, and they were {before.rows}")
        if not field.is_short:
            await _expect_forgotten(field, hosting, steps, eldest)


async def _expect_forgotten(field: Field, hosting: Hosting, steps: Loop, eldest: Instance) -> None:
    """What is older than its time goes: updates that were handled a week ago, instances that were silent for a week."""
    # Rows of their own, since those of the traffic are still to be judged.
    await field.recorder.fetch(
        "INSERT INTO webhook_supervisor.inbox (bot_id, update_id, lane, state, received_at, finished_at) "
        "SELECT t.bot_id, -n, n, 'done', now() - interval '7 days', now() - interval '7 days' "
        "FROM webhook_supervisor.terms t, generate_series(1, %s) n RETURNING 1",
        _OLD_ROWS,
    )
    await field.recorder.fetch(
        "UPDATE webhook_supervisor.instances SET announced_at = announced_at - interval '7 days' "
        "WHERE announced_at < clock_timestamp() - interval '20 seconds' RETURNING 1"
    )
    # A session that is opened forgets instances; an owner that lives for a minute forgets updates.
    for name in hosting.platform.routed:
        hosting.platform.restart(name)

    async def is_forgotten() -> bool:
        [[updates, instances]] = await field.recorder.fetch(
            "SELECT (SELECT count(*) FROM webhook_supervisor.inbox WHERE update_id < 0), (SELECT count(*) "
            "FROM webhook_supervisor.instances WHERE announced_at < clock_timestamp() - interval '2 days')"
        )
        return bool(updates == instances == 0)

    try:
        await eventually(is_forgotten, f"{_OLD_ROWS} updates and all instances of a week ago are forgotten")
    except AssertionError as exc:
        field.object(Invariant.HYGIENE, str(exc))
    print(f"    what was a week old is gone: {await steps.rest(eldest)}", flush=True)
