"""The table of a campaign keeps what a run does not renew."""

from __future__ import annotations

import pytest

from tests.campaign.__main__ import conclude
from tests.campaign.judge import Invariant, Objection
from tests.campaign.recovery import Bound
from tests.campaign.result import BoundReport, Result, bring_up_to_date

BOUND = Bound("back again", 3.0)
ORDER = ("b01", "b02", "b10")


def result(id_: str, *, faults: int, seconds: float | None = None) -> Result:
    bounds = () if seconds is None else (BoundReport(BOUND, seconds, faults),)
    return Result(id_, "a title", repetitions=faults, faults=faults, bounds=bounds)


def test_a_run_of_some_scenarios_replaces_their_rows_and_bounds_and_no_others() -> None:
    """Else a long run of one scenario would cost the rows of all others."""
    first = bring_up_to_date(
        "prose\n",
        [result("b10", faults=2, seconds=1.0), result("b01", faults=5, seconds=2.0)],
        "short",
        ORDER,
    )
    second = bring_up_to_date(first, [result("b10", faults=48), result("b02", faults=80)], "long", ORDER)
    heading, _, *rows = second.splitlines()
    assert heading.startswith("| scenario | ")
    assert heading.endswith(" | run |")
    assert [(row.split()[1], row.split(" | ")[2], row.split()[-2]) for row in rows[:3]] == [
        ("b01", "5", "short"),
        ("b02", "80", "long"),
        ("b10", "48", "long"),
    ]
    assert rows[3:] == ["", "- b01: back again: 2.000 s of 3 s, n=5: reached"]


def test_a_bound_that_was_measured_after_some_faults_only_keeps_its_line() -> None:
    """Its line says so, and is found again by the next run."""
    some = Result(
        "b01", "a title", bounds=(BoundReport(BOUND, 2.0, 5, faults=7), BoundReport(BOUND, None, 0, faults=7))
    )
    before = bring_up_to_date("", [some], "long", ORDER)
    after = bring_up_to_date(before, [result("b02", faults=80)], "short", ORDER)
    assert after.splitlines()[-2:] == [
        "- b01: back again: 2.000 s of 3 s, n=5 of 7 faults: reached",
        "- b01: back again: nothing was measured in 7 faults",
    ]


def test_a_scenario_that_is_no_more_goes() -> None:
    """A row that nothing can renew would stand there for ever."""
    before = bring_up_to_date("", [result("b02", faults=80, seconds=1.0)], "long", ORDER)
    after = bring_up_to_date(before, [], "long", ("b01", "b10"))
    assert "b02" not in after


def test_what_is_skipped_is_named_and_may_fail_the_campaign(capsys: pytest.CaptureFixture[str]) -> None:
    """In CI, where nobody reads what was left out of a run that passed."""
    results = [result("b01", faults=1), Result("b07", "a title", skipped="needs root")]
    assert (conclude(results, may_skip=True), conclude(results, may_skip=False)) == (0, 1)
    assert capsys.readouterr().out.splitlines() == [
        "skipped: b07 (needs root)",
        "skipped, and with CI=true that is a failure: b07 (needs root)",
    ]


def test_a_breach_fails_the_campaign(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever may be skipped."""
    spoilt = Result("b01", "a title", objections=(Objection(Invariant.LOSS, "gone"),))
    assert conclude([spoilt, result("b02", faults=1)], may_skip=True) == 1
    assert capsys.readouterr().out == "BREACHES in b01\n"
