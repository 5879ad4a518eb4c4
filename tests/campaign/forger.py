"""Somebody who wants to pass for Telegram: requests with everything right but what only Telegram knows, all the time.

    right path, wrong secret      right path, no secret      wrong path, right secret      a secret whose time is over

Each must be refused: 401, 404, or 503 while it cannot be looked up. Updates of the forger's have numbers that no other has, so
that one which got through is found in the inbox too.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

import httpx

from tests.campaign.field import HANG, Field
from tests.campaign.judge import Invariant

FIRST_UPDATE_ID = 5_000_000_000_000
_PAUSE_SECONDS = 0.05
REFUSALS = frozenset((HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE))


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where Telegram delivers to, and with which secret."""

    url: str
    secret: str

    @property
    def path(self) -> str:
        """The URL's last part."""
        return self.url.rpartition("/")[2]


class Forger:
    """Sends forged updates.

    Attributes:
        present: what stands, or will stand, at Telegram; each is forged in turn.
        over: what stood there, and whose time is over.
        answers: how often which status was answered, by what was wrong.
    """

    def __init__(self, field: Field, chance: random.Random) -> None:
        """Does nothing yet."""
        self._field = field
        self._chance = random.Random(chance.random())
        self._numbers = itertools.count(FIRST_UPDATE_ID)
        self.present: list[Webhook] = []
        self.over: list[Webhook] = []
        self.answers: Counter[tuple[str, int]] = Counter()

    @asynccontextmanager
    async def forging(self) -> AsyncIterator[None]:
        """Forgeries, some twenty a second, for as long as the block runs."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._forge_on(stop), name="forger")
        try:
            yield
        finally:
            stop.set()
            await task

    async def send(self, client: httpx.AsyncClient, what: str, url: str, secret: str | None) -> None:
        """One forgery; an answer that is none of the refusals is written down as a breach."""
        body = {
            "update_id": next(self._numbers),
            "message": {
                "message_id": 1,
                "date": int(time.time()),
                "chat": {"id": 666, "type": "private"},
                "text": "work 0.01",
            },
        }
        headers = {"Content-Type": "application/json"}
        if secret is not None:
            headers["X-Telegram-Bot-Api-Secret-Token"] = secret
        answer = await client.post(url, content=json.dumps(body).encode(), headers=headers)
        self.answers[what, answer.status_code] += 1
        if answer.status_code not in REFUSALS:
            self._field.object(Invariant.AVAILABLE, f"forged ({what}), and answered {answer.status_code}")

    async def conclude(self) -> None:
        """Objects to what got through after all."""
        counts = ", ".join(
            f"{what}: {count} x {status}" for (what, status), count in sorted(self.answers.items())
        )
        print(f"    forged: {counts}", flush=True)
        rows = await self._field.recorder.fetch(
            "SELECT count(*) FROM campaign.inbox_changes WHERE update_id >= %s", FIRST_UPDATE_ID
        )
        if rows[0][0]:
            self._field.object(Invariant.AVAILABLE, f"{rows[0][0]} changes of forged updates in the inbox")

    async def _forge_on(self, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=HANG) as client:
            while not stop.is_set():
                if self.present:
                    await self._forge(client, self._chance.choice(self.present))
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _forge(self, client: httpx.AsyncClient, webhook: Webhook) -> None:
        base = self._field.public_url
        wrong = secrets.token_urlsafe(24)
        kinds = ["wrong secret", "no secret", "wrong path"]
        match self._chance.choice([*kinds, "secret over"] if self.over else kinds):
            case "wrong secret":
                await self.send(client, "wrong secret", webhook.url, wrong)
            case "no secret":
                await self.send(client, "no secret", webhook.url, None)
            case "wrong path":
                await self.send(client, "wrong path", f"{base}/webhook/{wrong}", webhook.secret)
            case _:
                old = self._chance.choice(self.over)
                await self.send(client, "secret over", old.url, old.secret)
