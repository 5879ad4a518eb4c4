"""What the simulation changes in its process is put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def log_configuration() -> Iterator[None]:
    """A simulation silences the log (simulate.py); whoever is tested next in this process may read it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
