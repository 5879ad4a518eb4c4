"""GET /status: what it says of a moment, of another, and of what nobody knows."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from msgspec.structs import replace

from supervisor import messages as m
from supervisor.metrics import exposition
from supervisor.narration import PREVIEW
from supervisor.state import State
from supervisor.status import WallClock, status
from tests.unit.supervisor.courses import owner_and_standby, settle
from tests.unit.supervisor.test_metrics import CONFIG, WALL
from tests.unit.supervisor.world import Instance, World


def seen(instance: Instance) -> Any:
    """The body, of an instance of the world."""
    return status(instance.state, instance.world.now, CONFIG, WallClock(lambda: WALL))


def shown_webhook(state: State, now: float) -> tuple[str | None, int | None]:
    """Its last error and how many updates wait."""
    body: Any = status(state, now, CONFIG, WallClock(lambda: WALL))
    return body["webhook"]["last_error"], body["webhook"]["pending_update_count"]


def owner_that_has_checked() -> tuple[World, Instance]:
    """What the webhook is."""
    world = World()
    one = world.boot("a")
    settle(world)
    world.run_until(lambda: one.state.webhook is not None)
    return world, one


def test_a_moment_is_told_as_it_was_told_first() -> None:
    """A reader compares two terms by it; two clocks are never read at once, and one of them is set now and then."""
    world, one = owner_that_has_checked()
    late = datetime.timedelta()
    wall = WallClock(lambda: WALL + datetime.timedelta(seconds=world.now) + late)

    def shown() -> Any:
        return status(one.state, world.now, CONFIG, wall)

    first = shown()
    assert first["term"]["since"] is not None
    assert first["webhook"]["last_checked"] is not None
    late = datetime.timedelta(seconds=0.000_3)
    assert shown() == first
    one.lose_session()
    world.run_until(lambda: one.state.term is not None and one.state.term.number == 2)
    assert shown()["term"]["since"] > first["term"]["since"]


def test_b16_a_moment_is_told_by_the_clock_that_was_set_since() -> None:
    """A machine may start an hour off and be put right later; what was told by then was wrong."""
    world, one = owner_that_has_checked()
    ahead = datetime.timedelta()
    wall = WallClock(lambda: WALL + datetime.timedelta(seconds=world.now) + ahead)

    def shown() -> list[datetime.datetime]:
        body: Any = status(one.state, world.now, CONFIG, wall)
        return [
            datetime.datetime.fromisoformat(text)
            for text in (body["term"]["since"], body["webhook"]["last_checked"])
        ]

    first = shown()
    ahead = datetime.timedelta(hours=-1)
    assert shown() == [moment + ahead for moment in first]


def test_t_nobody_names_himself_the_holder_of_a_lock_that_he_has_lost() -> None:
    """The term's row names him for as long as the database cannot be asked; of others it may be the latest that is known."""
    world = World()
    owner, standby = owner_and_standby(world)
    assert (seen(owner)["lock"]["holder"], seen(standby)["lock"]["holder"]) == ("a", "a")
    world.run_until(lambda: owner.state.holder == "a")
    world.stop_database(30.0)
    world.run(5.0)
    assert seen(owner)["role"] == "PASSIVE"
    assert seen(owner)["lock"]["holder"] is None
    assert seen(standby)["lock"]["holder"] == "a"


def test_t_who_was_killed_is_not_named_as_the_holder_of_the_lock() -> None:
    """The term's row stays open; decisions go by it all the same."""
    world = World()
    owner = world.boot("a")
    settle(world)
    preview = world.boot("b", may_own=False)
    world.run_until(lambda: preview.state.holder == "a")
    assert seen(preview)["lock"]["holder"] == "a"
    owner.kill_9()
    world.run(10.0)
    assert preview.state.holder == "a"
    assert seen(preview)["lock"]["holder"] is None
    heir = world.boot("c")
    world.run_until(lambda: heir.state.term is not None)
    assert seen(heir)["lock"]["holder"] == "c"
    world.run_until(lambda: seen(preview)["lock"]["holder"] == "c")


def test_a_preview_deploy_says_why_it_does_not_wait() -> None:
    """`check` sends an operator here. The database's trouble is told first, and an instance that may own has no such reason."""
    world = World()
    preview, standby = world.boot("a", may_own=False), world.boot("b")
    world.run(10.0)
    lock = seen(preview)["lock"]
    assert (lock["state"], lock["reason"]) == ("not waiting", PREVIEW)
    assert seen(standby)["lock"]["reason"] is None
    world.stop_database(60.0)
    world.run(5.0)
    assert seen(preview)["lock"]["reason"] == "connection refused"


def test_a_standby_does_not_tell_what_it_heard_of_the_webhook_as_owner() -> None:
    """It looks at it no more, and the owner mends it meanwhile."""
    world, one = owner_that_has_checked()
    state = replace(
        one.state,
        webhook=m.WebhookFacts(
            in_sync=True,
            drift=None,
            pending_update_count=7,
            last_error="refused",
            last_error_date=int(WALL.timestamp()) - 30,
        ),
    )
    late = replace(state, webhook_error="502 Bad Gateway")
    assert shown_webhook(state, world.now) == ("refused (30 s ago)", 7)
    assert shown_webhook(late, world.now) == ("502 Bad Gateway", 7)
    for owned in (state, late):
        assert shown_webhook(replace(owned, term=None), world.now) == (None, None)
    refused = replace(late, term=None, token_refused=True)
    assert shown_webhook(refused, world.now) == ("502 Bad Gateway", None)


def test_b23_what_is_asserted_and_not_looked_at_yet_is_not_known() -> None:
    """Else an alert fires for a registration that stands; what is not asserted (a13) is not as wanted."""
    world = World()
    one = world.boot("a")
    one.call_fault = "retry"
    world.run_until(lambda: one.state.webhook_error is not None)
    assert seen(one)["webhook"]["in_sync"] is False
    world.run_until(lambda: one.state.term is not None and one.state.term.registration.asserted)
    assert seen(one)["webhook"]["in_sync"] is None
    assert b"webhook_in_sync" not in exposition(seen(one))
    world.run_until(lambda: one.state.webhook is not None)
    assert seen(one)["webhook"]["in_sync"] is True
    # Asserted once more, as where a foreign secret was seen: the verdict is of before.
    term = one.state.term
    assert term is not None
    assert term.registration.compared_at is not None
    again = replace(term.registration, asserted_at=term.registration.compared_at + 0.1)
    shown: Any = status(
        replace(one.state, term=replace(term, registration=again)), world.now, CONFIG, WallClock()
    )
    assert shown["webhook"]["in_sync"] is None


def test_b24_a_standby_that_asks_about_its_own_token_tells_why_it_has_no_answer() -> None:
    """Until it has one it is not ready, and this is the reason."""
    world = World()
    world.boot("a")
    settle(world)
    other = world.boot("b", token="other", deploy="d2")
    other.call_fault = "retry"
    world.run_until(lambda: other.state.webhook_error is not None)
    assert seen(other)["webhook"]["last_error"] == other.state.webhook_error


def test_the_worker_has_its_pid_before_it_is_ready() -> None:
    """It may never be: whoever looks for the process wants to find it."""
    world = World()
    one = world.boot("a")
    world.run_until(lambda: [w.pid for w in one.state.workers] not in ([], [None]))
    first = one.state.workers[0].pid
    assert (seen(one)["worker"]["ready"], seen(one)["worker"]["pid"]) == (False, first)
    settle(world)
    assert (seen(one)["worker"]["ready"], seen(one)["worker"]["pid"]) == (True, first)
    # Beside one that accepts, that is the one.
    one.replace_worker()
    world.run_until(lambda: len(one.state.workers) == 2 and one.state.workers[1].pid is not None)
    assert seen(one)["worker"]["pid"] == first
    one.end_worker(one.state.workers[0].id, "killed")
    # The one that is imported, and one more that receives meanwhile: the newest is shown.
    world.run_until(lambda: {w.pid for w in one.state.workers}.isdisjoint({first, None}))
    assert not seen(one)["worker"]["ready"]
    assert seen(one)["worker"]["pid"] == one.state.workers[-1].pid


def test_what_no_worker_has_told_yet_is_null() -> None:
    """A number would be believed."""
    world = World()
    body = seen(world.boot("a"))
    assert body["inbox"] == dict.fromkeys(("pending", "in_flight", "dead", "oldest_pending_seconds"))
    assert body["pool"] == dict.fromkeys(("size", "in_use", "waiting", "unstored"))


@pytest.mark.parametrize("way", ["stops", "has no worker"])
def test_who_left_the_queue_does_not_say_that_it_waits(way: str) -> None:
    """It has tried the lock in this session, and will again: but the owner's death would leave nobody now."""
    world = World()
    owner, standby = owner_and_standby(world)
    assert (seen(owner)["lock"]["state"], seen(standby)["lock"]["state"]) == ("held", "waiting")
    if way == "stops":
        standby.stop()
    else:
        standby.always_spawn_fault = "hang"
        standby.end_worker(standby.state.workers[0].id, "killed by SIGKILL")
    world.run(1.0)
    assert standby.state.session.open
    assert seen(standby)["lock"]["state"] == "not waiting"
    if way == "has no worker":
        standby.always_spawn_fault = None
        settle(world, 150.0)
        assert seen(standby)["lock"]["state"] == "waiting"


def one_that_gave_up(world: World) -> tuple[Instance, Instance]:
    """Its bot did not start after a crash, and would now; the other one owns."""
    one, other = owner_and_standby(world)
    one.always_lead_fault = "fail"
    assert one.dispatching is not None
    one.end_worker(one.dispatching.id, "exit status 1")
    world.run_until(lambda: one.state.abstain_until > world.now)
    one.always_lead_fault = None
    world.run_until(lambda: other.dispatching is not None)
    world.run(5.0)
    assert seen(one)["worker"]["ready"]
    return one, other


def shown_lock(instance: Instance) -> tuple[str, str | None]:
    """Its state, and why it is that."""
    lock = seen(instance)["lock"]
    return lock["state"], lock["reason"]


def test_b21_an_instance_that_gave_up_the_lock_says_so_while_it_leaves_it_to_others() -> None:
    """For a minute or more it stays out of the queue, and is well otherwise."""
    world = World()
    one, other = one_that_gave_up(world)
    left = one.state.abstain_until - world.now
    assert shown_lock(one) == (
        "not waiting",
        f"gave up the lock: leaves it to others for {left:.0f} s more, see [LOCK] in the log",
    )
    assert shown_lock(other) == ("held", None)
    world.run(left + 5.0)
    assert shown_lock(one) == ("waiting", None)


def test_b21_an_instance_that_gave_up_and_owns_again_does_not_say_so() -> None:
    """It keeps out only in favour of others, and nobody else is there."""
    world = World()
    one, other = one_that_gave_up(world)
    other.kill_9()
    world.run_until(lambda: world.owners() == [one])
    assert world.now < one.state.abstain_until
    assert shown_lock(one) == ("held", None)


def test_b21_an_instance_that_gave_up_and_stops_does_not_say_so() -> None:
    """It does not come back."""
    world = World()
    one, _ = one_that_gave_up(world)
    one.stop()
    world.run(1.0)
    assert shown_lock(one) == ("not waiting", None)
