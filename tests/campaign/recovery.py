"""How long the system took to recover from each fault, read from the history. Pure."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tests.campaign.evidence import Evidence, Probe
from tests.campaign.tenure import tenures


class Recovery(Enum):
    """From a fault until ...; the value is the name in the table."""

    NEXT_TERM = "next term begun"
    FRESH_DISPATCH = "first fresh update dispatched in the next term"
    FIRST_200 = "first update answered 200"
    ACCEPTING = "instance is healthy again, on the public port"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was injected.

    Attributes:
        kind: in a few words.
        at: when it began; for a fault with an end (a database that was away), when it ended: recovery counts from there.
        instance: whom it hit, as the platform calls it; empty if nobody in particular.
    """

    kind: str
    at: float
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Recovered:
    """How long one recovery took after one fault."""

    fault: Fault
    seconds: float


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound of the promise: printed as reached or not; how it is asserted, result.py tells.

    Attributes:
        name: what is bounded.
        seconds: the bound.
        worst: whether it bounds the worst case rather than the median.
        kind: only of faults whose kind begins so.
        is_margin: whether it bounds from below: what is measured must never be less.
    """

    name: str
    seconds: float
    worst: bool = False
    kind: str = ""
    is_margin: bool = False

    def applies_to(self, recovered: Sequence[Recovered]) -> list[float]:
        """What is measured against it."""
        return [item.seconds for item in recovered if self.counts(item.fault)]

    def counts(self, fault: Fault) -> bool:
        """Whether it bounds the recovery from that fault."""
        return fault.kind.startswith(self.kind)

    def value(self, measured: Sequence[float]) -> float:
        """The figure to compare with it."""
        if self.is_margin:
            return min(measured)
        return max(measured) if self.worst else statistics.median(measured)


def measure_health(evidence: Evidence) -> dict[str, float]:
    """How long /healthz took where it was answered and nobody stood still; as a busy harness sees it, which is no less."""
    found = {}
    for is_public, port in ((False, "the own port"), (True, "the public port")):
        took = [
            probe.answered_at - probe.asked_at
            for probe in evidence.probes
            if probe.status is not None
            and probe.is_public is is_public
            and not any(still.excuses(probe) for still in evidence.standstills)
        ]
        if took:
            found[f"health on {port}, median ms"] = round(1000 * statistics.median(took), 1)
            found[f"health on {port}, worst ms"] = round(1000 * max(took), 1)
    return found


def measure(evidence: Evidence, faults: Sequence[Fault]) -> dict[Recovery, list[Recovered]]:
    """For each kind of recovery, how long it took after each fault that it followed."""
    found: dict[Recovery, list[Recovered]] = {kind: [] for kind in Recovery}
    terms = tenures(evidence.terms, evidence.signs)
    begins = [term.committed_at for term in terms]
    first_runs: dict[int, float] = {}
    for run in evidence.runs:
        first_runs[run.update_id] = min(run.started_at, first_runs.get(run.update_id, run.started_at))
    by_owner: dict[str, list[float]] = {}
    for run in evidence.runs:
        if first_runs[run.update_id] == run.started_at:
            by_owner.setdefault(run.owner, []).append(run.started_at)
    answers = sorted(
        (item.answered_at, item.first_sent_at) for item in evidence.deliveries if item.answered_at is not None
    )
    probes: dict[str, list[Probe]] = {}
    for probe in evidence.probes:
        probes.setdefault(probe.instance, []).append(probe)
    ends = [*(fault.at for fault in faults[1:]), evidence.ended_at]
    for fault, end in zip(faults, ends, strict=True):
        index = bisect_right(begins, fault.at)
        if index < len(terms) and begins[index] < end:
            term = terms[index]
            found[Recovery.NEXT_TERM].append(Recovered(fault, term.committed_at - fault.at))
            fresh = [at for at in by_owner.get(term.instance_id, ()) if term.began_at <= at < end]
            if fresh:
                found[Recovery.FRESH_DISPATCH].append(Recovered(fault, min(fresh) - fault.at))
        after = bisect_right(answers, (fault.at, float("inf")))
        # One that was on its way when the fault came says nothing.
        answered = next((at for at, sent_at in answers[after:] if sent_at > fault.at), None)
        if answered is not None and answered < end:
            found[Recovery.FIRST_200].append(Recovered(fault, answered - fault.at))
        accepted = next(
            (
                probe.answered_at
                for probe in probes.get(fault.instance, ())
                if probe.status == 200 and probe.is_public and probe.asked_at >= fault.at
            ),
            None,
        )
        if accepted is not None and accepted < end:
            found[Recovery.ACCEPTING].append(Recovered(fault, accepted - fault.at))
    return found
