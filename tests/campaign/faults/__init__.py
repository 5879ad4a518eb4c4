"""The instruments of the campaign: each makes one kind of fault, real, at will, and takes it back.

A module here imports nothing of the campaign and knows no scenario, and nothing of the product. What it changes
on the machine is gone when its block ends, also after a failure, and when this process is killed.

What needs root or a program that is not there raises Unavailable, with the reason: the scenario is then skipped
with it.
"""

from __future__ import annotations

import os
import shutil


class Unavailable(Exception):
    """This fault cannot be made here; the text says what is missing and how to get it."""


def find_program(name: str, package: str) -> str:
    """The full path of a program, also where an ordinary user's PATH does not lead.

    Args:
        name: of the program.
        package: Debian's, for the message.

    Raises:
        Unavailable: it is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise Unavailable(f"{name} is not installed (Debian: apt-get install {package})")
    return found


def require_root(what_for: str) -> None:
    """Raises Unavailable unless we are root."""
    if os.geteuid() != 0:
        raise Unavailable(f"{what_for} needs root")
