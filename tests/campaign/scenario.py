"""The scenarios that there are: what each needs, how often it repeats its fault, what it measures."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import random
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from tests.campaign.recovery import Bound, Recovery

if TYPE_CHECKING:
    from deploy.local.postgres import PostgresServer
    from tests.campaign.field import Field


def _lacks_program(*names: str) -> str | None:
    missing = [
        name for name in names if shutil.which(name) is None and not os.path.exists(f"/usr/sbin/{name}")
    ]
    return f"not installed: {', '.join(missing)}" if missing else None


def _lacks_root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _lacks_namespaces() -> str | None:
    if (reason := _lacks_root() or _lacks_program("ip", "nft")) is not None:
        return reason
    tried = subprocess.run(["ip", "netns", "list"], capture_output=True, check=False)
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return None if tried.returncode == made.returncode == 0 else "network namespaces are forbidden here"


class Need(Enum):
    """What a scenario cannot do without."""

    LINUX = "linux"
    ROOT = "root"
    NETNS = "network namespaces and nftables"
    PGBOUNCER = "PgBouncer"
    FAKETIME = "libfaketime"
    TMPFS = "a file system of its own"

    def missing(self) -> str | None:
        """Why it cannot be had here; None if it can."""
        match self:
            case Need.LINUX:
                return None if sys.platform == "linux" else "needs Linux"
            case Need.ROOT | Need.TMPFS:
                return _lacks_root()
            case Need.NETNS:
                return _lacks_namespaces()
            case Need.PGBOUNCER:
                return _lacks_program("pgbouncer")
            case Need.FAKETIME:
                found = importlib.util.find_spec("libfaketime")
                return None if found else "libfaketime (PyPI) is not installed"
            case _:
                assert_never(self)


Body = Callable[["Field", random.Random], Awaitable[None]]
Place = Callable[[Path, Mapping[str, str]], AbstractAsyncContextManager["PostgresServer"]]
"""Makes a scenario's own server, in a folder and with settings, and ends it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of SCENARIOS.md, part B, as it is staged; see `tests.campaign` for what the arguments mean."""

    id: str
    title: str
    body: Body
    repetitions: int
    short: int
    needs: tuple[Need, ...] = ()
    recovery: Recovery = Recovery.FIRST_200
    bounds: Mapping[Recovery | str, tuple[Bound, ...]] = field(default_factory=dict)
    own_server: bool = False
    place: Place | None = None
    server_settings: Mapping[str, str] = field(default_factory=dict)
    dead_letters: bool = False
    asserts: bool = True
    recovers_each: bool = True
    answers: bool = True
    hang_seconds_each: float = 60.0

    def missing(self) -> str | None:
        """Why it cannot be staged here; None if it can."""
        reasons = [reason for need in self.needs if (reason := need.missing()) is not None]
        return "; ".join(reasons) or None


_registry: dict[str, Scenario] = {}


def scenario(
    id: str,
    title: str,
    *,
    repetitions: int,
    short: int,
    needs: tuple[Need, ...] = (),
    recovery: Recovery = Recovery.FIRST_200,
    bounds: Mapping[Recovery | str, tuple[Bound, ...]] | None = None,
    own_server: bool = False,
    place: Place | None = None,
    server_settings: Mapping[str, str] | None = None,
    dead_letters: bool = False,
    asserts: bool = True,
    recovers_each: bool = True,
    answers: bool = True,
    hang_seconds_each: float = 60.0,
) -> Callable[[Body], Body]:
    """Registers a scenario; see `tests.campaign`."""

    def register(body: Body) -> Body:
        assert id not in _registry, f"two scenarios are called {id}"
        _registry[id] = Scenario(
            id=id,
            title=title,
            body=body,
            repetitions=repetitions,
            short=short,
            needs=needs,
            recovery=recovery,
            bounds=bounds or {},
            own_server=own_server or bool(server_settings) or place is not None,
            place=place,
            server_settings=server_settings or {},
            dead_letters=dead_letters,
            asserts=asserts,
            recovers_each=recovers_each,
            answers=answers,
            hang_seconds_each=hang_seconds_each,
        )
        return body

    return register


def all_scenarios() -> dict[str, Scenario]:
    """Every scenario of the modules in `tests.campaign.scenarios`, by id."""
    package = importlib.import_module("tests.campaign.scenarios")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_registry.items()))
