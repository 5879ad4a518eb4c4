"""What the buttons do. Everything is begun and not waited for: what comes of it is to be watched.

Not promised: that the instance on which a button was pressed is still there.
"""

from __future__ import annotations

import contextlib
import enum
import os
import secrets
from collections.abc import Mapping
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import assert_never

from deploy.local.chat import PROFILE, USER_ID
from deploy.local.emulator.faults import Outage
from deploy.local.errors import InstanceFailed
from deploy.local.page.view import Watch
from deploy.local.platform.records import Release, Slot
from deploy.local.system import LocalSystem


class Blow(enum.StrEnum):
    """What can be done to one instance; the value is in the URL."""

    RESTART = "restart"  # SIGTERM, then another process in its place
    STOP = "stop"  # SIGTERM, for good
    KILL = "kill"  # kill -9 of the supervisor; the platform starts another
    KILL_WORKER = "kill-worker"  # kill -9 of the worker; its supervisor starts another
    FREEZE = "freeze"  # SIGSTOP for the supervisor; the platform loses its patience in the end
    THAW = "thaw"  # SIGCONT


class Desk:
    """Acts on a system."""

    def __init__(self, system: LocalSystem, watch: Watch) -> None:
        """Does nothing yet."""
        self._platform = system.platform
        self._emulator = system.emulator.client
        self._watch = watch

    def deploy(self, changed: Mapping[str, str] | None = None) -> int:
        """A new version, with the variables of the one before and those that are changed; its number."""
        before = self._platform.releases[-1].environment
        version = f"v{len(self._platform.releases) + 1}"
        return self._platform.deploy(Release(version, {**before, **(changed or {})}))

    def rotate(self) -> int:
        """A deploy with new secrets of the webhook; its number."""
        self._watch.memory.note("secrets rotated", detail="by a deploy")
        return self.deploy(
            {
                "WEBHOOK_SECRET_PATH": secrets.token_urlsafe(24),
                "WEBHOOK_SECRET_TOKEN": secrets.token_urlsafe(24),
            }
        )

    def rollback(self) -> int:
        """Deploys what was live before, its secrets too; its number.

        Raises:
            InstanceFailed: nothing was.
        """
        return self._platform.rollback()

    def scale(self, count: int) -> None:
        """Changes how many instances there are."""
        self._watch.memory.note("scaled", detail=f"to {count}")
        self._platform.scale(count)

    async def strike(self, name: str, blow: Blow) -> None:
        """Does something to one instance.

        Raises:
            InstanceFailed: there is no such instance, or it does not say which process its worker is.
        """
        slot = next((slot for slot in self._platform.slots if slot.name == name), None)
        if slot is None:
            raise InstanceFailed(f"there is no instance {name}, or no more")
        match blow:
            case Blow.RESTART:
                self._platform.restart(name)
            case Blow.STOP:
                self._platform.stop(name)
            case Blow.KILL:
                self._platform.kill(name)
            case Blow.KILL_WORKER:
                await self._kill_worker(slot)
            case Blow.FREEZE:
                self._watch.frozen.add(slot.pid)
                self._watch.memory.note("SIGSTOP", name, f"pid {slot.pid}")
                self._platform.send_signal(name, SIGSTOP)
            case Blow.THAW:
                self._watch.frozen.discard(slot.pid)
                self._watch.memory.note("SIGCONT", name, f"pid {slot.pid}")
                self._platform.send_signal(name, SIGCONT)
            case _:
                assert_never(blow)

    async def say(self, text: str) -> None:
        """A message of the user's to the bot."""
        await self._emulator.send_text(USER_ID, text, profile=PROFILE)

    async def press(self, message_id: int, data: str) -> None:
        """The press of a button under a message.

        Raises:
            ControlError: there is no such button any more.
        """
        await self._emulator.press(USER_ID, data=data, message_id=message_id)

    async def set_away(self, is_away: bool) -> None:
        """Whether Telegram answers every call of the bot's with 502. It delivers updates all the same."""
        self._watch.memory.note("Bot API away" if is_away else "Bot API back")
        await self._emulator.set_outage(Outage.BAD_GATEWAY if is_away else Outage.NONE)

    async def _kill_worker(self, slot: Slot) -> None:
        status = await self._watch.status(slot)
        pid = status["worker"]["pid"] if status is not None else None
        if not pid:
            raise InstanceFailed(f"{slot.name} does not say which process its worker is")
        self._watch.memory.note("SIGKILL for the worker", slot.name, f"pid {pid}")
        # It has just been named by its living parent; had it ended since, its pid would not be given away so soon.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, SIGKILL)
