"""The threads in which the bot's handlers wait for what blocks (`asyncio.to_thread`, `run_in_executor(None, ...)`).

A handler that is cancelled leaves its thread running; only when that has ended does nothing of the update run any more. So the
bot has an executor of its own, and the end of a term waits for all that is in it.

Not promised: knowledge of threads and processes that handlers start by other means. They end with the worker.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor


class HandlerThreads:
    """The default executor of the running event loop, from the moment this is made."""

    def __init__(self) -> None:
        self._executor = _use_new_executor()

    async def settle(self) -> None:
        """Returns when no thread does anything for the bot; what has not begun never will. Whoever calls limits it."""
        old, self._executor = self._executor, _use_new_executor()
        await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: old.shutdown(wait=True, cancel_futures=True)
        )


def _use_new_executor() -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(thread_name_prefix="handler")
    asyncio.get_running_loop().set_default_executor(executor)
    return executor
