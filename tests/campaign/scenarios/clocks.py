"""The wall clock of the machine that an instance runs on is set."""

from __future__ import annotations

import asyncio
import random

from tests.campaign.faults.faketime import WallClock
from tests.campaign.field import Field
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario
from tests.campaign.succession import count_terms

_HOUR = 3600.0


@scenario(id="b16", title="wall clock jumps an hour, either way", repetitions=40, short=8,
    needs=(Need.LINUX, Need.FAKETIME))  # fmt: skip
async def jump(field: Field, chance: random.Random) -> None:
    """The owner's, the standby's, or both, in either direction and back: nobody is superseded, nothing waits an hour."""
    clocks = {}
    for name in ("one", "two"):
        folder = field.folder / f"clock-{name}"
        folder.mkdir()
        clocks[name] = WallClock(folder)
        await field.start(name, **clocks[name].environment)
    async with field.flowing():
        await field.steady()
        terms = await count_terms(field)
        for _ in range(field.repetitions):
            await asyncio.sleep(chance.uniform(0.5, 2.5))  # the random moment
            hours = chance.choice((-1, 1))
            hit = chance.choice((["one"], ["two"], ["one", "two"]))
            field.inject(f"{hours:+d} h on {' and '.join(hit)}")
            for name in hit:
                clocks[name].jump(hours * _HOUR)
            await field.steady()
            for name in hit if chance.random() < 0.5 else ():
                clocks[name].jump(0)
        if (now := await count_terms(field)) != terms:
            field.object(Invariant.AVAILABLE, f"{now - terms} more terms, and only clocks were set")
