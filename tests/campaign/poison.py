"""A bot that can be poisoned: deploy.local.traffic_bot, and a command for each way in which one update can take a bot along.

    /poison raises      the handler raises
    /poison exits       the process ends, as a library does that calls exit()
    /poison segfaults   the process is killed by the kernel for what native code does
    /poison memory      the handler takes all the memory that there is; give the instance a limit (prlimit --as)
    /poison devours     the same in a thread, page by page, until the process is killed for it
    /poison hangs       the handler does not return, and can be cancelled
    /poison blocks      the handler does not give the event loop back

Each as often as it is run: it is the update's fault, not the moment's.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from signal import SIGKILL
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, ApplicationHandlerStop, CommandHandler, ContextTypes

from deploy.local import traffic_bot

# After the traffic bot's first, which records the begin of a run, and before the built-in bot's, which answers everything.
_BEFORE_MENU = -500
_PIECE_BYTES = 64 * 1024 * 1024
_BITE_BYTES, _BITES = 1024 * 1024, 512
"""Half a gigabyte that is touched: it takes a while, and no machine of ours is in danger. In small bites, since each is taken
with the interpreter's lock, and the event loop must turn between them: that it stands still is another poison's way."""

_FOR_EVER_SECONDS = 3600.0

KILLING = ("exits", "segfaults", "blocks", "devours")
"""Ways that end the process."""

SPARING = ("raises", "memory", "hangs")
"""Ways that do not: the update alone suffers."""


async def _poison(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    match (context.args or [""])[0]:
        case "raises":
            raise LookupError("there is no such order")
        case "exits":
            os._exit(70)
        case "segfaults":
            ctypes.string_at(0)
        case "memory":
            _eat_memory()
        case "devours":
            await asyncio.to_thread(_devour_memory)
        case "hangs":
            await asyncio.sleep(_FOR_EVER_SECONDS)
        case "blocks":
            time.sleep(_FOR_EVER_SECONDS)
    raise ApplicationHandlerStop


def _eat_memory() -> None:
    # Without an await, so that nobody else finds that there is none; and without a touch: only its addresses are used up.
    eaten = []
    while True:
        eaten.append(bytes(_PIECE_BYTES))


def _devour_memory() -> None:
    # In the place of the kernel, which would choose whom to kill: it might be another than this process.
    eaten = [b"x" * _BITE_BYTES for _ in range(_BITES)]
    os.kill(os.getpid(), SIGKILL)
    eaten.clear()


def build(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """The BOT_APP."""
    application = traffic_bot.build(builder)
    application.add_handler(CommandHandler("poison", _poison), group=_BEFORE_MENU)
    return application
