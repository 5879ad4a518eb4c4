"""The operator's commands, beside real instances: what they print, how they end, and that looking changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from deploy.local.emulator.faults import Fault, FaultKind
from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.guarded import inherited_environment
from shared import database
from shared.database.schema import read_migrations
from shared.errors import SchemaError
from tests.end_to_end.instance import HANG_SECONDS, World, eventually

PHASES = [
    "configuration",
    "bot",
    "database",
    "schema",
    "owner",
    "telegram",
    "webhook",
    "address",
    "inbox",
]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """Its output as JSON."""
        return json.loads(self.output)

    def phase(self, name: str) -> dict[str, Any]:
        """One phase of the diagnosis."""
        [found] = [phase for phase in self.document["phases"] if phase["phase"] == name]
        assert isinstance(found, dict)
        return found


async def command(world: World, *arguments: str, **variables: str) -> Ended:
    """`python -m supervisor ARGUMENTS` in the environment of an instance."""
    return await command_into(world, arguments, variables)


async def command_into(
    world: World,
    arguments: Sequence[str],
    variables: dict[str, str],
    *,
    stdout: int = asyncio.subprocess.PIPE,
    stderr: int = asyncio.subprocess.PIPE,
) -> Ended:
    """The same, its output to somewhere else, which is not in what it printed."""
    environment = world.instance("command", world.port, variables).environment
    world.instances.pop()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "supervisor", *arguments),
        # With a buffer, as ever: what becomes of its output is found out when that is written.
        env={**inherited_environment(), **environment, "PYTHONUNBUFFERED": ""},
        cwd=PROJECT_FOLDER,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )
    async with asyncio.timeout(HANG_SECONDS):
        output, errors = await process.communicate()
    assert process.returncode is not None
    # None where it was written elsewhere.
    ended = Ended(process.returncode, (output or b"").decode(), (errors or b"").decode())
    assert "Traceback" not in ended.errors, ended.errors
    assert world.emulator.token not in ended.output + ended.errors
    return ended


@contextlib.contextmanager
def gone_reader() -> Iterator[int]:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


async def tables(world: World) -> list[str]:
    """What the schema has, by name."""
    async with await psycopg.AsyncConnection.connect(world.database_url) as connection:
        rows = await connection.execute(
            "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'webhook_supervisor'"
        )
        return [str(name) for (name,) in await rows.fetchall()]


async def update_rows(world: World, state: str) -> list[int]:
    """The ids of the updates in that state."""
    async with await psycopg.AsyncConnection.connect(world.database_url) as connection:
        rows = await connection.execute(
            "SELECT update_id FROM webhook_supervisor.inbox WHERE state = %s ORDER BY seq", (state,)
        )
        return [int(update_id) for (update_id,) in await rows.fetchall()]


async def test_status_tells_who_owns_and_who_waits(world: World) -> None:
    """By what the database says: no instance is asked."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    two = await world.start("two")
    await two.wait_for("[LOCK] lock held elsewhere")
    status = await two.status()

    async def is_told() -> bool:
        roles = {item["instance_id"]: item["role"] for item in (await found())["instances"]}
        return roles == {(await one.status())["instance_id"]: "ACTIVE", status["instance_id"]: "PASSIVE"}

    async def found() -> dict[str, Any]:
        ended = await command(world, "status", "--json")
        assert ended.status == 0, ended.errors
        document: dict[str, Any] = ended.document
        return document

    await eventually(is_told, "both instances in the status")
    document = await found()
    assert document["owner"]["instance_id"].startswith("one-")
    assert document["owner"]["term"] == 1
    assert [item["holds_lock"] for item in document["instances"]] == [True, False]
    assert document["registration"]["is_of_this_environment"] is True
    assert document["inbox"] == {"pending": 0, "in_flight": 0, "dead": 0, "oldest_pending_seconds": 0}

    ended = await command(world, "status", WEBHOOK_SECRET_TOKEN="another-secret-of-16")
    assert ended.status == 0
    lines = ended.output.splitlines()
    assert lines[0].startswith(f"owner         {document['owner']['instance_id']} since ")
    assert "term 1" in lines[0]
    assert "of another path or secret than this environment's" in lines[-1]


async def test_status_of_a_database_that_nobody_used(world: World) -> None:
    """Nothing is made by looking."""
    ended = await command(world, "status")
    assert (ended.status, ended.errors) == (0, "")
    assert "nobody, and there was never one" in ended.output
    assert await tables(world) == []


@pytest.mark.parametrize(
    ("arguments", "variables", "status"),
    [
        (["status"], {}, 0),
        (["check", "--json"], {}, 0),
        (["check", "--json"], {"BOT_APP": "tests.sample_bots.nowhere:build"}, 1),
        (["check"], {}, 141),  # its first line is its last one
        (["check"], {"LOG_LEVEL": "x"}, 2),
        (["--help"], {}, 0),
    ],
)
async def test_a_reader_that_has_gone_is_no_fault(
    world: World, arguments: list[str], variables: dict[str, str], status: int
) -> None:
    """`status | head` ends quietly: neither a traceback nor a word about the database, and with the exit code that it had."""
    with gone_reader() as stdout:
        ended = await command_into(world, arguments, variables, stdout=stdout)
    assert (ended.status, ended.errors) == (status, "")


async def test_check_is_good_before_the_first_start_and_beside_an_owner(world: World) -> None:
    """Every phase says what it found; nothing is changed by it."""
    before = await command(world, "check", "--json")
    assert (before.status, before.document["ok"]) == (0, True), before.output
    assert [phase["phase"] for phase in before.document["phases"]] == PHASES
    assert before.phase("schema")["detail"].startswith("not there yet")
    assert before.phase("address")["verdict"] == "skipped"
    assert await tables(world) == []

    one = await world.start_public("one")
    await one.wait_until_owner()
    await world.say(7, "/start")
    asserted = (await world.methods_called()).count("setWebhook")
    beside = await command(world, "check", "--json")
    assert (beside.status, beside.document["ok"]) == (0, True), beside.output
    assert {phase["verdict"] for phase in beside.document["phases"]} == {"ok"}
    assert "one-" in beside.phase("owner")["detail"]
    assert "ACTIVE" in beside.phase("address")["detail"]
    calls = await world.methods_called()
    assert (calls.count("setWebhook"), calls.count("deleteWebhook")) == (asserted, 0)

    shown = await command(world, "check")
    assert shown.status == 0
    assert [line.split()[:2] for line in shown.output.splitlines()] == [["ok", phase] for phase in PHASES]


async def test_check_of_a_bot_that_moves_here_is_good_before_the_first_start(world: World) -> None:
    """Its webhook is still that of run_webhook, or of any other server. Once an owner has been, that is a fault."""
    elsewhere = {"WEBHOOK_BASE_URL": "http://127.0.0.1:9"}
    assert (await command(world, "webhook", "set", **elsewhere)).status == 0
    before = await command(world, "check", "--json")
    assert (before.status, before.document["ok"]) == (0, True), before.output
    assert before.phase("webhook")["detail"] == "another one is set; the first owner replaces it"
    polling = await command(world, "check", "--json", BOT_MODE="polling", WEBHOOK_BASE_URL="")
    assert polling.phase("webhook")["detail"] == "one is set; the first owner deletes it"

    one = await world.start_public("one")
    await one.wait_until_owner()
    await one.close()
    assert (await command(world, "webhook", "set", "--force", **elsewhere)).status == 0
    since = (await command(world, "check", "--json")).phase("webhook")
    assert since["verdict"] == "failed"
    assert since["detail"].startswith("another URL is registered")


async def test_check_goes_on_where_a_proxy_of_a_kind_that_httpx_does_not_know_is_set(world: World) -> None:
    """Every phase has its verdict, those behind it too."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    ended = await command(world, "check", "--json", ALL_PROXY="socks5://127.0.0.1:1", NO_PROXY="")
    assert ended.status == 1
    assert [phase["phase"] for phase in ended.document["phases"]] == PHASES
    for phase in ("telegram", "address"):
        assert ended.phase(phase)["verdict"] == "failed"
        assert "cannot be made: ImportError" in ended.phase(phase)["detail"]


async def test_check_takes_an_older_schema_for_what_it_is(world: World) -> None:
    """Before the first start of a new version: its first instance brings the tables up to date."""
    connection = await database.connect(world.database_url, application_name="test")
    async with connection:
        # The first version's tables, which this one does not take as they are.
        with contextlib.suppress(SchemaError):
            await database.apply_schema(connection, read_migrations()[:1])
    ended = await command(world, "check", "--json")
    assert ended.status == 0, ended.output
    assert "brings it up to date" in ended.phase("schema")["detail"]
    assert ended.phase("owner")["detail"] == "no instance has run yet"


@pytest.mark.parametrize(
    ("phase", "variables", "words"),
    [
        ("database", {"DATABASE_URL": "postgresql://user:hidden-word@127.0.0.1:1/x"}, "connection refused"),
        ("telegram", {"TELEGRAM_BOT_TOKEN": "4711:another"}, "401"),
        ("bot", {"BOT_APP": "tests.sample_bots.nowhere:build"}, "there is no module"),
    ],
)
async def test_check_names_what_fails(
    world: World, phase: str, variables: dict[str, str], words: str
) -> None:
    """And goes on: whoever mends one thing a day wants to know of all."""
    ended = await command(world, "check", "--json", **variables)
    assert (ended.status, ended.document["ok"]) == (1, False)
    assert [found["phase"] for found in ended.document["phases"]] == PHASES
    assert ended.phase(phase)["verdict"] == "failed"
    assert words in ended.phase(phase)["detail"]
    assert "hidden-word" not in ended.output


async def test_b14_check_names_a_database_that_is_read_only_by_default(world: World) -> None:
    """No instance could announce itself there: that none is listed tells nothing, and to start one helps nobody."""
    options = {"PGOPTIONS": "-c default_transaction_read_only=on"}
    one = await world.start("one", **options)
    await one.wait_for("[LOCK] tables cannot be made")
    for _ in range(2):
        ended = await command(world, "check", "--json", **options)
        assert (ended.status, ended.document["ok"]) == (1, False)
        assert [found["phase"] for found in ended.document["phases"]] == PHASES
        found = ended.phase("database")
        assert (found["verdict"], "read-only" in found["detail"]) == ("failed", True)
        assert "ALTER ROLE or ALTER DATABASE" in found["remedy"]
        assert [ended.phase(name)["verdict"] for name in ("schema", "owner")] == ["skipped"] * 2
        assert ended.phase("inbox")["detail"] == "0 pending, 0 in flight, 0 dead letters"
        # The second time in tables that an earlier owner has left.
        connection = await database.connect(world.database_url, application_name="test")
        async with connection:
            await database.apply_schema(connection)


async def test_check_finds_a_silent_bot(world: World) -> None:
    """Whose webhook somebody deleted, and whose last owner was killed."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    await one.close()
    assert (await command(world, "webhook", "delete", "--force")).status == 0
    ended = await command(world, "check", "--json")
    assert ended.status == 1
    assert "no instance runs; the last owner was one-" in await _owner_detail(world)
    assert "no webhook is set" in ended.phase("webhook")["detail"]


async def test_b21_check_finds_a_new_deploy_that_gave_up(world: World) -> None:
    """The old one owns on, and all else is well: nobody would look further."""
    old = await world.start_public("old", DEPLOY_ID="d1")
    await old.wait_until_owner()
    new = await world.start("new", DEPLOY_ID="d2", BOT_APP="tests.end_to_end.bots:failing_leader")
    await new.wait_for("[LOCK] giving up the lock: the bot does not start here")
    await old.wait_until_owner()

    async def is_good_otherwise() -> bool:
        phases = (await command(world, "check", "--json")).document["phases"]
        return [phase["phase"] for phase in phases if phase["verdict"] != "ok"] == ["owner"]

    await eventually(is_good_otherwise, "a check whose one fault is the new deploy")
    checked = await command(world, "check", "--json")
    assert checked.status == 1
    assert "; 1 other instance; new-" in checked.phase("owner")["detail"]
    assert "gave up the lock" in checked.phase("owner")["detail"]
    shown = await command(world, "status")
    [line] = [line for line in shown.output.splitlines() if line.startswith("instance      new-")]
    assert "gave up the lock" in line
    assert str((await new.status())["lock"]["reason"]).startswith("gave up the lock")


async def _owner_detail(world: World) -> str:
    async def is_noticed() -> bool:
        return bool((await command(world, "check", "--json")).phase("owner")["verdict"] == "failed")

    await eventually(is_noticed, "an owner that is gone")
    return str((await command(world, "check", "--json")).phase("owner")["detail"])


async def test_bad_configuration_ends_every_command_with_2(world: World) -> None:
    """With every fault; the diagnosis has them as its only phase."""
    bad = {"LOG_LEVEL": "x", "MAX_CONNECTIONS": "0"}
    ended = await command(world, "status", **bad)
    assert (ended.status, len(ended.errors.splitlines())) == (2, 2)
    checked = await command(world, "check", "--json", **bad)
    assert (checked.status, checked.document["ok"]) == (2, False)
    assert [phase["phase"] for phase in checked.document["phases"]] == ["configuration"] * 2
    assert (await command(world, "nonsense")).status == 2


async def test_handover_moves_the_ownership_and_says_to_whom(world: World) -> None:
    """To an instance of the same deploy too; where nobody owns, or nobody else could, it says so and does nothing."""
    assert "nobody owns" in (await command(world, "handover")).errors
    one = await world.start_public("one")
    await one.wait_until_owner()
    alone = await command(world, "handover")
    assert (alone.status, alone.output) == (1, "")
    assert "no other instance is ready" in alone.errors
    two = await world.start("two")
    await two.wait_until_healthy()

    async def is_ready() -> bool:
        instances = (await command(world, "status", "--json")).document["instances"]
        return [item["ready"] for item in instances] == [True, True]

    await eventually(is_ready, "two ready instances")
    moved = await command(world, "handover")
    assert moved.status == 0, moved.errors
    asked, owns = moved.output.splitlines()
    assert asked.startswith("asked one-")
    assert owns.startswith("two-")
    assert owns.endswith(" owns")
    await two.wait_until_owner()
    await one.wait_for("[STATE_SYNC] ACTIVE -> PASSIVE (handed over on request)")


async def test_the_commands_read_a_database_that_writes_times_in_another_way(world: World) -> None:
    """For another application's sake, by the role or the database: DateStyle and time zone are ours in our own sessions."""
    options = {"PGOPTIONS": "-c datestyle=German -c timezone=<+05>-5"}
    one = await world.start_public("one", BOT_APP="tests.end_to_end.bots:failing", **options)
    await one.wait_until_owner()
    await world.telegram.send_text(7, "first words")

    async def is_dead() -> bool:
        return bool(await update_rows(world, "dead"))

    await eventually(is_dead, "a dead letter")
    [update] = await update_rows(world, "dead")
    for arguments, status, words in (
        (("status",), 0, "one-"),
        (("check",), 0, "ok       owner         one-"),
        (("inbox", "list"), 0, f"update {update}"),
        (("inbox", "show", str(update)), 0, "+00:00"),
        (("handover",), 1, "no other instance is ready"),
        (("webhook", "set"), 1, "owns the bot"),
    ):
        ended = await command(world, *arguments, **options)
        assert (ended.status, words in ended.output + ended.errors) == (status, True), ended
        assert len(ended.errors.splitlines()) == status, ended.errors


async def test_webhook_by_hand_leaves_an_owner_alone(world: World) -> None:
    """`set` and `delete` refuse beside one, unless they are forced to; `info` tells what stands."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    for action in ("set", "delete"):
        refused = await command(world, "webhook", action)
        assert refused.status == 1
        assert "one-" in refused.errors
        assert "--force" in refused.errors
    assert (await world.methods_called()).count("deleteWebhook") == 0
    told = await command(world, "webhook", "info", "--json")
    assert (told.status, told.document["in_sync"]) == (0, True)
    assert told.document["url"].endswith("/webhook/***")
    assert (await command(world, "webhook", "delete", "--force")).status == 0
    drifted = await command(world, "webhook", "info")
    assert drifted.status == 0
    assert "no webhook is set" in drifted.output


async def test_webhook_set_when_nobody_owns(world: World) -> None:
    """What it registers is known to every instance; Telegram may put the call off by a second, so soon after the last one."""
    one = await world.start_public("one")
    await one.wait_until_owner()
    assert await one.stop() == 0
    secret = {"WEBHOOK_SECRET_PATH": "path-by-hand-of-16", "WEBHOOK_SECRET_TOKEN": "secret-by-hand-of-16"}
    await world.telegram.add_fault(
        Fault(FaultKind.TOO_MANY_REQUESTS, method="setWebhook", count=1, retry_after=1)
    )
    ended = await command(world, "webhook", "set", **secret)
    assert (ended.status, ended.output) == (
        0,
        f"Webhook was set: http://127.0.0.1:{world.port}/webhook/***\n",
    )
    webhook = await world.telegram.webhook()
    assert webhook.url.endswith("/webhook/path-by-hand-of-16")
    assert webhook.secret_token == "secret-by-hand-of-16"
    async with await psycopg.AsyncConnection.connect(world.database_url) as connection:
        rows = await connection.execute(
            "SELECT confirmed_at IS NOT NULL, superseded_at IS NULL FROM webhook_supervisor.registrations "
            "WHERE path_hash = sha256('path-by-hand-of-16')"
        )
        assert await rows.fetchall() == [(True, True)]


async def test_a28_the_commands_know_that_a_polling_bot_wants_no_webhook(world: World) -> None:
    """None is what is good; an address is not asked for, and setting one by hand is refused with the reason."""
    polling = {"BOT_MODE": "polling", "WEBHOOK_BASE_URL": ""}
    one = await world.start("one", **polling)
    await one.wait_until_owner()
    ended = await command(world, "check", "--json", **polling)
    assert ended.status == 0, ended.output
    assert ended.phase("configuration")["detail"].endswith("polls")
    assert ended.phase("webhook")["detail"].startswith("none is set")
    assert ended.phase("address")["verdict"] == "skipped"
    assert (await command(world, "webhook", "info", **polling)).status == 0
    ended = await command(world, "status", **polling)
    assert ended.output.splitlines()[-1] == "registration  none: updates are polled"
    assert (await command(world, "status", "--json", **polling)).document["registration"] is None
    ended = await command(world, "webhook", "set", "--force", **polling)
    assert ended.status == 1
    assert "BOT_MODE is polling" in ended.errors
    # A deploy that is to have one: what it would set is not there.
    ended = await command(world, "check", "--json")
    assert ended.phase("webhook")["verdict"] == "failed"


async def test_dead_letters_are_listed_run_again_and_dropped(world: World) -> None:
    """By the update_id that the log names."""
    one = await world.start_public("one", BOT_APP="tests.end_to_end.bots:failing")
    await one.wait_until_owner()
    for text in ("first words", "second words"):
        await world.telegram.send_text(7, text)

    async def both_are_dead() -> bool:
        return len(await update_rows(world, "dead")) == 2

    await eventually(both_are_dead, "two dead letters")
    first, second = await update_rows(world, "dead")
    listed = await command(world, "inbox", "list", "--state", "dead", "--json")
    assert [row["update_id"] for row in listed.document] == [first, second]
    assert "first words" not in listed.output
    assert f"update {second}" in (await command(world, "inbox", "list")).output
    [shown] = (await command(world, "inbox", "show", str(first), "--body", "--json")).document
    assert "Traceback" in shown["error"]
    assert "first words" in shown["body"]

    runs = one.count("[FLOW] message from")
    assert (await command(world, "inbox", "retry", str(first))).status == 0
    await one.wait_for("[FLOW] message from", count=runs + 1)
    await eventually(both_are_dead, "the same dead letter again")

    dropped = await command(world, "inbox", "drop", str(second), "12345")
    assert dropped.status == 1
    assert "12345" in dropped.errors
    assert dropped.output == f"update {second}: dropped\n"
    assert await update_rows(world, "dead") == [first]
    assert second in await update_rows(world, "done")
    assert (await command(world, "inbox", "drop", "--all-dead")).output == f"update {first}: dropped\n"
    assert (await command(world, "inbox", "show", "12345")).status == 1
    assert (await command(world, "inbox", "list")).output == "nothing is pending or claimed or dead\n"
