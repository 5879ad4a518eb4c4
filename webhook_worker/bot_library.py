"""Which python-telegram-bot is installed: the bot's own requirements may have put another in the place of ours, without a word.

Asked before anything imports it. Of an old one not even that works (13 has no ApplicationBuilder), and the worker would end
with a traceback and no fault, again and again.

Not promised: that what is imported is what is installed. Where nothing is known of a version, the import has to tell.
"""

from __future__ import annotations

import importlib.metadata
import re

from shared.errors import ConfigurationError

NEEDED = ">=22.8,<23"
"""As in pyproject.toml. Older ones lack what an adopted Application is made of (update_run.py); of the next nobody knows."""

_NAME = "python-telegram-bot"
_RELEASE = re.compile(r"\d+(?:\.\d+)*")


def check(bot_app: str) -> None:
    """Looks up which one is installed.

    Args:
        bot_app: BOT_APP, for the fault.

    Raises:
        ConfigurationError: one that we do not work with; the fault is one line, and names it, BOT_APP and the remedy.
    """
    try:
        found = importlib.metadata.version(_NAME)
    except importlib.metadata.PackageNotFoundError:
        return
    if not is_supported(found):
        fault = (
            f"{_NAME} {found} is installed, and {_NAME}{NEEDED} is needed; correct the bot's own requirements, or leave it out "
            "of them"
        )
        raise ConfigurationError((f"BOT_APP must be a bot; {bot_app}: {fault}",))


def is_supported(version: str) -> bool:
    """Whether a version is within NEEDED; also where it cannot be read."""
    found = _RELEASE.match(version)
    least, below = map(_numbers, _RELEASE.findall(NEEDED))
    return found is None or least <= _numbers(found[0]) < below


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))
