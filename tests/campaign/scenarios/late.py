"""What an owner said long ago arrives when another owns."""

from __future__ import annotations

import asyncio
import random

from tests.campaign.faults.proxy import Conditions, Direction, Flow, Proxy, run_proxy
from tests.campaign.field import Field
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Bound, Recovery
from tests.campaign.scenario import scenario
from tests.campaign.succession import STOPPED_BEFORE, STOPPED_BY_ITSELF, measure_silence
from tests.end_to_end.instance import eventually

_PER_SECOND = 20.0
"""Six at a time handle 35: so that what waited for the next owner is gone after some seconds."""


@scenario(
    id="b08-late",
    title="a proxy keeps what the owner says, and delivers it when another owns",
    repetitions=20,
    short=1,
    recovery=Recovery.NEXT_TERM,
    bounds={
        Recovery.NEXT_TERM: (Bound("owner held up to the next term, worst", 16.0, worst=True),),
        STOPPED_BEFORE: STOPPED_BY_ITSELF,
    },
)
async def deliver_late(field: Field, chance: random.Random) -> None:
    """The fence at work: claims and completions of a superseded term reach the server whole, and must change nothing."""
    proxies: dict[str, Proxy] = {}
    for name in ("one", "two"):
        proxies[name] = await field.closing.enter_async_context(run_proxy(field.server.port))
        # Few at a time, so that there is always something to be claimed; as many as come, though it is not all the time.
        await field.start(name, dsn=proxies[name].dsn(field.database_url), DISPATCH_CONCURRENCY="6")
    async with field.flowing(_PER_SECOND):
        for _ in range(field.repetitions):
            owner = await field.steady()
            number = await field.term_number()
            await asyncio.sleep(chance.uniform(0.0, 2.0))  # the random moment
            field.inject("owner held up", owner)
            await proxies[owner.name].set(Conditions(Flow.HOLD), Direction.TO_SERVER)

            async def another_owns(number: int = number) -> bool:
                return await field.term_number() > number

            await eventually(another_owns, "another owner")
            held = await _count_late(field)
            await measure_silence(field, owner)
            await proxies[owner.name].heal()
            await owner.wait_until_healthy()
            if not held:
                field.object(
                    Invariant.FAILED, "the next owner had taken over everything: nothing could be late"
                )


async def _count_late(field: Field) -> int:
    """Rows that a completion of an earlier term would still find as it left them."""
    rows = await field.recorder.fetch(
        "SELECT count(*) FROM webhook_supervisor.inbox i, webhook_supervisor.terms t "
        "WHERE i.state = 'claimed' AND i.term <> t.uuid"
    )
    return int(rows[0][0])
