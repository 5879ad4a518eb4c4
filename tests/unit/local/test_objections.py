"""What makes the demo fail, and what does not."""

from __future__ import annotations

from dataclasses import replace

from deploy.local.history import Breach, Death, Verdict
from deploy.local.platform.records import Occurrence, Record
from deploy.local.stage import Scene, find_objections

GOOD = Verdict(100, 0, (), (), (), 0, 0)
DEPLOY = Scene("rolling_deploy", 0.0, 0, 0)
KILL = Scene("kill", 0.0, 0, 0, deaths=[Death("a", 1.0, 2.0)])


def test_nothing_is_held_against_a_good_run() -> None:
    """A kill may cost answers, and repeats what was in flight."""
    assert find_objections(DEPLOY, GOOD, [Record(0.0, Occurrence.EXITED, "a")]) == ()
    assert find_objections(KILL, replace(GOOD, not_200=3, rerun=5, in_flight_at_deaths=5), []) == ()


def test_every_broken_promise_is_named() -> None:
    """Lost, doubled, out of order, too many reruns, an answer other than 200 without a kill, an orphan."""
    breach = (Breach(7, "..."),)
    assert find_objections(DEPLOY, replace(GOOD, lost=breach), []) == ("rolling_deploy: update 7 ...",)
    assert len(find_objections(KILL, replace(GOOD, doubled=breach), [])) == 1
    assert len(find_objections(KILL, replace(GOOD, out_of_order=breach), [])) == 1
    assert len(find_objections(KILL, replace(GOOD, rerun=6, in_flight_at_deaths=5), [])) == 1
    assert len(find_objections(DEPLOY, replace(GOOD, rerun=1), [])) == 1
    assert len(find_objections(DEPLOY, replace(GOOD, not_200=1), [])) == 1
    orphan = Record(0.0, Occurrence.LEFTOVERS, "a", "2")
    assert find_objections(KILL, GOOD, [orphan]) == ("kill: a left 2 processes behind",)
