"""Bots that do something while they are built, for BOT_APP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from telegram.ext import ApplicationBuilder

Builder = ApplicationBuilder[Any, Any, Any, Any, Any, Any]


def _start_child() -> None:
    child = subprocess.Popen(["sleep", "600"])
    with open(os.environ["CHILD_FILE"], "w", encoding="utf-8") as file:
        file.write(f"{child.pid}\n")


def with_child(builder: Builder) -> Any:
    """A good bot that starts a process of its own, a renderer or a tunnel, and keeps it."""
    _start_child()
    return builder.build()


def never_built(builder: Builder) -> Any:
    """One that has started a process waits for something that does not come."""
    _start_child()
    time.sleep(600)


def talkative(builder: Builder) -> Any:
    """One that says 2 MiB, and ends its process."""
    for _ in range(2048):
        sys.stderr.write("x" * 1023 + "\n")
    sys.stderr.write("the last word\n")
    sys.stderr.flush()
    os._exit(7)
