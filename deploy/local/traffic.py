"""Steady traffic: many users who write to the bot at a given rate, whatever becomes of their messages."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator.control_messages import SendText

# Many small steps, so that messages do not come in visible gusts.
_STEP_SECONDS = 0.05
_FIRST_USER_ID = 100_001


class Traffic:
    """What users wrote so far.

    Attributes:
        sent: the chat of every update, by its number.
        is_flowing: whether more is being written.
    """

    def __init__(self, emulator: EmulatorClient, *, chats: int, seed: int) -> None:
        """Does nothing yet.

        Args:
            chats: how many users there are, each in a private chat.
            seed: of the choice of users and of how long their messages keep the bot busy.
        """
        self._emulator = emulator
        self._users = range(_FIRST_USER_ID, _FIRST_USER_ID + chats)
        self._random = random.Random(seed)
        self.sent: dict[int, int] = {}
        self.is_flowing = False

    async def send(self, seconds_of_work: Iterable[float]) -> None:
        """Different users write one message each; see traffic_bot for what it does."""
        work = list(seconds_of_work)
        users = self._random.sample(self._users, len(work))
        wishes = [SendText(user, f"work {seconds:.2f}") for user, seconds in zip(users, work, strict=True)]
        for sent in await self._emulator.send_many(wishes):
            # No update would mean that the bot did not want messages, which it does.
            assert sent.update_id is not None
            self.sent[sent.update_id] = sent.chat_id

    @asynccontextmanager
    async def flowing(self, per_second: float) -> AsyncIterator[None]:
        """Messages at that rate for as long as the block runs."""
        stop = asyncio.Event()
        self.is_flowing = True
        # Not in a task group, which would wrap the block's errors in one of its own.
        task = asyncio.create_task(self._flow(per_second, stop), name="traffic")
        try:
            yield
        finally:
            self.is_flowing = False
            stop.set()
            await task

    async def _flow(self, per_second: float, stop: asyncio.Event) -> None:
        begin = time.monotonic()
        count = 0
        while not stop.is_set():
            # One message a user at most: where we stood still ourselves, the rest comes with the next step.
            due = min(int((time.monotonic() - begin) * per_second) - count, len(self._users))
            if due > 0:
                await self.send(self._random.uniform(0.02, 0.3) for _ in range(due))
                count += due
            await asyncio.sleep(_STEP_SECONDS)
