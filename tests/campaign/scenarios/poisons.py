"""Updates that take the bot along."""

from __future__ import annotations

import asyncio
import random
from contextlib import ExitStack

from tests.campaign.field import Field
from tests.campaign.judge import Invariant
from tests.campaign.poison import KILLING, SPARING
from tests.campaign.scenario import Need, scenario
from tests.campaign.succession import until_recovered
from tests.end_to_end.instance import eventually

LINUX = (Need.LINUX,)

_MAX_ATTEMPTS = 2
_TIMEOUT_SECONDS = 10.0  # of innocents on a busy machine, too
_LIMITS = ("/usr/bin/prlimit", f"--as={4 * 1024**3}", "--core=0")
"""Of address space, so that whoever eats memory is refused more, and the machine is not in danger."""
_WAYS = ("exits", "memory", "segfaults", "hangs", "devours", "raises", "blocks")
_POISONED = 900_001  # the first chat that gets poison, outside of the traffic's


@scenario("b25", "poison update", repetitions=60, short=5, needs=LINUX, dead_letters=True, hang_seconds_each=240)  # fmt: skip
async def poison(field: Field, chance: random.Random) -> None:
    """With innocents in flight beside it, and more of the same chat behind it. It is counted before each of its runs, and is a
    dead letter after MAX_ATTEMPTS that killed the process, or after the first that did not; everybody else is handled."""
    assert set(_WAYS) == {*KILLING, *SPARING}
    for name in ("one", "two"):
        await field.start(
            name,
            prefix=_LIMITS,
            BOT_APP="tests.campaign.poison:build",
            MAX_ATTEMPTS=str(_MAX_ATTEMPTS),
            HANDLER_TIMEOUT_SECONDS=str(_TIMEOUT_SECONDS),
        )
    poisons: dict[int, str] = {}
    first = chance.randrange(len(_WAYS))  # else the short campaign never comes to the last ones
    async with field.flowing(10.0):  # whatever is in flight at a crash runs again, one after the other
        for repetition in range(field.repetitions):
            owner = await field.steady()
            way = _WAYS[(first + repetition) % len(_WAYS)]
            chat = _POISONED + repetition
            # Innocents, longer than the poison takes.
            await field.traffic.send([chance.uniform(0.5, 2.0) for _ in range(8)])
            await asyncio.sleep(chance.uniform(0.0, 0.5))  # the random moment
            field.inject(way, owner)
            with ExitStack() as stack:
                if way == "blocks":
                    # Each run of it, wherever that is.
                    for instance in field.running:
                        stack.enter_context(field.standing_still(instance))
                poisons[await _write(field, chat, f"/poison {way}")] = way
                behind = [await _write(field, chat, f"work {seconds}") for seconds in (0.1, 0.0)]
                await _until_finished(field, [*poisons, *behind])
    for update_id, way in poisons.items():
        await _look(field, update_id, way)
    await _look_at_innocents(field, poisons)


async def _write(field: Field, chat: int, text: str) -> int:
    sent = await field.telegram.send_text(chat, text)
    assert sent.update_id is not None
    field.traffic.sent[sent.update_id] = sent.chat_id
    return sent.update_id


async def _until_finished(field: Field, update_ids: list[int]) -> None:
    async def are_finished() -> bool:
        rows = await field.recorder.fetch(
            "SELECT count(*) FROM webhook_supervisor.inbox WHERE update_id = ANY(%s) AND state IN ('done', 'dead')",
            update_ids,
        )
        return bool(rows[0][0] == len(update_ids))

    await eventually(are_finished, "the end of the poison, and its chat goes on")
    # A second poison would be the second crash for those that the first has taken along, and that is one too many.
    await until_recovered(field)


async def _look(field: Field, update_id: int, way: str) -> None:
    """How often a poison was started, and what became of it."""
    rows = await field.recorder.fetch(
        "SELECT state, starts, coalesce(error, '') FROM webhook_supervisor.inbox WHERE update_id = %s",
        update_id,
    )
    state, starts, error = rows[0]
    expected = _MAX_ATTEMPTS if way in KILLING else 1
    if (state, starts) != ("dead", expected):
        field.object(
            Invariant.COUNTED,
            f"a poison that {way} is {state} after {starts} starts, not dead after {expected}",
        )
    if not error:
        field.object(Invariant.DEAD, f"the dead letter of a poison that {way} says nothing")


async def _look_at_innocents(field: Field, poisons: dict[int, str]) -> None:
    rows = await field.recorder.fetch("SELECT update_id FROM webhook_supervisor.inbox WHERE state = 'dead'")
    if innocent := {int(update_id) for (update_id,) in rows} - poisons.keys():
        field.object(Invariant.DEAD, f"{len(innocent)} innocents became dead letters: {sorted(innocent)[:5]}")
