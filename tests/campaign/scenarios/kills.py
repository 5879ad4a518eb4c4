"""kill -9 of supervisors and workers, at any moment, and at the one moment that matters most."""

from __future__ import annotations

import asyncio
import random
import time
from signal import SIGTERM

from supervisor.restart import pause_seconds
from tests.campaign.faults.proxy import Conditions, Direction, Flow, Proxy, run_proxy
from tests.campaign.field import ORPHANS_GONE, Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.probes import ask
from tests.campaign.recovery import Bound, Recovery
from tests.campaign.scenario import Need, scenario
from tests.campaign.succession import until_recovered
from tests.end_to_end.instance import eventually

_OWNER = "kill -9 of the owner's supervisor"
_NEXT_TERM = (
    Bound(f"{_OWNER} to the next term, median", 0.1, kind="owner"),
    Bound(f"{_OWNER} to the next term, worst", 1.0, worst=True, kind="owner"),
)
_FRESH = (
    Bound(f"{_OWNER} to the first fresh update dispatched, median", 0.25, kind="owner"),
    Bound(f"{_OWNER} to the first fresh update dispatched, worst", 1.0, worst=True, kind="owner"),
)


@scenario(
    id="b01",
    title="kill -9 the supervisor",
    repetitions=140,
    short=6,
    needs=(Need.LINUX,),
    recovery=Recovery.NEXT_TERM,
    bounds={
        Recovery.NEXT_TERM: _NEXT_TERM,
        Recovery.FRESH_DISPATCH: _FRESH,
        ORPHANS_GONE: (Bound(f"{ORPHANS_GONE}, worst", 1.0, worst=True),),
    },
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
                number = await field.term_number()
                await field.kill_supervisor(standby, "standby: kill -9 supervisor")
                await field.restart(standby)
                await field.steady()
                if await field.term_number() != number:
                    field.object(Invariant.AVAILABLE, "the death of a standby began a new term")
            else:
                await field.kill_supervisor(owner, "owner: kill -9 supervisor")
                await field.owner()
                await field.restart(owner)
        await field.steady()  # the last one is recovered from under traffic too


_KILLED, _KILLED_AGAIN = "kill -9 worker", "third: kill -9 worker"
_KILLS_EACH = 3
"""Of workers of one instance. The next worker is started at once, the one after it half a second later, and after the third
kill within five minutes there is a pause of a second (restart.py). Then the instance is replaced, as by a deploy: after a
fourth it would be an owner that cannot keep its worker, and after a tenth it would end, which is b21's matter."""

_PAUSE_SECONDS = pause_seconds(_KILLS_EACH)
_SPREAD = 0.2
"""Pauses are longer or shorter by up to so much of them."""

_ANSWERED = "worker killed {} to the first update answered 200, worst"
_STARTED_AGAIN = "worker killed for the third time to the start of the next one"
_WORK_SECONDS = 1.2
"""Of a handler in whose middle its worker is killed; short, since what was in flight runs again one at a time."""


@scenario(
    id="b02",
    title="kill -9 the worker in the middle of a handler",
    repetitions=80,
    short=5,
    needs=(Need.LINUX,),
    bounds={
        Recovery.FIRST_200: (
            Bound(_ANSWERED.format("once or twice"), 2.0, worst=True, kind=_KILLED),
            Bound(
                _ANSWERED.format("for the third time"),
                2.0 + (1 + _SPREAD) * _PAUSE_SECONDS,
                worst=True,
                kind=_KILLED_AGAIN,
            ),
        )
    },
)
async def kill_worker(field: Field, chance: random.Random) -> None:
    """One instance alone: a handler runs when its worker is killed, and again later; it accepts again, after the pause that its
    restarts have come to; and meanwhile nobody is refused a connection."""
    alone = await field.start("one-0", **_LINGERS)
    idle = late = 0
    async with field.flowing():
        for repetition in range(field.repetitions):
            if repetition and repetition % _KILLS_EACH == 0:
                alone = await _replace(field, alone, f"one-{repetition}")
            await field.steady()
            # In every other instance every kill counts, so that the third meets its pause: a worker that dies while an update
            # of an earlier death runs is put down to that, and comes back at once. In the others it is as it comes.
            if every_kill_counts := repetition // _KILLS_EACH % 2 == 0:
                await until_recovered(field)
            is_third = repetition % _KILLS_EACH == _KILLS_EACH - 1
            started = alone.count("[WORKER] worker started")
            begin = time.monotonic()
            sent = await field.put_in_flight([_WORK_SECONDS] * 2)
            await asyncio.sleep(chance.uniform(0.0, _WORK_SECONDS / 2))  # the random moment
            fault = await field.kill_worker(alone, _KILLED_AGAIN if is_third else _KILLED)
            # It is claimed for as long as the term of the killed worker may last.
            if not await field.is_in_flight(sent):
                if fault.at - begin < _WORK_SECONDS:
                    idle += 1
                else:
                    late += 1  # we ourselves
            await alone.wait_for("[WORKER] worker started", count=started + 1)
            if is_third and every_kill_counts:
                field.times.setdefault(_STARTED_AGAIN, []).append(time.monotonic() - fault.at)
            await alone.wait_until_healthy()
    field.figures["workers killed in the middle of a handler"] = field.repetitions - idle - late
    if idle or late == field.repetitions:
        field.object(
            Invariant.FAILED, f"{idle + late} of {field.repetitions} workers had no handler to be killed in"
        )
    if any(seconds < (1 - _SPREAD) * _PAUSE_SECONDS for seconds in field.times.get(_STARTED_AGAIN, [])):
        field.object(Invariant.AVAILABLE, f"no pause of {_PAUSE_SECONDS:g} s followed a third kill in a row")
    refused = [exchange for exchange in field.exchanges if exchange.fault.startswith("no connection")]
    if refused:
        field.object(Invariant.AVAILABLE, f"{len(refused)} connections were refused: {refused[0].fault}")


_LINGERS = {"LINGER_SECONDS": "5"}
"""For as long as the router may take to hear that it stops."""


async def _replace(field: Field, old: Instance, name: str) -> Instance:
    """Another instance, and the old one stopped as a deploy does: out of the router as soon as it is told."""
    new = await field.start(name, **_LINGERS)
    await field.steady()
    old.signal(SIGTERM)

    async def says_so() -> bool:
        return (await ask(old.name, old.host, old.port)).status != 200

    await eventually(says_so, "a health that says that it stops")
    field.prober.route(old, False)
    await old.wait_for_exit()
    return new


@scenario(id="b03", title="kill -9 between commit and 200", repetitions=40, short=4, needs=(Need.LINUX,))
async def kill_between_commit_and_answer(field: Field, chance: random.Random) -> None:
    """A proxy keeps the database's answers from the instance; when an update is committed whose 200 cannot come, it dies.

    By turns the worker and the whole instance, the owner and the standby. What was committed is delivered again, to a new
    worker or to the other instance, and must be recognised: O is the judge's, and here it is made sure that it came to that.
    """
    proxies: dict[str, Proxy] = {}
    for name in ("one", "two"):
        proxies[name] = await field.closing.enter_async_context(run_proxy(field.server.port))
        await field.start(name, dsn=proxies[name].dsn(field.database_url))
    committed: set[int] = set()
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            victim = owner if repetition % 2 == 0 else await field.standby()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            await proxies[victim.name].set(Conditions(Flow.SWALLOW), Direction.TO_CLIENT)
            found = await _wait_for_unanswered(field)
            if repetition % 4 < 2:
                await field.kill_worker(victim)
            else:
                await field.kill_supervisor(victim)
            committed |= found
            await proxies[victim.name].heal()
            if not victim.is_running:
                await field.restart(victim)
    redelivered = await _count_redelivered(field, committed)
    field.figures["updates committed before the kill and answered after it"] = redelivered
    # What was waited for may have been an update that another instance was slow to answer.
    if redelivered < max(1, field.repetitions // 4):
        field.object(
            Invariant.FAILED,
            f"{redelivered} redeliveries in {field.repetitions} kills: the moment was missed",
        )


async def _wait_for_unanswered(field: Field) -> set[int]:
    """Updates that were committed a while ago, and whose delivery is still under way."""
    found: set[int] = set()

    async def is_there() -> bool:
        rows = await field.recorder.fetch(
            "SELECT update_id FROM (SELECT * FROM campaign.inbox_changes ORDER BY id DESC LIMIT 2000) c "
            "WHERE old_state IS NULL AND at < clock_timestamp() - interval '0.6 seconds'"
        )
        stored = {int(update_id) for (update_id,) in rows}
        after = max(0, (await field.telegram.state()).last_delivery_seq - 1000)
        under_way = {
            attempt.update_id
            for attempt in await field.telegram.deliveries(after=after)
            if attempt.finished_monotonic is None
        }
        found.clear()
        found.update(stored & under_way)
        return bool(found)

    await eventually(is_there, "an update that is committed and not answered")
    return set(found)


async def _count_redelivered(field: Field, update_ids: set[int]) -> int:
    await field.telegram.wait_idle(timeout_seconds=120)
    attempts: dict[int, int] = {}
    async for attempt in field.telegram.all_deliveries():
        attempts[attempt.update_id] = attempts.get(attempt.update_id, 0) + 1
    return sum(attempts[update_id] > 1 for update_id in update_ids)
