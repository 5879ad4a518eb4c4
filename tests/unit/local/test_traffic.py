"""The traffic goes on, however late it is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator.control_messages import SendText, Sent
from deploy.local.traffic import Traffic

CHATS = 3


class Emulator:
    """Takes what users write, and counts it."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.has_some = asyncio.Event()

    async def send_many(self, messages: Sequence[SendText]) -> list[Sent]:
        """As the emulator's client."""
        first = sum(self.batches)
        self.batches.append(len(messages))
        if len(self.batches) >= 3:
            self.has_some.set()
        return [Sent(first + n, message.user_id, n) for n, message in enumerate(messages)]


async def test_who_is_late_sends_one_message_a_user_at_a_time() -> None:
    """A machine that stands still for seconds owes more messages than there are users to write them."""
    emulator = Emulator()
    traffic = Traffic(cast(EmulatorClient, emulator), chats=CHATS, seed=1)
    async with traffic.flowing(1e6), asyncio.timeout(30):
        await emulator.has_some.wait()
    assert set(emulator.batches[1:]) == {CHATS}
