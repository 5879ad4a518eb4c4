"""uvicorn without its command line, which nobody uses here: that brings click and what starts and reloads processes, 1.5 MiB.

`import uvicorn` imports all of it. So whoever needs uvicorn in a worker has it from here, where something else stands in the
place of `uvicorn.main`. A bot that asks for more of that than a server, `uvicorn.run` for one, gets uvicorn's own.

Not promised: anything where uvicorn was imported before.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_NAME = "uvicorn.main"


class _CommandLine(ModuleType):
    """Has of uvicorn.main what the package takes from it; imports the real one for anything else."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "Server":
            return importlib.import_module("uvicorn.server").Server
        if name in ("main", "run"):
            return lambda *args, **kwargs: getattr(_own(), name)(*args, **kwargs)
        return getattr(_own(), name)


def _own() -> ModuleType:
    """uvicorn's, from now on in all places."""
    if isinstance(sys.modules.get(_NAME), _CommandLine):
        del sys.modules[_NAME]
    own = importlib.import_module(_NAME)
    package = sys.modules["uvicorn"]
    vars(package).update(main=own.main, run=own.run)
    return own


if "uvicorn" not in sys.modules:
    sys.modules.setdefault(_NAME, _CommandLine(_NAME))

import uvicorn  # noqa: E402
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle  # noqa: E402

__all__ = ["HttpToolsProtocol", "RequestResponseCycle", "uvicorn"]
