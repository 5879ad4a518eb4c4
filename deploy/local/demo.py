"""`make demo`: the promises of the project, kept before one's eyes.

Five scenarios on one system: first deploy, `/start`, a rolling deploy under traffic, kill -9 of the owner with
handlers in flight, and a rotation of the webhook's secrets under traffic. For each: what happened when, and how many
updates were sent, answered other than 200, lost, doubled, or run again because they were in flight at the kill. The
judge is `history`, the witnesses are the emulator, the bot's own records and the inbox's table (evidence.py).

The last lines printed are JSON, as INTERFACE.md says. All seconds in them count from the begin of their scenario.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import msgspec

from deploy.local import evidence
from deploy.local.platform.service import Timing
from deploy.local.scenarios import SCENARIOS
from deploy.local.stage import Result, Stage
from deploy.local.system import run_system

# The one wait that a scenario would spend most of its time in, 60 s on Render; all else is as long as it is there.
_TIMING = replace(Timing(), overlap_seconds=10.0)
_OBJECTIONS_SHOWN = 20


async def play(folder: Path, local_postgres: str, show: Callable[[str], None]) -> int:
    """Plays all scenarios; 0 if every promise was kept, else 1.

    Raises:
        LocalSystemError: the system did not start, or a scenario did not come to its end.
    """
    begin = time.monotonic()
    results: list[Result] = []
    objections: list[str] = []
    async with AsyncExitStack() as stack:
        environment = {
            "BOT_APP": "deploy.local.traffic_bot:build",
            "HISTORY_DIR": str(folder / "history"),
        }
        system = await stack.enter_async_context(
            run_system(folder, timing=_TIMING, environment=environment, local_postgres=local_postgres)
        )
        inbox = await evidence.InboxReader.open(system.dsn)
        stack.push_async_callback(inbox.close)
        web = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        stage = Stage(system, web, inbox, show)
        show(f"the system is up; its logs: {system.workspace.logs}")
        for name, scenario in SCENARIOS.items():
            result, wrong = await stage.play(name, scenario)
            results.append(result)
            objections += wrong
    show(
        f"\n{'Every promise was kept' if not objections else 'Broken promises'}, in {time.monotonic() - begin:.0f} s"
    )
    for objection in objections[:_OBJECTIONS_SHOWN]:
        show(f"  {objection}")
    if len(objections) > _OBJECTIONS_SHOWN:
        show(f"  and {len(objections) - _OBJECTIONS_SHOWN} more")
    for result in results:
        show(msgspec.json.encode(result).decode())
    return 1 if objections else 0
