"""TELEGRAM.md, "Errors of any method", and the faults that tests inject (SCENARIOS.md b23, b24)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from deploy.local.emulator import DEFAULT_TOKEN, EmulatorClient, Fault, FaultKind, Outage
from tests.integration.emulator.harness import Harness
from tests.integration.emulator.receiver import Receiver


@pytest.fixture
async def client(bot: Harness) -> AsyncIterator[EmulatorClient]:
    async with bot.emulator.client() as client:
        yield client


async def _until_calls_end(bot: Harness, method: str, count: int = 1) -> None:
    calls = bot.emulator.control.calls

    def ended() -> int:
        return len(
            calls.after(0, limit=99, matching=lambda call: call.method == method and call.status is not None)
        )

    assert await calls.wait(lambda: ended() >= count, 20)


@pytest.mark.parametrize("token", ["abc", "123", "0123:abc", ":abc", "123:", "123:a%20b", "1" * 90 + ":a"])
async def test_a_malformed_token_is_404(bot: Harness, token: str) -> None:
    """404 Not Found: the token is malformed."""
    assert await bot.call("getMe", token=token) == {
        "ok": False,
        "error_code": 404,
        "description": "Not Found",
    }


async def test_an_unknown_or_revoked_token_is_401(bot: Harness, client: EmulatorClient) -> None:
    """401 Unauthorized: well-formed, but nobody's (any more)."""
    unauthorized = {"ok": False, "error_code": 401, "description": "Unauthorized"}
    assert await bot.call("getMe", token="42:unknown") == unauthorized
    assert (await bot.call("getMe"))["ok"]
    await client.revoke_token()
    assert await bot.call("getMe") == unauthorized
    # Whoever goes on with it is counted; the stranger above is nobody's.
    assert [call.status for call in await client.calls(method="getMe")] == [200, 401]


async def test_a_reissued_token_belongs_to_the_same_bot(
    bot: Harness, client: EmulatorClient, webhook: Receiver
) -> None:
    """The new secret works, the old one is 401; the webhook was the old token's, the updates are the bot's."""
    await bot.set_webhook(webhook.url)
    new = "123456789:reissued"
    await client.reissue_token(new)
    assert (await bot.call("getMe"))["error_code"] == 401
    assert (await bot.call("getMe", token=new))["result"]["id"] == 123456789
    assert (await bot.call("getWebhookInfo", token=new))["result"]["url"] == ""
    bot.send("waits")
    bot.clock.advance(1)
    await bot.call("setWebhook", token=new, url=webhook.url)
    await webhook.until_count(1)
    assert webhook.texts == ["waits"]


async def test_an_unknown_method_is_404(bot: Harness) -> None:
    """A method that the server does not have."""
    assert (await bot.call("makeCoffee"))["description"] == "Not Found: method not found"


async def test_methods_are_found_in_any_case_by_get_and_post(bot: Harness) -> None:
    """`/bot.../GETME` by GET is getMe; parameters may stand in the query."""
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{bot.emulator.base_url}/bot{DEFAULT_TOKEN}/GETME?x=1")
    assert answer.json()["result"]["is_bot"] is True


async def test_log_out_and_close(bot: Harness) -> None:
    """close is 429 in the first ten minutes; logOut ends every call for ten minutes."""
    assert (await bot.call("close"))["parameters"] == {"retry_after": 600}
    bot.clock.advance(600)
    assert (await bot.call("close"))["ok"]
    assert (await bot.call("logOut"))["ok"]
    assert (await bot.call("getMe"))["description"] == "Logged out"
    bot.clock.advance(600)
    assert (await bot.call("getMe"))["ok"]


async def test_fault_too_many_requests(bot: Harness, client: EmulatorClient) -> None:
    """429 with parameters.retry_after, until that is over, n times, for the method and no other; who calls before is marked."""
    await client.add_fault(Fault(FaultKind.TOO_MANY_REQUESTS, method="getMe", count=2, retry_after=17))
    for after_seconds, left_seconds in ((0, 17), (5, 12), (12, 17)):
        bot.clock.advance(after_seconds)
        answer = await bot.call("getMe")
        assert (answer["error_code"], answer["parameters"]) == (429, {"retry_after": left_seconds})
        assert (await bot.call("getMyCommands"))["ok"]
    bot.clock.advance(17)
    assert (await bot.call("getMe"))["ok"]
    calls = await client.calls(method="getMe")
    assert [call.is_early for call in calls] == [False, True, False, False]


async def test_fault_server_error_until_cleared(bot: Harness, client: EmulatorClient) -> None:
    """5xx without effect, until it is cleared."""
    fault = await client.add_fault(Fault(FaultKind.SERVER_ERROR, status=503))
    for _ in range(3):
        assert (await bot.call("setWebhook", url="http://127.0.0.1:1/"))["error_code"] == 503
    assert [active.id for active in await client.faults()] == [fault]
    await client.clear_faults(fault)
    assert (await bot.info())["url"] == ""


async def test_fault_latency(bot: Harness, client: EmulatorClient) -> None:
    """The call takes effect only after the latency."""
    await client.add_fault(Fault(FaultKind.LATENCY, method="setMyCommands", count=1, seconds=5))
    commands = [{"command": "go", "description": "goes"}]
    call = asyncio.create_task(bot.call("setMyCommands", commands=commands))
    calls = bot.emulator.control.calls
    assert await calls.wait(lambda: calls.last_seq == 1 and bot.clock.next_timer_in() == 5.0, 20)
    assert (await bot.call("getMyCommands"))["result"] == []
    bot.clock.advance(5)
    assert (await call)["ok"]
    assert (await bot.call("getMyCommands"))["result"] == commands


async def _post(bot: Harness, method: str, **parameters: Any) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        return await http.post(f"{bot.emulator.base_url}/bot{DEFAULT_TOKEN}/{method}", json=parameters)


@pytest.mark.parametrize(
    ("kind", "is_applied"),
    [
        (FaultKind.HANG, False),
        (FaultKind.APPLIED_BUT_TIMED_OUT, True),
        (FaultKind.DROP_CONNECTION, False),
        (FaultKind.APPLIED_BUT_DROPPED, True),
    ],
)
async def test_faults_without_an_answer(
    bot: Harness, client: EmulatorClient, kind: FaultKind, is_applied: bool
) -> None:
    """A hang has no effect and no answer; "applied but timed out" has the effect; the same with a reset."""
    await client.add_fault(Fault(kind, method="setWebhook", count=1))
    call = asyncio.create_task(_post(bot, "setWebhook", url="http://127.0.0.1:1/"))
    if kind in (FaultKind.DROP_CONNECTION, FaultKind.APPLIED_BUT_DROPPED):
        with pytest.raises(httpx.TransportError):
            await call
    else:
        calls = bot.emulator.control.calls
        assert await calls.wait(
            lambda: calls.last_seq == 1 and calls.after(0, limit=1)[0].fault is not None, 20
        )
        if is_applied:
            await _until_calls_end(bot, "setWebhook")
        assert not call.done()
        call.cancel()
        await asyncio.wait([call])
    assert bool((await bot.info())["url"]) is is_applied
    record = (await client.calls(method="setWebhook"))[0]
    assert (record.fault, record.status) == (kind.value, 200 if is_applied else None)


async def test_outage_bad_gateway(bot: Harness, client: EmulatorClient) -> None:
    """Every call is 502 with something that is no JSON; the control API and deliveries go on."""
    await client.set_outage(Outage.BAD_GATEWAY)
    answer = await _post(bot, "getMe")
    assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html")
    await client.set_outage(Outage.NONE)
    assert (await _post(bot, "getMe")).status_code == 200


async def test_outage_reset(bot: Harness, client: EmulatorClient) -> None:
    """Every connection is reset instead of answered."""
    await client.set_outage(Outage.RESET)
    with pytest.raises(httpx.TransportError):
        await _post(bot, "getMe")
    await client.set_outage(Outage.NONE)
    assert (await _post(bot, "getMe")).status_code == 200


async def test_outage_refused(bot: Harness, client: EmulatorClient, webhook: Receiver) -> None:
    """Nobody listens; webhooks are delivered all the same; afterwards the address is the same."""
    await bot.set_webhook(webhook.url)
    await client.set_outage(Outage.REFUSED)
    async with asyncio.timeout(20):
        while True:
            try:
                await _post(bot, "getMe")
            except httpx.ConnectError:
                break
            except httpx.TransportError:
                continue
    await client.send_text(7, "hello")
    await webhook.until_count(1)
    await client.set_outage(Outage.NONE)
    assert (await _post(bot, "getMe")).status_code == 200


async def test_no_token_reaches_the_log(bot: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """Even a method that fails unexpectedly logs no path, so no token."""
    await bot.call("getMe")
    bot.emulator.bot().profile["unencodable"] = object()
    await _post(bot, "getMe")
    assert "TypeError" in caplog.text
    assert "EMULATED" not in caplog.text
