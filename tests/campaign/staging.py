"""Stages one scenario from begin to verdict. Whatever goes wrong is in its result: the other scenarios go on."""

from __future__ import annotations

import asyncio
import ctypes
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from signal import SIGKILL

import msgspec

from deploy.local.emulator_process import run_emulator
from deploy.local.ports import keep_to_part
from deploy.local.postgres import PostgresServer
from tests.campaign.conclusion import conclude
from tests.campaign.faults import Unavailable
from tests.campaign.field import Field, open_field
from tests.campaign.judge import Invariant, Objection, judge
from tests.campaign.recovery import measure, measure_health
from tests.campaign.result import BoundReport, Result, judge_recoveries, report_bounds
from tests.campaign.sabotage import Safety
from tests.campaign.scenario import Scenario, all_scenarios

_PR_SET_PDEATHSIG = 1

SETTINGS = {"track_commit_timestamp": "on"}
"""Of every server of a campaign: the judge asks when a transaction was committed."""

START_SECONDS = 300.0
"""Limit on a hang for everything of a scenario but its repetitions."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the campaign runs.

    Attributes:
        seed: of all random choices, together with the scenario's id.
        is_short: the shortened campaign.
        repetitions: instead of the scenario's own; None for those.
        binaries: of Postgres.
        keeps: whether folders are kept that nothing was found in.
        sabotage: a safety that is taken out, to see whether that is found.
    """

    seed: int
    is_short: bool
    repetitions: int | None
    binaries: Path
    keeps: bool = False
    sabotage: Safety | None = None


def make_server(folder: Path, binaries: Path, settings: Mapping[str, str]) -> PostgresServer:
    """A server as campaigns need it, not started yet."""
    return PostgresServer(folder, binaries=binaries, durable=False, keep_data=False, settings=settings)


@asynccontextmanager
async def shared_server(options: Options) -> AsyncIterator[PostgresServer]:
    """The server of all scenarios that leave it alone."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        server = make_server(Path(folder) / "postgres", options.binaries, SETTINGS)
        await asyncio.to_thread(server.start)
        try:
            yield server
        finally:
            await asyncio.to_thread(server.close)


@asynccontextmanager
async def _own_server(scenario: Scenario, folder: Path, options: Options) -> AsyncIterator[PostgresServer]:
    settings = {**SETTINGS, **scenario.server_settings}
    if scenario.place is not None:
        async with scenario.place(folder, settings) as server:
            yield server
        return
    server = make_server(folder, options.binaries, settings)
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.close)


def enter_pool(number: Synchronized[int], jobs: int) -> None:
    """For a process of the pool: it ends with its parent, and has ports of its own.

    A campaign that is killed must not go on, one scenario after the other, unseen; and the port of an instance that is down
    for a moment must not become another scenario's.

    Args:
        number: how many have entered before.
        jobs: how many may.
    """
    with number.get_lock():
        keep_to_part(number.value, jobs)
        number.value += 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def run_one(id_: str, options: Options) -> Result:
    """Stages one; in a process of its own, so that what one scenario asks of us does not become another's latency."""
    scenario = all_scenarios()[id_]

    async def staged() -> Result:
        async with shared_server(options) as server:
            return await stage(scenario, server, options)

    try:
        return asyncio.run(staged())
    except Unavailable as missing:
        return Result(id_, scenario.title, skipped=str(missing))
    except Exception as exc:  # noqa: BLE001 - the ground was not made, or not cleared; the other scenarios go on
        traceback.print_exc()
        why = Objection(Invariant.FAILED, f"{type(exc).__name__}: {str(exc)[:2000]}")
        return Result(id_, scenario.title, objections=(why,))


async def stage(scenario: Scenario, shared_server: PostgresServer, options: Options) -> Result:
    """Runs a scenario and judges it."""
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"campaign-{scenario.id}-"))
    folder.chmod(0o755)
    repetitions = options.repetitions or (scenario.short if options.is_short else scenario.repetitions)
    database = f"campaign_{scenario.id}"
    async with AsyncExitStack() as stack:
        server = shared_server
        if scenario.own_server:
            server = await stack.enter_async_context(_own_server(scenario, folder / "postgres", options))
        url = await asyncio.to_thread(server.create_database, database)
        if not scenario.own_server:
            stack.push_async_callback(asyncio.to_thread, server.drop_database, database)
        emulator = await stack.enter_async_context(
            run_emulator(folder / "emulator.log", arguments=["--seed", str(options.seed)])
        )
        field = Field(
            scenario,
            repetitions=repetitions,
            is_short=options.is_short,
            sabotage=options.sabotage,
            seed=options.seed,
            folder=folder,
            server=server,
            database=database,
            database_url=url,
            emulator=emulator,
        )
        result = await _play(field, random.Random(f"{options.seed} {scenario.id}"), begin)
    if result.is_good and not options.keeps:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        (folder / "objections.txt").write_text("\n".join(map(str, result.objections)))
        print(f"    what {scenario.id} left is in {folder}", flush=True)
    return result


async def _play(field: Field, chance: random.Random, begin: float) -> Result:
    scenario = field.scenario
    judgement = None
    times: dict[str, list[float]] = {}
    bounds: list[BoundReport] = []
    hangs: list[Objection] = []
    answered = 0
    try:
        async with (
            open_field(field),
            asyncio.timeout(START_SECONDS + scenario.hang_seconds_each * field.repetitions),
        ):
            await scenario.body(field, chance)
            evidence = field.revise(await conclude(field))
        (field.folder / "evidence.json").write_bytes(msgspec.json.encode(evidence))
        judgement = judge(
            evidence,
            expects_dead_letters=scenario.dead_letters,
            expects_assertions=scenario.asserts,
            expects_answers=scenario.answers,
        )
        recoveries = measure(evidence, field.faults)
        times = {
            kind.value: [item.seconds for item in recovered]
            for kind, recovered in recoveries.items()
            if recovered
        } | field.times
        bounds = report_bounds(scenario.bounds, recoveries, field.times, field.faults)
        hangs = judge_recoveries(
            bounds,
            recoveries,
            field.faults,
            recovers_each=scenario.recovers_each,
            is_short=field.is_short,
            last_sent_at=max((item.first_sent_at for item in evidence.deliveries), default=float("-inf")),
        )
        field.figures |= judgement.reruns.figures | measure_health(evidence)
        answered = sum(item.answered_at is not None for item in evidence.deliveries)
    except Exception as exc:  # noqa: BLE001 - it becomes the result, which fails the campaign; the other scenarios go on
        traceback.print_exc()
        field.object(Invariant.FAILED, f"{type(exc).__name__}: {str(exc)[:2000]}")
    objections: tuple[Objection, ...] = (
        *field.objections,
        *(judgement.objections if judgement is not None else ()),
        *hangs,
    )
    return Result(
        id=scenario.id,
        title=scenario.title,
        repetitions=field.repetitions,
        faults=len(field.faults),
        answered_200=answered,
        judgement=judgement,
        objections=objections,
        recovery=scenario.recovery,
        times=times,
        figures=field.figures,
        bounds=tuple(bounds),
        seconds=time.monotonic() - begin,
    )
