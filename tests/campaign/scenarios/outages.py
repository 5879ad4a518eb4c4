"""The database, or Telegram's API, is gone for a while, and handlers run."""

from __future__ import annotations

import asyncio
import random
import time

from deploy.local.emulator.faults import Outage
from deploy.local.evidence import read_runs
from deploy.local.postgres import StopMode
from tests.campaign.field import Field
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Bound, Recovery
from tests.campaign.scenario import scenario
from tests.campaign.succession import count_terms
from tests.end_to_end.instance import eventually

_SHORT_SECONDS, _LONG_SECONDS = 10.0, 60.0
_CAUGHT_UP = "Telegram's API back until all that had failed meanwhile is handled"
_HANDLED_BY = "Telegram's API back to the first answer of the bot"
_RUN_BY = "database back to the first fresh update's handler"
_DATABASE, _TELEGRAM = "database gone", "Telegram's API gone"
_RESUMED_SECONDS = 3.0
_RESUMED: dict[Recovery | str, tuple[Bound, ...]] = {
    Recovery.FIRST_200: (
        Bound("database back to the first 200, worst", _RESUMED_SECONDS, worst=True, kind=_DATABASE),
    ),
    _RUN_BY: (Bound(f"{_RUN_BY}, worst", _RESUMED_SECONDS, worst=True, kind=_DATABASE),),
    _HANDLED_BY: (Bound(f"{_HANDLED_BY}, worst", _RESUMED_SECONDS, worst=True, kind=_TELEGRAM),),
}


@scenario(id="b31", title="database gone, Telegram's API gone, while handlers run", repetitions=6, short=2, own_server=True,
    bounds=_RESUMED, hang_seconds_each=240)  # fmt: skip
async def outage(field: Field, chance: random.Random) -> None:
    """In turn; nothing is dead-lettered, nothing doubled. The hour of SCENARIOS.md is the simulation's."""
    await field.start("one")
    await field.start("two")
    async with field.flowing():
        for repetition in range(field.repetitions):
            await field.steady()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            seconds = (_SHORT_SECONDS if field.is_short else _LONG_SECONDS) * chance.uniform(0.9, 1.1)
            if repetition % 2 == 0:
                await _lose_database(field, chance.choice(list(StopMode)), seconds)
            else:
                await _lose_telegram(
                    field, chance.choice([o for o in Outage if o is not Outage.NONE]), seconds
                )


async def _lose_database(field: Field, mode: StopMode, seconds: float) -> None:
    gone_at = time.monotonic()
    await asyncio.to_thread(field.server.stop, mode)
    await asyncio.sleep(gone_at + seconds - time.monotonic())
    await asyncio.to_thread(field.server.start)
    back_at = field.inject(f"{_DATABASE} for {seconds:.0f} s ({mode.name})").at
    await field.steady()
    field.times.setdefault(_RUN_BY, []).append(await _first_fresh_run(field, back_at) - back_at)


async def _first_fresh_run(field: Field, since: float) -> float:
    """When the first handler began since then of an update that had not been begun before."""
    found: list[float] = []

    async def has_begun() -> bool:
        # Of a whole campaign it is much to read: not in the event loop, which probes.
        runs = await asyncio.to_thread(read_runs, field.history_folder, dict(field.traffic.sent))
        begun = {run.update_id for run in runs if run.started_at < since}
        found[:] = [run.started_at for run in runs if run.update_id not in begun]
        return bool(found)

    await eventually(has_begun, "a fresh update's handler")
    return min(found)


async def _lose_telegram(field: Field, outage: Outage, seconds: float) -> None:
    owner = await field.owner()
    terms = await count_terms(field)
    await field.telegram.set_outage(outage)
    await asyncio.sleep(seconds)
    await field.telegram.set_outage(Outage.NONE)
    after = await field.telegram.last_event_seq()
    back_at = field.inject(f"{_TELEGRAM} for {seconds:.0f} s ({outage.value})").at
    await field.telegram.wait_for_event(after=after, kinds=["sent"], timeout_seconds=60)
    field.times.setdefault(_HANDLED_BY, []).append(time.monotonic() - back_at)

    async def is_handled() -> bool:
        rows = await field.recorder.fetch(
            "SELECT EXISTS (SELECT FROM webhook_supervisor.inbox WHERE retries > 0 AND state <> 'done')"
        )
        return not rows[0][0]

    await eventually(is_handled, "all handled that had failed")
    field.times.setdefault(_CAUGHT_UP, []).append(time.monotonic() - back_at)
    if await field.owner() is not owner or await count_terms(field) != terms:
        field.object(Invariant.AVAILABLE, "an outage of Telegram changed the owner")
