"""The demo's five scenarios, each a function of the stage and its scene; their first lines are printed.

Each returns when what it is about has happened; that everything was handled is waited for by the stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from signal import SIGKILL

from deploy.local import evidence
from deploy.local.emulator.control_messages import ChatMessage
from deploy.local.history import Death
from deploy.local.platform.records import Occurrence, Release
from deploy.local.stage import LIMIT_SECONDS, POLL_SECONDS, DemoFailed, Scene, Stage
from deploy.local.timeline import first
from deploy.local.traffic import Traffic

_CHATS = 300
_PER_SECOND = 30.0
# Started just before the kill, so that it hits handlers: fewer than the bot runs at once (DISPATCH_CONCURRENCY, 32),
# and not many, since after a crash they run again one after the other.
_IN_FLIGHT_AT_KILL = 12
_IN_FLIGHT_WORK_SECONDS = 1.0
# SCENARIOS.md b01: a worker ends within a second of its supervisor.
_WORKER_END_SECONDS = 1.0
# Of traffic before and after what a scenario is about.
_BEFORE_SECONDS = 2.0


async def first_deploy(stage: Stage, scene: Scene) -> None:
    """one instance on an empty database"""
    await stage.platform.wait_until_live(stage.platform.deploy(Release("one")), limit_seconds=LIMIT_SECONDS)
    name = await stage.wait_for_owner(lambda _: True)
    await _wait_for_moment(stage, scene, "webhook set", name)
    _mark_deploy(stage, scene, name)


async def start(stage: Stage, scene: Scene) -> None:
    """a user sends /start, presses a button, and goes back"""
    user = 7
    after = await stage.emulator.last_event_seq()
    scene.note("user sends /start")
    sent = await stage.emulator.send_text(user, "/start")
    _add_sent(scene, sent.update_id, user)
    menu = await stage.emulator.wait_for_message(user, after=after, timeout_seconds=LIMIT_SECONDS)
    scene.marks["menu"] = scene.note("the bot answers", detail=_describe_message(menu))
    page = await _press(stage, scene, user, _buttons(menu)[0])
    scene.marks["page"] = scene.notes[-1].at
    again = await _press(stage, scene, user, _buttons(page)[-1])
    scene.marks["back"] = scene.notes[-1].at
    if again.text != menu.text:
        raise DemoFailed("the last button of a page does not lead back to the menu")


async def rolling_deploy(stage: Stage, scene: Scene) -> None:
    """a new version replaces the old one while hundreds of users write"""
    traffic = Traffic(stage.emulator, chats=_CHATS, seed=1)
    async with traffic.flowing(_PER_SECOND):
        await asyncio.sleep(_BEFORE_SECONDS)
        await _replace_all(stage, scene, Release("two"))
    scene.sent.update(traffic.sent)


async def kill(stage: Stage, scene: Scene) -> None:
    """kill -9 of the owner with handlers in flight, a standby beside it"""
    stage.platform.scale(2)
    await stage.platform.wait_until(lambda: len(stage.platform.routed) == 2, limit_seconds=LIMIT_SECONDS)
    victim = await stage.wait_for_owner(lambda name: name in stage.platform.routed)
    traffic = Traffic(stage.emulator, chats=_CHATS, seed=2)
    async with traffic.flowing(_PER_SECOND):
        await asyncio.sleep(_BEFORE_SECONDS)
        await _get_handlers_in_flight(stage, traffic)
        killed_at = time.monotonic()
        stage.platform.send_signal(victim, SIGKILL)
        exited_at = await _wait_for_moment(stage, scene, Occurrence.EXITED.value, victim, after=killed_at)
        scene.deaths.append(Death(victim, killed_at, exited_at + _WORKER_END_SECONDS))
        survivor = await stage.wait_for_owner(lambda name: name != victim)
        await _wait_for_moment(stage, scene, "webhook set", survivor, after=killed_at)
        await stage.platform.wait_until(
            lambda: set(stage.platform.routed) == {victim, survivor}, limit_seconds=LIMIT_SECONDS
        )
        await asyncio.sleep(_BEFORE_SECONDS)
    scene.sent.update(traffic.sent)
    # What was in flight waits for the end of the dead owner's deadline, and then runs one at a time.
    await stage.wait_until_quiet()
    moments = stage.moments(scene)
    scene.marks |= {
        "kill": killed_at,
        "exit": first(moments, Occurrence.EXITED.value, who=victim),
        "lock_acquired": first(moments, "lock acquired", who=survivor, after=killed_at),
        "active": first(moments, "active", who=survivor, after=killed_at),
        "webhook_set": first(moments, "webhook set", who=survivor, after=killed_at),
        "healthy_again": first(moments, Occurrence.HEALTHY.value, who=victim, after=killed_at),
    }
    runs = evidence.read_runs(stage.system.workspace.history, scene.sent)
    ours = [run for run in runs if run.instance == survivor and run.started_at >= killed_at]
    scene.marks["first_run"] = min((run.started_at for run in ours), default=None)
    again = {run.update_id for run in runs if run.instance == victim and run.started_at < killed_at}
    scene.marks["last_rerun_done"] = max(
        (run.last_seen_at for run in ours if run.update_id in again), default=None
    )


async def rotation(stage: Stage, scene: Scene) -> None:
    """the webhook's secret path and token are changed by a deploy while hundreds of users write"""
    traffic = Traffic(stage.emulator, chats=_CHATS, seed=3)
    new_secrets = {
        "WEBHOOK_SECRET_PATH": secrets.token_urlsafe(24),
        "WEBHOOK_SECRET_TOKEN": secrets.token_urlsafe(24),
    }
    async with traffic.flowing(_PER_SECOND):
        await asyncio.sleep(_BEFORE_SECONDS)
        # The commit stays: on Render a changed variable alone makes a deploy.
        await _replace_all(stage, scene, Release("two", new_secrets))
    scene.sent.update(traffic.sent)


async def _get_handlers_in_flight(stage: Stage, traffic: Traffic) -> None:
    """Returns while many handlers run; on a slow machine it takes more than one try."""
    for _ in range(10):
        await traffic.send([_IN_FLIGHT_WORK_SECONDS] * _IN_FLIGHT_AT_KILL)
        with contextlib.suppress(TimeoutError):
            await stage.inbox.wait_for_count("claimed", at_least=_IN_FLIGHT_AT_KILL, limit_seconds=2)
            return
    raise DemoFailed(f"never were {_IN_FLIGHT_AT_KILL} handlers in flight at one time")


async def _replace_all(stage: Stage, scene: Scene, release: Release) -> None:
    """A deploy of one instance, until the last of the old ones has exited."""
    platform = stage.platform
    old = [slot.name for slot in platform.slots]
    number = platform.deploy(release, count=1)
    await platform.wait_until_live(number, limit_seconds=LIMIT_SECONDS)
    [new] = platform.routed
    await stage.wait_for_owner(lambda name: name == new)
    await _wait_for_moment(stage, scene, "webhook set", new)
    await platform.wait_until(
        lambda: [slot.name for slot in platform.slots] == [new], limit_seconds=LIMIT_SECONDS
    )
    await asyncio.sleep(_BEFORE_SECONDS)
    _mark_deploy(stage, scene, new)
    moments = stage.moments(scene)
    exits = [moment.at for moment in moments if moment.what == Occurrence.EXITED.value and moment.who in old]
    scene.marks["sigterm"] = first(moments, Occurrence.SIGTERM_SENT.value)
    scene.marks["old_exit"] = max(exits, default=None)


def _mark_deploy(stage: Stage, scene: Scene, new: str) -> None:
    moments = stage.moments(scene)
    scene.marks |= {
        "spawned": first(moments, Occurrence.SPAWNED.value, who=new),
        "port_bound": first(moments, Occurrence.BOUND.value, who=new),
        "healthy": first(moments, Occurrence.HEALTHY.value, who=new),
        "traffic_switched": first(moments, Occurrence.ROUTED.value),
        "lock_acquired": first(moments, "lock acquired", who=new),
        "active": first(moments, "active", who=new),
        "webhook_set": first(moments, "webhook set", who=new),
    }


async def _wait_for_moment(stage: Stage, scene: Scene, what: str, who: str, *, after: float = 0) -> float:
    """Returns when somebody has done something; when that was."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (at := first(stage.moments(scene), what, who=who, after=after)) is None:
        if time.monotonic() > deadline:
            raise DemoFailed(f"waited {LIMIT_SECONDS} s in vain for {who}: {what}")
        await asyncio.sleep(POLL_SECONDS)
    return at


def _buttons(message: ChatMessage) -> list[dict[str, str]]:
    """The buttons that the bot hears of, not those that open a URL."""
    rows = message.raw.get("reply_markup", {}).get("inline_keyboard", [])
    found = [button for row in rows for button in row if "callback_data" in button]
    if not found:
        raise DemoFailed(f"no button under the bot's message: {message.text}")
    return found


async def _press(stage: Stage, scene: Scene, user: int, button: dict[str, str]) -> ChatMessage:
    after = await stage.emulator.last_event_seq()
    scene.note(f"user presses {button['text']}")
    pressed = await stage.emulator.press(user, data=button["callback_data"])
    _add_sent(scene, pressed.update_id, user)
    message = await stage.emulator.wait_for_message(user, after=after, timeout_seconds=LIMIT_SECONDS)
    scene.note("the bot answers", detail=_describe_message(message))
    return message


def _add_sent(scene: Scene, update_id: int | None, chat_id: int) -> None:
    if update_id is None:
        raise DemoFailed("the bot's registration leaves out this kind of update")
    scene.sent[update_id] = chat_id


def _describe_message(message: ChatMessage) -> str:
    buttons = " ".join(f"[{text}]" for row in message.keyboard for text in row)
    return f"{message.text.splitlines()[0] if message.text else ''}  {buttons}"


SCENARIOS: Mapping[str, Callable[[Stage, Scene], Awaitable[None]]] = {
    "first_deploy": first_deploy,
    "start": start,
    "rolling_deploy": rolling_deploy,
    "kill": kill,
    "rotation": rotation,
}
