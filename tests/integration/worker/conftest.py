"""What tests of a bot have in common: the Bot API that it calls, and an Application that calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.sample_bots.bot_api import BotApi
from tests.sample_bots.running import AnyApplication, builder_for


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    """Telegram."""
    async with BotApi() as api:
        yield api


@pytest.fixture
def app(api: BotApi) -> AnyApplication:
    """An Application that calls it, without handlers."""
    return builder_for(api.url).build()
