"""The lease on Postgres keeps the same contract as the model that simulations rely on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import pytest_asyncio

from deploy.local.postgres import PostgresServer
from shared.database import Link, connect
from supervisor import messages as m
from supervisor.commands import handover
from tests.integration.supervisor.lease_driver import HANG_SECONDS, LeaseDriver, rows
from tests.unit.supervisor.announcement_contract import AnnouncementContract, RegistrationContract
from tests.unit.supervisor.ownership_contract import TOKEN, Instance, LockContract, config_of, id_of
from tests.unit.supervisor.term_contract import TermContract
from webhook_worker.registrations import fetch_from
from webhook_worker.verify import Registration

_bots = itertools.count(4242)

_TIMES = {
    "terms": ("began_at", "ended_at", "successor_until", "handover_requested_at"),
    "instances": ("candidate_after", "handed_over_at", "first_announced_at", "announced_at"),
    "registrations": ("recorded_at", "confirmed_at", "superseded_at"),
}


class _Instance(LeaseDriver):
    """See ownership_contract.Instance."""

    def begin(self, action: m.OpenSession | m.SessionStatement) -> None:
        self.lease.begin(action)

    def cut_wait(self) -> None:
        self.lease.cut_wait()

    def close(self) -> None:
        self.lease.close()


class _PostgresWorld:
    """See ownership_contract.World."""

    def __init__(self, database_url: str, bot_id: int, tasks: asyncio.TaskGroup, lookups: Link) -> None:
        self.instances: list[_Instance] = []
        self._database_url = database_url
        self._bot_id = bot_id
        self._tasks = tasks
        self._lookups = lookups

    async def boot(self, name: str, *, token: str = TOKEN, **variables: str) -> Instance:
        config = config_of(self._database_url, self._bot_id, token, name, **variables)
        instance = _Instance(config, self._tasks)
        self.instances.append(instance)
        return instance

    async def end_session(self, instance: Instance) -> None:
        ended = await rows(
            self._database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
            f"webhook-supervisor {id_of(instance)}",
        )
        assert ended == [(True,)]

    async def pass_time(self, seconds: float) -> None:
        for table, columns in _TIMES.items():
            shifts = ", ".join(f"{column} = {column} - %s * interval '1 s'" for column in columns)
            statement = f"UPDATE webhook_supervisor.{table} SET {shifts} WHERE bot_id = %s RETURNING 1"
            await rows(self._database_url, statement, *[seconds] * len(columns), self._bot_id)

    async def request_handover(self) -> str | None:
        async with await connect(self._database_url, application_name="test") as connection:
            return await handover.request(connection, self._bot_id)

    async def owner(self) -> str | None:
        async with await connect(self._database_url, application_name="test") as connection:
            return await handover.read_owner(connection, self._bot_id)

    async def look_up(self) -> Sequence[Registration]:
        async with asyncio.timeout(HANG_SECONDS):
            await self._lookups.wait_connected()
        return await fetch_from(self._lookups, self._bot_id)()


@pytest.fixture(scope="module")
def shared_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """One database for all bots, of which none may see another."""
    yield postgres_server.create_database("ownership_contract")
    postgres_server.drop_database("ownership_contract")


@pytest_asyncio.fixture
async def world(shared_database_url: str) -> AsyncIterator[_PostgresWorld]:
    """Nobody of this bot has been here."""
    async with Link(shared_database_url, name="lookups") as lookups, asyncio.TaskGroup() as tasks:
        made = _PostgresWorld(shared_database_url, next(_bots), tasks, lookups)
        yield made
        for instance in made.instances:
            instance.close()


class TestLockInPostgres(LockContract):
    """The contract, on Postgres."""


class TestTermsInPostgres(TermContract):
    """The contract, on Postgres."""


class TestAnnouncementsInPostgres(AnnouncementContract):
    """The contract, on Postgres."""


class TestRegistrationsInPostgres(RegistrationContract):
    """The contract, on Postgres."""
