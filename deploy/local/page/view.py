"""What the page shows: the platform, every instance, Telegram's side, the inbox, what happened lately; read anew each time.

Not promised: one instant for all of it. Each part is asked for itself, and an instance that does not answer within
`_ANSWER_LIMIT_SECONDS` is shown as one that does not. Of events and log lines the latest are kept.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import psycopg

from deploy.local.chat import USER_ID
from deploy.local.evidence import InboxReader
from deploy.local.log_lines import LogLine, parse_line
from deploy.local.platform.records import OutputLine, Slot
from deploy.local.ports import LOOPBACK
from deploy.local.system import LocalSystem
from deploy.local.timeline import Moment, moments_of
from shared.errors import naming_line

# Shorter than people's patience with a page, and longer than a healthy instance on a busy machine needs.
_ANSWER_LIMIT_SECONDS = 1.0
_EVENTS, _LINES, _MESSAGES = 60, 150, 40
_LONGEST_LINE = 300
_TAGS = ("LOCK", "LOCK_CONTROLLER", "STATE_SYNC", "WEBHOOK", "BOT_VERIFY", "WORKER", "FLOW")


class Instance(msgspec.Struct, frozen=True):
    """One instance. `health` is "ok", or why not; `status` is its /status, None where its supervisor does not answer."""

    name: str
    deploy: int
    version: str
    pid: int
    is_routed: bool
    is_frozen: bool
    health: str
    status: dict[str, Any] | None


class Owner(msgspec.Struct, frozen=True):
    """Who says of itself that it owns; `since` is as /status writes it."""

    name: str
    term: int
    since: str


class Telegram(msgspec.Struct, frozen=True):
    """The registration as the Bot API server has it, the secret path masked.

    `last_error` stays after recovery until the webhook is set anew; `last_error_at`, unix time, tells how old it is.
    """

    webhook: str
    pending: int
    last_error: str
    last_error_at: int
    is_away: bool


class Event(msgspec.Struct, frozen=True):
    """One thing that happened, or one log line; `at` is unix time, `who` may be empty."""

    at: float
    who: str
    what: str
    detail: str = ""


class View(msgspec.Struct, frozen=True):
    """Everything; newest first in `events` and `lines`, oldest first in `chat`. `inbox` counts by state."""

    now: float
    instances: list[Instance]
    owner: Owner | None
    telegram: Telegram
    inbox: dict[str, int] | None
    events: list[Event]
    lines: list[Event]
    chat: list[dict[str, Any]]


class Memory:
    """What the instances, and the page itself, said lately.

    Attributes:
        moments: the instances' milestones, and what the page did.
        lines: the log lines that matter.
    """

    def __init__(self, system: LocalSystem) -> None:
        """Begins to listen: before the first deploy, or that one's lines are missing."""
        self._epoch = time.time() - time.monotonic()
        self.moments: deque[Moment] = deque(maxlen=_EVENTS)
        self.lines: deque[Event] = deque(maxlen=_LINES)
        system.platform.output.append(self._take)

    def note(self, what: str, who: str = "", detail: str = "") -> None:
        """Remembers something that happens now and that neither the platform nor the logs tell."""
        self.moments.append(Moment(time.monotonic(), what, who, detail))

    def unix_time(self, at: float) -> float:
        """Of a `time.monotonic()`, by the clock as it was at the start."""
        return self._epoch + at

    def _take(self, line: OutputLine) -> None:
        self.moments.extend(moments_of((), [line]))
        parsed = parse_line(line.text)
        if parsed is None:
            return
        if parsed.tag in _TAGS or parsed.level.upper() in ("ERROR", "CRITICAL"):
            what = shorten(parsed)
            self.lines.append(Event(self.unix_time(line.at), line.instance, what, parsed.level.lower()))


class Watch:
    """Looks at a system.

    Attributes:
        memory: of what happened.
        frozen: the pids that were stopped by SIGSTOP and not continued since.
    """

    def __init__(
        self, system: LocalSystem, memory: Memory, inbox: InboxReader, web: httpx.AsyncClient
    ) -> None:
        """Does nothing yet."""
        self._system = system
        self._inbox = inbox
        self._web = web
        self.memory = memory
        self.frozen: set[int] = set()

    async def look(self) -> View:
        """The system now.

        Raises:
            httpx.HTTPError: the Bot API emulator does not answer.
        """
        instances, telegram, chat, inbox = await asyncio.gather(
            asyncio.gather(*(self._instance(slot) for slot in self._system.platform.slots)),
            self._telegram(),
            self._chat(),
            self._count_inbox(),
        )
        moments = [*moments_of(self._system.platform.history[-_EVENTS:], ()), *self.memory.moments]
        moments.sort(key=lambda moment: moment.at, reverse=True)
        return View(
            now=time.time(),
            instances=list(instances),
            owner=find_owner(instances),
            telegram=telegram,
            inbox=inbox,
            events=[
                Event(self.memory.unix_time(moment.at), moment.who, moment.what, moment.detail)
                for moment in moments[:_EVENTS]
            ],
            lines=list(reversed(self.memory.lines)),
            chat=chat,
        )

    async def status(self, slot: Slot) -> dict[str, Any] | None:
        """What an instance's /status says; None where it does not answer."""
        return await self._ask(slot.health_port, "status")

    async def _instance(self, slot: Slot) -> Instance:
        # Health by the port that the platform probes: with a frozen supervisor its worker still answers there.
        health, status = await asyncio.gather(self._ask(slot.port, "healthz"), self.status(slot))
        if health is None:
            said = "does not answer" if slot.pid else "no process"
        else:
            said = str(health.get("reason", health.get("status")))
        platform = self._system.platform
        return Instance(
            name=slot.name,
            deploy=slot.deploy,
            version=platform.releases[slot.deploy - 1].commit,
            pid=slot.pid,
            is_routed=any(target.name == slot.name for target in platform.router.targets),
            is_frozen=slot.pid != 0 and slot.pid in self.frozen,
            health=said,
            status=status,
        )

    async def _ask(self, port: int, what: str) -> dict[str, Any] | None:
        try:
            answer = await self._web.get(f"http://{LOOPBACK}:{port}/{what}", timeout=_ANSWER_LIMIT_SECONDS)
            return msgspec.json.decode(answer.content, type=dict[str, Any])
        except (httpx.HTTPError, msgspec.DecodeError):
            return None

    async def _telegram(self) -> Telegram:
        state = await self._system.emulator.client.state()
        webhook = state.bots[0].webhook
        return Telegram(
            webhook=mask_path(webhook.url),
            pending=state.bots[0].counts.pending,
            last_error=str(webhook.info.get("last_error_message", "")),
            last_error_at=int(webhook.info.get("last_error_date", 0)),
            is_away=state.outage != "none",
        )

    async def _chat(self) -> list[dict[str, Any]]:
        messages = await self._system.emulator.client.messages(USER_ID)
        return [
            {
                "id": message.message_id,
                "from_bot": message.from_bot,
                "text": message.text,
                "is_edited": message.is_edited,
                "keyboard": message.raw.get("reply_markup", {}).get("inline_keyboard", []),
            }
            for message in messages[-_MESSAGES:]
        ]

    async def _count_inbox(self) -> dict[str, int] | None:
        try:
            return {state: await self._inbox.count(state) for state in ("pending", "claimed", "dead")}
        except psycopg.Error:
            # No instance has made the table yet, or Postgres is about to take the whole system along.
            return None


def shorten(line: LogLine) -> str:
    """A log line for a list: of a traceback the line that names it, and of anything no more than a few lines of the page."""
    fields = {**line.fields}
    if "exception" in fields:
        fields["exception"] = naming_line(str(fields["exception"]))
    text = str(replace(line, fields=fields))
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]} …"


def find_owner(instances: list[Instance]) -> Owner | None:
    """Of those that say ACTIVE the one of the latest term: a superseded one may not have noticed yet."""
    owners = [
        Owner(item.name, item.status["term"]["number"], item.status["term"]["since"])
        for item in instances
        if item.status is not None and item.status["role"] == "ACTIVE"
    ]
    return max(owners, key=lambda owner: owner.term, default=None)


def mask_path(url: str) -> str:
    """A webhook's URL without its secret."""
    return re.sub(r"/webhook/.+", "/webhook/***", url)
