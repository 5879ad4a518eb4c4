"""Where the demo's scenarios are played: the running system, what is noted meanwhile, and the verdict at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus

import httpx
import msgspec

from deploy.local import evidence
from deploy.local.errors import LocalSystemError
from deploy.local.history import Death, Verdict, judge
from deploy.local.platform.records import Occurrence, OutputLine, Record
from deploy.local.platform.router import Exchange
from deploy.local.system import LocalSystem
from deploy.local.timeline import Moment, format_timeline, moments_of

# A limit on a hang, not a claim about speed.
LIMIT_SECONDS = 120.0
POLL_SECONDS = 0.02


class DemoFailed(LocalSystemError):
    """A scenario did not come to its end; the message says what was waited for."""


class Result(msgspec.Struct, frozen=True):
    """One scenario in numbers: a line of JSON."""

    scenario: str
    sent: int
    not_200: int
    lost: int
    doubled: int
    rerun: int
    seconds: dict[str, float]


@dataclass(slots=True)
class Scene:
    """A scenario while it is played.

    Attributes:
        begin: `time.monotonic()`.
        sent: the chat of every update that was sent in it.
        deaths: whom we killed.
        notes: what the platform and the logs cannot know.
        marks: the times that are worth a name in the result.
    """

    name: str
    begin: float
    history_mark: int
    lines_mark: int
    sent: dict[int, int] = field(default_factory=dict)
    deaths: list[Death] = field(default_factory=list)
    notes: list[Moment] = field(default_factory=list)
    marks: dict[str, float | None] = field(default_factory=dict)

    def note(self, what: str, who: str = "", detail: str = "") -> float:
        """Remembers that something happens now; when that is."""
        moment = Moment(time.monotonic(), what, who, detail)
        self.notes.append(moment)
        return moment.at


class Stage:
    """The system, with everything that the scenarios share."""

    def __init__(
        self,
        system: LocalSystem,
        web: httpx.AsyncClient,
        inbox: evidence.InboxReader,
        show: Callable[[str], None],
    ) -> None:
        """Begins to listen to the instances."""
        self.system = system
        self.platform = system.platform
        self.emulator = system.emulator.client
        self.inbox = inbox
        self._web = web
        self._show = show
        self._lines: list[OutputLine] = []
        self._refusals: list[Moment] = []
        self.platform.output.append(self._lines.append)
        self.platform.router.on_exchange = self._note_exchange

    async def play(
        self, name: str, scenario: Callable[[Stage, Scene], Awaitable[None]]
    ) -> tuple[Result, tuple[str, ...]]:
        """Plays a scenario to its end and judges it; the result, and what is wrong with it in words."""
        self._show(f"\n{name}: {(scenario.__doc__ or '').splitlines()[0]}")
        scene = Scene(name, time.monotonic(), len(self.platform.history), len(self._lines))
        try:
            await scenario(self, scene)
            await self.wait_until_quiet()
        except (TimeoutError, LocalSystemError) as error:
            self._show(format_timeline(self.moments(scene), scene.begin))
            raise DemoFailed(f"{name}: {error}") from error
        deliveries = await evidence.read_deliveries(self.emulator, scene.sent)
        runs = evidence.read_runs(self.system.workspace.history, scene.sent)
        verdict = judge(deliveries, runs, await self.inbox.rows(scene.sent), scene.deaths)
        if runs:
            sent_at = {delivery.update_id: delivery.first_sent_at for delivery in deliveries}
            slowest = max(run.last_seen_at - sent_at[run.update_id] for run in runs)
            scene.marks["slowest_update"] = scene.begin + slowest
        self._show(format_timeline(self.moments(scene), scene.begin))
        result = Result(
            scenario=name,
            sent=verdict.sent,
            not_200=verdict.not_200,
            lost=len(verdict.lost),
            doubled=len(verdict.doubled),
            rerun=verdict.rerun,
            seconds={key: round(at - scene.begin, 3) for key, at in scene.marks.items() if at is not None},
        )
        self._show(f"  {_in_words(result, verdict)}")
        return result, find_objections(scene, verdict, self.platform.history[scene.history_mark :])

    def moments(self, scene: Scene) -> list[Moment]:
        """What happened in a scenario so far."""
        return [
            *moments_of(self.platform.history[scene.history_mark :], self._lines[scene.lines_mark :]),
            *(refusal for refusal in self._refusals if refusal.at >= scene.begin),
            *scene.notes,
        ]

    def _note_exchange(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/webhook/") and exchange.status != HTTPStatus.OK:
            what = f"answered {exchange.status}"
            self._refusals.append(
                Moment(exchange.at + exchange.seconds, what, exchange.target, exchange.fault)
            )

    async def owner(self) -> str | None:
        """The instance that says of itself that it is ACTIVE."""
        for slot in self.platform.slots:
            try:
                answer = await self._web.get(f"http://127.0.0.1:{slot.port}/healthz", timeout=2)
                if answer.json()["role"] == "ACTIVE":
                    return slot.name
            except (httpx.HTTPError, ValueError, KeyError):
                # It starts, or it is gone.
                continue
        return None

    async def wait_for_owner(self, condition: Callable[[str], bool]) -> str:
        """The owner, when it is one of those that are wanted.

        Raises:
            DemoFailed: not in time.
        """
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            name = await self.owner()
            if name is not None and condition(name):
                return name
            await asyncio.sleep(POLL_SECONDS)
        raise DemoFailed(f"no instance that should became ACTIVE in {LIMIT_SECONDS} s")

    async def wait_until_quiet(self) -> None:
        """Returns when every update has been delivered, and everything in the inbox handled.

        Raises:
            DemoFailed, TimeoutError: not in time.
        """
        if not await self.emulator.wait_idle(timeout_seconds=LIMIT_SECONDS):
            raise DemoFailed("updates wait at the Bot API server that the service does not take")
        # One more look than needed: what is answered is in the inbox, what is there may still run.
        await self.inbox.wait_for_count("pending", "claimed", at_most=0, limit_seconds=LIMIT_SECONDS)


def find_objections(scene: Scene, verdict: Verdict, records: Iterable[Record]) -> tuple[str, ...]:
    """Everything that must not be in a scenario, in words.

    Args:
        scene: with the deaths that we caused: a kill may cost answers and repeat runs, nothing else may.
        verdict: on its updates.
        records: the platform's history of it.
    """
    found = [f"update {breach.update_id} {breach.why}" for breach in verdict.breaches]
    if verdict.rerun > verdict.in_flight_at_deaths:
        found.append(f"{verdict.rerun} runs were repeated, and {verdict.in_flight_at_deaths} were in flight")
    if verdict.not_200 and not scene.deaths:
        found.append(f"{verdict.not_200} deliveries were answered other than 200")
    found += [
        f"{record.instance} left {record.detail} processes behind"
        for record in records
        if record.what is Occurrence.LEFTOVERS
    ]
    return tuple(f"{scene.name}: {objection}" for objection in found)


def _in_words(result: Result, verdict: Verdict) -> str:
    in_flight = (
        f" of {verdict.in_flight_at_deaths} in flight at the kill" if verdict.in_flight_at_deaths else ""
    )
    return (
        f"{result.sent} updates sent, {result.not_200} answers other than 200, {result.lost} lost, "
        f"{result.doubled} doubled, {result.rerun} run again{in_flight}"
    )
