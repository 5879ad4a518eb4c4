"""The bot of the demo: the built-in one, and a record of every run of every update.

BOT_APP=deploy.local.traffic_bot:build. A message `work 0.25 ...` keeps a handler busy for a quarter of a
second and is answered; everything else is the built-in bot's. Each worker appends JSON lines to a file of its
own in HISTORY_DIR:

    {"event": "start" | "alive" | "end", "update_id", "chat_id", "instance", "owner", "pid", "at", "ending"}

`owner` is the instance id that the supervisor made for its start: terms are written under it.
`at` is `time.monotonic()`, one clock for all processes of the machine. While a handler works it writes
`alive` several times a second, so that two runs at one time are seen even if the first never gets to its end.

Not promised: that a run of the built-in bot's handlers is seen to fail. Its end is then missing, which counts
as interrupted.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, ApplicationHandlerStop, ContextTypes, TypeHandler

from shared.inherited import INSTANCE_VARIABLE
from webhook_worker.menu_bot import build as build_menu_bot

# The file of a run's first sign of life, before every handler of the built-in bot; and of its last, after
# them.
_FIRST_GROUP, _LAST_GROUP = -1000, 1000
_ALIVE_SECONDS = 0.1


@functools.cache
def _history_descriptor() -> int:
    # Opened with the first update: a standby's worker leaves no file.
    path = (
        Path(os.environ["HISTORY_DIR"])
        / f"{os.environ.get('RENDER_INSTANCE_ID', 'local')}-{os.getpid()}.jsonl"
    )
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def record(event: str, update: Update, ending: str = "") -> None:
    """Writes one line about a run; for handlers of other bots that keep a record, too. May be called in any thread."""
    chat = update.effective_chat
    line = {
        "event": event,
        "update_id": update.update_id,
        "chat_id": 0 if chat is None else chat.id,
        "instance": os.environ.get("RENDER_INSTANCE_ID", "local"),
        "owner": os.environ.get(INSTANCE_VARIABLE, ""),
        "pid": os.getpid(),
        "at": time.monotonic(),
        "ending": ending,
    }
    # One write a line: a kill leaves whole lines only.
    os.write(_history_descriptor(), json.dumps(line).encode() + b"\n")


def _wanted_seconds(update: Update) -> float | None:
    text = "" if update.message is None else update.message.text or ""
    words = text.split()
    return float(words[1]) if len(words) > 1 and words[0] == "work" else None


async def _begin(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    record("start", update)
    seconds = _wanted_seconds(update)
    if seconds is None:
        return
    assert update.message is not None
    try:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _ALIVE_SECONDS))
            record("alive", update)
        await update.message.reply_text(f"done: {update.message.text}")
    except asyncio.CancelledError:
        record("end", update, "interrupted")
        raise
    except Exception:
        record("end", update, "failed")
        raise
    record("end", update, "well")
    # The built-in bot has no answer to this.
    raise ApplicationHandlerStop


async def _end(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    # An error in one group does not keep an update from the next: ours have told their end.
    if _wanted_seconds(update) is None:
        record("end", update, "well")


def build(
    builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any],
) -> Application[Any, Any, Any, Any, Any, Any]:
    """The BOT_APP of the demo; see INTERFACE.md, BOT_APP."""
    application = build_menu_bot(builder)
    application.add_handler(TypeHandler(Update, _begin), group=_FIRST_GROUP)
    application.add_handler(TypeHandler(Update, _end), group=_LAST_GROUP)
    return application
