"""Processes that stand still for less than their deadline, and go on."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from tests.end_to_end.instance import Instance, World, eventually, freeze, thaw
from tests.end_to_end.test_standby import (
    announces_itself,
    last_heartbeat_at,
    owner_and_standby,
    post_update,
    text_update,
    wait_until_done,
)

ACQUIRED = "[LOCK] PostgreSQL advisory lock acquired"

FREEZE_SECONDS = 5.5
"""The deadline is 8 s after a heartbeat, and a worker ends its term a second before. The rest is for a slow machine."""

OVERSLEPT_SECONDS = 6.5
"""From the heartbeat on: a machine that wakes us so late has frozen the owner for too long."""


async def by_role(first: Instance, second: Instance) -> tuple[Instance, Instance]:
    """The owner and the standby, once one owns and the other one waits."""
    found = [first, second]

    async def is_settled() -> bool:
        states = [await instance.status() for instance in found]
        if states[0]["role"] != "ACTIVE":
            found.reverse()
            states.reverse()
        return (states[0]["role"], states[1]["lock"]["state"]) == ("ACTIVE", "waiting")

    await eventually(is_settled, "an owner and a standby")
    return found[0], found[1]


@pytest.mark.parametrize("with_worker", [False, True], ids=["supervisor", "supervisor_and_worker"])
async def test_b05_a_freeze_that_ends_before_the_deadline_changes_no_owner(
    world: World, with_worker: bool
) -> None:
    """The lock stays where it is, the term or at most one more goes on there, and updates of that time are handled."""
    owner, standby = await owner_and_standby(world)
    for number in itertools.count(940_001):
        term, acquired = (await owner.status())["term"]["number"], standby.count(ACQUIRED)
        await announces_itself(world, owner, times=1)
        heard_at = await last_heartbeat_at(world, owner)
        # Answered by the same loop, after the database's answer to the heartbeat.
        worker = await owner.worker_pid()
        frozen = [owner.process.pid, *([worker] if with_worker else [])]
        freeze(frozen)
        assert (await post_update(standby, text_update(number, 7, "work 0"))).status_code == 200
        await asyncio.sleep(FREEZE_SECONDS)  # the length of the fault
        thaw(frozen)
        if time.monotonic() < heard_at + OVERSLEPT_SECONDS:
            break
        owner, standby = await by_role(owner, standby)
    await wait_until_done(world, number)
    await announces_itself(world, owner, times=1)
    assert standby.count(ACQUIRED) == acquired

    async def owns() -> bool:
        return bool((await owner.status())["role"] == "ACTIVE")

    await eventually(owns, "an owner that goes on")
    assert (await owner.status())["term"]["number"] - term in (0, 1)
    assert owner.process.is_running
