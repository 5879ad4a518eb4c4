"""Instances that abstain: which of them `check` finds fault with, and the words of `status` for them."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest

from supervisor.commands.standing import Instance, Standing, Term
from supervisor.commands.status import as_document, as_lines
from tests.unit.supervisor.test_metrics import CONFIG

NOW = datetime.datetime(2026, 1, 12, 14, 40, tzinfo=datetime.UTC)
TERM = Term(7, "old", "d1", NOW - datetime.timedelta(hours=1), None)


def instance(name: str, deploy: str | None, age_hours: float) -> Instance:
    """One that stands by."""
    return Instance(
        instance_id=name,
        deploy_id=deploy,
        ready=True,
        holds=False,
        waits=True,
        is_present=True,
        abstains_seconds=0.0,
        since=NOW - datetime.timedelta(hours=age_hours),
        silent_seconds=1.0,
    )


OWNER = replace(instance("old", "d1", 2.0), holds=True, waits=False)
NEW = replace(instance("new", "d2", 1.0), waits=False, abstains_seconds=45.2)


def standing(*others: Instance, owner: Instance = OWNER) -> Standing:
    """They, beside an owner."""
    return Standing(term=TERM, instances=(owner, *others), lock_pid=1)


@pytest.mark.parametrize(
    ("others", "unfit"),
    [
        ([NEW], ["new"]),
        ([replace(NEW, abstains_seconds=0.0)], []),
        ([replace(NEW, waits=True)], ["new"]),  # for want of an owner's worker, say
        ([replace(NEW, ready=False)], ["new"]),
        ([replace(NEW, is_present=False)], []),
        ([replace(NEW, deploy_id="d1")], ["new"]),
        ([NEW, instance("newer", "d3", 0.5)], ["new"]),  # that is not up yet, or is a preview
        (
            [NEW, instance("older", "d2", 3.0)],
            [],
        ),  # as old as its oldest instance: the owner is the newer code
        (
            [NEW, replace(instance("older", "d2", 3.0), is_present=False)],
            ["new"],
        ),  # that was before a rollback
        ([replace(NEW, deploy_id="d0", since=NOW - datetime.timedelta(hours=3))], []),
    ],
)
def test_an_instance_that_abstains_is_unfit_unless_newer_code_owns(
    others: list[Instance], unfit: list[str]
) -> None:
    """A deploy that fails as owner leaves the bot to the one before, which must not look like a good end."""
    assert [found.instance_id for found in standing(*others).unfit] == unfit


def test_where_the_platform_names_no_deploy_each_that_abstains_is_unfit() -> None:
    """Nobody can tell which code is newer."""
    nameless = replace(NEW, deploy_id=None, since=OWNER.since - datetime.timedelta(hours=1))
    assert standing(nameless, owner=replace(OWNER, deploy_id=None)).unfit == (nameless,)


def test_an_owner_is_not_unfit_by_what_was_before_its_term() -> None:
    """It gave up, and nobody else was there in the end; or its bot must wait, and nobody else could do without."""
    owner = replace(OWNER, abstains_seconds=30.0)
    assert standing(owner=owner).unfit == ()
    assert "gave up" not in "\n".join(as_lines(standing(owner=owner), CONFIG, NOW))


def test_without_an_owner_nobody_is_unfit() -> None:
    """The want of an owner is told instead."""
    assert Standing(term=TERM, instances=(NEW,)).unfit == ()


def test_status_says_that_an_instance_gave_up() -> None:
    """Beside "ready" there was nothing that told it from a good standby."""
    [line] = [line for line in as_lines(standing(NEW), CONFIG, NOW) if line.startswith("instance      new")]
    assert line == (
        "instance      new: PASSIVE, ready, gave up the lock or was told to wait, candidate again in 45 s, deploy d2,"
        " announced 1 s ago"
    )
    shown = {
        item["instance_id"]: item["abstains_seconds"]
        for item in as_document(standing(NEW), CONFIG)["instances"]
    }
    assert shown == {"old": 0.0, "new": 45.2}
