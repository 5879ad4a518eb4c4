"""The worker's event loop: uvloop's, in which one look-up of a name serves all who ask `loop.getaddrinfo` for it.

uvloop resolves names in threads, two at a time, and cannot take back what nobody waits for any more. Where a nameserver is
slow, tries that give up before their look-up ends leave a queue that only grows, and the database's name, which may be known
well, waits at its end: no session comes about until the worker is restarted. So there is at most one look-up of each name:
that of the database by psycopg, those of Telegram and others by httpx.

Not promised: an answer as of the moment of the question: it is that of a look-up that was under way already. Nor the same for
clients that hand a name to `loop.create_connection`, as redis.asyncio and asyncpg do: uvloop resolves it itself, past this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop


class Lookups:
    """What is being looked up; of one event loop."""

    def __init__(self, ask: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        """Asks nothing yet.

        Args:
            ask: looks a name up; is given what `answer` is given.
        """
        self._ask = ask
        self._under_way: dict[tuple[object, ...], asyncio.Task[Any]] = {}

    async def answer(self, *name: object) -> Any:
        """What becomes of the look-up of this name that is under way, or of a new one. Cancelling it leaves that to others."""
        lookup = self._under_way.get(name)
        if lookup is None:
            lookup = self._under_way[name] = asyncio.create_task(self._ask(*name), name="look-up of a name")
            lookup.add_done_callback(lambda ended: self._forget(name, ended))
        return await asyncio.shield(lookup)

    def _forget(self, name: tuple[object, ...], ended: asyncio.Task[Any]) -> None:
        del self._under_way[name]
        if not ended.cancelled():
            ended.exception()  # whoever waited has it; where nobody did, asyncio need not complain


class Loop(uvloop.Loop):
    """Of a worker, or of its early reception."""

    def __init__(self) -> None:
        super().__init__()
        self._lookups = Lookups(self._look_up)

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        """As of every loop."""
        return await self._lookups.answer(host, port, family, type, proto, flags)

    async def _look_up(self, host: Any, port: Any, family: int, type: int, proto: int, flags: int) -> Any:
        return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)
