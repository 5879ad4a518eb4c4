"""What came out of a scenario, what its bounds say, the table of all, and how a table is brought up to date. Pure."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.campaign.judge import Invariant, Judgement, Objection
from tests.campaign.recovery import Bound, Fault, Recovered, Recovery

HANG_FACTOR = 10.0
"""No speed of a machine explains that a bound is missed by so much; the short campaign objects to nothing less."""

FEW = 5
FEW_FLOOR_SECONDS = 5.0
"""... nor, where it is the figure of fewer faults than that, by less than this: one stall explains a second."""

HEADINGS = (
    *("scenario", "repetitions", "faults", "sent", "200", "handled", "dead", "rerun", "lost", "doubled"),
    *("out of order", "other breaches", "recovery", "median s", "worst s"),
)


@dataclass(frozen=True, slots=True)
class BoundReport:
    """A bound, what was measured against it, and how often.

    Attributes:
        measured: the figure that it bounds; None where there was nothing to measure.
        count: how many recoveries that is of.
        faults: how many faults of its kind there were; what is missing did not recover before the next one.
    """

    bound: Bound
    measured: float | None
    count: int
    faults: int = 0

    @property
    def is_reached(self) -> bool:
        """Whether it was kept."""
        if self.measured is None:
            return False
        if self.bound.is_margin:
            return self.measured >= self.bound.seconds
        return self.measured <= self.bound.seconds

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.bound.name}: nothing was measured in {self.faults} faults"
        times = f"n={self.count}" if self.count >= self.faults else f"n={self.count} of {self.faults} faults"
        word = "reached" if self.is_reached else "NOT reached"
        limit = f"at least {self.bound.seconds:g}" if self.bound.is_margin else f"{self.bound.seconds:g}"
        return f"{self.bound.name}: {self.measured:.3f} s of {limit} s, {times}: {word}"

    def objection(self, *, is_short: bool) -> str | None:
        """What is held against the scenario, if anything.

        In the long campaign whatever is not reached. In the short one, which runs beside other work on any machine, only what
        no speed of a machine explains: a hang, or a margin that was none.
        """
        if self.faults == 0 or self.is_reached or (is_short and self.measured is None):
            return None
        if self.bound.is_margin or not is_short or self.measured is None:
            return str(self)
        limit = HANG_FACTOR * self.bound.seconds
        if self.count < FEW:
            limit = max(limit, FEW_FLOOR_SECONDS)
        if self.measured <= limit:
            return None
        return (
            f"{self.bound.name}: {self.measured:.3f} s, more than {limit:g} s, which no slow machine explains"
        )


def report_bounds(
    bounds: Mapping[Recovery | str, Sequence[Bound]],
    recoveries: Mapping[Recovery, Sequence[Recovered]],
    times: Mapping[str, Sequence[float]],
    faults: Sequence[Fault],
) -> list[BoundReport]:
    """What came of each bound.

    Args:
        bounds: of a recovery, or of what a scenario measures itself, by its name.
        recoveries: as measured after the faults.
        times: what the scenario measured itself.
        faults: all of them.
    """
    reports = []
    for what, of_it in bounds.items():
        for bound in of_it:
            measured = times.get(what, ()) if isinstance(what, str) else bound.applies_to(recoveries[what])
            of_its_kind = sum(bound.counts(fault) for fault in faults)
            value = bound.value(measured) if measured else None
            reports.append(BoundReport(bound, value, len(measured), of_its_kind))
    return reports


def judge_recoveries(
    reports: Iterable[BoundReport],
    recoveries: Mapping[Recovery, Sequence[Recovered]],
    faults: Sequence[Fault],
    *,
    recovers_each: bool,
    is_short: bool,
    last_sent_at: float,
) -> list[Objection]:
    """No recovery at all before the next fault, and bounds that were missed.

    Args:
        reports: of the bounds.
        recoveries: as measured.
        faults: all of them.
        recovers_each: whether each fault is recovered from before the next one comes.
        is_short: whether a bound that is missed may be the machine's: see `BoundReport.objection`.
        last_sent_at: when the last update was first sent: nobody can tell what would have been answered after that.
    """
    found = []
    for report in reports:
        name = report.bound.name
        if recovers_each and report.count < report.faults:
            why = f"{name}: {report.faults - report.count} of {report.faults} faults were not recovered from before the next"
            found.append(Objection(Invariant.AVAILABLE, why))
        missed = report.objection(is_short=is_short)
        if missed is not None:
            found.append(Objection(Invariant.AVAILABLE, missed))
    answered = {id(item.fault) for item in recoveries[Recovery.FIRST_200]}
    without = [fault for fault in faults if id(fault) not in answered and fault.at < last_sent_at]
    if recovers_each and without:
        why = f"{len(without)} of {len(faults)} faults were not followed by a 200 before the next, first {without[0].kind}"
        found.append(Objection(Invariant.AVAILABLE, why))
    return found


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table.

    Attributes:
        skipped: why it was not staged; None if it was.
        judgement: None if it was not staged, or never came to be judged.
        objections: everything that was found, the judgement's included.
        times: recoveries and what the scenario measured itself, by name, in seconds.
        figures: what the scenario counted, by name.
        seconds: how long it took.
    """

    id: str
    title: str
    repetitions: int = 0
    faults: int = 0
    answered_200: int = 0
    skipped: str | None = None
    judgement: Judgement | None = None
    objections: tuple[Objection, ...] = ()
    recovery: Recovery | None = None
    times: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    bounds: tuple[BoundReport, ...] = ()
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing is held against it."""
        return not self.objections

    @property
    def recoveries(self) -> list[float]:
        """The times of the recovery that the table shows."""
        return [] if self.recovery is None else self.times.get(self.recovery.value, [])

    def cells(self) -> tuple[str, ...]:
        """The row, under HEADINGS."""
        name = f"{self.id} {self.title}"
        if self.skipped is not None:
            return (name, f"skipped: {self.skipped}", *("" for _ in HEADINGS[2:]))
        counts = ("?",) * 8 if self.judgement is None else self._counts(self.judgement)
        times = self.recoveries
        return (
            *(name, str(self.repetitions), str(self.faults), *counts, self._other_breaches()),
            "" if self.recovery is None or not times else self.recovery.value,
            f"{statistics.median(times):.3f}" if times else "",
            f"{max(times):.3f}" if times else "",
        )

    def _counts(self, judgement: Judgement) -> tuple[str, ...]:
        verdict = judgement.verdict
        return tuple(
            str(count)
            for count in (
                *(verdict.sent, self.answered_200, judgement.done, judgement.dead, verdict.rerun),
                *(len(verdict.lost), len(verdict.doubled), len(verdict.out_of_order)),
            )
        )

    def _other_breaches(self) -> str:
        shown = (Invariant.LOSS, Invariant.ONCE, Invariant.SEQUENCE)
        of_verdict = 0 if self.judgement is None else len(self.judgement.verdict.breaches)
        counts = Counter(item.invariant for item in self.objections)
        others = [
            f"{letter.value} {count}" for letter, count in sorted(counts.items()) if letter not in shown
        ]
        beyond = sum(counts[letter] for letter in shown) - of_verdict
        return ", ".join([*others, *([f"L/O/S {beyond}"] if beyond else [])]) or "none"


def format_table(results: Sequence[Result]) -> str:
    """All rows as Markdown."""
    return "\n".join([*_head(HEADINGS), *(_line(result.cells()) for result in results)])


def format_bounds(results: Sequence[Result]) -> str:
    """Every bound that was measured, as a Markdown list."""
    return "\n".join(f"- {result.id}: {report}" for result in results for report in result.bounds)


def bring_up_to_date(text: str, results: Sequence[Result], run: str, order: Sequence[str]) -> str:
    """A table and its bounds, with the rows of these results in place of their scenarios' former ones.

    Args:
        text: what this function returned the last time; whatever of it is neither a row nor a bound goes.
        run: which run they come from; stands in their rows.
        order: ids of all scenarios; rows of others go.
    """
    rows: dict[str, str] = {}
    bounds: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        if line.startswith("| "):
            rows[line.split()[1]] = line
        elif line.startswith("- "):
            bounds[line.split()[1].rstrip(":")].append(line)
    for result in results:
        rows[result.id] = _line((*result.cells(), run))
        bounds[result.id] = format_bounds([result]).splitlines()
    table = [*_head((*HEADINGS, "run")), *(rows[id_] for id_ in order if id_ in rows)]
    return "\n".join([*table, "", *(line for id_ in order for line in bounds[id_])])


def _head(headings: Sequence[str]) -> list[str]:
    return [_line(headings), _line(["---"] * len(headings))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
