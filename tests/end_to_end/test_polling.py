"""BOT_MODE=polling: one poller, whoever comes and goes, and nothing lost between two of them.

The emulator keeps an update until a getUpdates acknowledges it, and answers 409 to whoever polls beside another or beside a
webhook (TELEGRAM.md, "getUpdates").
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from http import HTTPStatus

import httpx
import pytest

from deploy.local import history
from deploy.local.emulator.journal import ApiCall
from deploy.local.evidence import InboxReader, read_runs
from deploy.local.history import Death, Ending
from deploy.local.traffic import Traffic
from supervisor.state import DEADLINE_SECONDS
from tests.end_to_end.instance import HANG_SECONDS, Instance, World, eventually, freeze, is_alive, thaw
from tests.end_to_end.test_kills import kill_supervisor
from tests.end_to_end.test_lifecycle import a_run_has_begun
from tests.end_to_end.test_standby import last_heartbeat_at
from tests.integration.supervisor.lease_driver import rows

POLLING = {"BOT_MODE": "polling", "WEBHOOK_BASE_URL": ""}
PER_SECOND = 40.0


async def owner(world: World, name: str = "one", **variables: str) -> Instance:
    """A polling instance that owns."""
    instance = await world.start(name, **POLLING, **variables)
    await instance.wait_until_owner()
    await instance.wait_for("[POLLING] polling for updates")
    return instance


async def call(world: World, method: str, **parameters: str) -> httpx.Response:
    """As anybody who has the token can."""
    async with httpx.AsyncClient(trust_env=False, timeout=HANG_SECONDS) as client:
        return await client.post(
            f"{world.emulator.base_url}/bot{world.emulator.token}/{method}", data=parameters
        )


def expect_no_conflict(*instances: Instance) -> None:
    """Nobody was answered 409. (A call whose caller is gone may be, at the server.)"""
    for instance in instances:
        assert not instance.has("[POLLING] updates cannot be fetched"), instance.output


async def wait_until_done(world: World, sent: int) -> None:
    """Until so many updates are handled."""

    async def is_done() -> bool:
        found = await rows(
            world.database_url, "SELECT count(*) FROM webhook_supervisor.inbox WHERE state = 'done'"
        )
        return found == [(sent,)]

    await eventually(is_done, f"{sent} updates done")


async def judge(
    world: World, sent: dict[int, int], *, deaths: Sequence[Death] = (), are_orderly: bool = False
) -> None:
    """Every update ran to its end, after those of its chat before it: once, but for what a death cut off, or kept from being
    committed. Where the ends of all terms are orderly nothing is cut off."""
    runs = sorted(read_runs(world.history, sent), key=lambda run: run.started_at)
    reader = await InboxReader.open(world.database_url)
    try:
        inbox = await reader.rows(sent)
    finally:
        await reader.close()
    assert history.judge([], runs, inbox, deaths).doubled == ()
    by_update = defaultdict(list)
    for run in runs:
        by_update[run.update_id].append(run.ending)
    assert set(by_update) == set(sent)
    for update_id, endings in by_update.items():
        assert endings[-1] is Ending.WELL, update_id
        assert not are_orderly or len(endings) == 1, update_id
    for chat_id in set(sent.values()):
        order = [run.update_id for run in runs if run.chat_id == chat_id and run.ending is Ending.WELL]
        assert order == sorted(order)


async def test_a28_a_first_deploy_deletes_what_webhook_there_was_and_polls(world: World) -> None:
    """What waited for the webhook comes by the poll. No public address is needed, and none is registered."""
    answer = await call(world, "setWebhook", url="http://127.0.0.1:9/nobody")
    assert answer.status_code == HTTPStatus.OK
    waiting = (await world.telegram.send_text(8, "work 0")).update_id
    assert waiting is not None
    one = await owner(world)
    assert await world.say(7, "work 0")
    await wait_until_done(world, 2)
    methods = await world.methods_called()
    assert methods.count("setWebhook") == 1  # the stranger's
    assert methods.index("deleteWebhook") < methods.index("getUpdates")
    assert one.has("[WEBHOOK] webhook deleted")
    assert one.has("[LOCK_CONTROLLER] active services initialized (no webhook, updates are polled)")
    await one.wait_for("[BOT_VERIFY] webhook: none, updates are polled")

    async def is_in_sync() -> bool:
        webhook = (await one.status())["webhook"]
        return webhook["in_sync"] is True and webhook["url"] is None

    await eventually(is_in_sync, "a registration that is as it should be")
    assert one.count("[WEBHOOK] received") == 2
    expect_no_conflict(one)
    assert await one.stop() == 0


async def test_a28_deploys_hand_the_poll_over_without_a_409(world: World) -> None:
    """The new one begins when the old one has ended; what came between is fetched by either, and runs once."""
    traffic = Traffic(world.telegram, chats=60, seed=28)
    old = await owner(world, "d0", DEPLOY_ID="d0")
    async with traffic.flowing(PER_SECOND):
        for number in (1, 2, 3):
            new = await world.start(f"d{number}", **POLLING, DEPLOY_ID=f"d{number}")
            await new.wait_until_owner()
            await new.wait_for("[POLLING] polling for updates")
            assert await old.stop() == 0
            old = new
    await wait_until_done(world, len(traffic.sent))
    await judge(world, traffic.sent, are_orderly=True)
    expect_no_conflict(*world.instances)


async def test_a28_a_killed_poller_is_followed_by_another_and_nothing_is_lost(world: World) -> None:
    """What it had fetched and not acknowledged comes to the next one; what it had stored is known by its number."""
    traffic = Traffic(world.telegram, chats=60, seed=29)
    one = await owner(world)
    two = await world.start("two", **POLLING)
    await two.wait_for("[LOCK_CONTROLLER] PASSIVE MODE")
    async with traffic.flowing(PER_SECOND):
        await one.wait_until(lambda: one.count("[WEBHOOK] received") > 20, "traffic")
        at = await kill_supervisor(one)
        death = Death(one.name, at, time.monotonic())
        await two.wait_for("[POLLING] polling for updates")
        await two.wait_until(lambda: two.count("[WEBHOOK] received") > 20, "traffic")
    await wait_until_done(world, len(traffic.sent))
    await judge(world, traffic.sent, deaths=[death])
    expect_no_conflict(*world.instances)


async def polls_for(world: World, *kinds: str) -> list[ApiCall]:
    """The calls of the instance that asks for these kinds of update, oldest first."""
    calls = await world.telegram.calls(method="getUpdates")
    return [call for call in calls if call.parameters.get("allowed_updates") == json.dumps(kinds)]


@pytest.mark.parametrize(
    "order", [("supervisor", "worker"), ("worker", "supervisor"), ("supervisor",)], ids="_then_".join
)
async def test_a28_a_poller_that_was_frozen_never_polls_beside_the_next_one(
    world: World, order: tuple[str, ...]
) -> None:
    """In either order of their waking; and a worker whose supervisor alone is frozen ends its poll by itself. Runs that were in
    flight at the freeze may be repeated, no others."""
    of_one, of_two = ("message",), ("message", "edited_message")  # by which their calls are told apart
    one = await owner(world, ALLOWED_UPDATES=",".join(of_one))
    two = await world.start("two", **POLLING, ALLOWED_UPDATES=",".join(of_two))
    await two.wait_for("[LOCK] lock held elsewhere, standing by")
    worker = await one.worker_pid()
    pids = {"supervisor": one.process.pid, "worker": worker}
    frozen = [pids[name] for name in order]
    sent: dict[int, int] = {}

    async def write(text: str, *users: int) -> None:
        for user in users:
            message = await world.telegram.send_text(user, text)
            assert message.update_id is not None
            sent[message.update_id] = message.chat_id

    async def waits() -> bool:
        return (await polls_for(world, *of_one))[-1].finished_monotonic is None

    await write("work 3", 7)
    await a_run_has_begun(world)
    await eventually(waits, "a call that waits")
    freeze(frozen)
    stopped_at = time.monotonic()
    deadline = await last_heartbeat_at(world, one) + DEADLINE_SECONDS
    await write("work 0", 8, 9, 10)  # the answer to the call that waits, whether anybody reads it or not
    await two.wait_for("[POLLING] polling for updates")
    assert is_alive(worker), "its lifeline had to kill it"
    await write("work 0", 11, 12, 13)
    await wait_until_done(world, len(sent))
    thaw(frozen)
    await one.wait_for("[LOCK] lock held elsewhere, standing by")
    await one.worker_pid()
    await write("work 0", 14)
    await wait_until_done(world, len(sent))
    assert [(await instance.status())["role"] for instance in (one, two)] == ["PASSIVE", "ACTIVE"]
    is_worker_frozen = worker in frozen
    await judge(world, sent, deaths=[Death(one.name, stopped_at)] if is_worker_frozen else [])
    last = (await polls_for(world, *of_one))[-1].started_monotonic
    first = (await polls_for(world, *of_two))[0].started_monotonic
    assert last < (stopped_at if is_worker_frozen else deadline)
    assert first >= deadline
    expect_no_conflict(one, two)


async def test_a28_a_webhook_that_somebody_sets_is_deleted_when_the_poll_meets_it(world: World) -> None:
    """Not when the registration is looked at the next time, which is a day later here."""
    one = await owner(world, RECONCILE_SECONDS="86400")
    await one.wait_for("[BOT_VERIFY] webhook: none")
    assert (await call(world, "setWebhook", url="http://127.0.0.1:9/stranger")).status_code == HTTPStatus.OK
    await one.wait_for("[WEBHOOK] registration drifted, mending it")
    await one.wait_for("[WEBHOOK] webhook deleted")
    assert await world.say(7, "work 0")
    assert one.has("[POLLING] updates cannot be fetched")
    await one.wait_for("[POLLING] polling again")


async def test_a28_another_poller_is_named_and_outlived(world: World) -> None:
    """A laptop that was left on: the log says so, and the bot goes on when it is gone."""
    one = await owner(world)

    async def waits() -> bool:
        return "getUpdates" in await world.methods_called()

    await eventually(waits, "a call that waits")
    await call(world, "getUpdates", timeout="0")  # it may be ended by ours in turn
    await one.wait_for("[POLLING] updates cannot be fetched")
    [line] = [line for line in one.lines if line.event == "updates cannot be fetched"]
    assert "something else polls with this bot token" in str(line.fields["reason"])

    async def is_shown() -> bool:
        return "something else polls" in str((await one.status())["webhook"]["last_error"])

    await eventually(is_shown, "the reason in /status")
    assert await world.say(7, "work 0")
    await one.wait_for("[POLLING] polling again")


async def test_a28_deploys_may_change_between_webhook_and_polling(world: World) -> None:
    """There and back: each owner mends what the one before it left, and nobody waits for an update."""
    first = await world.start_public("hooked", DEPLOY_ID="d1")
    await first.wait_until_owner()
    assert await world.say(7, "work 0")
    second = await owner(world, "polled", DEPLOY_ID="d2")
    assert await first.stop() == 0
    assert await world.say(7, "work 0")
    third = await world.start_public("hooked_again", DEPLOY_ID="d3")
    await third.wait_until_owner()
    assert await second.stop() == 0
    assert await world.say(7, "work 0")
    await wait_until_done(world, 3)
    expect_no_conflict(*world.instances)
