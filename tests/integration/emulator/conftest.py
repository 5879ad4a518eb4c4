"""Fixtures of the emulator's own tests: a bot on a manual clock, and a webhook to deliver to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.emulator.harness import Harness
from tests.integration.emulator.receiver import Receiver


@pytest.fixture
async def bot() -> AsyncIterator[Harness]:
    async with Harness() as harness:
        yield harness


@pytest.fixture
async def webhook() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver
