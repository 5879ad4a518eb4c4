"""A start, from outside: updates are stored long before the bot is built; whatever ends it then leaves nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx

from shared.database import apply_schema, connect
from shared.database.schema import read_migrations
from tests.end_to_end.instance import Instance, World, eventually, running_first
from tests.end_to_end.test_standby import KNOWN, post_update, text_update, wait_until_done
from tests.integration.supervisor.lease_driver import rows


def held(tmp_path: Path) -> dict[str, str]:
    """A bot that is not built before `tmp_path / "release"` is there."""
    return {"BOT_APP": "tests.end_to_end.bots:held", "RELEASE": str(tmp_path / "release")}


async def held_instance(world: World, tmp_path: Path, **variables: str) -> Instance:
    """One whose bot is not built, and that stores already."""
    one = await world.start_public("one", **KNOWN, **held(tmp_path), **variables)
    await one.wait_for("[WORKER] worker receives updates while it imports its bot")

    async def is_stored() -> bool:
        return (await post_update(one, text_update(1, 7, "work 0"))).status_code == 200

    await eventually(is_stored, "an update that is stored")
    return one


def workers_of(instance: Instance) -> list[int]:
    """Processes that were started to serve its port, and have named themselves since."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name, environment = (path / "comm").read_text(), (path / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or is not ours to read
        if name == "webhook_worker\n" and f"PORT={instance.port}".encode() in environment.split(b"\0"):
            found.append(int(path.name))
    return found


async def test_b21_updates_are_stored_and_health_says_starting_while_a_bot_is_imported(
    world: World, tmp_path: Path
) -> None:
    """However long it takes: no update waits for it, nobody is told to send traffic, nobody owns. And then all is well."""
    one = await held_instance(world, tmp_path)
    for own_port in (False, True):
        answer = await one.get("/healthz", own_port=own_port)
        assert answer.status_code == 503
        assert answer.json()["reason"] == "starting: the worker is not up yet"
    status = await one.status()
    assert (status["role"], status["worker"]["ready"]) == ("PASSIVE", False)
    (tmp_path / "release").touch()
    await one.wait_until_owner()
    await wait_until_done(world, 1)
    assert await one.stop() == 0


async def test_b20_a_stop_before_the_bot_is_built_is_an_orderly_one(world: World, tmp_path: Path) -> None:
    """It lingers, answers what comes meanwhile, and leaves no process; nothing of the bot runs any more."""
    one = await held_instance(world, tmp_path, LINGER_SECONDS="4")
    assert workers_of(one) != []
    one.signal(signal.SIGTERM)
    await one.wait_for("[LOCK_CONTROLLER] stopping: asked by a signal")
    assert (await post_update(one, text_update(2, 7, "work 0"))).status_code == 200
    assert await one.wait_for_exit() == 0
    assert workers_of(one) == []
    assert not one.has("[WORKER] worker accepts connections")


async def test_b20_a_stop_in_the_first_moment_is_an_orderly_one_too(world: World, tmp_path: Path) -> None:
    """The worker answers before the supervisor has imported what it needs: the signal waits, and nobody is cut off."""
    async with await connect(world.database_url, application_name="test") as database:
        await apply_schema(database)
    one = await world.start_public("one", **KNOWN, **held(tmp_path), LINGER_SECONDS="4")

    async def is_stored() -> bool:
        try:
            return (await post_update(one, text_update(1, 7, "work 0"))).status_code == 200
        except httpx.TransportError:
            return False  # the port is not bound yet

    await eventually(is_stored, "an update that is stored")
    one.signal(signal.SIGTERM)
    answers = []
    while not one.has("[LOCK_CONTROLLER] stopping: asked by a signal"):
        answers.append((await post_update(one, text_update(2, 7, "work 0"))).status_code)
    answers.append((await post_update(one, text_update(3, 7, "work 0"))).status_code)
    assert set(answers) == {200}
    assert await one.wait_for_exit() == 0
    assert not one.has("[WORKER] killing the worker")
    assert workers_of(one) == []


async def test_b17_the_worker_that_replaces_one_that_accepts_takes_its_time(world: World) -> None:
    """It stores nothing before its bot is built, since another does; so no connection of its own is at risk if that fails."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    one.signal(signal.SIGHUP)
    await one.wait_for("[WORKER] worker dispatches updates", count=2)
    assert one.count("[WORKER] worker receives updates while it imports its bot") == 1
    assert one.count("[WORKER] worker accepts connections") == 2


async def test_b02_where_a_leader_dies_while_its_replacement_is_imported_another_stores(
    world: World, tmp_path: Path
) -> None:
    """That was to take its time. Of the two, one leads once the bot is built, and the other one goes in peace."""
    (tmp_path / "release").touch()
    one = await world.start_public("one", **KNOWN, **held(tmp_path))
    await one.wait_until_owner()
    leader = await one.worker_pid()
    (tmp_path / "release").unlink()
    one.signal(signal.SIGHUP)
    await one.wait_for("[WORKER] worker started", count=2)
    os.kill(leader, signal.SIGKILL)
    await one.wait_for("[WORKER] worker receives updates while it imports its bot", count=2)
    assert (await post_update(one, text_update(1, 7, "work 0"))).status_code == 200
    (tmp_path / "release").touch()
    await wait_until_done(world, 1)

    async def is_alone() -> bool:
        return len(workers_of(one)) == 1

    await eventually(is_alone, "one worker")
    assert await one.worker_pid() == workers_of(one)[0]
    assert one.count("[WORKER] worker started") == 3
    assert not one.has("[WORKER] killing the worker")


# Stands in for a newer schema.sql whose last migration the server refuses. A step of a sequence is not taken back with the rest
# of a transaction: it counts the tries.
REFUSED_MIGRATION = """
import pathlib
read = pathlib.Path.read_bytes
def read_bytes(path):
    text = read(path)
    if path.name == "schema.sql":
        text += b"\\n-- migration %d: refused\\nSELECT nextval('tries') / 0;\\n"
    return text
pathlib.Path.read_bytes = read_bytes
"""


async def test_a30_a_deploy_whose_migration_fails_never_owns_and_the_one_before_it_goes_on(
    world: World, tmp_path: Path
) -> None:
    """Health fails with the reason on both ports, the log tells it once, the owner stays owner. Mended, the deploy owns."""
    one = await world.start_public("one", **KNOWN, DEPLOY_ID="code-1")
    await one.wait_until_owner()
    term = (await one.status())["term"]["number"]
    versions = "SELECT version, applied_at FROM webhook_supervisor.schema_version ORDER BY version"
    before = await rows(world.database_url, versions)
    async with await connect(world.database_url, application_name="test") as database:
        await database.execute("CREATE SEQUENCE tries")
    newer = running_first(REFUSED_MIGRATION % (len(read_migrations()) + 1), tmp_path)
    two = await world.start("two", **KNOWN, DEPLOY_ID="code-2", **newer)
    await two.wait_for("[WORKER] worker accepts connections")

    async def is_tried_often() -> bool:
        [(tries,)] = await rows(world.database_url, "SELECT last_value FROM tries")
        return isinstance(tries, int) and tries > 3

    async def says_why() -> bool:
        answers = [await two.get("/healthz", own_port=own_port) for own_port in (False, True)]
        reason = "the tables cannot be made or brought up to date: the log says why"
        return all((a.status_code, a.json().get("reason")) == (503, reason) for a in answers)

    await eventually(is_tried_often, "tries to bring the tables up to date")
    await eventually(says_why, "health that says why it fails")
    for own_port in (False, True):
        assert (await one.get("/healthz", own_port=own_port)).json() == {"status": "ok", "role": "ACTIVE"}
    assert two.count("[LOCK] tables cannot be made or brought up to date") == 1
    assert two.count("[LOCK]") == 1
    assert (await one.status())["term"]["number"] == term
    assert await rows(world.database_url, versions) == before
    assert await two.stop() == 0
    assert not two.has("[LOCK_CONTROLLER] ACTIVE MODE")
    again = await world.start("two", **KNOWN, DEPLOY_ID="code-2")
    await again.wait_until_owner()
    await one.wait_for("[STATE_SYNC] ACTIVE -> PASSIVE (handed over to a newer deploy)")
