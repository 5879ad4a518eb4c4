"""What the simulation changes in its process is put back."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import structlog
from structlog._config import BoundLoggerLazyProxy


@pytest.fixture(autouse=True)
def log_configuration() -> Iterator[None]:
    """A simulation silences the log (simulate.py); whoever is tested next in this process may read it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
    # Loggers that were first used meanwhile have kept what they found then.
    for module in list(sys.modules.values()):
        logger = getattr(module, "_log", None)
        if isinstance(logger, BoundLoggerLazyProxy):
            logger.__dict__.pop("bind", None)
