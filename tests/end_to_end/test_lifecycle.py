"""Signals, kills, crashes and replacement, with real processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import sys
import time
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any

import httpx
import pytest

from deploy.local.emulator.control_messages import SendText
from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.guarded import inherited_environment
from shared.config import SHUTDOWN_SECONDS
from tests.end_to_end.instance import HANG_SECONDS, Instance, World, eventually, is_alive
from tests.end_to_end.test_standby import (
    KNOWN,
    owner_and_standby,
    post_update,
    text_update,
    wait_until_done,
)
from tests.integration.supervisor.lease_driver import rows

DRAIN_SECONDS = 18
"""Where a second signal is to cut it off: nearly the 20 s that a stop leaves for it, whatever was configured."""

DEFAULT_LINGER_SECONDS = 5.0
"""INTERFACE.md, LINGER_SECONDS."""


def runs(world: World) -> list[dict[str, Any]]:
    """What the bots under test recorded."""
    return [
        json.loads(line) for path in sorted(world.history.iterdir()) for line in path.read_text().splitlines()
    ]


def begun(world: World) -> int:
    """How many runs of handlers."""
    return sum(run["event"] == "start" for run in runs(world))


async def a_run_has_begun(world: World, update_id: int | None = None) -> None:
    async def has_begun() -> bool:
        return any(run["event"] == "start" and update_id in (None, run["update_id"]) for run in runs(world))

    await eventually(has_begun, "the begin of a handler")


async def test_a22_b02_an_update_in_flight_when_its_worker_is_killed_runs_again(world: World) -> None:
    """Marked done only after the work: the killed run is repeated by the next worker, once."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    await world.telegram.send_text(7, "work 3")
    await a_run_has_begun(world)
    worker = await one.worker_pid()
    os.kill(worker, SIGKILL)
    await one.wait_for("[WORKER] worker dispatches updates", count=2)

    async def done() -> bool:
        return await rows(world.database_url, "SELECT state FROM webhook_supervisor.inbox") == [("done",)]

    await eventually(done, "the second run done")
    assert begun(world) == 2
    assert await one.worker_pid() != worker


async def test_a29_sigterm_finishes_handlers_and_exits_0(world: World) -> None:
    """What runs is finished and committed, nothing is run again, and the exit code is 0."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    await world.telegram.send_text(7, "work 1.5")
    await a_run_has_begun(world)
    assert await one.stop() == 0
    assert await rows(world.database_url, "SELECT state FROM webhook_supervisor.inbox") == [("done",)]
    assert begun(world) == 1
    assert (await rows(world.database_url, "SELECT ended_at IS NOT NULL FROM webhook_supervisor.terms")) == [
        (True,)
    ]


async def test_a29_a_handler_longer_than_the_drain_is_interrupted_without_costing_an_attempt(
    world: World,
) -> None:
    """It goes back to the queue and is run by the next owner as if for the first time."""
    one = await world.start_public("one", DRAIN_SECONDS="0.2")
    await one.wait_until_owner()
    await world.telegram.send_text(7, "work 120")
    await a_run_has_begun(world)
    assert await one.stop() == 0
    found = await rows(world.database_url, "SELECT state, attempts, term FROM webhook_supervisor.inbox")
    assert found == [("pending", 0, None)]


@pytest.mark.parametrize("with_standby", [False, True], ids=["alone", "with_standby"])
async def test_a29_b20_a_stop_by_the_defaults_is_over_in_time_and_in_order(
    world: World, with_standby: bool
) -> None:
    """A handler that is longer than everything: updates are taken as long as it lingers, the drain ends by itself, the term is
    closed; nothing is killed, and the lock's session is not cut off, as in a stop that runs out of time."""
    defaults = {**KNOWN, "LINGER_SECONDS": ""}
    one = await world.start_public("one", **defaults)
    await one.wait_until_owner()
    if with_standby:
        two = await world.start("two", **defaults)
        await two.wait_for("[LOCK] lock held elsewhere, standing by")
    await world.say(8, "work 0")
    long = (await world.telegram.send_text(7, "work 120")).update_id
    assert long is not None
    await a_run_has_begun(world, long)
    one.signal(SIGTERM)
    until = time.monotonic() + DEFAULT_LINGER_SECONDS
    answers: list[int] = []
    while time.monotonic() < until:
        answers.append((await post_update(one, text_update(920_001 + len(answers), 8, "work 0"))).status_code)
        await asyncio.sleep(0.2)  # a few in that time
    assert set(answers) == {200}
    # A limit on a hang: the log says whether it was in time.
    async with asyncio.timeout(2 * SHUTDOWN_SECONDS):
        assert await one.wait_for_exit() == 0
    killed = {line.fields["reason"] for line in one.lines if line.event == "killing the worker"}
    assert killed <= {"it is no longer wanted, and not up yet"}  # the replacement, on a slow machine
    assert not one.has("[LOCK] database session closed")
    assert one.has("[LOCK] term closed")
    inbox = "SELECT state, attempts FROM webhook_supervisor.inbox WHERE update_id = %s"
    if not with_standby:
        assert await rows(world.database_url, inbox, long) == [("pending", 0)]
        ended = await rows(world.database_url, "SELECT ended_at IS NOT NULL FROM webhook_supervisor.terms")
        assert ended == [(True,)]
        return

    async def runs_again() -> bool:
        began = [run for run in runs(world) if run["event"] == "start" and run["update_id"] == long]
        return [run["instance"] for run in began] == ["one", "two"]

    await eventually(runs_again, "a second run of what was interrupted")
    assert await rows(world.database_url, inbox, long) == [("claimed", 1)]
    for number in range(920_001, 920_001 + len(answers)):
        await wait_until_done(world, number)


async def test_a29_updates_are_taken_while_it_lingers(world: World) -> None:
    """After SIGTERM health is false, and an update is still stored: some platforms route on for seconds."""
    one = await world.start_public("one", **KNOWN, LINGER_SECONDS="4")
    await one.wait_until_owner()
    one.signal(SIGTERM)
    await one.wait_for("[LOCK_CONTROLLER] stopping")

    async def failing() -> bool:
        answer = await one.get("/healthz")
        return answer.status_code == 503 and answer.json()["reason"] == "stopping"

    await eventually(failing, "failing health")
    assert (await post_update(one, text_update(910_001, 7, "work 0"))).status_code == 200
    assert await one.wait_for_exit() == 0


async def test_b20_a_later_signal_ends_everything_at_once(world: World) -> None:
    """SIGINT counts like SIGTERM; one that comes 3 s or more after the first does not wait for the drain."""
    one = await world.start_public("one", DRAIN_SECONDS=str(DRAIN_SECONDS))
    # The second is the platform's repetition: still one request.
    stopping_at = await stop_while_a_handler_works(world, one, SIGINT, SIGTERM)
    await asyncio.sleep(3.2)  # the interface's own 3 s, not a synchronisation
    assert one.process.is_running
    await assert_ends_at_once(world, one, SIGTERM, stopping_at)


async def test_b20_at_a_terminal_a_second_ctrl_c_ends_everything_at_once(world: World) -> None:
    """Each is a person's there: nobody has to wait for 3 s, and then for the drain."""
    one = world.instance("one", world.port, {"DRAIN_SECONDS": str(DRAIN_SECONDS)})
    one.command = (sys.executable, "-m", "tests.campaign.at_terminal", *one.command)
    await one.start()
    stopping_at = await stop_while_a_handler_works(world, one, SIGINT)
    await assert_ends_at_once(world, one, SIGINT, stopping_at)


async def stop_while_a_handler_works(world: World, instance: Instance, *numbers: Signals) -> float:
    """The signals, while a handler works for longer than any drain; when they were seen to be heard."""
    await instance.wait_until_owner()
    await world.telegram.send_text(7, "work 120")
    await a_run_has_begun(world)
    for number in numbers:
        instance.signal(number)
    await instance.wait_for("[LOCK_CONTROLLER] stopping")
    return time.monotonic()


async def assert_ends_at_once(world: World, instance: Instance, number: Signals, stopping_at: float) -> None:
    """The signal cuts the drain off: nothing of its end happens any more, and most of it is spared."""
    worker = await instance.worker_pid()
    signalled_at = time.monotonic()
    instance.signal(number)
    assert await instance.wait_for_exit() == 0
    assert not is_alive(worker)
    # A handler that the drain's end interrupts tells so, and its update goes back to the queue.
    assert [run for run in runs(world) if run["event"] == "end"] == []
    assert await rows(world.database_url, "SELECT state FROM webhook_supervisor.inbox") == [("claimed",)]
    assert instance.process.exited_at is not None
    left_seconds = stopping_at + DRAIN_SECONDS - signalled_at
    assert instance.process.exited_at - signalled_at < left_seconds / 2


async def test_sighup_replaces_the_worker_without_a_refused_connection(world: World) -> None:
    """A new worker takes over the socket before the old one leaves: every delivery is answered 200."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    first = await one.worker_pid()
    stop = asyncio.Event()

    async def traffic() -> int:
        sent = 0
        while not stop.is_set():
            await world.telegram.send_many([SendText(user, "work 0") for user in range(1, 21)])
            sent += 20
            await asyncio.sleep(0.05)
        return sent

    async def probes() -> set[int]:
        found = set()
        while not stop.is_set():
            found.add((await one.get("/healthz")).status_code)
        return found

    sending, probing = asyncio.create_task(traffic()), asyncio.create_task(probes())
    one.signal(SIGHUP)
    await one.wait_for("[WORKER] worker dispatches updates", count=2)
    stop.set()
    sent = await sending
    assert await probing == {200}
    assert await world.telegram.wait_idle(timeout_seconds=HANG_SECONDS)
    counts = await world.telegram.counts()
    assert (counts.delivered, counts.not_2xx) == (sent, {})
    assert await one.worker_pid() != first
    assert one.count("[LOCK_CONTROLLER] ACTIVE MODE") == 2


async def test_what_the_runbook_types_for_sighup_replaces_the_worker(world: World) -> None:
    """Where the supervisor is not PID 1: it is found by its worker's pid, with nothing but Python and /proc."""
    runbook = (PROJECT_FOLDER / "deploy/README.md").read_text(encoding="utf-8")
    [program] = re.findall(r'^python -c "(import json, os, .*)"$', runbook, re.MULTILINE)
    one = await world.start_public("one")
    await one.wait_until_owner()
    before = await one.worker_pid()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program.replace("8081", str(one.health_port))), env=inherited_environment()
    )
    assert await process.wait() == 0

    async def is_another() -> bool:
        return await one.worker_pid() != before

    await eventually(is_another, "another worker")


async def test_a27_a_blocked_worker_is_seen_reported_and_replaced(world: World) -> None:
    """A handler that blocks the event loop fails health, costs the worker its life, and is not the end of the bot."""
    one = await world.start_public("one", BOT_APP="tests.end_to_end.bots:blocking")
    await one.wait_until_owner()
    worker = await one.worker_pid()
    await world.telegram.send_text(7, "block")

    async def failing() -> bool:
        answer = await one.get("/healthz", own_port=True)
        return answer.status_code == 503 and "blocked" in answer.json()["reason"]

    await eventually(failing, "failing health")
    await one.wait_for("[WORKER] killing the worker")
    [line] = [line for line in one.lines if line.begins("WORKER", "event loop is blocked")]
    bots = (PROJECT_FOLDER / "tests/end_to_end/bots.py").read_text(encoding="utf-8")
    number = 1 + bots.splitlines().index("        time.sleep(300)")
    assert line.fields["at"] == f"tests/end_to_end/bots.py:{number} in handle"
    assert one.events.index("[WORKER] event loop is blocked") < one.events.index(
        "[WORKER] killing the worker"
    )
    await one.wait_for("[WORKER] worker accepts connections", count=2)
    assert not is_alive(worker)


async def test_b22_children_of_the_bot_end_with_the_worker(world: World) -> None:
    """The whole process group is killed, whoever of supervisor and worker dies first."""
    one = await world.start_public("one", BOT_APP="tests.end_to_end.bots:with_child")
    await one.wait_until_owner()
    child = int(re.findall(r"child=(\d+)", await world.say(7, "spawn"))[0])
    assert is_alive(child)
    os.kill(await one.worker_pid(), SIGKILL)

    async def child_is_gone() -> bool:
        return not is_alive(child)

    await eventually(child_is_gone, "the end of the bot's child")
    await one.wait_for("[WORKER] worker dispatches updates", count=2)
    child = int(re.findall(r"child=(\d+)", await world.say(8, "spawn"))[0])
    one.signal(SIGKILL)
    await one.wait_for_exit()
    await eventually(child_is_gone, "the end of the bot's child")


async def test_b21_a_worker_that_cannot_be_kept_up_fails_health_and_costs_the_ownership(world: World) -> None:
    """Crashes after ready: backoff, in which health says why, and then a healthy standby owns."""
    one = await world.start_public("one", BOT_APP="tests.end_to_end.bots:crashing_leader")
    await one.wait_for("[WORKER] worker ended", count=2)

    async def says_why() -> bool:
        # On PORT a worker that is just dying may have the request in its hands.
        answer = await one.get("/healthz", own_port=True)
        why = answer.json().get("reason")
        return answer.status_code == 503 and why == "the worker is gone: killed by SIGKILL"

    await eventually(says_why, "health that says why it fails")
    two = await world.start("two")
    await two.wait_until_owner()
    await one.wait_for("[LOCK] giving up the lock: the worker does not stay up")
    assert one.process.is_running
    assert two.process.is_running


async def test_b21_a_bot_that_never_comes_up_is_exit_code_2(world: World) -> None:
    """A worker that dies at import each time is a fault of the deploy."""
    one = await world.start_public("one", BOT_APP="tests.end_to_end.bots:dying_at_build")
    assert await one.wait_for_exit() == 2
    assert "BOT_APP" in "\n".join(one.output)


async def test_kill_9_of_the_worker_at_any_moment_refuses_no_connection(world: World) -> None:
    """The socket is the supervisor's: connections wait in its backlog, or are told to come back, never refused."""
    one, two = await owner_and_standby(world)
    answered: list[float] = []  # when each request that got an answer was begun
    refused: list[httpx.ConnectError] = []
    stop = asyncio.Event()

    async def knock(first: int) -> None:
        for number in itertools.count(first):
            if stop.is_set():
                return
            at = time.monotonic()
            try:
                await post_update(two, text_update(number, 7, "work 0"))
            except httpx.ConnectError as exc:
                refused.append(exc)
            except httpx.TransportError:
                continue  # it was in the hands of the worker that died
            else:
                answered.append(at)

    tasks = [asyncio.create_task(knock(1_000_000 * n)) for n in (1, 2)]
    spans: list[tuple[float, float]] = []
    for kills in (1, 2):
        pid = await two.worker_pid()
        killed_at = time.monotonic()
        os.kill(pid, SIGKILL)
        await two.wait_for("[WORKER] worker accepts connections", count=1 + kills)
        spans.append((killed_at, time.monotonic()))
    stop.set()
    await asyncio.gather(*tasks)
    assert refused == []
    for killed_at, accepted_at in spans:
        assert any(killed_at <= at <= accepted_at for at in answered)
    assert one.process.is_running
