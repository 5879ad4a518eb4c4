"""What recoveries come to: how many there were of how many faults, and what no slow machine explains."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.campaign.evidence import Evidence, Probe, Standstill
from tests.campaign.judge import Invariant, Objection
from tests.campaign.recovery import Bound, Fault, Recovered, Recovery, measure_health
from tests.campaign.result import FEW, BoundReport, judge_recoveries, report_bounds

KILLS = [Fault("owner: kill -9", 10.0), Fault("owner: kill -9", 20.0)]
OTHER = Fault("standby: kill -9", 30.0)
FAULTS = [*KILLS, OTHER]
BOUND = Bound("next term, worst", 1.0, worst=True, kind="owner")
ANSWERED = [Recovered(fault, 0.1) for fault in FAULTS]


def recoveries(
    *next_term: Recovered, answered: Sequence[Recovered] = ANSWERED
) -> dict[Recovery, list[Recovered]]:
    """As measured."""
    return {
        **{kind: [] for kind in Recovery},
        Recovery.NEXT_TERM: [*next_term],
        Recovery.FIRST_200: [*answered],
    }


def judged(
    found: dict[Recovery, list[Recovered]],
    *,
    recovers_each: bool = True,
    is_short: bool = True,
    last_sent_at: float = 40.0,
) -> tuple[list[BoundReport], list[Objection]]:
    """The report of the bound, and what is held against it."""
    reports = report_bounds({Recovery.NEXT_TERM: (BOUND,)}, found, {}, FAULTS)
    objections = judge_recoveries(
        reports, found, FAULTS, recovers_each=recovers_each, is_short=is_short, last_sent_at=last_sent_at
    )
    return reports, objections


def test_recoveries_from_all_faults_of_the_kind_are_enough() -> None:
    """Faults of another kind are none of the bound's."""
    reports, objections = judged(recoveries(*(Recovered(fault, 0.5) for fault in KILLS)))
    assert [str(report) for report in reports] == ["next term, worst: 0.500 s of 1 s, n=2: reached"]
    assert objections == []


def test_a_fault_without_a_recovery_is_told_and_held_against_the_scenario() -> None:
    """Else the slowest recoveries of all, those that never came, would make no difference."""
    reports, objections = judged(recoveries(Recovered(KILLS[0], 0.5)))
    assert [str(report) for report in reports] == [
        "next term, worst: 0.500 s of 1 s, n=1 of 2 faults: reached"
    ]
    [objection] = objections
    assert objection.invariant is Invariant.AVAILABLE
    assert "1 of 2 faults were not recovered from before the next" in objection.why


def test_a_bound_of_which_nothing_was_measured_says_of_how_many_faults() -> None:
    """It is held against the scenario like any other that is missing."""
    reports, objections = judged(recoveries())
    assert [str(report) for report in reports] == ["next term, worst: nothing was measured in 2 faults"]
    assert ["2 of 2 faults" in objection.why for objection in objections] == [True]


def test_a_scenario_that_repeats_its_fault_too_fast_is_only_told() -> None:
    """It has said so."""
    reports, objections = judged(recoveries(answered=[]), recovers_each=False)
    assert [str(report) for report in reports] == ["next term, worst: nothing was measured in 2 faults"]
    assert objections == []


def test_a_fault_that_no_200_follows_before_the_next_is_held_against_the_scenario() -> None:
    """In every scenario, with bounds or without."""
    found = recoveries(*(Recovered(fault, 0.5) for fault in KILLS), answered=ANSWERED[:1])
    _, [objection] = judged(found)
    assert "2 of 3 faults were not followed by a 200" in objection.why


def test_after_the_last_update_no_200_is_missed() -> None:
    """A fault that comes when the traffic is over has nothing that could be answered."""
    found = recoveries(*(Recovered(fault, 0.5) for fault in KILLS), answered=ANSWERED[:2])
    assert judged(found, last_sent_at=OTHER.at)[1] == []
    _, [objection] = judged(found, last_sent_at=OTHER.at + 0.1)
    assert "1 of 3 faults were not followed by a 200" in objection.why


def test_the_short_campaign_asserts_a_bound_at_ten_times_its_value() -> None:
    """A busy machine misses a bound, and nothing but a hang misses it by so much."""
    _, missed = judged(recoveries(Recovered(KILLS[0], 0.5), Recovered(KILLS[1], 9.9)))
    assert missed == []
    reports, [hung] = judged(recoveries(Recovered(KILLS[0], 0.5), Recovered(KILLS[1], 10.1)))
    assert [report.is_reached for report in reports] == [False]
    assert hung.invariant is Invariant.AVAILABLE
    assert "10.100 s, more than 10 s" in hung.why


def test_the_long_campaign_asserts_a_bound_at_its_value() -> None:
    """It runs for hours, and nobody reads its lines but for what it fails on."""
    _, met = judged(recoveries(Recovered(KILLS[0], 0.5), Recovered(KILLS[1], 1.0)), is_short=False)
    assert met == []
    _, [missed] = judged(recoveries(Recovered(KILLS[0], 0.5), Recovered(KILLS[1], 1.01)), is_short=False)
    assert missed == Objection(Invariant.AVAILABLE, "next term, worst: 1.010 s of 1 s, n=2: NOT reached")


def test_the_long_campaign_asserts_that_a_bound_was_measured() -> None:
    """Also where a fault may come before the one before was recovered from; not where there was no fault of its kind."""
    _, [missed] = judged(recoveries(), recovers_each=False, is_short=False)
    assert "nothing was measured in 2 faults" in missed.why
    bound = Bound("of nobody", 1.0, kind="flood")
    reports = report_bounds({Recovery.NEXT_TERM: (bound,)}, recoveries(), {}, FAULTS)
    assert (
        judge_recoveries(reports, recoveries(), FAULTS, recovers_each=False, is_short=False, last_sent_at=0.0)
        == []
    )


@pytest.mark.parametrize("is_short", [True, False])
def test_a_margin_is_the_least_of_all_and_asserted_strictly(is_short: bool) -> None:
    """That something was over before something else began is no matter of speed."""
    bound = Bound("stopped before, least", 0.0, is_margin=True)
    for margins, objections in (([5.0, 0.1, 3.0], 0), ([5.0, -0.1, 3.0], 1)):
        reports = report_bounds({"margin": (bound,)}, recoveries(), {"margin": margins}, FAULTS)
        found = judge_recoveries(
            reports, recoveries(), FAULTS, recovers_each=False, is_short=is_short, last_sent_at=0.0
        )
        assert len(found) == objections
    assert [str(report) for report in reports] == [
        "stopped before, least: -0.100 s of at least 0 s, n=3: NOT reached"
    ]


@pytest.mark.parametrize(("count", "limit"), [(1, 5.0), (FEW - 1, 5.0), (FEW, 1.0)])
def test_the_figure_of_a_few_faults_may_be_that_of_one_stall(count: int, limit: float) -> None:
    """Ten times a tenth of a second is one; of more faults a median is none of a stall's."""
    bound = Bound("noticed, median", 0.1)
    faults = [Fault("kill", float(number), "one") for number in range(count)]
    for seconds, objections in ((limit - 0.01, 0), (limit + 0.01, 1)):
        reports = report_bounds({"noticed": (bound,)}, recoveries(), {"noticed": [seconds] * count}, faults)
        found = judge_recoveries(
            reports, recoveries(answered=[]), faults, recovers_each=False, is_short=True, last_sent_at=0.0
        )
        assert len(found) == objections


def test_what_a_scenario_measures_itself_is_bounded_by_its_name() -> None:
    """And compared with the number of its faults like a recovery."""
    bound = Bound("noticed, worst", 1.0, worst=True)
    reports = report_bounds({"noticed": (bound,)}, recoveries(), {"noticed": [0.1, 1.2]}, FAULTS)
    assert [str(report) for report in reports] == [
        "noticed, worst: 1.200 s of 1 s, n=2 of 3 faults: NOT reached"
    ]


def test_health_is_timed_where_it_was_answered_on_each_port() -> None:
    """A probe without an answer has no time, that is the judge's; one that met a standstill says how long that was."""
    probes = [
        Probe("one", 10.0, 10.01, 200),
        Probe("one", 11.0, 11.03, 503),
        Probe("one", 12.0, 17.0, None, has_timed_out=True),
        Probe("one", 20.0, 23.0, 200),
        Probe("one", 10.0, 10.25, 200, is_public=False),
    ]
    evidence = Evidence(probes=probes, standstills=[Standstill("one", 19.0, 22.9)])
    assert measure_health(evidence) == {
        "health on the own port, median ms": 250.0,
        "health on the own port, worst ms": 250.0,
        "health on the public port, median ms": 20.0,
        "health on the public port, worst ms": 30.0,
    }
    assert measure_health(Evidence()) == {}
