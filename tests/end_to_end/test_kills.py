"""kill -9 of any process at any moment: no orphan, nothing lost, nothing doubled, order kept."""

from __future__ import annotations

import asyncio
import os
import random
import time
from functools import partial
from signal import SIGKILL

import pytest

from deploy.local.emulator.control_messages import SendText
from deploy.local.evidence import InboxReader, read_deliveries, read_runs
from deploy.local.history import Death, judge
from tests.end_to_end.instance import HANG_SECONDS, Instance, World, eventually, is_alive

CHATS = 40
KILLS = 6


class Traffic:
    """Users who write until they are told to stop; every message is a little work."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stopped = asyncio.Event()
        self.chats: dict[int, int] = {}

    async def run(self) -> None:
        user = 0
        while not self._stopped.is_set():
            wishes = [SendText(1 + (user + n) % CHATS, "work 0.05") for n in range(5)]
            user += 5
            for sent in await self._world.telegram.send_many(wishes):
                assert sent.update_id is not None
                self.chats[sent.update_id] = sent.chat_id
            await asyncio.sleep(0.05)

    def stop(self) -> None:
        self._stopped.set()


async def kill_supervisor(instance: Instance) -> float:
    """The supervisor dies; its worker, and whatever that started, must follow. Returns the moment before the kill."""
    worker = await instance.worker_pid()
    at = time.monotonic()
    instance.signal(SIGKILL)
    await instance.wait_for_exit()
    await eventually(partial(_is_gone, worker), f"the end of worker {worker} after its supervisor's")
    return at


async def kill_worker(instance: Instance) -> float:
    """The worker dies; its supervisor goes on. Returns the moment before the kill."""
    worker = await instance.worker_pid()
    at = time.monotonic()
    os.kill(worker, SIGKILL)
    await eventually(partial(_is_gone, worker), f"the end of worker {worker}")
    return at


async def _is_gone(pid: int) -> bool:
    return not is_alive(pid)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
async def test_a22_kill_9_at_any_moment_loses_and_doubles_nothing(world: World, seed: int) -> None:
    """Supervisors and workers of owner and standby are killed at random moments under traffic; a checker judges."""
    chance = random.Random(seed)
    one = await world.start_public("one")
    await one.wait_until_owner()
    instances = [one, await world.start("two")]
    traffic = Traffic(world)
    sending = asyncio.create_task(traffic.run())
    deaths: list[Death] = []
    for _ in range(KILLS):
        await asyncio.sleep(chance.random())  # the random moment of the kill
        victim = chance.choice(instances)
        kill = kill_worker if chance.random() < 0.5 else kill_supervisor
        at = await kill(victim)
        deaths.append(Death(victim.name, at, time.monotonic()))
        if not victim.process.is_running:
            await victim.start()
        for instance in instances:
            await instance.wait_until_healthy()
            await instance.worker_pid()
    traffic.stop()
    await sending
    assert await world.telegram.wait_idle(timeout_seconds=HANG_SECONDS)
    reader = await InboxReader.open(world.database_url)
    try:
        await reader.wait_for_count("pending", "claimed", at_most=0, limit_seconds=HANG_SECONDS)
        rows = await reader.rows(traffic.chats)
    finally:
        await reader.close()
    deliveries = await read_deliveries(world.telegram, traffic.chats)
    verdict = judge(deliveries, read_runs(world.history, traffic.chats), rows, deaths)
    assert verdict.sent > 100
    assert verdict.breaches == ()
    assert [row.update_id for row in rows if row.state == "dead"] == []
    assert verdict.rerun <= verdict.in_flight_at_deaths
