"""Fixtures for everybody: a Postgres for the session; a database, and a Bot API emulator, for the test.

    postgres_server   session   PostgresServer, fsync off; one for each xdist worker, about 0.8 s to start, 30 MB.
                                Shared: a test that restarts or kills it uses a server of its own instead
                                (`own_postgres_server`).
    own_postgres_server         PostgresServer for this test alone, to be restarted, stopped, killed
    database_url                DSN of a fresh, empty database; dropped afterwards, sessions in it ended
    running_emulator            RunningEmulator: a Bot API emulator in a process of its own, with one bot
    emulator                    its EmulatorClient

Which Postgres: LOCAL_POSTGRES, as in `make run`. Nothing here is imported before a test asks for it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deploy.local.emulator.client import EmulatorClient
    from deploy.local.emulator_process import RunningEmulator
    from deploy.local.postgres import PostgresServer

_numbers = itertools.count(1)


def pytest_configure() -> None:
    """Tests side by side get ports of their own: one that was given to a test may not be bound for seconds."""
    from deploy.local.ports import keep_to_part

    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    keep_to_part(int(worker), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true what is skipped because a fault cannot be made here fails, as in the campaign: else nobody would see it."""
    report = yield
    if report.skipped and call.excinfo is not None and os.environ.get("CI") == "true":
        from tests.campaign.faults import Unavailable

        if isinstance(missing := call.excinfo.value.__context__, Unavailable):
            report.outcome = "failed"
            report.longrepr = f"skipped, and with CI=true that is a failure: {missing}"
    return report


def _postgres_server(folder: Path) -> PostgresServer:
    from deploy.local.postgres import PostgresServer
    from deploy.local.postgres_binaries import find_binaries

    binaries = find_binaries(os.environ.get("LOCAL_POSTGRES", ""))
    return PostgresServer(folder, binaries=binaries, durable=False, keep_data=False)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The session's server: share it, and leave it running."""
    with _postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def own_postgres_server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server for one test, which may do to it what it likes."""
    with _postgres_server(tmp_path / "own-postgres") as server:
        yield server


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The DSN of a database that nobody has used before."""
    name = f"test_{next(_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
async def running_emulator(tmp_path: Path) -> AsyncIterator[RunningEmulator]:
    """A fresh emulator with one bot: its addresses, the bot's token, its process, and a client."""
    from deploy.local.emulator_process import run_emulator

    async with run_emulator(tmp_path / "emulator.log") as running:
        yield running


@pytest.fixture
def emulator(running_emulator: RunningEmulator) -> EmulatorClient:
    """The client of a fresh emulator."""
    return running_emulator.client
