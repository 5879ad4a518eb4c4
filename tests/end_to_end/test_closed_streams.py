"""Started by something that closes the standard streams (`<&-`, `>&-`): their numbers are nobody else's then."""

from __future__ import annotations

import shlex
import sys

import pytest

from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.guarded import GuardedProcess, inherited_environment
from deploy.local.ports import free_port
from tests.end_to_end.instance import Instance, World, eventually
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
