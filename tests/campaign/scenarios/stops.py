"""Signals that ask for an end: during handlers, twice, and at a terminal."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from functools import partial
from signal import SIGINT, SIGTERM, Signals

from tests.campaign.field import Field
from tests.campaign.instance import SUPERVISOR, Instance
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Recovery
from tests.campaign.scenario import Need, scenario
from tests.end_to_end.instance import eventually

_AT_TERMINAL = (sys.executable, "-m", "tests.campaign.at_terminal")
_KINDS = (
    *("SIGTERM", "SIGINT", "SIGTERM, longer than the drain", "SIGTERM twice", "SIGTERM four at once"),
    "SIGINT twice at a terminal",
)
_LONG_SECONDS = 8.0
"""Longer than the drain below and a second signal that comes late; not by much, since what is interrupted runs again."""

_ONE_SIGNAL_SECONDS = 3.2
"""Signals within 3 s of the first count as one (INTERFACE.md, Commands)."""


@scenario(
    id="b20",
    title="SIGTERM during a handler; a second SIGTERM; SIGINT at a terminal",
    repetitions=60,
    short=6,
    needs=(Need.LINUX,),
    recovery=Recovery.NEXT_TERM,
)
async def ask_to_stop(field: Field, chance: random.Random) -> None:
    """The owner's, with a standby that waits. Handlers shorter than the drain end, longer ones go back; a second signal ends
    all at once. Nothing of it is left, and its status is 0."""
    await field.start("one", DRAIN_SECONDS="4")
    await field.start("two", DRAIN_SECONDS="4")
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            kind = _KINDS[repetition % len(_KINDS)]
            if kind.endswith("terminal"):
                owner = await _move_to_terminal(field, owner)
            is_long = "longer" in kind or "twice" in kind
            await field.traffic.send([_LONG_SECONDS if is_long else 1.5] * 2)
            await eventually(
                partial(_are_in_flight, field, list(field.traffic.sent)[-2:]), "handlers in flight"
            )
            await asyncio.sleep(chance.uniform(0.2, 1.3))  # the random moment
            took = await _ask(field, owner, kind)
            field.times.setdefault(f"{kind}: until its end", []).append(took)
            owner.command = SUPERVISOR
            await field.restart(owner)


async def _are_in_flight(field: Field, update_ids: list[int]) -> bool:
    """One of them is: the other's chat may wait for what was interrupted before."""
    rows = await field.recorder.fetch(
        "SELECT count(*) FROM webhook_supervisor.inbox WHERE update_id = ANY(%s) AND state = 'claimed'",
        update_ids,
    )
    return bool(rows[0][0])


async def _ask(field: Field, owner: Instance, kind: str) -> float:
    number = SIGINT if kind.startswith("SIGINT") else SIGTERM
    field.signal(owner, number, kind)
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
        elif time.monotonic() - begin < _ONE_SIGNAL_SECONDS + 0.4:  # else we were late ourselves
            field.object(Invariant.FAILED, "it had ended before the second signal")
    status = await owner.wait_for_exit()
    if status != 0:
        field.object(Invariant.HYGIENE, f"{kind}: {owner.name} ended with {status}")
    return time.monotonic() - begin


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
