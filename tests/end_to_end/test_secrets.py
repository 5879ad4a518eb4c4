"""Everything a run prints and answers is searched for its secrets."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path
from signal import SIGHUP, SIGKILL

import httpx

from deploy.local.emulator.faults import Fault, FaultKind
from deploy.local.ports import LOOPBACK
from tests.end_to_end.instance import HANG_SECONDS, Instance, World
from tests.end_to_end.test_standby import KNOWN, PATH, SECRET, post_update, text_update


def process_titles(*pids: int) -> str:
    """What `ps` shows of these processes: their command lines, not their environment."""
    return " ".join(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids)


async def everything_answered(instance: Instance) -> str:
    """Bodies and headers of every endpoint, good and bad requests."""
    seen = []
    async with httpx.AsyncClient(trust_env=False, timeout=HANG_SECONDS) as client:
        for port in (instance.port, instance.health_port):
            for path in (
                "/healthz",
                "/readyz",
                "/status",
                "/metrics",
                "/",
                "/docs",
                "/openapi.json",
                f"/webhook/{PATH}",
            ):
                for method in ("GET", "POST", "DELETE"):
                    answer = await client.request(method, f"http://{LOOPBACK}:{port}{path}", content=b"{")
                    seen.append(f"{answer.status_code} {answer.headers} {answer.text}")
    return "\n".join(seen)


async def test_a21_no_secret_in_any_line_answer_or_process_title(world: World) -> None:
    """Token, its secret part, path, secret token and DSN password: through a whole life with failures, never seen."""
    parts = urllib.parse.urlsplit(world.database_url)
    password = parts.password
    assert password
    one = await world.start_public("one", **KNOWN, LOG_LEVEL="DEBUG", BOT_APP="tests.end_to_end.bots:leaking")
    await one.wait_until_owner()
    titles = process_titles(one.process.pid, await one.worker_pid())
    await world.telegram.send_text(7, "leak")
    await one.wait_for("[DISPATCH]")
    await post_update(one, text_update(920_001, 7, "leak"))
    answers = await everything_answered(one)
    # Failures have the longest texts: a worker's death, a session's, Telegram's.
    await world.telegram.add_fault(Fault(FaultKind.SERVER_ERROR, count=3))
    one.signal(SIGHUP)
    await one.wait_for("[WORKER] worker dispatches updates", count=2)
    os.kill(await one.worker_pid(), SIGKILL)
    await one.wait_for("[WORKER] worker dispatches updates", count=3)
    await one.stop()
    two = await world.start("two", **KNOWN, DATABASE_URL=world.database_url.replace(f":{parts.port}/", ":1/"))
    await two.wait_for("[LOCK] database cannot be reached")
    answers += await everything_answered(two)
    await two.stop()
    everything = "\n".join([*one.output, *two.output, answers, titles])
    assert "LEAK BEGINS" in everything
    token = world.emulator.token
    for secret in (token, token.partition(":")[2], PATH, SECRET, password, urllib.parse.unquote(password)):
        assert secret not in everything
