"""The registrar against the Bot API emulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from deploy.local.emulator.faults import Fault, FaultKind
from deploy.local.emulator.update_kinds import DEFAULT_ALLOWED
from deploy.local.emulator_process import RunningEmulator
from shared import config as configuration
from shared.config import Config
from shared.errors import RetryLater, TelegramUnavailable
from supervisor import messages as m
from supervisor.registrar import FIRST_PAUSE_SECONDS, Registrar, retry_pause_seconds

HANG_SECONDS = 60.0
TERM = "11111111-1111-4111-8111-111111111111"


def config_for(emulator: RunningEmulator, **variables: str) -> Config:
    environ = {
        "TELEGRAM_BOT_TOKEN": emulator.token,
        "TELEGRAM_API_BASE_URL": emulator.base_url,
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
        "WEBHOOK_BASE_URL": "http://127.0.0.1:1",
        "PORT": "8080",
        **variables,
    }
    return configuration.load(environ, stdin_is_terminal=False, stdout_is_terminal=False)


class RegistrarDriver:
    """A registrar with its events in a queue, and a permit that the test holds."""

    def __init__(self, config: Config, tasks: asyncio.TaskGroup) -> None:
        self.permitted = True
        self.asked = 0
        self.events: asyncio.Queue[m.Event] = asyncio.Queue()
        self.registrar = Registrar(config, self.events.put_nowait, self._may_call, tasks)

    def _may_call(self, call: m.CallAction) -> bool:
        self.asked += 1
        return self.permitted and call.term == TERM

    async def next_event(self) -> m.Event:
        async with asyncio.timeout(HANG_SECONDS):
            return await self.events.get()

    async def do(self, action: m.BotCall) -> m.Event:
        self.registrar.begin(action)
        return await self.next_event()


@asynccontextmanager
async def a_registrar(config: Config) -> AsyncIterator[RegistrarDriver]:
    async with asyncio.TaskGroup() as tasks:
        driver = RegistrarDriver(config, tasks)
        async with driver.registrar:
            yield driver


async def test_the_webhook_is_set_once_and_asserted_without_a_change(
    running_emulator: RunningEmulator,
) -> None:
    """The first call changes it, the second is the no-op that an assertion may be."""
    config = config_for(running_emulator, MAX_CONNECTIONS="7", ALLOWED_UPDATES="message,callback_query")
    async with a_registrar(config) as driver:
        first = await driver.do(m.SetWebhook(id=1, term=TERM))
        assert isinstance(first, m.WebhookAsserted)
        assert first.changed
        second = await driver.do(m.SetWebhook(id=2, term=TERM))
        while isinstance(second, m.CallRetrying):  # more than one setWebhook a second is a 429
            second = await driver.next_event()
        assert isinstance(second, m.WebhookAsserted)
        assert not second.changed
        compared = await driver.do(m.CompareWebhook(id=3, term=TERM))
        assert isinstance(compared, m.WebhookCompared)
        assert compared.facts.in_sync
        identity = await driver.do(m.VerifyIdentity(id=4, term=TERM))
        assert isinstance(identity, m.IdentityVerified)
        assert identity.bot_id == config.bot_id
    state = await running_emulator.client.webhook()
    assert state.url == config.webhook_url.reveal()
    assert state.secret_token == config.webhook_secret.reveal()
    assert (state.max_connections, state.allowed_updates) == (7, ["message", "callback_query"])


async def test_a_client_that_cannot_be_made_is_no_answer_of_telegram(
    running_emulator: RunningEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd proxy in the environment: the call is tried again, and nobody takes it for a word about the token."""
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:1")
    async with a_registrar(config_for(running_emulator)) as driver:
        event = await driver.do(m.SetWebhook(id=1, term=TERM))
        assert isinstance(event, m.CallRetrying)
        assert "ALL_PROXY" in event.reason
        monkeypatch.delenv("ALL_PROXY")
        while isinstance(event, m.CallRetrying):
            event = await driver.next_event()
        assert isinstance(event, m.WebhookAsserted)


async def test_allowed_updates_unset_restores_telegrams_default(running_emulator: RunningEmulator) -> None:
    """An absent list would keep what somebody set before; an empty one does not."""
    narrow = config_for(running_emulator, ALLOWED_UPDATES="message")
    async with a_registrar(narrow) as driver:
        await driver.do(m.SetWebhook(id=1, term=TERM))
    async with a_registrar(config_for(running_emulator)) as driver:
        event = await driver.do(m.SetWebhook(id=2, term=TERM))
        while isinstance(event, m.CallRetrying):
            event = await driver.next_event()
        compared = await driver.do(m.CompareWebhook(id=3, term=TERM))
        assert isinstance(compared, m.WebhookCompared)
        assert compared.facts.in_sync
    assert (await running_emulator.client.webhook()).allowed_updates is None


@pytest.mark.parametrize("action", [m.SetWebhook(id=1, term=TERM), m.DeleteWebhook(id=1, term=TERM)])
async def test_a17_who_is_not_owner_makes_no_call_at_all(
    running_emulator: RunningEmulator, action: m.BotCall
) -> None:
    """The permit is asked before the first attempt, and its no is final."""
    async with a_registrar(config_for(running_emulator)) as driver:
        driver.permitted = False
        event = await driver.do(action)
        assert isinstance(event, m.CallFailed)
        assert event.fault is m.CallFault.TERM_OVER
    assert await running_emulator.client.calls() == []


async def test_a18_who_stops_being_owner_between_attempts_makes_no_further_one(
    running_emulator: RunningEmulator,
) -> None:
    """The permit is asked before every attempt, not only before the first."""
    await running_emulator.client.add_fault(Fault(FaultKind.SERVER_ERROR, method="setWebhook"))
    async with a_registrar(config_for(running_emulator)) as driver:
        event = await driver.do(m.SetWebhook(id=1, term=TERM))
        assert isinstance(event, m.CallRetrying)
        driver.permitted = False
        event = await driver.next_event()
        assert isinstance(event, m.CallFailed)
        assert event.fault is m.CallFault.TERM_OVER
    assert len(await running_emulator.client.calls(method="setWebhook")) == 1


async def test_b23_a_call_that_hangs_is_cut_off_when_its_term_ends(running_emulator: RunningEmulator) -> None:
    """Whatever it waits for, it is answered by one event, and the next call can begin."""
    await running_emulator.client.add_fault(Fault(FaultKind.HANG, method="setWebhook"))
    async with a_registrar(config_for(running_emulator)) as driver:
        hanging = m.SetWebhook(id=1, term=TERM)
        driver.registrar.begin(hanging)
        assert await running_emulator.client.calls(method="setWebhook", timeout_seconds=HANG_SECONDS)
        driver.registrar.cut_off(hanging)
        event = await driver.next_event()
        assert isinstance(event, m.CallFailed)
        assert event.fault is m.CallFault.TERM_OVER
        await running_emulator.client.clear_faults()
        assert isinstance(await driver.do(m.CompareWebhook(id=2, term=TERM)), m.WebhookCompared)


async def test_b24_a_refused_token_is_not_repeated(running_emulator: RunningEmulator) -> None:
    """401 is told at once, after one attempt."""
    await running_emulator.client.revoke_token()
    async with a_registrar(config_for(running_emulator)) as driver:
        event = await driver.do(m.SetWebhook(id=1, term=TERM))
        assert isinstance(event, m.CallFailed)
        assert event.fault is m.CallFault.TOKEN_REFUSED
        assert running_emulator.token not in event.reason
        assert driver.asked == 1


def test_retry_after_is_obeyed_and_never_shortened() -> None:
    """Whatever the chance: at least what Telegram asked for; other pauses grow up to a limit."""
    for chance in (0.0, 0.5, 0.999):
        assert retry_pause_seconds(1, RetryLater("setWebhook", "wait", 7), chance) >= 7
        assert retry_pause_seconds(9, RetryLater("setWebhook", "wait", 0), chance) >= FIRST_PAUSE_SECONDS
    pauses = [retry_pause_seconds(n, TelegramUnavailable("setWebhook", "502"), 0.5) for n in range(1, 12)]
    assert pauses == sorted(pauses)
    assert pauses[0] <= 1.2
    assert pauses[-1] <= 72


@pytest.mark.parametrize("kinds", ["message,of_a_later_version", ",".join(sorted(DEFAULT_ALLOWED))])
async def test_a19_a_list_that_telegram_shows_otherwise_is_no_drift_for_ever(
    running_emulator: RunningEmulator, kinds: str
) -> None:
    """Kinds that it does not know it drops, and the default it does not show: what setting again does not change stays so."""
    async with a_registrar(config_for(running_emulator, ALLOWED_UPDATES=kinds)) as driver:
        in_sync = []
        for number in range(0, 6, 2):
            event = await driver.do(m.SetWebhook(id=number, term=TERM))
            while isinstance(event, m.CallRetrying):  # more than one setWebhook a second is a 429
                event = await driver.next_event()
            assert isinstance(event, m.WebhookAsserted)
            compared = await driver.do(m.CompareWebhook(id=number + 1, term=TERM))
            assert isinstance(compared, m.WebhookCompared)
            in_sync.append(compared.facts.in_sync)
        assert in_sync == [False, True, True]


async def test_b23_a_call_that_is_cut_off_before_it_begins_is_answered_too(
    running_emulator: RunningEmulator,
) -> None:
    """A term may end in the very step that began the call: without an answer the next call would wait for ever."""
    async with a_registrar(config_for(running_emulator)) as driver:
        action = m.CompareWebhook(id=1, term=TERM)
        driver.registrar.begin(action)
        driver.registrar.cut_off(action)
        event = await driver.next_event()
        assert isinstance(event, m.CallFailed)
        assert (event.id, event.fault) == (1, m.CallFault.TERM_OVER)
        assert driver.events.empty()
    assert await running_emulator.client.calls() == []


async def test_a19_a_certificate_that_somebody_uploaded_is_named_and_removed(
    running_emulator: RunningEmulator,
) -> None:
    """A call without one is a change where there was one, whatever else is equal."""
    config = config_for(running_emulator)
    async with a_registrar(config) as driver:
        await driver.do(m.SetWebhook(id=1, term=TERM))
        upload = {"certificate": ("x.pem", b"-----BEGIN CERTIFICATE-----")}
        form = {"url": config.webhook_url.reveal(), "secret_token": config.webhook_secret.reveal()}
        url = f"{running_emulator.base_url}/bot{running_emulator.token}/setWebhook"
        async with httpx.AsyncClient(trust_env=False, timeout=HANG_SECONDS) as client:
            while (await client.post(url, data=form, files=upload)).status_code == 429:
                await asyncio.sleep(0.1)
        compared = await driver.do(m.CompareWebhook(id=2, term=TERM))
        assert isinstance(compared, m.WebhookCompared)
        assert "certificate" in str(compared.facts.drift)
        event = await driver.do(m.SetWebhook(id=3, term=TERM))
        while isinstance(event, m.CallRetrying):
            event = await driver.next_event()
        assert isinstance(event, m.WebhookAsserted)
        assert event.changed
        compared = await driver.do(m.CompareWebhook(id=4, term=TERM))
        assert isinstance(compared, m.WebhookCompared)
        assert compared.facts.in_sync


async def test_b23_two_that_set_it_at_once_try_again_within_a_second(
    running_emulator: RunningEmulator,
) -> None:
    """409 "terminated by other setWebhook" is what the first of two gets; it is no verdict on the call."""
    await running_emulator.client.add_fault(
        Fault(FaultKind.SERVER_ERROR, method="setWebhook", status=409, count=1)
    )
    async with a_registrar(config_for(running_emulator)) as driver:
        event = await driver.do(m.SetWebhook(id=1, term=TERM))
        assert isinstance(event, m.CallRetrying)
        assert "409" in event.reason
        assert event.retry_seconds <= 1.2
        assert isinstance(await driver.next_event(), m.WebhookAsserted)
    assert len(await running_emulator.client.calls(method="setWebhook")) == 2
