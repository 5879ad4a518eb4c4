"""Two instances and one owner: standing by, receiving, taking over, leaving."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from signal import SIGKILL

import httpx

from deploy.local.ports import LOOPBACK
from shared.database import connect
from supervisor.commands import handover
from tests.end_to_end.instance import HANG_SECONDS, Instance, World, eventually
from tests.integration.supervisor.lease_driver import rows

PATH = "a-path-known-to-the-test"
SECRET = "a-secret-known-to-the-test"
KNOWN = {"WEBHOOK_SECRET_PATH": PATH, "WEBHOOK_SECRET_TOKEN": SECRET}


def text_update(update_id: int, user_id: int, text: str) -> dict[str, object]:
    """A message as Telegram sends it."""
    user = {"id": user_id, "is_bot": False, "first_name": "Test"}
    chat = {"id": user_id, "type": "private", "first_name": "Test"}
    return {
        "update_id": update_id,
        "message": {"message_id": update_id, "date": 1767225600, "chat": chat, "from": user, "text": text},
    }


async def post_update(instance: Instance, update: dict[str, object]) -> httpx.Response:
    """Deliver it to one certain instance, as a platform that routes there would."""
    async with httpx.AsyncClient(trust_env=False, timeout=HANG_SECONDS) as client:
        return await client.post(
            f"http://{LOOPBACK}:{instance.port}/webhook/{PATH}",
            json=update,
            headers={"X-Telegram-Bot-Api-Secret-Token": SECRET},
        )


async def owner_and_standby(world: World, **variables: str) -> tuple[Instance, Instance]:
    one = await world.start_public("one", **KNOWN, **variables)
    await one.wait_until_owner()
    two = await world.start("two", **KNOWN, **variables)
    await two.wait_for("[LOCK] lock held elsewhere, standing by")
    await two.wait_for("[LOCK_CONTROLLER] PASSIVE MODE")
    await world.say(7, "work 0")  # the emulator, like Telegram, knows only chats that were begun by a user
    return one, two


async def test_a04_a_passive_instance_is_healthy_and_serves(world: World) -> None:
    """The platform's gate: port open, health 200, role PASSIVE, ready to store."""
    _, two = await owner_and_standby(world)
    answer = await two.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "role": "PASSIVE"})
    await eventually(lambda: _ready(two), "a ready standby")


async def _ready(instance: Instance) -> bool:
    return (await instance.get("/readyz")).status_code == 200


async def test_a05_an_update_at_a_passive_instance_is_stored_answered_200_and_handled_by_the_owner(
    world: World,
) -> None:
    """Neither dropped nor refused: the standby commits it before its 200, the owner's worker handles it."""
    one, two = await owner_and_standby(world)
    answer = await post_update(two, text_update(900_001, 7, "work 0"))
    assert (answer.status_code, answer.content) == (200, b"")
    stored = await rows(
        world.database_url, "SELECT count(*) FROM webhook_supervisor.inbox WHERE update_id = 900001"
    )
    assert stored == [(1,)]
    await two.wait_for("[WEBHOOK] received")
    await wait_until_done(world, 900_001)
    assert not two.has("[FLOW]")
    assert one.has("[FLOW]")


async def wait_until_done(world: World, update_id: int) -> None:
    async def done() -> bool:
        found = await rows(
            world.database_url,
            "SELECT state FROM webhook_supervisor.inbox WHERE update_id = %s",
            update_id,
        )
        return found == [("done",)]

    await eventually(done, f"update {update_id} done")


async def test_a25_a_redelivery_is_recognised(world: World) -> None:
    """The same update at two instances, several times: 200 each time, handled once."""
    one, two = await owner_and_standby(world)
    update = text_update(900_002, 7, "work 0")
    answers = await asyncio.gather(*(post_update(i, update) for i in (one, two, one, two, one)))
    assert [a.status_code for a in answers] == [200] * 5
    await wait_until_done(world, 900_002)
    assert (await post_update(two, update)).status_code == 200
    runs = [line for path in world.history.iterdir() for line in path.read_text().splitlines()]
    assert sum('"start"' in line and "900002" in line for line in runs) == 1


async def test_a03_a_standby_never_stops_waiting_and_takes_over_on_sigterm(world: World) -> None:
    """The old owner leaves long after the new one came; the new one owns and dispatches the next update."""
    one, two = await owner_and_standby(world)
    assert await one.stop() == 0
    await two.wait_until_owner()
    assert two.has("[STATE_SYNC] PASSIVE -> ACTIVE")
    assert two.has("[LOCK_CONTROLLER] ACTIVE MODE (lock acquired after")
    update = text_update(900_003, 7, "work 0")
    assert (await post_update(two, update)).status_code == 200
    await wait_until_done(world, 900_003)


async def test_a18_an_instance_that_leaves_does_not_touch_the_webhook(world: World) -> None:
    """The new owner's registration stands after the old one's exit, and after its own."""
    one, two = await owner_and_standby(world)
    await one.stop()
    await two.wait_until_owner()
    await two.stop()
    assert (await world.telegram.webhook()).url.endswith(PATH)
    assert "deleteWebhook" not in await world.methods_called()


async def test_a17_a_passive_instance_calls_nothing_at_telegram(world: World) -> None:
    """Beside an owner with its token, from start to end: every Bot API call is the owner's."""
    once = {"RECONCILE_SECONDS": "3600"}  # the owner makes its calls before the standby comes
    one = await world.start_public("one", **KNOWN, **once)
    await one.wait_until_owner()
    await one.wait_for("[BOT_VERIFY] webhook:")
    before = Counter(await world.methods_called())
    assert before["setWebhook"] == 1
    two = await world.start("two", **KNOWN, **once)
    await two.wait_until_healthy()
    await two.wait_for("[LOCK_CONTROLLER] PASSIVE MODE")
    await announces_itself(world, two, times=3)
    assert Counter(await world.methods_called()) == before
    two.signal(SIGKILL)
    await two.wait_for_exit()
    assert Counter(await world.methods_called()) == before


async def announces_itself(world: World, instance: Instance, *, times: int) -> None:
    """Until the database has seen it do so this often from now on."""
    seen: set[tuple[object, ...]] = set()

    async def often_enough() -> bool:
        seen.update(
            await rows(
                world.database_url,
                "SELECT announced_at FROM webhook_supervisor.instances WHERE platform_instance_id = %s",
                instance.name,
            )
        )
        return len(seen) > times

    await eventually(often_enough, f"{times} announcements of {instance.name}")


async def last_heartbeat_at(world: World, instance: Instance) -> float:
    """When the database had the last one of it, on our clock; earlier by as long as it takes to ask."""
    asked_at = time.monotonic()
    ((seconds,),) = await rows(
        world.database_url,
        "SELECT extract(epoch FROM clock_timestamp() - max(announced_at))::float8 FROM webhook_supervisor.instances "
        "WHERE platform_instance_id = %s",
        instance.name,
    )
    assert isinstance(seconds, float)
    return asked_at - seconds


async def test_a10_instances_with_an_old_and_a_new_token_exclude_each_other(world: World) -> None:
    """The lock's key comes from the bot's id: a rotation of the token does not make two owners."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    bot_id = world.emulator.token.partition(":")[0]
    token = f"{bot_id}:another-token-another-token-another"
    await world.telegram.reissue_token(token)
    two = await world.start("two", TELEGRAM_BOT_TOKEN=token)
    await two.wait_for("[LOCK] lock held elsewhere, standing by")
    assert not two.has("[LOCK] PostgreSQL advisory lock acquired")


async def test_a06_an_owner_whose_session_is_terminated_stops_at_once(world: World) -> None:
    """It notices by itself, for that reason and at no deadline, and whoever waits owns: never do both say that they own."""
    one, two = await owner_and_standby(world)
    await announces_itself(world, one, times=1)  # its next heartbeat, which would notice too, is 2 s away
    await world.terminate_lock_session()

    async def taken_over() -> bool:
        # In this order: the server gives the lock away after its last word to the old owner, who hears that before it is asked.
        roles = [(await instance.status())["role"] for instance in (two, one)]
        assert roles != ["ACTIVE", "ACTIVE"]
        return roles == ["ACTIVE", "PASSIVE"]

    await eventually(taken_over, "the standby's ownership")
    await one.wait_for("[STATE_SYNC] ACTIVE -> PASSIVE")
    assert one.has("[STATE_SYNC] ACTIVE -> PASSIVE (session lost)")
    await two.wait_until_owner()
    assert (await one.status())["role"] == "PASSIVE"
    assert (await two.status())["role"] == "ACTIVE"


async def test_b01_kill_9_of_the_owner_leaves_no_orphan_and_the_standby_dispatches(world: World) -> None:
    """Its worker ends with it, the lock is free with its session, and the next update is handled by the other."""
    from tests.end_to_end.instance import is_alive

    one, two = await owner_and_standby(world)
    worker = await one.worker_pid()
    one.signal(SIGKILL)
    await one.wait_for_exit()

    async def gone() -> bool:
        return not is_alive(worker)

    await eventually(gone, "the end of the killed owner's worker")
    await two.wait_until_owner()
    update = text_update(900_004, 7, "work 0")
    assert (await post_update(two, update)).status_code == 200
    await wait_until_done(world, 900_004)


async def test_b17_a_younger_deploy_is_handed_the_ownership_before_the_old_one_is_stopped(
    world: World,
) -> None:
    """Once, without ping-pong: the old deploy stays a healthy standby; a rollback's is young again only after a minute."""
    one = await world.start_public("one", DEPLOY_ID="code-1", **KNOWN)
    await one.wait_until_owner()
    await world.say(7, "work 0")
    two = await world.start("two", DEPLOY_ID="code-2", **KNOWN)
    await two.wait_until_owner()
    await one.wait_for("[STATE_SYNC] ACTIVE -> PASSIVE (handed over to a newer deploy)")
    await one.wait_for("[LOCK] lock held elsewhere, standing by")
    assert (await one.get("/healthz")).json() == {"status": "ok", "role": "PASSIVE"}
    assert (await post_update(one, text_update(900_005, 7, "work 0"))).status_code == 200
    await wait_until_done(world, 900_005)
    assert await one.stop() == 0
    assert two.count("[LOCK_CONTROLLER] ACTIVE MODE") == 1
    assert one.count("[LOCK_CONTROLLER] ACTIVE MODE") == 1


async def test_who_is_asked_to_hand_over_gives_up_to_the_instance_that_stands_by(world: World) -> None:
    """Of the same code, once; it stays a healthy standby, and the next update is handled by the other."""
    one, two = await owner_and_standby(world)
    bot_id = int(world.emulator.token.partition(":")[0])
    async with await connect(world.database_url, application_name="test") as connection:
        asked = await handover.request(connection, bot_id)
        assert asked is not None
        assert asked.startswith("one-")
        await two.wait_until_owner()
        owner = await handover.read_owner(connection, bot_id)
    assert owner is not None
    assert owner.startswith("two-")
    await one.wait_for("[STATE_SYNC] ACTIVE -> PASSIVE (handed over on request)")
    await one.wait_for("[LOCK] lock held elsewhere, standing by")
    assert (await one.get("/healthz")).json() == {"status": "ok", "role": "PASSIVE"}
    assert (await post_update(one, text_update(900_006, 7, "work 0"))).status_code == 200
    await wait_until_done(world, 900_006)
    assert two.has("[FLOW]")
    assert one.count("[LOCK_CONTROLLER] ACTIVE MODE") == 1
