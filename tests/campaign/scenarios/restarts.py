"""Postgres restarted and wounded, and two instances that start at once."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterable
from http import HTTPStatus
from signal import SIGKILL

from deploy.local.platform.router import Exchange
from deploy.local.postgres import StopMode
from supervisor.session_plan import HEARTBEAT_SECONDS
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Bound, Recovery
from tests.campaign.scenario import Need, scenario

_LOCK_HOLDER = """
SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database
 WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database()"""
_END_WAITING = """
SELECT pg_terminate_backend(l.pid, 5000) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
 WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database()"""
_END_HOLDING = _END_WAITING.replace("NOT l.granted", "l.granted")
_SESSIONS = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND starts_with(application_name, 'webhook-supervisor') ORDER BY pid"""
_RETRY_AFTER = "2"
_LOST = ("[LOCK] database session lost", "[LOCK] database session closed")

_RESTARTED = "Postgres restarted: first 200 after its return"
_TERMINATED = "the owner's session terminated"
_NOTICED = "the loss of the lock's session noticed"


@scenario(
    id="b10",
    title="Postgres restarted, fast and immediate; a backend killed; the lock's session terminated",
    repetitions=48,
    short=4,
    needs=(Need.LINUX,),
    own_server=True,
    bounds={
        Recovery.FIRST_200: (Bound(f"{_RESTARTED}, worst", 3.0, worst=True, kind="restart"),),
        Recovery.NEXT_TERM: (
            Bound(f"{_TERMINATED} to the next term, median", 0.1, kind="lock session"),
            Bound(f"{_TERMINATED} to the next term, worst", 1.0, worst=True, kind="lock session"),
        ),
        Recovery.FRESH_DISPATCH: (
            Bound(f"{_TERMINATED} to the first fresh update dispatched, median", 0.25, kind="lock session"),
        ),
        _NOTICED: (
            # As soon as by heartbeats, half of that at the median: nobody watched the socket (supervisor/lease.py).
            Bound(f"{_NOTICED}, median", HEARTBEAT_SECONDS / 4),
            Bound(f"{_NOTICED}, worst", 1.0, worst=True),
        ),
    },
)
async def break_postgres(field: Field, chance: random.Random) -> None:
    """Four ways in turn. What is not answered 200 meanwhile is answered 503 with Retry-After, which is why Telegram is back at
    once: no connection is refused, and none ends without an answer."""
    await field.start("one")
    await field.start("two")
    # Also where the scenario does not come to its end: a wrong answer may be why nobody came back.
    field.closing.callback(_judge_answers, field)
    noticed = field.times[_NOTICED] = []
    kinds = ("restart fast", "restart immediate", "backend killed", "lock session terminated")
    async with field.flowing():
        await field.steady()
        field.exchanges.clear()  # before the first instance was routed to, there was nobody
        for repetition in range(field.repetitions):
            owner = await field.steady()
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            kind = kinds[repetition % len(kinds)]
            losses = _losses(owner)
            begin = time.monotonic()
            match kind:
                case "restart fast" | "restart immediate":
                    mode = StopMode.FAST if kind == "restart fast" else StopMode.IMMEDIATE
                    stopping = asyncio.create_task(asyncio.to_thread(field.server.stop, mode))
                    await owner.wait_until(lambda: _losses(owner) > losses, "lost session")  # noqa: B023
                    noticed.append(time.monotonic() - begin)
                    await stopping
                    await asyncio.sleep(chance.uniform(0.0, 4.0))  # how long it is away
                    await asyncio.to_thread(field.server.start)
                    field.inject(kind)
                case "backend killed":
                    # The postmaster ends all others too, and recovers.
                    pid = int(chance.choice(await field.recorder.fetch(_SESSIONS))[0])
                    field.inject(kind, at=begin)
                    os.kill(pid, SIGKILL)
                    await owner.wait_until(lambda: _losses(owner) > losses, "lost session")  # noqa: B023
                    noticed.append(time.monotonic() - begin)
                case _:
                    pid = int((await field.recorder.fetch(_LOCK_HOLDER))[0][0])
                    field.inject(kind, owner, at=time.monotonic())
                    await field.recorder.fetch("SELECT pg_terminate_backend(%s)", pid)
                    await owner.wait_until(lambda: _losses(owner) > losses, "lost session")  # noqa: B023
                    noticed.append(time.monotonic() - begin)
        await field.steady()  # the last fault is recovered from under traffic too


def unpromised(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """Of the answers to updates with the right secret that are not 200, those that INTERFACE.md (HTTP) does not promise."""
    promised = (HTTPStatus.SERVICE_UNAVAILABLE, _RETRY_AFTER)
    return [exchange for exchange in exchanges if (exchange.status, exchange.retry_after) != promised]


def _judge_answers(field: Field) -> None:
    others = unpromised(field.exchanges)
    field.figures["answers 503 with Retry-After"] = len(field.exchanges) - len(others)
    for other in others:
        fault = max(
            (item for item in field.faults if item.at <= other.at), key=lambda item: item.at, default=None
        )
        when = "before any fault" if fault is None else f"{other.at - fault.at:.3f} s after {fault.kind}"
        why = f"{other.status}, Retry-After {other.retry_after or 'none'}, {when} ({other.fault or 'by itself'})"
        field.object(Invariant.AVAILABLE, f"{other.target or 'the router'} answered {why}")
    if field.faults and len(others) == len(field.exchanges):
        field.object(Invariant.FAILED, "nothing was answered 503 while the database was away")


def _losses(instance: Instance) -> int:
    return sum(instance.count(beginning) for beginning in _LOST)


async def _end_sessions(field: Field) -> None:
    await field.recorder.fetch(_END_WAITING)
    await field.recorder.fetch(_END_HOLDING)


@scenario(
    id="b11",
    title="two instances start together",
    repetitions=1000,
    short=12,
    needs=(Need.LINUX,),
    recovery=Recovery.NEXT_TERM,
    hang_seconds_each=30.0,
)
async def start_together(field: Field, chance: random.Random) -> None:
    """Exactly one term each time. Most times two live instances lose their sessions, the standby first so that it does not
    inherit, and both begin anew; every twentieth time both are killed, and both processes are started. A standby that
    dies with its owner may still have inherited, for as long as Postgres has not noticed that it is gone (docs/decisions.md):
    the start is counted from the end of the sessions that the dead left."""
    names = ("one", "two")
    for name in names:
        await field.start(name)
    async with field.flowing(20.0):
        for repetition in range(field.repetitions):
            await field.steady()
            number = await field.term_number()
            if repetition % 20 == 1:
                await asyncio.gather(*(field.instances[name].end_suddenly() for name in names))
                now = time.monotonic()
                for name in names:
                    field.note_death(field.instances[name], now)
                await _end_sessions(field)
                number = await field.term_number()
                field.inject("two processes started")
                await asyncio.gather(
                    *(field.restart(field.instances[name]) for name in chance.sample(names, 2))
                )
            else:
                field.inject("two sessions opened")
                await _end_sessions(field)
            await field.wait_for_term_after(number)
            await field.steady()
            if (begun := await field.term_number() - number) != 1:
                field.object(Invariant.AVAILABLE, f"{begun} terms began when two instances started together")
