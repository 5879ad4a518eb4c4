"""What an instrumentation of asyncio does to every task of a loop."""

from __future__ import annotations

import asyncio
from typing import Any


def wrapping(loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
    """A task factory: as that of sentry_sdk's AsyncioIntegration, it runs a coroutine that awaits the one that it was given."""

    async def wrap() -> Any:
        return await coroutine

    return asyncio.Task(wrap(), loop=loop, **named)
