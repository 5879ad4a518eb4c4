"""Timers and jobs of the bot's job queue, held against the terms: they run on the owner only. Pure, but for `read`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.campaign.judge import TOLERANCE_SECONDS, Invariant, Objection
from tests.campaign.tenure import Tenure


@dataclass(frozen=True, slots=True)
class Tick:
    """One sign of life of a timer or a job; see background.py."""

    what: str
    owner: str
    pid: int
    at: float


def read(folder: Path) -> list[Tick]:
    """What all workers wrote so far."""
    return [
        Tick(**json.loads(line)) for path in folder.glob("*.ticks") for line in path.read_text().splitlines()
    ]


def judge(ticks: Iterable[Tick], terms: Iterable[Tenure]) -> list[Objection]:
    """What runs without a term, or past its end, or beside that of another owner."""
    of_owner: dict[str, list[Tenure]] = defaultdict(list)
    for tenure in terms:
        of_owner[tenure.instance_id].append(tenure)
    of_worker: dict[int, list[Tick]] = defaultdict(list)
    for tick in sorted(ticks, key=lambda tick: tick.at):
        of_worker[tick.pid].append(tick)
    found = []
    for its_ticks in of_worker.values():
        first, last = its_ticks[0], its_ticks[-1]
        begun = [t for t in of_owner[first.owner] if t.began_at <= first.at + TOLERANCE_SECONDS]
        if not begun:
            found.append(
                Objection(Invariant.EXCLUSION, f"a {first.what} ran on {first.owner} without a term")
            )
        elif last.at > begun[-1].over_at + TOLERANCE_SECONDS:
            # A worker dispatches in one term: what it does belongs to the one in which it began.
            late = last.at - begun[-1].over_at
            why = f"a {last.what} ran on {last.owner} {late:.3f} s after its term {begun[-1].number} was over"
            found.append(Objection(Invariant.EXCLUSION, why))
    return [*found, *_side_by_side(list(of_worker.values()))]


def _side_by_side(workers: Sequence[Sequence[Tick]]) -> Iterable[Objection]:
    for earlier, later in pairwise(sorted(workers, key=lambda ticks: ticks[0].at)):
        if later[0].at < earlier[-1].at:
            yield Objection(
                Invariant.EXCLUSION,
                f"timers ran on {later[0].owner}/{later[0].pid} and {earlier[0].owner}/{earlier[0].pid} at one time",
            )
