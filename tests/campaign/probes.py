"""Asks every instance for its health, as a platform does, keeps every answer, and routes by them.

As on Render (PLATFORMS.md): an instance gets traffic from its first 200 on, until it has failed for 15 s on end or its
process is gone. Only oftener: five times a second, so that a wrong claim of ownership does not slip through.

Not promised: that a claim of less than that is seen; nor that a probe without an answer is known to be the instance's doing
where our own event loop stood still meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from deploy.local.platform.router import Router
from tests.campaign.evidence import Probe
from tests.campaign.instance import Instance

PUBLIC_SECONDS = 0.2
OWN_SECONDS = 0.5
LIMIT_SECONDS = 5.0
"""Render's limit of a probe."""

_BEAT_SECONDS = 0.1
_LATE_SECONDS = 0.5
"""Our own event loop was busy with something else for so long: what it did not see says nothing."""

FAILING_SECONDS = 15.0
"""Render: no traffic after failing so long."""


class Prober:
    """Probes instances for as long as they run, and tells the router.

    Attributes:
        probes: every answer there was.
    """

    def __init__(self, router: Router) -> None:
        """Does nothing yet."""
        self._router = router
        self._routed: dict[str, Instance] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._late_at = 0.0
        self.probes: list[Probe] = []

    def follow(self, instance: Instance) -> None:
        """Probe this start of an instance until it is over."""
        if not self._tasks:
            self._start(self._beat(), "beat of the probes")
        self._start(self._follow(instance), f"probes of {instance.name}")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop, and raise what went wrong."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _follow(self, instance: Instance) -> None:
        process = instance.process
        own = asyncio.create_task(
            self._repeat(instance, instance.health_port, OWN_SECONDS, lambda _: None), name="own port"
        )
        public = asyncio.create_task(
            self._repeat(instance, instance.port, PUBLIC_SECONDS, _Routing(self, instance).take),
            name="public port",
        )
        try:
            await process.wait_for_exit()
        finally:
            own.cancel()
            public.cancel()
            await asyncio.gather(own, public, return_exceptions=True)
            self.route(instance, False)

    async def _repeat(
        self, instance: Instance, port: int, seconds: float, take: Callable[[Probe], None]
    ) -> None:
        host = instance.host if port == instance.port else instance.environment["HEALTH_HOST"]
        pid = instance.process.pid
        while True:
            probe = await ask(instance.name, host, port, is_public=port == instance.port)
            is_ours = probe.asked_at <= self._late_at
            probe = replace(probe, pid=pid, has_timed_out=probe.has_timed_out and not is_ours)
            self.probes.append(probe)
            take(probe)
            await asyncio.sleep(seconds)

    async def _beat(self) -> None:
        """Notes when our own event loop stood still."""
        while True:
            begin = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)
            if (now := time.monotonic()) - begin > _LATE_SECONDS:
                self._late_at = now

    def route(self, instance: Instance, on: bool) -> None:
        """Whether the instance gets traffic."""
        if on == (instance.name in self._routed):
            return
        if on:
            self._routed[instance.name] = instance
        else:
            del self._routed[instance.name]
        self._router.route([routed.target for routed in self._routed.values()])


class _Routing:
    """What probes of one start mean for the router."""

    def __init__(self, prober: Prober, instance: Instance) -> None:
        self._prober = prober
        self._instance = instance
        self._failing_since: float | None = None

    def take(self, probe: Probe) -> None:
        if probe.status == 200:
            self._failing_since = None
            self._prober.route(self._instance, True)
            return
        if self._failing_since is None:
            self._failing_since = probe.asked_at
        if probe.answered_at - self._failing_since >= FAILING_SECONDS:
            self._prober.route(self._instance, False)


async def ask(instance: str, host: str, port: int, *, is_public: bool = True) -> Probe:
    """One probe, on a connection of its own."""
    asked_at = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read()
            finally:
                writer.transport.abort()
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(maxsplit=2)[1])
        said = json.loads(body) if body else {"role": ""}
        role, reason = str(said["role"]), str(said.get("reason", ""))
    except (OSError, TimeoutError, ValueError, IndexError):
        # No answer, or the half of one, from a process that died: a probe that failed.
        now = time.monotonic()
        return Probe(
            instance, asked_at, now, None, is_public=is_public, has_timed_out=now - asked_at >= LIMIT_SECONDS
        )
    return Probe(instance, asked_at, time.monotonic(), status, role, is_public, reason)
