"""What the registrar makes of Telegram's answers, with Telegram at the other end of a wire that is not there."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx
import pytest
from msgspec.structs import replace

from shared import config as configuration
from shared.config import Config
from shared.telegram_api import TelegramApi
from supervisor import messages as m
from supervisor.registrar import Registrar
from supervisor.state import Term, initial
from supervisor.status import WallClock, status
from tests.unit.supervisor.modelled_process import SETTINGS
from tests.unit.worker import virtual_time

HANG_SECONDS = 60.0
TERM = "11111111-1111-4111-8111-111111111111"


class _Opening(TelegramApi):
    """Takes a turn of the loop to open, as one that has no transport yet."""

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0)
        return await super().__aenter__()


class _Wire(httpx.MockTransport):
    """Can be closed."""

    is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True


class Conversation:
    """A registrar and what Telegram would answer it."""

    def __init__(self, tasks: asyncio.TaskGroup, **variables: str) -> None:
        self.is_permitted = True
        self.is_away = False
        self.error_code = 502  # while it is away
        self.config = configuration.load(
            {
                "TELEGRAM_BOT_TOKEN": "7:abcdefghijklmnopqrstuvwxyzabcdefghi",
                "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
                "WEBHOOK_BASE_URL": "https://bot.example",
                **variables,
            },
            stdin_is_terminal=False,
            stdout_is_terminal=False,
        )
        self.info: dict[str, Any] = {
            "url": self.config.base_url and self.config.webhook_url.reveal(),
            "has_custom_certificate": False,
            "pending_update_count": 0,
            "max_connections": self.config.max_connections,
        }
        self.events: asyncio.Queue[m.Event] = asyncio.Queue()
        self._described = ""
        self.registrar = Registrar(
            self.config,
            self.events.put_nowait,
            lambda call: self.is_permitted,
            tasks,
            make_api=self._make_api,
        )
        self._id = 0
        self.requests = 0
        self.wires: list[_Wire] = []

    def _make_api(self, config: Config) -> TelegramApi:
        self.wires.append(_Wire(self._answer))
        return _Opening(config.api_base_url, config.token, transport=self.wires[-1])

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self.is_away:
            body = {"ok": False, "error_code": self.error_code, "description": "it is away"}
            return httpx.Response(self.error_code, content=json.dumps(body))
        result = self.info if request.url.path.endswith("getWebhookInfo") else True
        body = {"ok": True, "result": result, "description": self._described}
        return httpx.Response(200, content=json.dumps(body))

    async def do(self, make: type[m.BotCall]) -> m.Event:
        self._id += 1
        self.registrar.begin(make(id=self._id, term=TERM))
        async with asyncio.timeout(HANG_SECONDS):
            return await self.events.get()

    async def assert_it(self, *, changed: bool) -> None:
        """setWebhook, which changes something or does not."""
        self._described = "Webhook was set" if changed else "Webhook is already set"
        asserted = await self.do(m.SetWebhook)
        assert isinstance(asserted, m.WebhookAsserted)
        assert asserted.changed is changed

    async def compare(self, **info: Any) -> m.WebhookFacts:
        """getWebhookInfo, with these fields from now on."""
        self.info.update(info)
        compared = await self.do(m.CompareWebhook)
        assert isinstance(compared, m.WebhookCompared)
        return compared.facts


@asynccontextmanager
async def a_conversation(**variables: str) -> AsyncIterator[Conversation]:
    async with asyncio.TaskGroup() as tasks:
        conversation = Conversation(tasks, **variables)
        async with conversation.registrar:
            yield conversation


async def test_a16_what_one_answer_showed_is_remembered_for_the_next() -> None:
    """A look is judged by those before it and by our own calls (drift.py): the registrar hands the memory on."""
    async with a_conversation() as telegram:
        await telegram.assert_it(changed=False)
        old = {"last_error_date": 100, "last_error_message": "Connection refused"}
        assert (await telegram.compare(**old)).last_error is None
        assert (await telegram.compare(last_error_date=160)).last_error == "Connection refused"
        await telegram.assert_it(changed=False)
        assert (await telegram.compare()).last_error is None


async def test_an_error_after_a_registration_that_was_made_anew_is_news_at_once() -> None:
    """With it Telegram forgets what was before."""
    async with a_conversation() as telegram:
        await telegram.assert_it(changed=True)
        facts = await telegram.compare(last_error_date=100, last_error_message="Connection refused")
        assert facts.last_error == "Connection refused"
        state = replace(
            initial(SETTINGS, 0.0),
            term=Term(uuid="u", number=1, session=1, began_at=0.0, deadline=8.0, recover_at=0.0),
            webhook=facts,
        )
        wall = WallClock(lambda: datetime.datetime.fromtimestamp(130, datetime.UTC))
        shown = status(state, 1.0, telegram.config, wall)
        webhook = shown["webhook"]
        assert isinstance(webhook, dict)
        assert webhook["last_error"] == "Connection refused (30 s ago)"


async def test_a21_an_error_in_telegrams_words_is_masked() -> None:
    """It is shown in /status, and nobody knows what Telegram quotes."""
    async with a_conversation() as telegram:
        path = telegram.config.webhook_path.reveal()
        await telegram.assert_it(changed=True)
        facts = await telegram.compare(last_error_date=100, last_error_message=f"no /webhook/{path} here")
        assert facts.last_error == "no /webhook/*** here"


async def test_calls_that_come_at_once_share_one_client() -> None:
    """Making it takes a while, in which the next call may come: a second client would never be closed."""
    async with a_conversation() as telegram:
        await asyncio.gather(telegram.compare(), telegram.compare(), telegram.compare())
        assert len(telegram.wires) == 1


async def test_the_client_is_closed_with_its_registrar() -> None:
    """And not between two calls: a connection is kept for the next one."""
    async with a_conversation() as telegram:
        await telegram.compare()
        await telegram.compare()
        assert [wire.is_closed for wire in telegram.wires] == [False]
    assert [wire.is_closed for wire in telegram.wires] == [True]


async def test_a17_a_term_that_ends_while_the_client_is_made_makes_no_call() -> None:
    """Nor is there anything to cut off yet that Telegram would have heard of."""
    async with a_conversation() as telegram:
        call = asyncio.create_task(telegram.do(m.SetWebhook))
        while not telegram.wires:
            await asyncio.sleep(0)
        telegram.is_permitted = False
        failed = await call
        assert isinstance(failed, m.CallFailed)
        assert failed.fault is m.CallFault.TERM_OVER
        assert telegram.requests == 0


@pytest.mark.parametrize(
    ("make", "mode", "error_code", "longest"),
    [
        (m.DeleteWebhook, "polling", 502, 2.4),
        (m.DeleteWebhook, "polling", 409, 72.0),
        (m.DeleteWebhook, "webhook", 502, 72.0),
        (m.SetWebhook, "webhook", 502, 72.0),
    ],
)
def test_b31_a_deletion_before_which_nobody_polls_is_tried_every_two_seconds(
    make: type[m.SetWebhook] | type[m.DeleteWebhook], mode: str, error_code: int, longest: float
) -> None:
    """The others are waited for by nobody, and are tried ever more slowly; as is whatever Telegram refuses."""

    async def outage() -> None:
        async with a_conversation(BOT_MODE=mode) as telegram:
            telegram.is_away, telegram.error_code = True, error_code
            event, pauses = await telegram.do(make), []
            for _ in range(10):
                assert isinstance(event, m.CallRetrying)
                pauses.append(event.retry_seconds)
                event = await telegram.events.get()
            assert longest / 2 < max(pauses) <= longest
            if mode == "polling":
                # The first answer: as soon as it is there, what is refused is tried again soon.
                telegram.error_code = 409
                event = await telegram.events.get()
                event = await telegram.events.get()
                assert isinstance(event, m.CallRetrying)
                assert error_code == 409 or event.retry_seconds <= 2.4
            telegram.is_away = False
            while isinstance(event, m.CallRetrying):
                event = await telegram.events.get()
            assert isinstance(event, m.WebhookAsserted)

    virtual_time.run(outage)
