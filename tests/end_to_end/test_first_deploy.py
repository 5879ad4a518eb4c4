"""One instance from its start: log lines, registration, answers, health."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import httpx
from psycopg.conninfo import conninfo_to_dict

from deploy.local.emulator.faults import Fault, FaultKind
from deploy.local.ports import LOOPBACK
from tests.campaign.faults.proxy import run_proxy
from tests.end_to_end.instance import HANG_SECONDS, PROMPT_SECONDS, Instance, World, eventually, running_first

FIRST_DEPLOY = (
    "[LOCK] acquiring PostgreSQL advisory lock",
    "[LOCK] PostgreSQL advisory lock acquired",
    "[LOCK_CONTROLLER] ACTIVE MODE (lock acquired immediately)",
    "[WEBHOOK] setting webhook",
    "[WEBHOOK] webhook set",
    "[LOCK_CONTROLLER] active services initialized (webhook set)",
    "[BOT_VERIFY] bot identity: @",
    "[BOT_VERIFY] webhook: http://",
)


async def test_a01_the_first_deploy_of_a_bot_sets_the_webhook_and_answers(world: World) -> None:
    """The lock is free at once, no transition is seen, and the bot lives: /start is answered, in INTERFACE.md's words."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    assert "menu" in (await world.say(7, "/start")).lower() or one.has("[FLOW] /start from")
    await one.wait_for("[BOT_VERIFY] webhook:")
    positions = [next(i for i, e in enumerate(one.events) if e.startswith(b)) for b in FIRST_DEPLOY]
    assert positions == sorted(positions)
    await one.wait_for("[WEBHOOK] received")
    await one.wait_for("[FLOW] /start from")
    assert "***" in next(e for e in one.events if e.startswith("[BOT_VERIFY] webhook:"))
    answer = await one.get("/metrics", own_port=True)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert "\nwebhook_supervisor_active 1.0\n" in answer.text
    assert (await one.get("/metrics")).status_code == 404


async def test_a01_an_ordinary_start_and_an_ordinary_stop_warn_of_nothing(world: World) -> None:
    """Of an owner and of a standby: whoever looks for warnings finds what is wrong, and nothing else."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    await world.say(7, "/start")
    two = await world.start("two")
    await two.wait_for("[LOCK] lock held elsewhere, standing by")
    await two.wait_until_healthy()
    for instance in (two, one):
        assert await instance.stop() == 0
        assert [str(line) for line in instance.lines if line.level != "info"] == []


async def test_a01_the_webhook_is_set_after_waiting_and_after_a_loss(world: World) -> None:
    """Every way into ACTIVE: a standby that takes over asserts it, and so does an owner that lost its session."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    two = await world.start("two")
    await two.wait_for("[LOCK] lock held elsewhere, standing by")
    await one.stop()
    await two.wait_until_owner()
    assert two.has("[WEBHOOK] webhook")
    await world.terminate_lock_session()
    await two.wait_for("[LOCK_CONTROLLER] ACTIVE MODE", count=2)
    await two.wait_for("[LOCK_CONTROLLER] active services initialized", count=2)


async def test_a20_the_port_is_open_and_health_answers_while_telegram_hangs(world: World) -> None:
    """setWebhook hangs: the deploy passes its port check and its health check all the same, and updates are stored."""
    fault = await world.telegram.add_fault(Fault(FaultKind.HANG, method="setWebhook"))
    one = await world.start_public("one")
    await one.wait_until_healthy()
    await one.wait_for("[WEBHOOK] setting webhook")
    answer = await one.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "role": "ACTIVE"})
    assert (await one.get("/readyz")).status_code == 200
    assert (await one.get("/healthz", own_port=True)).status_code == 200
    await world.telegram.clear_faults(fault)
    await one.wait_for("[WEBHOOK] webhook set")


_SLOW = """
import os, sys, time

class Gate:
    def find_spec(self, name, path=None, target=None):
        while name in ("asyncio", "psycopg", "httpx") and not os.path.exists({gate!r}):
            time.sleep(0.01)

sys.meta_path.insert(0, Gate())
"""


async def test_a20_the_port_is_bound_before_anything_slow_is_imported(world: World, tmp_path: Path) -> None:
    """A connection is accepted by the kernel at once; its request is answered when somebody serves it.

    What is slow to import is not imported at all until it has been accepted.
    """
    gate = tmp_path / "gate"
    one = await world.start_public("one", **running_first(_SLOW.format(gate=str(gate)), tmp_path))

    async def connects() -> bool:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, one.port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually(connects, "an open port")
    assert not one.lines
    gate.touch()
    await one.wait_until_healthy()


async def test_a26_health_answers_from_memory_while_the_database_is_silent(world: World) -> None:
    """Whoever asks the database waits for seconds: neither port's health or readiness does, at no time."""
    with socket.create_server((LOOPBACK, 0)) as black_hole:  # accepts, and never says a word
        port = black_hole.getsockname()[1]
        dsn = f"postgresql://user:hidden-password@{LOOPBACK}:{port}/db"
        one = await world.start_public("one", DATABASE_URL=dsn)
        await one.wait_until_healthy()
        await assert_answers_promptly(one, role="PASSIVE", readiness=503)


async def test_a26_health_answers_from_memory_while_telegram_hangs(world: World) -> None:
    """An owner whose calls are not answered: whoever asks Telegram waits for seconds, and health and readiness do not."""
    one = await world.start_public("one", RECONCILE_SECONDS="1")
    await one.wait_until_owner()
    await one.wait_for("[BOT_VERIFY] webhook:")
    await world.telegram.add_fault(Fault(FaultKind.HANG))

    async def hangs() -> bool:
        return any(call.fault is not None for call in await world.telegram.calls())

    await eventually(hangs, "a call that is not answered")
    await assert_answers_promptly(one, role="ACTIVE", readiness=200)


async def assert_answers_promptly(instance: Instance, *, role: str, readiness: int) -> None:
    """Asked again and again, both ports answer each time."""

    async def ask(path: str, *, own_port: bool) -> httpx.Response:
        # This machine may have stood still; whoever waits for a database is late each time.
        for _ in range(2):
            with contextlib.suppress(httpx.TimeoutException):
                return await instance.get(path, own_port=own_port, limit_seconds=PROMPT_SECONDS)
        return await instance.get(path, own_port=own_port, limit_seconds=PROMPT_SECONDS)

    for _ in range(10):
        for own_port in (False, True):
            answer = await ask("/healthz", own_port=own_port)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok", "role": role})
            assert (await ask("/readyz", own_port=own_port)).status_code == readiness
        active = f"\nwebhook_supervisor_active {float(role == 'ACTIVE')}\n"
        assert active in (await ask("/metrics", own_port=True)).text


async def test_a12_a_database_that_is_away_is_not_a_lock_held_elsewhere(world: World) -> None:
    """PASSIVE, healthy, trying, and saying so in words that mean the database."""
    dsn = "postgresql://user:hidden-password@no-such-host.invalid/db"
    one = await world.start_public("one", DATABASE_URL=dsn)
    await one.wait_until_healthy()
    await one.wait_for("[LOCK] database cannot be reached")
    assert one.has("[LOCK] database cannot be reached, standing by")
    assert not one.has("[LOCK] lock held elsewhere")
    assert (await one.status())["lock"]["state"] == "unreachable"
    assert one.process.is_running


async def test_a12_whoever_started_without_a_database_owns_once_it_is_there(world: World) -> None:
    """By itself: nobody starts it again."""
    async with run_proxy(int(conninfo_to_dict(world.database_url)["port"] or 0)) as proxy:
        await proxy.refuse()
        one = await world.start_public("one", DATABASE_URL=proxy.dsn(world.database_url))
        await one.wait_for("[LOCK] database cannot be reached")
        await proxy.listen()
        await one.wait_until_owner()
        await world.say(7, "/start")
        assert one.count("[LOCK_CONTROLLER] ACTIVE MODE") == 1


async def test_a14_a_changed_secret_is_registered_though_the_url_is_the_same(world: World) -> None:
    """The secret cannot be read back, so the owner asserts it: deliveries with the right secret arrive."""
    path = "the-same-path-the-same"
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.post(
            f"{world.emulator.base_url}/bot{world.emulator.token}/setWebhook",
            data={
                "url": f"http://{LOOPBACK}:{world.port}/webhook/{path}",
                "secret_token": "an-older-secret-of-before",
            },
            timeout=HANG_SECONDS,
        )
    one = await world.start_public(
        "one", WEBHOOK_SECRET_PATH=path, WEBHOOK_SECRET_TOKEN="the-present-secret-token"
    )
    await one.wait_until_owner()
    await world.say(7, "/start")
    assert (await world.telegram.webhook()).secret_token == "the-present-secret-token"
    assert not (await world.telegram.counts()).not_2xx


async def test_a15_a16_the_webhook_is_never_deleted_and_the_backlog_never_dropped(world: World) -> None:
    """Whatever the state before - a backlog, an old error, another URL - nothing is deleted or dropped at a boot."""
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.post(
            f"{world.emulator.base_url}/bot{world.emulator.token}/setWebhook",
            data={
                "url": f"http://{LOOPBACK}:1/webhook/somewhere-else",
                "secret_token": "an-older-secret-of-before",
            },
            timeout=HANG_SECONDS,
        )
    for user in range(1, 16):
        await world.telegram.send_text(user, "work 0")
    one = await world.start_public("one")
    await one.wait_until_owner()
    assert await world.telegram.wait_idle(timeout_seconds=HANG_SECONDS)
    assert (await world.telegram.counts()).delivered == 15
    assert await one.stop() == 0
    calls = await world.telegram.calls()
    assert "deleteWebhook" not in [call.method for call in calls]
    assert not [call for call in calls if "drop_pending_updates" in call.parameters]
