"""Handlers that do not wait, and whatever else of a bot goes on beside them, at every kind of end of a term."""

from __future__ import annotations

import asyncio
import os
import random
from signal import SIGCONT, SIGHUP, SIGSTOP

from tests.campaign import ticks
from tests.campaign.faults.proxy import Conditions, Flow, Proxy, run_proxy
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Recovery
from tests.campaign.scenario import Need, scenario
from tests.campaign.succession import end_lock_session, until_superseded
from tests.campaign.tenure import tenures
from tests.end_to_end.instance import eventually

LINUX = (Need.LINUX,)
NEXT_TERM = Recovery.NEXT_TERM

_ENDS = (
    *("SIGTERM", "SIGHUP", "hand-over", "deadline"),
    *("lock session terminated", "kill -9 supervisor", "kill -9 worker"),
    *("worker hangs", "cut off from the database"),
)
_DRAIN_SECONDS = 1.5
_KINDS = ("nonblocking", "task", "thread", "job")
_FIRST_CHAT = 910_001  # outside of the traffic's


@scenario("b32", "background handlers, threads, jobs", repetitions=63, short=9, needs=LINUX, recovery=NEXT_TERM)  # fmt: skip
async def handlers_that_do_not_wait(field: Field, chance: random.Random) -> None:
    """Some shorter than the drain and some longer, when the owner is stopped, told to replace its worker, outdated by a newer
    deploy, frozen past its deadline, loses its lock's session, is killed, as a whole or its worker alone, has a worker that
    hangs and is killed for that, or is cut off from the database: nothing of a term outlives it, nothing runs twice, timers run
    on the owner only."""
    proxies: dict[str, Proxy] = {}
    for name in ("one", "two"):
        proxies[name] = await field.closing.enter_async_context(run_proxy(field.server.port))
        await field.start(
            name,
            dsn=proxies[name].dsn(field.database_url),
            BOT_APP="tests.campaign.background:build",
            DRAIN_SECONDS=str(_DRAIN_SECONDS),
            DEPLOY_ID="v0",
        )
    async with field.flowing(20.0):
        for repetition in range(field.repetitions):
            owner = await field.steady()
            if repetition // len(_ENDS) % 2 == 0:
                # After an unclean end they begin when the old owner's deadline has surely passed. The other half of the terms
                # ends before that, as it comes.
                owner = await _wait_for_timer(field)
            await _order(field, chance)
            await asyncio.sleep(chance.uniform(0.1, 0.8))  # the random moment
            await _end(field, owner, _ENDS[repetition % len(_ENDS)], repetition, proxies[owner.name])
        await field.steady()
    terms = tenures(await field.recorder.term_changes(), await field.recorder.signs())
    field.objections += ticks.judge(ticks.read(field.history_folder), terms)


async def _wait_for_timer(field: Field) -> Instance:
    """Until one runs in the worker of whoever owns then, which is returned: an older deploy hands over meanwhile."""
    owners: list[Instance] = []

    async def runs() -> bool:
        owner = await field.steady()
        pid = await owner.worker_pid()
        owners.append(owner)
        return any(tick.pid == pid for tick in ticks.read(field.history_folder))

    await eventually(runs, "a timer of the owner")
    return owners[-1]


async def _order(field: Field, chance: random.Random) -> None:
    """Work of every kind, each in a chat of its own: a little, and more than the drain has time for."""
    await field.traffic.send([_DRAIN_SECONDS + 2.0, 0.5])
    for number, kind in enumerate(_KINDS * 2):
        seconds = (
            chance.uniform(0.2, 0.6) if number < len(_KINDS) else _DRAIN_SECONDS + chance.uniform(1.0, 3.0)
        )
        sent = await field.telegram.send_text(_FIRST_CHAT + number, f"{kind} {seconds:.2f}")
        assert sent.update_id is not None
        field.traffic.sent[sent.update_id] = sent.chat_id


async def _end(field: Field, owner: Instance, how: str, repetition: int, proxy: Proxy) -> None:
    """Ends the owner's term, and sees to it that there are two instances again; `proxy`: between it and the database."""
    match how:
        case "SIGTERM":
            field.inject(how, owner)
            if (status := await field.stop(owner)) != 0:
                field.object(Invariant.HYGIENE, f"{owner.name} ended with {status}")
            await field.restart(owner)
        case "SIGHUP":
            number = await field.term_number()
            field.signal(owner, SIGHUP)
            await field.wait_for_term_after(number)
        case "hand-over":
            younger = await field.standby()
            await field.stop(younger)
            younger.environment["DEPLOY_ID"] = f"v{repetition}"
            field.inject(how, younger)
            await field.restart(younger)
            await until_superseded(field, owner)
        case "deadline":
            # The supervisor alone: its worker has to see for itself that the time is over.
            with field.standing_still(owner):
                field.signal(owner, SIGSTOP, "deadline: SIGSTOP supervisor")
                await until_superseded(field, owner)
                owner.signal(SIGCONT)

                async def is_passive() -> bool:
                    status = await owner.try_status()
                    return status is not None and status["role"] == "PASSIVE"

                await eventually(is_passive, f"{owner.name} to step down")
        case "lock session terminated":
            number = await field.term_number()
            field.inject(how, owner)
            await end_lock_session(field)
            await field.wait_for_term_after(number)
        case "kill -9 supervisor":
            await field.kill_supervisor(owner)
            await field.owner()
            await field.restart(owner)
        case "worker hangs":
            number = await field.term_number()
            with field.standing_still(owner):
                field.inject(how, owner)
                os.kill(await owner.worker_pid(), SIGSTOP)
                # It is killed for want of beats, and never goes on.
                await field.wait_for_term_after(number)
        case "cut off from the database":
            swallowed = proxy.counts.swallowed_bytes
            field.inject(how, owner)
            await proxy.set(Conditions(Flow.SWALLOW))
            await until_superseded(field, owner)
            if proxy.counts.swallowed_bytes == swallowed:
                field.object(Invariant.FAILED, "nothing was swallowed")
            await proxy.heal()
        case _:
            number = await field.term_number()
            await field.kill_worker(owner)
            await field.wait_for_term_after(number)
