"""Started by something that closes the standard streams (`<&-`, `>&-`), whose numbers are nobody else's then; or by something
that does not take what is written to them."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.guarded import GuardedProcess, inherited_environment
from deploy.local.ports import free_port
from shared import database
from tests.end_to_end.instance import Instance, World, eventually
from tests.end_to_end.test_commands import command_into, gone_reader, update_rows
from tests.end_to_end.test_standby import KNOWN
from tests.integration.supervisor.lease_driver import rows


class ShellInstance(Instance):
    """One that a shell starts, with redirections."""

    def __init__(self, made: Instance, redirections: str) -> None:
        super().__init__(made.name, made.environment)
        self.redirections = redirections

    async def start(self, *arguments: str) -> None:
        """Spawn it; returns before it is up."""
        command = shlex.join([sys.executable, "-m", "supervisor", *arguments])
        self._process = await GuardedProcess.spawn(
            ["/bin/sh", "-c", f"exec {command} {self.redirections}"],
            environment={**inherited_environment(), **self.environment},
            folder=PROJECT_FOLDER,
            on_line=self._take,
        )


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "<&- >&- 2>&-"])
async def test_a_supervisor_with_closed_streams_owns_and_answers(world: World, redirections: str) -> None:
    """Otherwise the port's socket becomes somebody's standard input or output, and is closed with it."""
    one = ShellInstance(world.instance("one", world.port, KNOWN), redirections)
    world.instances[0] = one
    await one.start()

    async def owns() -> bool:
        assert one.process.is_running, one.output
        made = await rows(world.database_url, "SELECT to_regclass('webhook_supervisor.terms') IS NOT NULL")
        return (
            made == [(True,)]
            and await rows(world.database_url, "SELECT 1 FROM webhook_supervisor.terms") != []
        )

    await eventually(owns, "a term")
    await one.wait_until_healthy()
    assert (await one.status())["role"] == "ACTIVE"
    assert await world.say(7, "/start")
    if ">&-" not in redirections:
        assert one.has("[LOCK_CONTROLLER] ACTIVE MODE")
    assert await one.stop() == 0


@pytest.mark.parametrize("redirections", ["<&-", ">&-"])
async def test_a_command_with_closed_streams_works(world: World, redirections: str) -> None:
    """What it says goes to the streams that are there; its exit code tells the rest."""
    one = ShellInstance(world.instance("one", free_port(), {}), redirections)
    world.instances[0] = one
    await one.start("status")
    assert await one.wait_for_exit() == 0
    assert not any("Traceback" in line for line in one.output)


FAULTS = {"LOG_LEVEL": "x", "MAX_CONNECTIONS": "0"}
FULL = Path("/dev/full")


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    """A file on it."""
    if not FULL.exists():
        pytest.skip(f"there is no {FULL}")
    with FULL.open("wb") as file:
        yield file.fileno()


@pytest.mark.parametrize("nobody_takes", [gone_reader, full_disk])
@pytest.mark.parametrize("arguments", [[], ["status"], ["nonsense"]])
async def test_a_bad_configuration_is_exit_2_whoever_reads_of_it(
    world: World, arguments: list[str], nobody_takes: Callable[[], AbstractContextManager[int]]
) -> None:
    """`python -m supervisor 2>&1 | head -1` with two faults, or its errors on a full disk."""
    with nobody_takes() as stderr:
        ended = await command_into(world, arguments, FAULTS, stderr=stderr)
    assert (ended.status, ended.output) == (2, "")


async def test_what_was_left_alone_is_exit_1_whoever_reads_of_the_rest(world: World) -> None:
    """`inbox drop 1 999 | true`: the first is dropped, of which nobody reads, and of the second standard error tells."""
    async with await database.connect(world.database_url, application_name="test") as connection:
        await database.apply_schema(connection)
        await connection.execute(
            "INSERT INTO webhook_supervisor.inbox (bot_id, update_id, state, finished_at) VALUES (%s, 1, 'dead', now())",
            (int(world.emulator.token.partition(":")[0]),),
        )
    with gone_reader() as stdout:
        ended = await command_into(world, ["inbox", "drop", "1", "999"], {}, stdout=stdout)
    assert ended.status == 1
    [line] = ended.errors.splitlines()
    assert "update 999" in line
    assert await update_rows(world, "done") == [1]


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "errors"),
    [
        (["status"], {}, 1, ["standard output cannot be written: No space left on device"]),
        # Its lines are written one by one.
        (["check"], {}, 1, ["not done to its end: No space left on device"]),
        (["check"], FAULTS, 2, ["standard output cannot be written: No space left on device"]),
    ],
)
async def test_output_on_a_full_disk_is_said_and_never_exit_0(
    world: World, arguments: list[str], variables: dict[str, str], status: int, errors: list[str]
) -> None:
    """Whoever reads the file later would take an empty one for good."""
    with full_disk() as stdout:
        ended = await command_into(world, arguments, variables, stdout=stdout)
    assert (ended.status, ended.errors.splitlines()) == (status, errors)
