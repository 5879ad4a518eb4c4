"""INTERFACE.md's log lines: their tags, their beginnings, their order."""

from __future__ import annotations

import itertools

import pytest

from shared import wire
from supervisor import messages as m
from supervisor.narration import Line
from tests.unit.supervisor.courses import owner_and_standby, settle
from tests.unit.supervisor.world import URL, Instance, World, beat

RUNBOOK_TAGS = {"LOCK", "LOCK_CONTROLLER", "STATE_SYNC", "WEBHOOK", "BOT_VERIFY"}
ASIDE = ("database session opened",)


def said(instance: Instance, start: int = 0) -> list[str]:
    """The lines that runbooks grep for, as they are printed, without the fields that follow."""
    return [
        f"[{line.tag}] {line.event}"
        for line in instance.lines[start:]
        if line.tag in RUNBOOK_TAGS and line.event not in ASIDE
    ]


ASSERTION = [
    "[WEBHOOK] setting webhook",
    "[WEBHOOK] webhook set",
    "[LOCK_CONTROLLER] active services initialized (webhook set)",
    "[BOT_VERIFY] bot identity: @menu_bot (id=7)",
    f"[BOT_VERIFY] webhook: {URL} (pending=0)",
]


def test_first_deploy_says_the_lines_of_the_interface_in_their_order() -> None:
    """Exactly these, and nothing between them."""
    world = World()
    owner = world.boot("a")
    settle(world)
    world.run(20.0)
    assert said(owner) == [
        "[LOCK] acquiring PostgreSQL advisory lock",
        "[LOCK] PostgreSQL advisory lock acquired",
        "[LOCK_CONTROLLER] ACTIVE MODE (lock acquired immediately)",
        *ASSERTION,
    ]
    assert all(line.level == "info" for line in owner.lines)


def test_b24_a_handlers_401_is_told_as_a_question_and_its_answer() -> None:
    """Whoever reads the log learns that it was another token, or that it was ours."""
    world = World()
    owner = world.boot("a")
    settle(world)
    world.run(30.0)
    told = len(owner.lines)
    owner.hear(wire.TokenRefused())
    world.run(1.0)
    asking = "[BOT_VERIFY] Telegram answered 401 to the bot: asking whether it refuses the bot token"
    good = "[BOT_VERIFY] the bot token is good: the 401 was about another one that handlers use"
    assert said(owner, told) == [asking, good]
    world.run(30.0)
    world.telegram.refused_tokens.add("t")
    told = len(owner.lines)
    owner.hear(wire.TokenRefused())
    world.run(1.0)
    refused = "[BOT_VERIFY] Telegram refuses the bot token (401): set the current one"
    assert said(owner, told) == [asking, "[WEBHOOK] Telegram refused the call", refused]


def test_a_standby_says_so_once_and_takes_over_with_its_waiting_time() -> None:
    """Not a line a second while it waits; the webhook is already set then."""
    world = World()
    owner, standby = owner_and_standby(world)
    assert said(standby) == [
        "[LOCK] acquiring PostgreSQL advisory lock",
        "[LOCK] lock held elsewhere, standing by",
        "[LOCK_CONTROLLER] PASSIVE MODE (lock held elsewhere)",
    ]
    assert {"holder": "a"} in [line.fields for line in standby.lines]
    before = len(standby.lines)
    world.run(30.0)
    assert len(standby.lines) == before
    owner.kill_9()
    settle(world)
    world.run(1.0)
    lines = said(standby, before)
    assert lines[0] == "[LOCK] PostgreSQL advisory lock acquired"
    assert lines[1].startswith("[STATE_SYNC] PASSIVE -> ACTIVE (lock acquired after 3")
    assert lines[2].startswith("[LOCK_CONTROLLER] ACTIVE MODE (lock acquired after 3")
    assert lines[2].endswith("s as standby)")
    assert (
        lines[3:]
        == [line.replace("webhook set", "webhook already set", 1) for line in ASSERTION[:2]] + ASSERTION[2:]
    )


def test_a_hand_over_is_told_on_both_sides() -> None:
    """ACTIVE -> PASSIVE with the reason; then it stands by, and does not name itself as the holder."""
    world = World()
    old = world.boot("a", deploy="d1")
    settle(world)
    world.run(1.0)
    before = len(old.lines)
    world.boot("b", deploy="d2")
    settle(world)
    world.run_until(lambda: world.owners() == [world.instances["b"]])
    world.run(3.0)
    assert said(old, before) == [
        "[STATE_SYNC] ACTIVE -> PASSIVE (handed over to a newer deploy)",
        "[LOCK] term closed",
        "[LOCK] acquiring PostgreSQL advisory lock",
        "[LOCK] lock held elsewhere, standing by",
        "[LOCK_CONTROLLER] PASSIVE MODE (lock held elsewhere)",
    ]
    assert {"reason": "handed over to a newer deploy", "successor": "b"} in [
        line.fields for line in old.lines
    ]
    assert {"holder": "a"} not in [line.fields for line in old.lines]


def test_every_loss_of_the_role_is_told_and_every_return() -> None:
    """STATE_SYNC lines alternate, whatever happens."""
    world = World()
    owner = world.boot("a")
    for trouble in (owner.lose_session, owner.replace_worker, lambda: crash(owner), owner.lose_session):
        settle(world)
        world.run(1.0)
        trouble()
        world.run(1.0)
    settle(world)
    owner.stop()
    world.run_until(lambda: owner.exit_code == 0)
    turns = [line.event[:17] for line in owner.lines if line.tag == "STATE_SYNC"]
    assert turns == ["ACTIVE -> PASSIVE", "PASSIVE -> ACTIVE"] * 4 + ["ACTIVE -> PASSIVE"]


def test_a_return_is_told_also_where_no_worker_had_led() -> None:
    """It owned, and waited for Telegram: its worker was to poll once there is no webhook."""
    world = World()
    world.telegram.is_away = True
    owner = world.boot("a", polls=True)
    world.run(10.0)
    assert world.owners() == [owner]
    owner.lose_session()
    world.run(10.0)
    assert world.owners() == [owner]
    turns = [line.event for line in owner.lines if line.tag == "STATE_SYNC"]
    assert turns == ["ACTIVE -> PASSIVE (session lost)", "PASSIVE -> ACTIVE (new term)"]


def test_a_new_term_without_a_standby_has_the_line_that_a_first_one_has() -> None:
    """Runbooks grep for two forms of ACTIVE MODE; why it is a new one is told before it."""
    for trouble in (Instance.lose_session, crash):
        world = World()
        owner = world.boot("a")
        settle(world)
        world.run(1.0)
        before = len(owner.lines)
        trouble(owner)
        world.run(5.0)
        back = ["[STATE_SYNC] PASSIVE -> ACTIVE (new worker, new term)"]
        active = ["[LOCK_CONTROLLER] ACTIVE MODE (lock acquired immediately)"]
        lines = said(owner, before)
        at = lines.index(back[0])
        assert lines[at : at + 2] == back + active


def crash(owner: Instance) -> None:
    """The leading worker dies."""
    assert owner.dispatching is not None
    owner.end_worker(owner.dispatching.id, "killed by SIGKILL")


def test_a12_an_outage_is_told_once_and_not_every_second() -> None:
    """One line a minute for as long as the reason is the same."""
    world = World(database_up=False)
    instance = world.boot("a")
    world.run(55.0)
    lines = [line for line in instance.lines if line.tag == "LOCK"]
    assert lines == [
        Line(
            "LOCK",
            "database cannot be reached, standing by and trying every second",
            {"reason": "connection refused"},
            "warning",
        )
    ]


def _of_sessions(instance: Instance, start: int) -> list[tuple[str, object]]:
    lines = [line for line in instance.lines[start:] if line.event.startswith("database")]
    return [(line.event, line.fields.get("reason")) for line in lines]


@pytest.mark.parametrize(
    ("outage", "event"),
    [
        ("away", "database cannot be reached, standing by and trying every second"),
        ("no tables", "tables cannot be made or brought up to date, trying every second"),
        ("no writes", "database session lost"),
        ("no answer", "database session closed"),
    ],
)
def test_a12_an_outage_is_told_again_each_minute(outage: str, event: str) -> None:
    """Whoever looks at the last minutes of a log finds it there, and everything else as well."""
    world = World(
        database_up=outage != "away",
        schema_fault="permission denied" if outage == "no tables" else None,
        write_fault="no space left" if outage == "no writes" else None,
    )
    instance = world.boot("a")

    def hang() -> None:
        instance.statement_fault = "hang"
        world.at(0.5, hang)

    if outage == "no answer":
        hang()
    told_at: list[float] = []

    def is_told() -> bool:
        return [line.event for line in instance.lines].count(event) > len(told_at)

    for _ in range(5):
        world.run_until(is_told, 90.0)
        told_at.append(world.now)
    # The first statement may fail for a reason of its own; a try without an answer takes 20 s.
    pauses = [later - earlier for earlier, later in itertools.pairwise(told_at[1:])]
    assert all(60.0 <= pause < 85.0 for pause in pauses), pauses


def test_b14_a_database_that_takes_sessions_and_no_writes_is_told_once_and_not_every_second() -> None:
    """Lost for a reason, lost for another, and opened again once it answers: two lines a second would bury all others."""
    world = World()
    owner = world.boot("a")
    settle(world)
    world.run(1.0)
    assert _of_sessions(owner, 0) == [("database session opened", None)]
    before = len(owner.lines)
    for fault in ("no space left", "no space left", "canceling statement due to statement timeout", None):
        world.write_fault = fault
        world.run(25.0)
    assert _of_sessions(owner, before) == [
        ("database session lost", "no space left"),
        ("database session lost", "canceling statement due to statement timeout"),
        ("database session opened", None),
    ]
    owner.lose_session("canceling statement due to statement timeout")
    world.run(10.0)
    assert _of_sessions(owner, before)[3:] == [
        ("database session lost", "canceling statement due to statement timeout"),
        ("database session opened", None),
    ]


def test_b14_from_the_start_on_too() -> None:
    """What was opened first is told at once; it was nobody's loss before."""
    world = World(write_fault="no space left")
    instance = world.boot("a")
    world.run(55.0)
    assert _of_sessions(instance, 0) == [
        ("database session opened", None),
        ("database session lost", "no space left"),
    ]
    assert instance.state.session.reason == "no space left"  # what status says


def test_a_worker_that_receives_does_not_say_that_it_stores() -> None:
    """Without a database it answers 503, and no line says so of a worker that has not stored yet."""
    world = World(database_up=False)
    instance = world.boot("a")
    world.run(5.0)
    assert [line.event for line in instance.lines if line.tag == "WORKER"] == [
        "worker started",
        "worker receives updates while it imports its bot",
        "worker accepts connections",
    ]


def test_a_preview_deploy_says_why_it_stays_passive() -> None:
    """And makes no attempt at the lock."""
    world = World()
    preview = world.boot("a", may_own=False)
    world.run(30.0)
    assert said(preview) == [
        "[LOCK_CONTROLLER] PASSIVE MODE (preview deploy: set ALLOW_PREVIEW=1 to let it own the bot)"
    ]
    assert preview.health.ok
    assert preview.count(m.TryLock) == 0


def test_a13_failures_of_telegram_are_told_with_reason_and_pause() -> None:
    """Transient ones as warnings, refusals as errors."""
    world = World()
    owner = world.boot("a")
    owner.call_fault = "retry"
    settle(world)
    assert (
        Line("WEBHOOK", "Telegram call failed", {"reason": "503", "retry_in": "1.0s"}, "warning")
        in owner.lines
    )
    owner.call_fault = "reject"
    owner.replace_worker()
    world.run(5.0)
    refusal = Line(
        "WEBHOOK", "Telegram refused the call", {"reason": "bad webhook", "fault": "rejected"}, "error"
    )
    assert refusal in owner.lines


def test_a28_an_outage_before_which_nobody_polls_is_told_once() -> None:
    """It is asked about every two seconds."""
    world = World()
    world.telegram.is_away = True
    owner = world.boot("a", polls=True)
    world.run(30.0)
    said_once = ["deleting webhook", "Telegram call failed"]
    assert [line.event for line in owner.lines if line.tag == "WEBHOOK"] == said_once
    owner.lose_session()
    world.run(60.0)
    assert [line.event for line in owner.lines if line.tag == "WEBHOOK"] == 2 * said_once


def test_exit_says_its_code_and_its_faults() -> None:
    """The last lines of a process that cannot run."""
    world = World()
    instance = world.boot("a")
    instance.spawn_fault = "faults"
    world.run_until(lambda: instance.exit_code is not None)
    assert [(line.event, line.fields, line.level) for line in instance.lines[-2:]] == [
        ("BOT_APP does not import", {}, "critical"),
        ("exit", {"code": 2}, "info"),
    ]


def test_storing_lost_and_back_is_told_once_each() -> None:
    """From the worker's beats."""
    world = World()
    owner = world.boot("a")
    settle(world)
    worker = owner.dispatching
    assert worker is not None
    for storing in (True, False, False, True, True):
        owner.hear(beat(storing=storing), worker.id)
    world.run(0.01)
    events = [line.event for line in owner.lines if "stored" in line.event]
    assert events == ["updates cannot be stored", "updates are stored again"]
