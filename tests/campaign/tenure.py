"""From when until when each owner could believe that it owned: the yardstick of X, T and F.

    begin of the term ── sign ── sign ── sign ──────────┤ last sign + DEADLINE_SECONDS
                                          └ closed ─┤     or its own end, whichever comes first

A sign is any statement that the term's own session carried out. The owner's own deadline is earlier than ours, since it counts
from the sending: whoever is past ours is surely past its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from supervisor.state import DEADLINE_SECONDS
from tests.campaign.evidence import Sign, TermChange


@dataclass(frozen=True, slots=True)
class Tenure:
    """One term.

    Attributes:
        began_at: when its row was written; `committed_at`, when that was committed.
        deadline: when its owner had to stop, had it not closed the term before.
        closed_at: when its owner closed it; None if it did not.
        superseded_at: commit of what ended it in the database: its close, or the next term. None if it is the last.
    """

    uuid: str
    number: int
    instance_id: str
    began_at: float
    committed_at: float
    deadline: float
    closed_at: float | None
    superseded_at: float | None

    @property
    def over_at(self) -> float:
        """Nothing of it runs later."""
        return self.deadline if self.closed_at is None else min(self.closed_at, self.deadline)

    @property
    def last_sign_at(self) -> float:
        """The last statement that confirmed it."""
        return self.deadline - DEADLINE_SECONDS


def instance_of(instance_id: str) -> str:
    """The platform's name of an instance; an instance id has a part of its own for each start behind it."""
    return instance_id.rpartition("-")[0]


def tenures(terms: Iterable[TermChange], signs: Iterable[Sign]) -> list[Tenure]:
    """All terms, in the order in which they began."""
    by_session: dict[tuple[str, int], list[float]] = defaultdict(list)
    for sign in signs:
        by_session[sign.instance_id, sign.backend].append(sign.at)
    for times in by_session.values():
        times.sort()
    begins: dict[str, TermChange] = {}
    closes: dict[str, TermChange] = {}
    ordered = sorted(terms, key=lambda change: change.committed_at)
    for change in ordered:
        if change.closed:
            closes.setdefault(change.uuid, change)
        else:
            begins.setdefault(change.uuid, change)
    found = []
    in_order = list(begins.values())
    for index, begin in enumerate(in_order):
        close = closes.get(begin.uuid)
        after = in_order[index + 1] if index + 1 < len(in_order) else None
        ends = [change.committed_at for change in (close, after) if change is not None]
        last = _last_sign(
            begin.at,
            by_session[begin.instance_id, begin.backend],
            until=float("inf") if close is None else close.at,
        )
        found.append(
            Tenure(
                begin.uuid,
                begin.number,
                begin.instance_id,
                begin.at,
                begin.committed_at,
                last + DEADLINE_SECONDS,
                None if close is None else close.at,
                min(ends, default=None),
            )
        )
    return found


def _last_sign(began_at: float, times: Sequence[float], *, until: float) -> float:
    """The last of the signs that follow each other within the deadline: one that comes after it revives nothing."""
    last = began_at
    for at in times[bisect_right(times, began_at) :]:
        if at > min(until, last + DEADLINE_SECONDS):
            break
        last = at
    return last
