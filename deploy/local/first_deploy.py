"""The first deploy, where somebody waits for it: what no retry can help ends it at once.

The platform starts an instance again whatever its exit code was, as Render does. Whoever tries a bot for the first time would
read the same fault every few seconds, until the deploy is cancelled.

Not promised: an end where a deploy fails in another way. The platform's patience is the limit of that.
"""

from __future__ import annotations

import asyncio
from typing import Any

from deploy.local.errors import InstanceFailed
from deploy.local.guarded import GuardedProcess
from deploy.local.log_lines import parse_line
from deploy.local.platform.records import Occurrence, OutputLine, Record, Release
from deploy.local.platform.simulator import Platform

_NO_RETRY_HELPS = (2, 3)
"""Bad configuration, and a token that is not valid (INTERFACE.md, "Exit codes")."""


async def make_live(platform: Platform, release: Release) -> None:
    """Deploys, and returns when the deploy gets the traffic.

    Raises:
        InstanceFailed: it does not get it; the message has the reason, where an instance said one.
    """
    said: list[str] = []
    refused: asyncio.Future[GuardedProcess] = asyncio.get_running_loop().create_future()

    def listen(line: OutputLine) -> None:
        said.append(line.text)

    def note(record: Record) -> None:
        if record.what is Occurrence.SPAWNED:
            said.clear()
        elif record.what is Occurrence.EXITED:
            process = platform.slot(record.instance).process
            if process is not None and process.exit_status in _NO_RETRY_HELPS and not refused.done():
                refused.set_result(process)

    platform.output.append(listen)
    platform.noted.append(note)
    live = asyncio.create_task(platform.wait_until_live(platform.deploy(release)), name="first deploy")
    either: set[asyncio.Future[Any]] = {live, refused}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if refused.done():
            # Then its last line has come; and the platform, which waits for the same, pauses before it starts another.
            status = await refused.result().wait()
            raise InstanceFailed(f"the instance ended with exit code {status}: {_reason(said)}")
        live.result()
    finally:
        live.cancel()
        await asyncio.gather(live, return_exceptions=True)
        platform.noted.remove(note)
        platform.output.remove(listen)


def _reason(said: list[str]) -> str:
    """What it called critical; or, from before there is a log, all that is no line of one."""
    lines = [(text, parse_line(text)) for text in said]
    critical = [line.event for _, line in lines if line is not None and line.level == "critical"]
    plain = [text for text, line in lines if line is None]
    return "\n  ".join(critical or plain) or "it did not say why"
