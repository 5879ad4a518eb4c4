"""Imports beside what goes on: in a thread, so that the event loop turns meanwhile.

Not promised: that it is quick. The thread and the loop take turns at the interpreter.
"""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType


async def import_late(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        ImportError, or whatever else the module raises.
    """
    # Not the loop's own threads: those are for the bot's handlers (threads.py).
    with ThreadPoolExecutor(1, thread_name_prefix="import") as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, importlib.import_module, name)
