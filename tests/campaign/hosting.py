"""A field's service as the platform runs it: deploys, rollbacks, restarts; its instances are the field's, for the judge to see.

    deploy.local.platform.Platform   decides: what is spawned, routed to, signalled; on the field's router
    Field                            its instances, their logs, probes and deaths
    Move                             what a deploy came to: who owned when, measured against the platform's own steps

The platform is let go of at the end of `hosted`, so that nobody is replaced while the harness concludes; its instances stay.
An instance that ends with another status than 0 without having been killed, or leaves something behind, is a breach of H; so is
one that the platform had to kill after a grace of 25 s or more. Excused are the scenario's own kills, and those of a platform
that waits for less than that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.guarded import GuardedProcess
from deploy.local.platform.records import Occurrence, Record, Release, Slot
from deploy.local.platform.router import Router
from deploy.local.platform.service import Timing
from deploy.local.platform.simulator import Platform
from shared.config import SHUTDOWN_SECONDS
from tests.campaign.evidence import TermChange
from tests.campaign.field import HANG, Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.probes import Prober
from tests.end_to_end.instance import eventually


@dataclass(frozen=True, slots=True)
class Move:
    """A deploy whose predecessors are gone.

    Attributes:
        number: the platform's.
        live_at: when it got the traffic.
        owned_at: when the first term of one of its instances began; None if none ever did.
        sigterm_at: when the first instance of the deploy before was told to end by the platform; None if none was.
        owners: who became owner between its request and the next deploy's.
        refused: requests to the webhook that were answered other than 200 in that time.
    """

    number: int
    live_at: float
    owned_at: float | None
    sigterm_at: float | None
    owners: tuple[str, ...]
    refused: int

    @property
    def owned_before_sigterm(self) -> bool:
        """Whether the new deploy owned before the old one was told to end."""
        if self.owned_at is None:
            return False
        return self.sigterm_at is None or self.owned_at < self.sigterm_at

    def __str__(self) -> str:
        owned = (
            "never owned"
            if self.owned_at is None
            else f"owned {self.owned_at - self.live_at:.1f} s after the switch"
        )
        if self.owned_at is not None and self.sigterm_at is not None:
            early = self.sigterm_at - self.owned_at
            owned += f", {abs(early):.1f} s {'before' if early > 0 else 'AFTER'} the old one's SIGTERM"
        return f"{owned}; {len(self.owners)} change(s) of owner; {self.refused} answers other than 200"


def deploy_of(name: str) -> int:
    """The number of the deploy that an instance belongs to, srv-local-DEPLOY-N; 0 for one that is not the platform's."""
    return int(name.split("-")[2]) if name.startswith("srv-local-") else 0


class Hosting:
    """The platform, with what happens on it written down in the field.

    Attributes:
        platform: for everything that is not here.
    """

    def __init__(self, field: Field, *, timing: Timing, environment: Mapping[str, str]) -> None:
        """Does nothing yet; see `hosted`."""
        self._field = field
        self._killed: set[int] = set()
        self._deaths: set[asyncio.Task[None]] = set()
        # The platform routes: this router is never opened, and the probes are for the judge alone.
        self._prober = Prober(Router(0))
        self._prober.probes = field.prober.probes
        self._variables = {"LINGER_SECONDS": "", **environment}
        self.platform = Platform(
            folder=PROJECT_FOLDER,
            log_folder=field.folder,
            environment={},
            timing=timing,
            router=field.router,
            launch=self._launch,
        )
        self.platform.noted.append(self._note)

    async def close(self) -> None:
        """After the conclusion: ends what still runs."""
        await self._prober.close()
        await asyncio.gather(*self._deaths)

    def follow(self, instance: Instance) -> None:
        """Probes an instance that is not the platform's, for the judge; nobody routes to it."""
        self._prober.follow(instance)

    def instance(self, name: str) -> Instance:
        """The field's instance of that name."""
        return self._field.instances[name]

    async def deploy(self, release: Release, *, count: int | None = None) -> int:
        """Deploys, and returns the deploy's number when it has the traffic."""
        number = self.platform.deploy(release, count=count)
        await self.platform.wait_until_live(number, limit_seconds=HANG)
        return number

    async def wait_until_owned(self, number: int) -> str:
        """Returns when an instance of a deploy owns and has asserted the webhook; its name."""

        async def owner() -> str | None:
            for name, instance in list(self._field.instances.items()):
                if instance.is_running and deploy_of(name) == number:
                    status = await instance.try_status()
                    if status is not None and status["role"] == "ACTIVE" and status["webhook"]["in_sync"]:
                        return name
            return None

        await eventually(owner, f"an owner of deploy {number}")
        return await owner() or await self.wait_until_owned(number)

    async def wait_until_alone(self, number: int) -> None:
        """Returns when the last instance of every other deploy is gone."""
        await self.platform.wait_until(
            lambda: all(slot.deploy == number for slot in self.platform.slots),
            limit_seconds=HANG + self.platform.timing.overlap_seconds,
        )

    async def kill(self, name: str) -> None:
        """kill -9 of an instance's supervisor, as a fault; returns when everything of it is gone. It is replaced in place."""
        process = self.platform.slot(name).process
        assert process is not None
        self._field.inject("kill -9 supervisor", self.instance(name))
        self.platform.kill(name)
        await process.wait()

    async def move(self, number: int) -> Move:
        """What a deploy came to, as seen now."""
        history = self.platform.history
        requests = [record.at for record in history if record.what is Occurrence.DEPLOY_REQUESTED]
        requested_at = requests[number - 1]
        until = requests[number] if number < len(requests) else float("inf")
        live_at = next(
            record.at
            for record in history
            if record.what is Occurrence.DEPLOY_LIVE and record.detail == f"deploy {number}"
        )
        begun = [term for term in await self._field.recorder.term_changes() if not term.closed]
        sigterms = [
            record.at
            for record in history
            # A restart that somebody asked for is no end of a deploy.
            if record.what is Occurrence.SIGTERM_SENT
            and deploy_of(record.instance) == number - 1
            and record.at >= live_at + self.platform.timing.overlap_seconds - 0.1
        ]
        return Move(
            number=number,
            live_at=live_at,
            owned_at=min((term.at for term in begun if deploy_of(_name(term)) == number), default=None),
            sigterm_at=min(sigterms, default=None),
            owners=new_owners(begun, requested_at, until),
            refused=sum(
                requested_at <= exchange.at < until and exchange.path.startswith("/webhook/")
                for exchange in self._field.exchanges
            ),
        )

    async def _launch(self, slot: Slot, environment: Mapping[str, str]) -> GuardedProcess:
        instance = self._field.instances.get(slot.name)
        if instance is None:
            # Without what the platform does not give: the id of the deploy is to be found in its variables.
            taken_out = dict.fromkeys(("DEPLOY_ID", "INSTANCE_ID", "WEBHOOK_BASE_URL"), "")
            instance = self._field.prepare(slot.name, **{**taken_out, **self._variables, **environment})
        await instance.start()
        self._prober.follow(instance)
        return instance.process

    def _note(self, record: Record) -> None:
        if record.what is Occurrence.SIGKILL_SENT:
            seconds = outlived_grace(self.platform.history, record)
            if seconds is not None:
                self._field.object(
                    Invariant.HYGIENE, f"{record.instance} had to be killed {seconds:.1f} s after SIGTERM"
                )
            process = self.platform.slot(record.instance).process
            if process is not None:
                self._killed.add(process.pid)
                death = asyncio.create_task(
                    self._note_death(record, process), name=f"death of {record.instance}"
                )
                self._deaths.add(death)
                death.add_done_callback(self._deaths.discard)
        elif record.what is Occurrence.EXITED and record.detail != "status 0":
            process = self.platform.slot(record.instance).process
            if process is not None and process.pid not in self._killed:
                self._field.object(Invariant.HYGIENE, f"{record.instance} ended with {record.detail}")
        elif record.what is Occurrence.LEFTOVERS:
            self._field.object(Invariant.HYGIENE, f"{record.instance} left {record.detail} processes behind")

    async def _note_death(self, record: Record, process: GuardedProcess) -> None:
        await process.wait()
        self._field.note_death(self.instance(record.instance), record.at, time.monotonic())


def _name(term: TermChange) -> str:
    """The platform's name of a term's owner."""
    return term.instance_id.rpartition("-")[0]


def outlived_grace(history: Sequence[Record], kill: Record) -> float | None:
    """How long after SIGTERM the platform killed an instance, which has to be gone by then; None where it is excused.

    Measured and not looked up in the platform's timing: that changes while instances stop (`Course.take`).
    """
    if kill.detail:
        return None  # with a pid: somebody's `Platform.kill`, which is a fault of the scenario's
    told = [
        record.at
        for record in history
        if record.instance == kill.instance
        and record.what is Occurrence.SIGTERM_SENT
        and record.at <= kill.at
    ]
    seconds = kill.at - max(told, default=kill.at)
    return seconds if seconds >= SHUTDOWN_SECONDS else None


def new_owners(begun: list[TermChange], since: float, until: float) -> tuple[str, ...]:
    """Who became owner in that time, in order; a new term of the same instance is no change."""
    owner = next((_name(term) for term in reversed(begun) if term.at < since), "")
    found = []
    for term in begun:
        if since <= term.at < until and _name(term) != owner:
            owner = _name(term)
            found.append(owner)
    return tuple(found)


@asynccontextmanager
async def hosted(
    field: Field, *, timing: Timing, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Hosting]:
    """The platform, without a deploy yet; it is let go of with the block, and its instances are the conclusion's.

    Args:
        field: whose router and instances it uses.
        timing: how patient it is.
        environment: further variables of the service; an empty value takes one out.
    """
    hosting = Hosting(field, timing=timing, environment=environment or {})
    field.closing.push_async_callback(hosting.close)
    await field.closing.enter_async_context(hosting.platform)
    try:
        yield hosting
    finally:
        await hosting.platform.let_go()
