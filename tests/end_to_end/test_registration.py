"""What the owner does about the registration when Telegram, or somebody else, does not play along."""

from __future__ import annotations

import time

import httpx

from deploy.local.emulator.faults import Fault, FaultKind, Outage
from tests.end_to_end.instance import HANG_SECONDS, World, eventually

PATHS = ("the-path-of-the-first", "the-path-of-the-second")

FLOOD_SECONDS = 15
"""Longer than a new worker, or a new term, takes to call again if it does not know of the limit."""

SPARE_SECONDS = 3.0
"""So long after the moment for which its repetition was announced, a call would have come."""


async def call(world: World, method: str, **parameters: str) -> httpx.Response:
    """A Bot API call by somebody who has our token."""
    async with httpx.AsyncClient(trust_env=False, timeout=HANG_SECONDS) as client:
        return await client.post(
            f"{world.emulator.base_url}/bot{world.emulator.token}/{method}", data=parameters
        )


async def test_a13_an_owner_without_its_webhook_keeps_trying_and_says_so(world: World) -> None:
    """5xx, 429, a lost answer: repeated as told, shown in /status, and set at last."""
    for fault in (
        Fault(FaultKind.SERVER_ERROR, method="setWebhook", count=1),
        Fault(FaultKind.TOO_MANY_REQUESTS, method="setWebhook", count=1, retry_after=2),
        Fault(FaultKind.APPLIED_BUT_DROPPED, method="setWebhook", count=1),
    ):
        await world.telegram.add_fault(fault)
    one = await world.start_public("one")
    await one.wait_for("[WEBHOOK] Telegram call failed")
    webhook = (await one.status())["webhook"]
    assert webhook["in_sync"] is False
    assert webhook["last_error"]
    await one.wait_for("[WEBHOOK] webhook")
    await one.wait_until_owner()
    calls = list(await world.telegram.calls(method="setWebhook"))
    assert len(calls) >= 4
    # retry_after was obeyed: between the 429 and the next attempt lie at least the two seconds.
    assert calls[2].started_monotonic - calls[1].started_monotonic >= 2.0
    assert await world.say(7, "/start")


async def test_b23_a_flood_limit_on_setwebhook_outlives_its_term(world: World) -> None:
    """The call that was told to wait is cut off when the lock's session is lost; the one of the next term waits as long."""
    await world.telegram.add_fault(
        Fault(FaultKind.TOO_MANY_REQUESTS, method="setWebhook", count=1, retry_after=FLOOD_SECONDS)
    )
    one = await world.start_public("one")
    await one.wait_for("[WEBHOOK] Telegram call failed")
    await world.terminate_lock_session()
    await one.wait_for("[LOCK_CONTROLLER] ACTIVE MODE", count=2)
    await one.wait_for("[WEBHOOK] webhook set")
    calls = await world.telegram.calls(method="setWebhook")
    assert [(call.status, call.is_early) for call in calls] == [(429, False), (200, False)]


async def test_b23_a_flood_limit_that_the_bot_meets_as_it_starts_is_waited_out(world: World) -> None:
    """post_init's call is not repeated within it, by no worker; meanwhile updates are stored, and health is good."""
    await world.telegram.add_fault(
        Fault(FaultKind.TOO_MANY_REQUESTS, method="setMyCommands", count=1, retry_after=FLOOD_SECONDS)
    )
    one = await world.start_public("one", BOT_APP="tests.end_to_end.bots:with_commands")
    await one.wait_for("[WORKER] application did not start; it is tried again")
    after = await world.telegram.last_event_seq()
    await world.telegram.send_text(7, "hello")
    assert (await one.get("/healthz")).status_code == 200

    async def is_stored() -> bool:
        return (await world.telegram.counts()).pending == 0

    await eventually(is_stored, "a delivery")
    await one.wait_for("[WORKER] worker dispatches updates")
    answer = await world.telegram.wait_for_message(7, after=after, timeout_seconds=HANG_SECONDS)
    assert answer.text == "hello to you"
    assert {attempt.status for attempt in await world.telegram.deliveries()} == {200}
    calls = await world.telegram.calls()
    assert [call.method for call in calls if call.is_early] == []
    assert [call.status for call in calls if call.method == "setMyCommands"] == [429, 200]


async def test_a19_a_deleted_webhook_is_mended_and_named(world: World) -> None:
    """Somebody polls with our token, which needs the webhook deleted: seen within a reconcile period, and mended."""
    one = await world.start_public("one", RECONCILE_SECONDS="1")
    await one.wait_until_owner()
    await one.wait_for("[BOT_VERIFY] webhook:")
    assert (await call(world, "deleteWebhook")).status_code == 200
    await one.wait_for("[WEBHOOK] registration drifted")
    await one.wait_for("[WEBHOOK] webhook set", count=2)
    drift = next(line for line in one.lines if line.event.startswith("registration drifted"))
    assert "no webhook is set" in str(drift.fields)
    assert await world.say(7, "/start")


async def test_a19_another_system_with_our_token_is_overwritten_and_named(world: World) -> None:
    """A foreign URL is drift like any other; the log says what it means, without the URL's secrets."""
    one = await world.start_public("one", RECONCILE_SECONDS="1")
    await one.wait_until_owner()
    await one.wait_for("[BOT_VERIFY] webhook:")

    async def takes_it() -> bool:
        answer = await call(world, "setWebhook", url="http://127.0.0.1:1/webhook/foreign-secret-path")
        return answer.status_code == 200

    await eventually(takes_it, "a foreign setWebhook")
    await one.wait_for("[WEBHOOK] registration drifted")
    await one.wait_for("[WEBHOOK] webhook set", count=2)
    assert "foreign-secret-path" not in "\n".join(one.output)


async def test_a19_settings_that_drift_are_mended(world: World) -> None:
    """The same URL with other settings is drift too."""
    one = await world.start_public("one", RECONCILE_SECONDS="1", MAX_CONNECTIONS="17")
    await one.wait_until_owner()
    await one.wait_for("[BOT_VERIFY] webhook:")
    url = (await world.telegram.webhook()).url

    async def changes_it() -> bool:
        return (await call(world, "setWebhook", url=url, max_connections="3")).status_code == 200

    await eventually(changes_it, "a foreign setWebhook")
    await one.wait_for("[WEBHOOK] webhook set", count=2)
    assert (await world.telegram.webhook()).max_connections == 17


async def test_a17_b23_a_setwebhook_that_fails_is_not_repeated_once_another_owns(world: World) -> None:
    """The owner's session is lost while it repeats the call: its URL is never sent again, and the new owner's stands."""
    fault = await world.telegram.add_fault(Fault(FaultKind.SERVER_ERROR, method="setWebhook"))
    one = await world.start_public("one", WEBHOOK_SECRET_PATH=PATHS[0])
    await one.wait_for("[LOCK_CONTROLLER] ACTIVE MODE")
    two = await world.start("two", WEBHOOK_SECRET_PATH=PATHS[1], RECONCILE_SECONDS="1")
    await two.wait_for("[LOCK] lock held elsewhere, standing by")
    await one.wait_for("[WEBHOOK] Telegram call failed", count=2)
    await world.terminate_lock_session()
    await one.wait_for("[STATE_SYNC] ACTIVE -> PASSIVE (session lost)")
    told = [line.fields["retry_in"] for line in one.lines if line.event == "Telegram call failed"]
    repeated_at = time.monotonic() + float(told[-1].rstrip("s"))
    await world.telegram.clear_faults(fault)
    await two.wait_until_owner()

    async def compared_later() -> bool:
        calls = await world.telegram.calls(method="getWebhookInfo")
        return any(call.started_monotonic > repeated_at + SPARE_SECONDS for call in calls)

    await eventually(compared_later, "a comparison of the new owner's, after the old one would have called")
    # A call that met the fault is recorded without its parameters.
    calls = await world.telegram.calls(method="setWebhook")
    paths = {call.parameters["url"].rpartition("/")[2] for call in calls if call.fault is None}
    assert paths == {PATHS[1]}
    assert one.process.is_running
    assert not two.has("[WEBHOOK] registration drifted")


async def test_b23_an_outage_of_the_bot_api_is_waited_out(world: World) -> None:
    """Nobody listens at Telegram's address: the owner stays owner, healthy, and asserts when it is back."""
    await world.telegram.set_outage(Outage.REFUSED)
    one = await world.start_public("one")
    await one.wait_for("[WEBHOOK] Telegram call failed")
    assert (await one.get("/healthz")).status_code == 200
    await world.telegram.set_outage(Outage.NONE)
    await one.wait_until_owner()
    assert await world.say(7, "/start")


async def test_b24_a_token_that_is_refused_at_first_is_exit_code_3(world: World) -> None:
    """Telegram's first answer is 401: the operator's mistake, said in a line that names the variable."""
    await world.telegram.revoke_token()
    one = await world.start_public("one")
    assert await one.wait_for_exit() == 3
    assert "TELEGRAM_BOT_TOKEN" in "\n".join(one.output)


async def test_b24_a_deploy_with_a_wrong_token_never_owns(world: World) -> None:
    """It asks Telegram before anything is handed over to it: exit 3, and the deploy that works does not notice."""
    one = await world.start_public("one", DEPLOY_ID="old")
    await one.wait_until_owner()
    term = (await one.status())["term"]["number"]
    bot_id = world.emulator.token.partition(":")[0]
    wrong = f"{bot_id}:a-wrong-token-a-wrong-token-a-wrong"
    two = await world.start("two", DEPLOY_ID="new", TELEGRAM_BOT_TOKEN=wrong)
    assert await two.wait_for_exit() == 3
    assert not two.has("[LOCK] PostgreSQL advisory lock acquired")
    assert (await one.status())["term"]["number"] == term


async def test_webhook_on_exit_delete_is_the_owners_last_act(world: World) -> None:
    """WEBHOOK_ON_EXIT=delete with nobody waiting: deleted before the lock is freed, backlog kept."""
    one = await world.start_public("one", WEBHOOK_ON_EXIT="delete")
    await one.wait_until_owner()
    assert await one.stop() == 0
    deleted = await world.telegram.calls(method="deleteWebhook")
    assert len(deleted) == 1
    assert "drop_pending_updates" not in deleted[0].parameters
    assert not (await world.telegram.webhook()).url


async def test_a18_a_standby_that_has_ended_in_order_does_not_keep_the_webhook(world: World) -> None:
    """WEBHOOK_ON_EXIT=delete, the whole deploy stopped one after the other: the owner counts on nobody who has left."""
    one = await world.start_public("one", WEBHOOK_ON_EXIT="delete")
    await one.wait_until_owner()
    two = await world.start("two", WEBHOOK_ON_EXIT="delete")
    await two.wait_for("[LOCK_CONTROLLER] PASSIVE MODE")
    assert await two.stop() == 0
    assert await one.stop() == 0
    assert not one.has("[WEBHOOK] webhook kept")
    assert len(await world.telegram.calls(method="deleteWebhook")) == 1
    assert not (await world.telegram.webhook()).url
