"""Fixtures of the end-to-end tests: real processes, a real Postgres, the emulator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.instance import World, a_world

if TYPE_CHECKING:
    from deploy.local.emulator_process import RunningEmulator


@pytest.fixture
async def world(database_url: str, running_emulator: RunningEmulator, tmp_path: Path) -> AsyncIterator[World]:
    """An empty database, an emulator with one bot, no instance yet."""
    async with a_world(database_url, running_emulator, tmp_path) as made:
        yield made
