"""One update that takes the bot's process along, each time that it is run."""

from __future__ import annotations

import pytest

from tests.end_to_end.instance import World, eventually
from tests.end_to_end.test_lifecycle import a_run_has_begun, runs
from tests.integration.supervisor.lease_driver import rows

MAX_ATTEMPTS = 2

WITHOUT_CORE = ("/bin/sh", "-c", 'ulimit -c 0; exec "$@"', "sh")
"""A process that is killed for a fault of its own leaves a file where the system is set so."""


@pytest.mark.parametrize(("way", "status"), [("exits", "exit status 70"), ("segfaults", "killed by SIGSEGV")])
async def test_b25_a_poison_update_becomes_a_dead_letter_and_takes_nobody_along(
    world: World, way: str, status: str
) -> None:
    """An update in flight beside it, and one behind it in its chat, are handled."""
    variables = {"BOT_APP": "tests.campaign.poison:build", "MAX_ATTEMPTS": str(MAX_ATTEMPTS)}
    one = world.instance("one", world.port, variables)
    one.command = (*WITHOUT_CORE, *one.command)
    await one.start()
    await one.wait_until_owner()
    beside = (await world.telegram.send_text(8, "work 2")).update_id
    await a_run_has_begun(world, beside)
    poison = (await world.telegram.send_text(7, f"/poison {way}")).update_id
    behind = (await world.telegram.send_text(7, "work 0")).update_id

    async def states() -> dict[object, object]:
        found = await rows(world.database_url, "SELECT update_id, state FROM webhook_supervisor.inbox")
        return {row[0]: row[1] for row in found}

    async def are_finished() -> bool:
        found = list((await states()).values())
        return len(found) == 3 and set(found) <= {"done", "dead"}

    await eventually(are_finished, "the end of all three")
    assert await states() == {beside: "done", poison: "dead", behind: "done"}
    dead = "SELECT starts, error <> '' FROM webhook_supervisor.inbox WHERE state = 'dead'"
    assert await rows(world.database_url, dead) == [(MAX_ATTEMPTS, True)]
    started = [run["update_id"] for run in runs(world) if run["event"] == "start"]
    assert started.count(poison) == MAX_ATTEMPTS
    ends = [line.fields["status"] for line in one.lines if line.event == "worker ended"]
    assert ends == [status] * MAX_ATTEMPTS
