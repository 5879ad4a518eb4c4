"""Signals that ask for an end: during handlers, twice, and at a terminal."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import replace
from signal import SIGINT, SIGTERM, Signals

from shared.config import LONGEST_DRAIN_SECONDS, SHUTDOWN_SECONDS
from tests.campaign.field import Field
from tests.campaign.instance import SUPERVISOR, Instance
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Bound, Recovery
from tests.campaign.scenario import Need, scenario

_AT_TERMINAL = (sys.executable, "-m", "tests.campaign.at_terminal")
_KINDS = (
    "SIGTERM once",
    "SIGINT once",
    "SIGTERM, longer than the drain",
    "SIGTERM twice",
    "SIGTERM four at once",
    "SIGINT twice at a terminal",
)
_DRAIN_SECONDS = 4.0
_LONG_SECONDS = 8.0
"""Longer than the drain and a second signal that comes late; not by much, since what is interrupted runs again."""

_ONE_SIGNAL_SECONDS = 3.2
"""Signals within 3 s of the first count as one (INTERFACE.md, Commands)."""

_BESIDE_DRAIN_SECONDS = SHUTDOWN_SECONDS - LONGEST_DRAIN_SECONDS
"""What an orderly stop has for everything but its drain, so that with the longest one it is over within 25 s."""

_LATE = "late: "
"""Of a kind whose second signal came when there was nobody left: as if it had been asked once."""

_AT_ONCE_SECONDS = 1.0
"""As for the end of a worker whose supervisor was killed (SCENARIOS.md, b01)."""


def _is_twice(kind: str) -> bool:
    return "twice" in kind and not kind.startswith(_LATE)


def _until_its_end(kind: str) -> str:
    return f"{kind}: from the second signal to its end" if _is_twice(kind) else f"{kind}: until its end"


def _bounds(kind: str) -> tuple[Bound, ...]:
    name = _until_its_end(kind)
    if _is_twice(kind):
        return (Bound(f"{name}, worst", _AT_ONCE_SECONDS, worst=True, kind=kind),)
    return (
        Bound(f"{name}, median", _DRAIN_SECONDS + _BESIDE_DRAIN_SECONDS, kind=kind),
        Bound(f"{name}, worst", SHUTDOWN_SECONDS, worst=True, kind=kind),
    )


@scenario(
    id="b20",
    title="SIGTERM during a handler; a second SIGTERM; SIGINT at a terminal",
    repetitions=60,
    short=6,
    needs=(Need.LINUX,),
    recovery=Recovery.NEXT_TERM,
    bounds={_until_its_end(kind): _bounds(kind) for kind in _KINDS},
)
async def ask_to_stop(field: Field, chance: random.Random) -> None:
    """The owner's, with a standby that waits. Handlers shorter than the drain end, longer ones go back; a second signal ends
    all at once. Nothing of it is left, and its status is 0."""
    for name in ("one", "two"):
        await field.start(name, DRAIN_SECONDS=str(_DRAIN_SECONDS))
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            kind = _KINDS[repetition % len(_KINDS)]
            if kind.endswith("terminal"):
                owner = await _move_to_terminal(field, owner)
            is_long = "longer" in kind or "twice" in kind
            await field.put_in_flight([_LONG_SECONDS if is_long else 1.5] * 2)
            await asyncio.sleep(chance.uniform(0.2, 1.3))  # the random moment
            await _ask(field, owner, kind)
            owner.command = SUPERVISOR
            await field.restart(owner)


async def _ask(field: Field, owner: Instance, kind: str) -> None:
    number = SIGINT if kind.startswith("SIGINT") else SIGTERM
    fault = field.signal(owner, number, kind)
    begin = time.monotonic()
    if kind == "SIGTERM four at once":
        for _ in range(3):
            owner.signal(Signals.SIGTERM)
    if "twice" in kind:
        # At a terminal any second signal is a person's.
        await asyncio.sleep(0.5 if "terminal" in kind else _ONE_SIGNAL_SECONDS)
        if owner.is_running:
            begin = time.monotonic()
            owner.signal(number)
            await owner.wait_for_exit()
            field.note_death(owner, begin, time.monotonic())
        else:
            if time.monotonic() - begin < _ONE_SIGNAL_SECONDS + 0.4:  # else we were late ourselves
                field.object(Invariant.FAILED, "it had ended before the second signal")
            kind = f"{_LATE}{kind}"
            field.faults[field.faults.index(fault)] = replace(fault, kind=kind)
    status = await owner.wait_for_exit()
    field.times.setdefault(_until_its_end(kind), []).append(time.monotonic() - begin)
    if status != 0:
        field.object(Invariant.HYGIENE, f"{kind}: {owner.name} ended with {status}")


async def _move_to_terminal(field: Field, owner: Instance) -> Instance:
    """Starts an instance at a terminal, and makes it the owner."""
    other = await field.standby()
    await field.stop(other)
    other.command = (*_AT_TERMINAL, *SUPERVISOR)
    await field.restart(other)
    await field.steady()
    await field.stop(owner)
    await field.restart(owner)
    if await field.steady() is not other:
        field.object(Invariant.FAILED, "the instance at the terminal is not the owner")
    return other
