"""Processes that stop and go on, and event loops that are blocked."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial

from tests.campaign.evidence import Freeze
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Bound, Recovery
from tests.campaign.scenario import Need, scenario
from tests.campaign.succession import STOPPED_BEFORE, STOPPED_BY_ITSELF, measure_silence
from tests.end_to_end.instance import eventually, freeze, thaw

_SHORT_SECONDS = 3.0
"""A freeze that no deadline notices: 8 s, less the last one, in which the worker ends by itself (webhook_worker/term.py), the
2 s between two heartbeats, and two for a slow machine."""


@scenario(
    id="b04",
    title="SIGSTOP the supervisor past its deadline, then SIGCONT",
    repetitions=40,
    short=2,
    needs=(Need.LINUX,),
    recovery=Recovery.NEXT_TERM,
    bounds={
        Recovery.NEXT_TERM: (Bound("frozen owner (SIGSTOP) to the next term, worst", 16.0, worst=True),),
        STOPPED_BEFORE: STOPPED_BY_ITSELF,
    },
)
async def freeze_past_deadline(field: Field, chance: random.Random) -> None:
    """By turns the supervisor alone, whose worker must stop by itself, and the whole instance, which must step down when it
    goes on; thawed at once when another owns, or some seconds into its term."""
    await field.start("one")
    await field.start("two")
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            await asyncio.sleep(chance.uniform(0.0, 2.0))  # the random moment
            pids = [owner.process.pid]
            if repetition % 2:
                pids.append(await owner.worker_pid())
            field.inject("SIGSTOP supervisor" if len(pids) == 1 else "SIGSTOP instance", owner)
            with field.standing_still(owner):
                freeze(pids)
                stopped_at = time.monotonic()
                await _until_another_owns(field, owner)
                # How far into the next term.
                await asyncio.sleep(chance.choice((0.0, chance.uniform(0.0, 8.0))))
                await measure_silence(field, owner)
                field.freezes += (Freeze(pid, stopped_at, time.monotonic()) for pid in pids[1:])
                # In any order: a worker that goes on before its supervisor is told nothing new.
                thaw(chance.sample(pids, len(pids)))
                await _until_passive(owner)


@scenario(id="b05", title="SIGSTOP shorter than the deadline", repetitions=60, short=3, needs=(Need.LINUX,))
async def freeze_briefly(field: Field, chance: random.Random) -> None:
    """By turns supervisor and instance: nothing changes hands, and the term goes on."""
    await field.start("one")
    await field.start("two")
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            number = await field.term_number()
            pids = [owner.process.pid]
            if repetition % 2:
                pids.append(await owner.worker_pid())
            field.inject("short SIGSTOP", owner)
            with field.standing_still(owner):
                freeze(pids)
                stopped_at = time.monotonic()
                await asyncio.sleep(chance.uniform(0.5, _SHORT_SECONDS))  # the length of the fault
                thaw(pids)
                frozen = time.monotonic() - stopped_at
            has_changed = await field.steady() is not owner or await field.term_number() != number
            # We may have been late ourselves.
            if has_changed and frozen <= _SHORT_SECONDS + 0.3:
                field.object(Invariant.AVAILABLE, f"a freeze of less than {_SHORT_SECONDS} s ended a term")


@scenario(
    id="b06",
    title="SIGSTOP the worker, or block its event loop",
    repetitions=30,
    short=2,
    needs=(Need.LINUX,),
    recovery=Recovery.FRESH_DISPATCH,
    bounds={
        Recovery.FRESH_DISPATCH: (
            Bound("worker that stands still to a fresh update's handler, median", 12.0),
            Bound("worker that stands still to a fresh update's handler, worst", 30.0, worst=True),
        ),
    },
)
async def freeze_worker(field: Field, chance: random.Random) -> None:
    """It misses its beats, is killed and replaced; the standby goes on receiving meanwhile."""
    await field.start("one", BOT_APP="tests.campaign.bots:blocking")
    await field.start("two", BOT_APP="tests.campaign.bots:blocking")
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            worker = await owner.worker_pid()
            with field.standing_still(owner):
                if repetition % 2:
                    field.inject("loop blocked", owner)
                    # Only its first run blocks: it is not poison, and must be handled in the end.
                    await field.write("/block 60")
                else:
                    field.inject("SIGSTOP worker", owner)
                    freeze([worker])
                await eventually(partial(_is_replaced, owner, worker), "another worker")


async def _is_replaced(instance: Instance, pid: int) -> bool:
    status = await instance.try_status()
    return status is not None and status["worker"]["ready"] and status["worker"]["pid"] != pid


async def _until_another_owns(field: Field, frozen: Instance) -> None:
    async def another_owns() -> bool:
        return await field.owner() is not frozen

    await eventually(another_owns, f"another owner than {frozen.name}")


async def _until_passive(instance: Instance) -> None:
    async def is_passive() -> bool:
        status = await instance.try_status()
        return status is not None and status["role"] == "PASSIVE"

    await eventually(is_passive, f"{instance.name} that steps down")
