"""Bots that do not come up, do not stay up, or start processes of their own."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from signal import SIGHUP, SIGTERM

from tests.campaign.bots import CHILDREN
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.recovery import Recovery
from tests.campaign.scenario import Need, scenario
from tests.end_to_end.instance import eventually

_FAULTY = ("crashing_at_import", "crashing_at_first_update", "crashing_when_ready")
_NEVER_UP, _GAVE_UP = 2, 4
"""Exit statuses (INTERFACE.md, "Commands")."""

_NOT_UP_YET = ("starting: the worker is not up yet",)
_GONE = ("the worker is gone: ", "the bot does not start: ")
"""What /healthz says of a worker that crashes: of a bot that never came up, and of one that did."""


@scenario(
    id="b21",
    title="the worker crashes at import, at its first update, or after ready, again and again",
    repetitions=12,
    short=3,
    needs=(Need.LINUX,),
    recovery=Recovery.FRESH_DISPATCH,
    dead_letters=True,
    hang_seconds_each=240.0,
)
async def crash_again_and_again(field: Field, chance: random.Random) -> None:
    """A faulty instance owns, or would like to; a good one stands by, and must be the owner in the end. Health says why."""
    await field.start("good")
    bad = field.prepare("bad")
    async with field.flowing(20.0):
        for repetition in range(field.repetitions):
            good = await field.steady()
            faulty = _FAULTY[repetition % len(_FAULTY)]
            bad.environment["BOT_APP"] = f"tests.campaign.bots:{faulty}"
            before, begin = len(bad.lines), time.monotonic()
            if faulty == "crashing_at_import":
                field.inject(faulty, bad)
                await field.restart(bad)
                if (status := await bad.wait_for_exit()) != _NEVER_UP:
                    field.object(Invariant.HYGIENE, f"{faulty}: it ended with {status}, not {_NEVER_UP}")
                if not _said(field, bad, begin, _NOT_UP_YET):
                    field.object(Invariant.AVAILABLE, f"{faulty}: no 503 said why")
            else:
                # It must own before it may fail as owner: the good one makes way, and comes back as the standby.
                await field.restart(bad)
                await bad.wait_until_healthy()
                await field.stop(good)
                field.inject(faulty, bad)
                await field.restart(good)
                await good.wait_until_owner_again()

                async def says_why(begin: float = begin) -> bool:
                    return _said(field, bad, begin, _GONE)

                # Until it gave up, it may have been back within a second each time, healthy. The pause after that is longer.
                await eventually(says_why, f"a 503 of {bad.name} that says why ({faulty})")
                await _end(field, bad)
            crashes = _crashes(bad, before)
            name = f"{faulty}: most crashes"
            field.figures[name] = max(crashes, field.figures.get(name, 0))
            if crashes < 2:
                field.object(Invariant.FAILED, f"{faulty}: {crashes} crashes are no loop")


async def _end(field: Field, instance: Instance) -> None:
    """An instance that may have given itself up by now (4), and if not is told to stop."""
    if instance.is_running:
        instance.signal(SIGTERM)
    if (status := await instance.wait_for_exit()) not in (0, _GAVE_UP):
        field.object(Invariant.HYGIENE, f"{instance.name} ended with {status}")


def _crashes(instance: Instance, before: int) -> int:
    """How many of its workers crashed, by the lines of its log from there on."""
    return sum(
        line.begins("WORKER", "worker ended") and line.fields.get("status") != "exit status 0"
        for line in instance.lines[before:]
    )


def _said(field: Field, instance: Instance, since: float, reasons: tuple[str, ...]) -> bool:
    """Whether a 503 from then on gave one of these reasons: whoever reads its health learns what is wrong with it."""
    return any(
        probe.reason.startswith(reasons)
        for probe in field.prober.probes
        if probe.instance == instance.name and probe.asked_at >= since and probe.status == 503
    )


@scenario(id="b22", title="the bot starts children of its own", repetitions=40, short=5, needs=(Need.LINUX,))
async def start_children(field: Field, chance: random.Random) -> None:
    """However its worker ends, they end with it: killed, replaced, told to stop, or its supervisor killed.

    Not when both are killed in one moment: then nobody is left but the platform, which ends what is in the container.
    """
    for name in ("one", "two"):
        await field.start(name, BOT_APP="tests.campaign.bots:with_children")
    ways: tuple[Callable[[Field, Instance], Awaitable[None]], ...] = (
        _kill_worker, _kill_supervisor, _replace_worker, _stop,
    )  # fmt: skip
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            worker = await owner.worker_pid()
            children = await _children_of(field, worker)
            await asyncio.sleep(chance.uniform(0.0, 1.0))  # the random moment
            await ways[repetition % len(ways)](field, owner)

            async def are_gone(children: frozenset[int] = frozenset(children)) -> bool:
                return not children & _marked(field)

            await eventually(are_gone, "the end of the bot's children")
            if not owner.is_running:
                await field.restart(owner)
        await field.steady()
    for instance in field.running:
        await field.stop(instance)
    if left := _marked(field):
        field.object(Invariant.HYGIENE, f"{len(left)} children of the bot are left")
    for instance in field.instances.values():
        await field.restart(instance)
    await field.owner()


async def _kill_worker(field: Field, owner: Instance) -> None:
    await field.kill_worker(owner)


async def _kill_supervisor(field: Field, owner: Instance) -> None:
    await field.kill_supervisor(owner)


async def _replace_worker(field: Field, owner: Instance) -> None:
    worker = await owner.worker_pid()
    field.signal(owner, SIGHUP)

    async def is_replaced() -> bool:
        status = await owner.try_status()
        return status is not None and status["worker"]["ready"] and status["worker"]["pid"] != worker

    await eventually(is_replaced, "another worker")


async def _stop(field: Field, owner: Instance) -> None:
    field.inject("SIGTERM", owner)
    await field.stop(owner)


async def _children_of(field: Field, worker: int) -> set[int]:
    """The children that a worker's bot has started, when it has started all of them."""
    found: set[int] = set()

    async def has_all() -> bool:
        found.clear()
        found.update(pid for pid in _marked(field) if _group_of(pid) == worker)
        return len(found) >= CHILDREN

    await eventually(has_all, f"{CHILDREN} children of worker {worker}")
    return set(found)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _marked(field: Field) -> set[int]:
    """Every process that a bot of ours has started, dead ones excepted: their arguments name our folder."""
    mark = str(field.history_folder).encode()
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if mark in (folder / "cmdline").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
