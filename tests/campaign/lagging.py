"""A failover to a replica that lagged: what is judged is what the replica had (SCENARIOS.md, part B). Pure.

What the old primary committed in the end is gone: updates that were answered 200, claims, completions. It is a non-promise, and
no breach, that those updates are lost and that what was done of the others is done again. Everything else is judged as always.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.local.history import Run
from tests.campaign.evidence import Evidence, Sign, TermChange


@dataclass(frozen=True, slots=True)
class Failover:
    """One failover.

    Attributes:
        lagged_at: from then on nothing reached the replica.
        over_at: when clients were led to it.
        starts: what the replica had: how often each of its updates had been started.
        terms: of the old primary, so that what owners could rely on is known until the end.
        signs: the same.
    """

    lagged_at: float
    over_at: float
    starts: Mapping[int, int]
    terms: Sequence[TermChange] = ()
    signs: Sequence[Sign] = ()


def judge_by_replica(evidence: Evidence, failovers: Iterable[Failover]) -> Evidence:
    """The evidence, read from the last primary, without what the replicas could not know, and with what owners did know."""
    for failover in failovers:
        forgotten = {
            item.update_id
            for item in evidence.deliveries
            if item.answered_at is not None
            and failover.lagged_at <= item.answered_at <= failover.over_at
            and item.update_id not in failover.starts
        }
        known = {(term.uuid, term.closed) for term in evidence.terms}
        evidence = replace(
            evidence,
            deliveries=[item for item in evidence.deliveries if item.update_id not in forgotten],
            runs=[run for run in _known_runs(evidence.runs, failover) if run.update_id not in forgotten],
            terms=[
                *evidence.terms,
                *(term for term in failover.terms if (term.uuid, term.closed) not in known),
            ],
            signs=[*evidence.signs, *failover.signs],
        )
    return evidence


def count_forgotten(evidence: Evidence, judged: Evidence) -> dict[str, float]:
    """What `judge_by_replica` left out, for the report: it is in none of the columns."""
    return {
        "answered 200 and unknown to the replica, not counted": len(evidence.deliveries)
        - len(judged.deliveries),
        "runs unknown to the replica, not counted": len(evidence.runs) - len(judged.runs),
    }


def _known_runs(runs: Iterable[Run], failover: Failover) -> list[Run]:
    """Without the runs of which the replica had not even the claim."""
    kept: list[Run] = []
    before: dict[int, int] = defaultdict(int)
    for run in sorted(runs, key=lambda run: run.started_at):
        if run.started_at <= failover.over_at:
            before[run.update_id] += 1
            is_known = before[run.update_id] <= failover.starts.get(run.update_id, 0)
            if run.started_at >= failover.lagged_at and not is_known:
                continue
        kept.append(run)
    return kept
