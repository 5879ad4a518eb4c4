"""The name of an instance and of a start, out of what the platform gives (PLATFORMS.md, row "gives us").

Imported before anything slow (supervisor/__main__.py), so it imports nothing slow itself. The rest is in identity.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

INSTANCE_VARIABLES = (
    "INSTANCE_ID",
    "RENDER_INSTANCE_ID",
    "DYNO",
    "FLY_MACHINE_ID",
    "RAILWAY_REPLICA_ID",
    "HOSTNAME",
)
"""Where the name of the instance is looked for, in this order."""

MAX_ID_CHARACTERS = 200
"""Longest id taken over. FLY_IMAGE_REF, the longest we know, has about 80 characters."""


def platform_instance_id(environ: Mapping[str, str]) -> str:
    """The platform's name for the place that this instance runs in; an empty variable counts as unset."""
    return first_set(environ, INSTANCE_VARIABLES) or _cleaned(os.uname().nodename) or "instance"


def new_instance_id(environ: Mapping[str, str]) -> str:
    """The same and a random part: another one with each call, so that nobody is taken for who ran there before."""
    return f"{platform_instance_id(environ)}-{os.urandom(4).hex()}"


def first_set(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """The first of these variables that says something, as an id; None without any."""
    return next((cleaned for name in names if (cleaned := _cleaned(environ.get(name, "")))), None)


def without_unsafe(name: str) -> str:
    """Ids go into the database and into log lines: no blanks, no control characters, nothing that is not ASCII."""
    return "".join(character if "!" <= character <= "~" else "_" for character in name)


def _cleaned(name: str) -> str:
    return without_unsafe(name.strip())[:MAX_ID_CHARACTERS]
