"""The simulated lease and the model beneath it, on which simulations rely, keep the contract of ownership."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest

from shared.config import Config
from supervisor import messages as m
from tests.models.ownership import Row
from tests.simulation.agenda import Agenda
from tests.simulation.history import History
from tests.simulation.lease import Lease
from tests.simulation.link import Link, fetch_registrations
from tests.simulation.network import Network
from tests.simulation.postgres import Postgres
from tests.simulation.process import Process
from tests.unit.supervisor.announcement_contract import AnnouncementContract, RegistrationContract
from tests.unit.supervisor.ownership_contract import TOKEN, Instance, LockContract, config_of, id_of
from tests.unit.supervisor.term_contract import TermContract
from webhook_worker.verify import Registration, registration_of

_STEP_SECONDS = 0.001
_HANG_SECONDS = 60.0


def _process(agenda: Agenda, name: str) -> Process:
    return Process(agenda, name)  # type: ignore[abstract] # as a loop of asyncio's own may be


class _Instance:
    """See ownership_contract.Instance."""

    def __init__(self, world: _SimulatedWorld, config: Config) -> None:
        self.config = config
        self._world = world
        self._events: deque[m.Event] = deque()
        self._ids = itertools.count(1)
        own = registration_of(config.webhook_path.reveal(), config.webhook_secret.reveal())
        self._lease = Lease(
            _process(world.agenda, config.identity.instance_id),
            config.identity.platform_instance_id,
            world.postgres,
            world.random,
            row=self._row,
            registration=(own.path_hash, own.secret_hash),
            post=self._events.append,
            confirmed=lambda deadline: None,
        )

    def take_id(self) -> int:
        return next(self._ids)

    def begin(self, action: m.SessionAction) -> None:
        self._lease.begin(action)

    def cut_wait(self) -> None:
        self._lease.cut_wait()

    async def next_event(self) -> m.Event:
        await self._world.run_until(lambda: bool(self._events))
        return self._events.popleft()

    def close(self) -> None:
        self._lease.close()

    def _row(self) -> Row:
        who = self.config.identity
        return Row(
            who.instance_id,
            who.platform_instance_id,
            who.deploy_id,
            who.token_fingerprint,
            session=None,
            ready=False,
            candidate_after=0.0,
            first_announced_at=0.0,
            announced_at=0.0,
        )


class _SimulatedWorld:
    """See ownership_contract.World."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.random = Random(4242)
        network = Network(self.agenda, self.random)
        self.postgres = Postgres(self.agenda, network, History(self.agenda), self.random)
        self._worker = _process(self.agenda, "worker")
        self._lookups = Link(self._worker, "worker", self.postgres, "lookups")
        self._worker.create_task(self._lookups.keep())

    def end(self) -> None:
        """A process that lives complains of tasks that are never done."""
        self._worker.kill()

    async def boot(self, name: str, *, token: str = TOKEN, **variables: str) -> Instance:
        return _Instance(self, config_of("postgresql://simulated", 4242, token, name, **variables))

    async def end_session(self, instance: Instance) -> None:
        for session in list(self.postgres.sessions.values()):
            if session.key[0] == id_of(instance):
                session.end("terminating connection due to administrator command")

    async def pass_time(self, seconds: float) -> None:
        self.postgres.wall_offset_seconds += seconds

    async def request_handover(self) -> str | None:
        return self.postgres.ownership.request_handover(self.postgres.wall())

    async def owner(self) -> str | None:
        return self.postgres.ownership.owner()

    async def look_up(self) -> Sequence[Registration]:
        await self.run_until(lambda: self._lookups.connected)
        found = self._worker.create_task(fetch_registrations(self._lookups))
        await self.run_until(found.done)
        return found.result()

    async def run_until(self, condition: Callable[[], bool]) -> None:
        """Lets simulated time pass until the condition holds."""
        # In a thread: simulated processes are event loops, and those do not run within another.
        await asyncio.to_thread(self._run_until, condition)

    def _run_until(self, condition: Callable[[], bool]) -> None:
        end = self.agenda.now + _HANG_SECONDS
        while not condition():
            assert self.agenda.now < end, "nothing comes"
            self.agenda.run_until(self.agenda.now + _STEP_SECONDS)


@pytest.fixture
def world() -> Iterator[_SimulatedWorld]:
    """Nobody has been here."""
    made = _SimulatedWorld()
    yield made
    made.end()


class TestSimulatedLock(LockContract):
    """The contract, on the model."""


class TestSimulatedTerms(TermContract):
    """The contract, on the model."""


class TestSimulatedAnnouncements(AnnouncementContract):
    """The contract, on the model."""


class TestSimulatedRegistrations(RegistrationContract):
    """The contract, on the model."""
