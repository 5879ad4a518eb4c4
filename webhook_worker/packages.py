"""Are the packages that we are tied to those that are installed? The bot's own requirements may have replaced them silently.

Asked before anything imports one of them. Of an old one not even that may work (python-telegram-bot 13 has no
ApplicationBuilder), and the worker would end with a traceback and no fault, again and again. Another can be imported, and goes
wrong later.

Not promised: that what is imported is what is installed. Where nothing is known of a version, the import has to tell. Nor
anything of the other packages, of which we use what they have had for long.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping

from shared.errors import ConfigurationError

NEEDED: Mapping[str, str] = {
    # Older ones lack what an adopted Application is made of (update_run.py); of the next nobody knows.
    "python-telegram-bot": ">=22.8,<23",
    # With older ones a cancelled statement might never return.
    "psycopg": ">=3.3.6,<4",
    # Older ones have not the parts that connection.py overrides and calls.
    "uvicorn": ">=0.54,<1",
}
"""Name to versions, as in pyproject.toml."""

_RELEASE = re.compile(r"\d+(?:\.\d+)*")


def check(bot_app: str) -> None:
    """Looks up which ones are installed.

    Args:
        bot_app: BOT_APP, for the faults.

    Raises:
        ConfigurationError: there are some that we do not work with; a fault is one line, and names package, BOT_APP and remedy.
    """
    faults = tuple(
        f"BOT_APP must be a bot; {bot_app}: {name} {found} is installed, and {name}{needed} is needed; correct the bot's own "
        "requirements, or leave it out of them"
        for name, needed in NEEDED.items()
        if (found := _installed(name)) is not None and not is_supported(found, needed)
    )
    if faults:
        raise ConfigurationError(faults)


def is_supported(version: str, needed: str) -> bool:
    """Whether a version is within those that are needed; also where it cannot be read."""
    found = _RELEASE.match(version)
    least, below = map(_numbers, _RELEASE.findall(needed))
    return found is None or least <= _numbers(found[0]) < below


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))
