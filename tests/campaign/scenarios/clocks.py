"""The wall clock of the machine that an instance runs on is set."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import datetime

from deploy.local.log_lines import LogLine
from tests.campaign.faults.faketime import WallClock
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario
from tests.campaign.succession import count_terms, end_lock_session, until_superseded
from tests.end_to_end.instance import eventually

_HOUR = 3600.0
_NEAR_SECONDS = 900.0
"""How old what shows a clock may be, on the slowest of machines; and far from an hour."""


class Clock:
    """An instance's wall clock, and what its two processes show of it.

    The worker shows it in the log, with every update. The supervisor logs nothing while nothing changes, and tells by it in
    /status when it last checked the webhook, which each has done that ever owned.

    Attributes:
        ahead_seconds: how far ahead it is.
    """

    def __init__(self, wall_clock: WallClock) -> None:
        """Shows the right time."""
        self._wall_clock = wall_clock
        self._line_ahead_seconds = 0.0
        self._checked_at = 0.0
        self.ahead_seconds = 0.0

    def watch(self, instance: Instance) -> None:
        """Reads its log from now on."""
        take = instance.on_log

        def look(line: LogLine) -> None:
            take(line)
            if line.begins("WEBHOOK", "received"):
                self._line_ahead_seconds = _read(line.timestamp) - time.time()

        instance.on_log = look

    async def jump(self, instance: Instance, ahead_seconds: float) -> None:
        """Sets it."""
        self._checked_at = await _checked_at(instance) - self.ahead_seconds
        self.ahead_seconds = ahead_seconds
        self._wall_clock.jump(ahead_seconds)

    async def unseen_by(self, instance: Instance) -> list[str]:
        """Waits until both processes show what it was set to; those that never do."""
        found: list[str] = []

        async def show() -> bool:
            # An owner may have checked again meanwhile: that is minutes at most.
            of_supervisor = await _checked_at(instance) - self._checked_at
            shown = {"supervisor": of_supervisor, "worker": self._line_ahead_seconds}
            found[:] = [
                who for who, ahead in shown.items() if abs(ahead - self.ahead_seconds) > _NEAR_SECONDS
            ]
            return not found

        try:
            await eventually(show, "both processes with the new time")
        except AssertionError:
            return found
        return []


def _read(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


async def _checked_at(instance: Instance) -> float:
    """When an instance last checked the webhook, as its wall clock has it."""
    last: str | None = None

    async def has_checked() -> bool:
        nonlocal last
        last = (await instance.status())["webhook"]["last_checked"]
        return last is not None

    await eventually(has_checked, f"a webhook that {instance.name} has checked")
    assert last is not None
    return _read(last)


@scenario(id="b16", title="wall clock jumps an hour, either way", repetitions=40, short=8,
    needs=(Need.LINUX, Need.FAKETIME))  # fmt: skip
async def jump(field: Field, chance: random.Random) -> None:
    """The owner's, the standby's, or both, in either direction and back: nobody is superseded, nothing waits an hour."""
    clocks = {}
    for name in ("one", "two"):
        folder = field.folder / f"clock-{name}"
        folder.mkdir()
        wall_clock = WallClock(folder)
        clocks[name] = Clock(wall_clock)
        clocks[name].watch(await field.start(name, **wall_clock.environment))
    async with field.flowing():
        first = await field.steady()
        await _checked_at(first)
        await end_lock_session(field)
        await _checked_at(await until_superseded(field, first))
        await field.steady()
        terms = await count_terms(field)
        for _ in range(field.repetitions):
            await asyncio.sleep(chance.uniform(0.5, 2.5))  # the random moment
            hit = chance.choice((["one"], ["two"], ["one", "two"]))
            # From an hour ahead it jumps back, or to an hour behind.
            to = {
                name: chance.choice([h for h in (-1, 0, 1) if h * _HOUR != clocks[name].ahead_seconds])
                for name in hit
            }
            field.inject(" and ".join(f"to {hours:+d} h on {name}" for name, hours in to.items()))
            for name, hours in to.items():
                await clocks[name].jump(field.instances[name], hours * _HOUR)
            await field.steady()
            for name in hit:
                if unseen := await clocks[name].unseen_by(field.instances[name]):
                    field.object(
                        Invariant.FAILED, f"the clock of {name} jumped, unseen by {' and '.join(unseen)}"
                    )
        if (now := await count_terms(field)) != terms:
            field.object(Invariant.AVAILABLE, f"{now - terms} more terms, and only clocks were set")
