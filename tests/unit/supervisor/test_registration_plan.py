"""How an owner keeps its registration where somebody else changes it, or Telegram does not play along."""

from __future__ import annotations

import itertools

import pytest

from shared import wire
from supervisor import messages as m
from tests.unit.supervisor.courses import settle
from tests.unit.supervisor.world import Instance, World


def settled_for_a_minute(world: World, reconcile: float = 10.0) -> Instance:
    """An owner whose assertion is so old that a foreign secret causes another."""
    owner = world.boot("a", reconcile=reconcile)
    settle(world)
    world.run(61.0)
    return owner


def calls_since(owner: Instance, start: float) -> list[type[m.CallAction]]:
    """The kinds of its Bot API calls from a moment on."""
    return [type(action) for at, action in owner.actions if at >= start and isinstance(action, m.CallAction)]


def test_a13_a_rejected_assertion_after_a_foreign_secret_is_repeated_after_its_pause() -> None:
    """Telegram's 400 would come again at once, and again, twenty times a second."""
    world = World()
    owner = settled_for_a_minute(world)
    owner.hear(wire.ForeignRegistration())
    start = world.now
    owner.always_call_fault = "reject"
    world.run(59.0)
    assert calls_since(owner, start).count(m.SetWebhook) == 1
    owner.always_call_fault = None
    world.run(5.0)
    assert calls_since(owner, start).count(m.SetWebhook) == 2


def test_a19_what_was_mended_is_compared_at_once() -> None:
    """Not a period later: until then health and status would call a registration that stands out of sync."""
    world = World()
    owner = settled_for_a_minute(world, reconcile=60.0)
    world.telegram.url = "elsewhere"
    world.run_until(lambda: world.telegram.url == "ours-t", 61.0)
    world.run(1.0)
    assert owner.state.webhook is not None
    assert owner.state.webhook.in_sync
    assert owner.state.webhook_error is None


def test_b30_who_overwrites_only_the_secret_is_named_counted_and_backed_off() -> None:
    """The secret cannot be read back: that it was another one, only the answer to our own call tells."""
    world = World(tick_seconds=1.0, beat_seconds=4.0)
    owner = settled_for_a_minute(world, reconcile=60.0)
    told = len(owner.lines)
    mended: list[float] = []
    for _ in range(3600):
        if not world.telegram.foreign_secret:
            mended.append(world.now)
            world.telegram.foreign_secret = True
        owner.hear(wire.ForeignRegistration())
        world.run(1.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(mended)]
    assert all(pause <= 65.0 for pause in pauses[1:4]), "at once, as far as the rate allows"
    assert pauses[4:] == sorted(pauses[4:])
    assert pauses[-1] > 400.0
    lines = owner.lines[told:]
    drifts = [line for line in lines if line.event.startswith("registration drifted")]
    assert len(drifts) == len(mended) - 1
    assert {"drift": "our URL is registered with another secret"} in [line.fields for line in drifts]
    conflicts = [line for line in lines if line.event.startswith("conflict: something else")]
    assert [line.fields["times_within_the_hour"] for line in conflicts] == list(range(3, len(mended)))


def test_a19_a_forger_is_no_conflict() -> None:
    """An assertion that changes nothing shows that nobody had changed anything."""
    world = World(tick_seconds=1.0, beat_seconds=4.0)
    owner = settled_for_a_minute(world)
    for _ in range(600):
        owner.hear(wire.ForeignRegistration())
        world.run(1.0)
    assert owner.state.overwritten == ()
    assert not [line for line in owner.lines if line.level != "info"]


def test_b30_times_within_the_hour_are_of_this_hour() -> None:
    """What was overwritten yesterday is not counted in the line either."""
    world = World(tick_seconds=1.0, beat_seconds=4.0)
    owner = settled_for_a_minute(world)
    for pause in (100.0, 100.0, 4000.0):
        world.telegram.url = None
        world.run(pause)
    told = len(owner.lines)
    world.telegram.url = None
    world.run(30.0)
    assert "conflict: something else" not in "".join(line.event for line in owner.lines[told:])


@pytest.mark.parametrize("read", [m.CompareWebhook, m.VerifyIdentity])
def test_b23_a_read_that_waits_gives_way_to_an_assertion(read: type[m.CallAction]) -> None:
    """A flood limit on getWebhookInfo or getMe is no reason to leave a registration unmended for that long."""
    world = World()
    owner = settled_for_a_minute(world)
    if read is m.VerifyIdentity:
        world.run_until(lambda: owner.state.call is None)
        owner.call_fault = "wait long"
        owner.hear(wire.TokenRefused())
    else:
        owner.call_fault = "wait long"
    world.run_until(lambda: owner.state.call is not None and owner.state.webhook_error is not None)
    assert isinstance(owner.state.call, read)
    start = world.now
    owner.hear(wire.ForeignRegistration())
    world.run(5.0)
    assert calls_since(owner, start) == [m.SetWebhook]
    assert owner.state.webhook_error is None
    world.run(start + 290.0 - world.now)
    assert calls_since(owner, start) == [m.SetWebhook], "what Telegram said about reading holds all the same"
    world.run(60.0)
    assert m.CompareWebhook in calls_since(owner, start)


def test_b23_a_read_that_waits_for_nothing_else_is_left_alone() -> None:
    """It is made when its time has come, by who waits for it."""
    world = World()
    owner = settled_for_a_minute(world)
    start = world.now
    owner.call_fault = "wait"
    world.run(60.0)
    failed = [event for event in owner.events if isinstance(event, m.CallFailed)]
    assert failed == []
    assert m.SetWebhook not in calls_since(owner, start)


def test_deliveries_that_fail_are_told_once_for_each_reason() -> None:
    """A registration that stands is no use where nothing arrives; and what is over, or came through, is no news."""
    world = World()
    owner = settled_for_a_minute(world)
    told = len(owner.lines)
    for date, message, pending in (
        (100, "502", 0),  # it came through later
        (100, "502", 3),  # others wait, and nothing failed since
        (110, "502", 3),
        (120, "502", 4),
        (120, "502", 4),
        (130, "time-out", 5),
        (130, "time-out", 0),
        (140, "time-out", 1),
    ):
        world.telegram.failure = (message, date, pending)
        world.run(10.0)
    warnings = [(line.event, line.fields) for line in owner.lines[told:] if line.level == "warning"]
    assert warnings == [
        ("deliveries fail", {"reason": "502", "pending": 3}),
        ("deliveries fail", {"reason": "time-out", "pending": 5}),
        ("deliveries fail", {"reason": "time-out", "pending": 1}),
    ]
