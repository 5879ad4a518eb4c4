"""What takes long and needs no event loop, an import for one, is done beside it: in a thread, so that the loop turns meanwhile.

Not promised: that it is quick. The thread and the loop take turns at the interpreter.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


async def import_late(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        ImportError, or whatever else the module raises.
    """
    module = sys.modules.get(name)
    # As the interpreter looks: one that another thread is still importing is there already, and not whole.
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        return module
    return await run_beside(lambda: importlib.import_module(name))


async def run_beside(do: Callable[[], T]) -> T:
    """What it returns, or raises. Whoever is cancelled leaves it running."""
    # Not the loop's own threads: in a worker those are for the bot's handlers (webhook_worker/threads.py).
    executor = ThreadPoolExecutor(1, thread_name_prefix="beside")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, do)
    finally:
        executor.shutdown(wait=False)
