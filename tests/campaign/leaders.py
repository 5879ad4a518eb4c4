"""Bots that come up well and fail as soon as they begin to own: deploys that look healthy and are not. See bots.py.

raising    its post_init raises: the application does not start
dying      its post_init takes its process along
hanging    its post_init waits for what never comes
"""

from __future__ import annotations

import asyncio
import os
from signal import SIGKILL
from typing import Any

from telegram.ext import Application, ApplicationBuilder

from deploy.local import traffic_bot

Builder = ApplicationBuilder[Any, Any, Any, Any, Any, Any]
App = Application[Any, Any, Any, Any, Any, Any]


async def _raise(application: App) -> None:
    raise RuntimeError("a table that this release needs is not there")


async def _die(application: App) -> None:
    os.kill(os.getpid(), SIGKILL)


async def _hang(application: App) -> None:
    await asyncio.Event().wait()


def raising(builder: Builder) -> App:
    """Is built, and cannot be started."""
    return traffic_bot.build(builder.post_init(_raise))


def dying(builder: Builder) -> App:
    """Is built, and dies when it is started."""
    return traffic_bot.build(builder.post_init(_die))


def hanging(builder: Builder) -> App:
    """Is built, and never comes to an end of its start."""
    return traffic_bot.build(builder.post_init(_hang))
