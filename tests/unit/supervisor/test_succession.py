"""Who should own next."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from supervisor.messages import Peer
from supervisor.succession import (
    ALIVE_SECONDS,
    as_known,
    bearer_of_another_token,
    is_alive,
    is_request_young,
    other_code_waiting,
    other_there,
    others_waiting,
    successor,
    successor_of_any_deploy,
)

OWNER = Peer(
    instance_id="owner",
    deploy_id="old",
    token_fingerprint="t",
    ready=True,
    waiting=False,
    candidate=True,
    age_seconds=1000.0,
    silent_seconds=0.0,
    handed_over_seconds=None,
)
YOUNG = replace(OWNER, instance_id="young", deploy_id="new", waiting=True, age_seconds=5.0)


def test_b17_a_ready_waiting_instance_of_a_younger_deploy_is_the_successor() -> None:
    """The plain case of a rolling deploy."""
    assert successor((OWNER, YOUNG), "owner") == "young"


@pytest.mark.parametrize(
    "unfit",
    [
        replace(YOUNG, ready=False),
        replace(YOUNG, waiting=False),
        replace(YOUNG, candidate=False),
        replace(YOUNG, deploy_id=None),
        replace(YOUNG, deploy_id="old"),
        replace(YOUNG, age_seconds=2000.0),
        replace(YOUNG, age_seconds=1000.0),
        replace(YOUNG, silent_seconds=ALIVE_SECONDS + 0.1),
        replace(YOUNG, handed_over_seconds=30.0),
    ],
    ids=[
        "not ready",
        "not waiting",
        "gave up",
        "no deploy",
        "same deploy",
        "older",
        "as old",
        "silent",
        "handed over",
    ],
)
def test_b17_nobody_else_is(unfit: Peer) -> None:
    """Each condition counts by itself."""
    assert successor((OWNER, unfit), "owner") is None


def test_b17_a_hand_over_under_way_does_not_ask_who_stands_in_the_queue_just_now() -> None:
    """A candidate leaves it for milliseconds between two waits."""
    between = replace(YOUNG, waiting=False)
    assert successor((OWNER, between), "owner", waiting=False) == "young"
    assert successor((OWNER, replace(between, ready=False)), "owner", waiting=False) is None


def test_b17_without_a_deploy_id_nothing_is_handed_over() -> None:
    """Where the platform gives none, hand-over waits for SIGTERM; nor when our own row is not there."""
    assert successor((replace(OWNER, deploy_id=None), YOUNG), "owner") is None
    assert successor((YOUNG,), "owner") is None


def test_b17_a_deploy_is_as_old_as_its_oldest_instance_of_the_last_minute() -> None:
    """A scaled-up instance of an older deploy is not young; after a minute of silence the deploy is young again."""
    veteran = replace(YOUNG, instance_id="veteran", ready=False, age_seconds=5000.0, silent_seconds=50.0)
    assert successor((OWNER, YOUNG, veteran), "owner") is None
    assert successor((OWNER, YOUNG, replace(veteran, silent_seconds=61.0)), "owner") == "young"


def test_b17_of_the_youngest_deploy_the_oldest_instance_is_named_by_everybody() -> None:
    """Whoever looks at the same rows, in whatever order, names the same one."""
    newer = replace(YOUNG, instance_id="newer", deploy_id="newest", age_seconds=2.0)
    peers = (OWNER, YOUNG, newer, replace(newer, instance_id="newer2", age_seconds=3.0))
    assert {successor(order, "owner") for order in itertools.permutations(peers)} == {"newer2"}


def test_b16_who_is_from_before_the_clock_was_set_back_is_the_oldest() -> None:
    """Its first announcement has not come yet, by that clock; whoever is, was there before all who are not."""
    owner = replace(OWNER, age_seconds=-3590.0)
    assert successor((owner, YOUNG), "owner") == "young"
    assert successor((replace(owner, waiting=True), replace(YOUNG, waiting=False)), "young") is None
    both = owner, replace(YOUNG, age_seconds=-3595.0)
    assert successor(both, "owner") == "young", "among themselves they are in order"
    assert successor((OWNER, replace(YOUNG, age_seconds=-1.0)), "owner") == "young", "a second is no step"


def test_b16_what_was_before_the_clock_was_set_back_is_long_over() -> None:
    """A rollback to a deploy that had handed over, and whose instance is gone."""
    gone = replace(
        YOUNG, instance_id="gone", age_seconds=-3000.0, silent_seconds=-3400.0, handed_over_seconds=-3400.0
    )
    assert successor((OWNER, YOUNG, gone), "owner") == "young"


def test_b16_whoever_was_known_keeps_its_age_when_the_clock_is_set_back() -> None:
    """By our own clock: also where only one of the two is from before by its age alone. What is over is over a minute later."""
    old = replace(OWNER, age_seconds=86400.0, waiting=True, handed_over_seconds=50.0)
    before = old, replace(YOUNG, age_seconds=60.0, waiting=False)
    assert as_known(before, (), float("inf")) == before
    assert as_known(before, before, 2.0) == before, "a question that was under way for two seconds"
    set_back = tuple(replace(p, age_seconds=p.age_seconds - 3598.0, silent_seconds=-3598.0) for p in before)
    set_back = (replace(set_back[0], handed_over_seconds=-3548.0), set_back[1])
    seen = as_known(set_back, before, 2.0)
    assert [p.age_seconds for p in seen] == [86402.0, 62.0]
    assert [p.silent_seconds for p in seen] == [2.0, 2.0]
    assert [p.handed_over_seconds for p in seen] == [52.0, None]
    assert successor(seen, "young") is None
    later = tuple(replace(p, age_seconds=p.age_seconds + 10.0, silent_seconds=0.5) for p in set_back)
    assert [p.age_seconds for p in as_known(later, seen, 10.0)] == [86412.0, 72.0]
    assert [p.silent_seconds for p in as_known(later, seen, 10.0)] == [0.5, 0.5]


def test_b17_of_two_deploys_only_one_ever_hands_over_to_the_other() -> None:
    """Younger is a strict order: there is no ping-pong, whatever the ages."""
    for ours, theirs in itertools.product((1.0, 5.0, 5.0, 100.0), repeat=2):
        left = replace(OWNER, instance_id="l", deploy_id="left", age_seconds=ours, waiting=True)
        right = replace(OWNER, instance_id="r", deploy_id="right", age_seconds=theirs, waiting=True)
        assert not (successor((left, right), "l") and successor((left, right), "r"))


def test_b17_a_deploy_that_handed_over_is_handed_nothing_back_within_a_minute() -> None:
    """Whichever of its instances did, and whatever its age looks like."""
    gave = replace(YOUNG, instance_id="gave", waiting=False, handed_over_seconds=59.0)
    assert successor((OWNER, YOUNG, gave), "owner") is None
    assert successor((OWNER, YOUNG, replace(gave, handed_over_seconds=61.0)), "owner") == "young"


@pytest.mark.parametrize(
    "fit",
    [
        YOUNG,
        replace(YOUNG, deploy_id="old"),
        replace(YOUNG, deploy_id=None),
        replace(YOUNG, age_seconds=2000.0),
        replace(YOUNG, handed_over_seconds=3.0),
    ],
    ids=["newer", "same deploy", "no deploy", "older", "handed over"],
)
def test_on_request_any_deploy_will_do(fit: Peer) -> None:
    """Also where the platform names none, and one that handed over a moment ago."""
    assert successor_of_any_deploy((OWNER, fit), "owner") == "young"
    assert successor_of_any_deploy((replace(OWNER, deploy_id=None), fit), "owner") == "young"


@pytest.mark.parametrize(
    "unfit",
    [
        replace(YOUNG, ready=False),
        replace(YOUNG, waiting=False),
        replace(YOUNG, candidate=False),
        replace(YOUNG, silent_seconds=ALIVE_SECONDS + 0.1),
        replace(YOUNG, instance_id="owner"),
    ],
    ids=["not ready", "not waiting", "gave up", "silent", "itself"],
)
def test_on_request_nobody_who_could_not_own(unfit: Peer) -> None:
    """Each condition counts by itself."""
    others = tuple(p for p in (OWNER, unfit) if p is unfit or unfit.instance_id != "owner")
    assert successor_of_any_deploy(others, "owner") is None


def test_on_request_the_youngest_deploy_comes_first() -> None:
    """Whom older code would hand the bot to at its first look; of that deploy everybody names the same one."""
    older = replace(YOUNG, instance_id="older", deploy_id="older", age_seconds=5000.0)
    sibling = replace(OWNER, instance_id="sibling", waiting=True, age_seconds=900.0)
    peers = (OWNER, older, sibling, replace(sibling, instance_id="later", age_seconds=10.0))
    assert {successor_of_any_deploy(order, "owner") for order in itertools.permutations(peers)} == {"sibling"}
    between = tuple(replace(p, waiting=False) for p in peers)
    assert successor_of_any_deploy(between, "owner") is None
    assert successor_of_any_deploy(between, "owner", waiting=False) == "sibling"


def test_a_request_is_young_for_a_minute() -> None:
    """And one from before the clock was set back is none."""
    assert [is_request_young(age) for age in (0.0, 60.0, -60.0)] == [True] * 3
    assert [is_request_young(age) for age in (None, 60.1, -60.1, 3600.0)] == [False] * 4


def test_b24_the_bearer_of_another_token() -> None:
    """Ready, waiting, alive, no backoff: the youngest; the deploy does not matter."""
    bearer = replace(YOUNG, token_fingerprint="t2", deploy_id=None)
    assert bearer_of_another_token((OWNER, YOUNG), "owner", "t") is None
    assert bearer_of_another_token((OWNER, YOUNG, bearer), "owner", "t") == "young"
    for unfit in (
        replace(bearer, ready=False),
        replace(bearer, waiting=False),
        replace(bearer, candidate=False),
        replace(bearer, silent_seconds=7.0),
    ):
        assert bearer_of_another_token((OWNER, unfit), "owner", "t") is None
        found = bearer_of_another_token((OWNER, unfit), "owner", "t", waiting=False)
        assert found == (None if unfit.waiting else "young")


def test_alive_and_waiting() -> None:
    """Three announcements of 2 s may be missed; our own row does not count as another."""
    assert is_alive(replace(OWNER, silent_seconds=6.0))
    assert not is_alive(replace(OWNER, silent_seconds=6.1))
    assert not is_alive(replace(OWNER, silent_seconds=-6.1)), "from before the clock was set back"
    assert others_waiting((OWNER, YOUNG), "owner")
    assert not others_waiting((OWNER, YOUNG), "young")


def test_another_is_there_that_could_own_if_it_is_ready_or_waits() -> None:
    """A lock that is free is taken by who is not ready, too. Of several, one that is ready is named, and heard of last."""
    ready, waits = replace(YOUNG, waiting=False), replace(YOUNG, instance_id="waits", ready=False)
    assert other_there((OWNER,), "owner") is None
    assert other_there((OWNER, ready), "owner") == "young"
    assert other_there((OWNER, waits), "owner") == "waits"
    assert other_there((OWNER, waits, replace(ready, silent_seconds=3.0)), "owner") == "young"
    later = replace(ready, instance_id="later", silent_seconds=1.0)
    assert other_there((OWNER, replace(ready, silent_seconds=3.0), later), "owner") == "later"
    for gone in (replace(YOUNG, silent_seconds=7.0), replace(waits, waiting=False)):
        assert other_there((OWNER, gone), "owner") is None


def test_b23_other_code_is_an_instance_of_another_deploy_or_of_one_that_nobody_knows() -> None:
    """Without a deploy id nothing tells which code an instance runs."""
    peer = replace(YOUNG, deploy_id="old")
    assert other_code_waiting((OWNER, peer), "owner") is None
    assert other_code_waiting((OWNER, peer, YOUNG), "owner") == "young"
    assert other_code_waiting((OWNER, replace(YOUNG, age_seconds=2000.0)), "owner") == "young", "of any age"
    assert other_code_waiting((OWNER, replace(peer, deploy_id=None)), "owner") == "young"
    unknown = replace(OWNER, deploy_id=None), replace(peer, deploy_id=None)
    assert other_code_waiting(unknown, "owner") == "young"
    for unfit in ({"waiting": False}, {"ready": False}, {"candidate": False}, {"silent_seconds": 7.0}):
        assert other_code_waiting((OWNER, replace(YOUNG, **unfit)), "owner") is None


def test_b23_of_other_code_the_youngest_is_named() -> None:
    """It may be the one in which the bot is mended."""
    old = replace(YOUNG, instance_id="old", deploy_id="older", age_seconds=5000.0)
    for order in itertools.permutations((OWNER, old, YOUNG)):
        assert other_code_waiting(order, "owner") == "young"
