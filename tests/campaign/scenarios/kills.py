"""kill -9 of supervisors and workers."""

from __future__ import annotations

import asyncio
import random

from tests.campaign.field import Field
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Bound, Recovery
from tests.campaign.scenario import Need, scenario

_NEXT_TERM = (
    Bound("kill -9 of the owner's supervisor to the next term, median", 0.1),
    Bound("kill -9 of the owner's supervisor to the next term, worst", 1.0, worst=True),
)
_FRESH = (Bound("kill -9 of the owner's supervisor to the first fresh update dispatched, median", 0.25),)


@scenario(
    id="b01",
    title="kill -9 the supervisor",
    repetitions=140,
    short=6,
    needs=(Need.LINUX,),
    recovery=Recovery.NEXT_TERM,
    bounds={Recovery.NEXT_TERM: _NEXT_TERM, Recovery.FRESH_DISPATCH: _FRESH},
)
async def kill_supervisor(field: Field, chance: random.Random) -> None:
    """The owner's, with a standby that waits; every fourth time the standby's, which must change nothing."""
    await field.start("one")
    await field.start("two")
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            if repetition % 4 == 3:
                standby = await field.standby()
                await field.kill_supervisor(standby)
                await field.restart(standby)
                if await field.owner() is not owner:
                    field.object(Invariant.AVAILABLE, "the death of a standby changed the owner")
            else:
                await field.kill_supervisor(owner)
                await field.owner()
                await field.restart(owner)


@scenario(
    id="b02",
    title="kill -9 the worker in the middle of a handler",
    repetitions=80,
    short=5,
    needs=(Need.LINUX,),
    bounds={Recovery.FIRST_200: (Bound("worker killed: accepting again, worst", 2.0, worst=True),)},
)
async def kill_worker(field: Field, chance: random.Random) -> None:
    """One instance alone: it accepts again, and meanwhile nobody is refused a connection."""
    one = await field.start("one")
    async with field.flowing():
        for _ in range(field.repetitions):
            await field.steady()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            await field.kill_worker(one)
            await one.wait_until_healthy()
    refused = [exchange for exchange in field.exchanges if exchange.fault.startswith("no connection")]
    if refused:
        field.object(Invariant.AVAILABLE, f"{len(refused)} connections were refused: {refused[0].fault}")
