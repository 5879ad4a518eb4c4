"""kill -9 of any process at any moment: no orphan, nothing lost, nothing doubled, order kept."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from signal import SIGKILL

import pytest
from psycopg.conninfo import conninfo_to_dict

from deploy.local.emulator.control_messages import SendText
from deploy.local.evidence import InboxReader, read_deliveries, read_runs
from deploy.local.history import Death, judge
from tests.campaign.faults.proxy import Conditions, Direction, Flow, run_proxy
from tests.end_to_end.instance import HANG_SECONDS, Instance, World, eventually, is_alive
from tests.integration.supervisor.lease_driver import rows

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


async def _has_just_probed(world: World) -> bool:
    """Whether its next probe is more than a second away: on a session that waits for an answer nothing would be stored."""
    query = (
        "SELECT state = 'idle' AND clock_timestamp() - state_change < interval '0.3 s' FROM pg_stat_activity "
        "WHERE application_name = 'webhook-supervisor worker ingest' AND datname = current_database()"
    )
    return await rows(world.database_url, query) == [(True,)]


@pytest.mark.parametrize("kill", [kill_worker, kill_supervisor])
async def test_b03_killed_between_the_commit_and_its_200_an_update_runs_once(
    world: World, kill: Callable[[Instance], Awaitable[float]]
) -> None:
    """The database's answers are kept from the owner; once the update is committed it dies. Telegram sends it again."""
    server_port = int(conninfo_to_dict(world.database_url)["port"] or 0)
    async with run_proxy(server_port) as proxy:
        one = await world.start_public("one", DATABASE_URL=proxy.dsn(world.database_url))
        await one.wait_until_owner()
        await eventually(
            partial(_has_just_probed, world), "an ingest that is idle, and has just asked the database"
        )
        await proxy.set(Conditions(Flow.SWALLOW), Direction.TO_CLIENT)
        sent = await world.telegram.send_text(7, "work 0")
        assert sent.update_id is not None
        chats = {sent.update_id: sent.chat_id}
        reader = await InboxReader.open(world.database_url)
        try:
            await reader.wait_for_count("pending", "claimed", at_least=1, limit_seconds=HANG_SECONDS)
            await kill(one)
            await proxy.heal()
            if not one.process.is_running:
                await one.start()
            await reader.wait_for_count("done", at_least=1, limit_seconds=HANG_SECONDS)
            assert await world.telegram.wait_idle(timeout_seconds=HANG_SECONDS)
            (row,) = await reader.rows(chats)
        finally:
            await reader.close()
    (delivery,) = await read_deliveries(world.telegram, chats)
    assert row.state == "done"
    # More often than once where nobody serves yet when Telegram comes again, 2 s later at the earliest.
    assert delivery.failures >= 1
    assert delivery.answered_at is not None
    assert len(read_runs(world.history, chats)) == 1
