"""Judges a history: was an update lost, run twice, or run before one that came first?

    what was sent and answered     what the bot did              what the inbox says at the end
    Delivery (emulator)            Run (traffic_bot, per         Row (table)
                                   process, appended)
             └───────────────────────────┼──────────────────────────────┘
                                      judge  ◄── Death: whom we killed, and when

The words are those of SCENARIOS.md, part B. *Lost* (L): answered 2xx, and at the end neither done nor dead.
*Doubled* (O, X): a run of an update after its completion, a run after one that ended well although nobody was
killed between, or two runs of it at one time. *Rerun*: a run after one that a kill, or an end of a term,
interrupted; that is promised, not a fault. *Out of order* (S): in one chat, an update that was first sent
when another had been answered ran before the other was over.

Pure. All times are seconds of one clock, that of the machine (`time.monotonic()`), which all writers share.

Not promised: that a second *commit* is seen as such. The table keeps one row an update, so a completion that
is written twice shows only in the runs that lead to it; completions of superseded terms are the tests'
business.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

# Clocks are one, but the completion's time is the database's, converted: it may be wrong by a little.
_CLOCK_TOLERANCE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Delivery:
    """One update on its way from the Bot API server to the bot.

    Attributes:
        first_sent_at: begin of its first attempt.
        answered_at: end of the first attempt that got a 2xx; None if none did.
        failures: attempts that got anything but 200.
    """

    update_id: int
    chat_id: int
    first_sent_at: float
    answered_at: float | None
    failures: int = 0


class Ending(Enum):
    """How a run ended."""

    WELL = "well"
    FAILED = "failed"  # The handler raised.
    INTERRUPTED = "interrupted"  # It was cancelled, or never told its end: its process died.


@dataclass(frozen=True, slots=True)
class Run:
    """One time that an update's handlers ran.

    Attributes:
        instance: the platform's name of it; `pid` is of the worker.
        last_seen_at: the last sign of work, its end if it came to one. A cancellation is no work: a process that was
            frozen meets it when it goes on, long after.
        is_told: it told its end itself; False where its process died.
        owner: the instance id of its supervisor's start, under which terms are written; empty where nobody needs it.
    """

    update_id: int
    chat_id: int
    instance: str
    pid: int
    started_at: float
    last_seen_at: float
    ending: Ending
    is_told: bool = False
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """An update in the inbox at the end; `finished_at` is when it was done or dead, None before."""

    update_id: int
    state: str
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class Death:
    """An instance that was killed.

    Attributes:
        at: when the signal was sent.
        over_at: when everything of it must be gone, at once if not given. In between, on a busy machine, it may
            begin still more.
    """

    instance: str
    at: float
    over_at: float = -math.inf

    @property
    def last_begin_at(self) -> float:
        """No run of it begins later."""
        return max(self.at, self.over_at)


@dataclass(frozen=True, slots=True)
class Breach:
    """One update that broke a promise, and how."""

    update_id: int
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the history amounts to.

    Attributes:
        sent: updates.
        not_200: attempts answered by anything but 200.
        in_flight_at_deaths: updates that had started and were not committed when their instance was killed.
        rerun: runs beyond an update's first that are no breach.
    """

    sent: int
    not_200: int
    lost: tuple[Breach, ...]
    doubled: tuple[Breach, ...]
    out_of_order: tuple[Breach, ...]
    rerun: int
    in_flight_at_deaths: int

    @property
    def breaches(self) -> tuple[Breach, ...]:
        """Everything that must not be."""
        return (*self.lost, *self.doubled, *self.out_of_order)


def judge(
    deliveries: Iterable[Delivery], runs: Iterable[Run], rows: Iterable[Row], deaths: Sequence[Death] = ()
) -> Verdict:
    """The verdict on a history that is over: every update had time to be handled."""
    deliveries = list(deliveries)
    by_update = {row.update_id: row for row in rows}
    runs_of: dict[int, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.started_at):
        runs_of[run.update_id].append(run)
    doubled = [
        breach
        for update_id, its_runs in runs_of.items()
        for breach in _find_doubled(its_runs, by_update.get(update_id), deaths)
    ]
    runs_on: dict[str, list[Run]] = defaultdict(list)
    for its_runs in runs_of.values():
        for run in its_runs:
            runs_on[run.instance].append(run)
    beyond_first = sum(len(its_runs) - 1 for its_runs in runs_of.values())
    return Verdict(
        sent=len(deliveries),
        not_200=sum(delivery.failures for delivery in deliveries),
        lost=tuple(_find_lost(deliveries, by_update, runs_of)),
        doubled=tuple(doubled),
        out_of_order=tuple(_find_out_of_order(deliveries, runs_of)),
        rerun=beyond_first - len(doubled),
        in_flight_at_deaths=sum(
            len(_in_flight(runs_on[death.instance], by_update, death)) for death in deaths
        ),
    )


def _in_flight(runs: Sequence[Run], rows: Mapping[int, Row], death: Death) -> set[int]:
    """The updates that an instance, whose runs these are, had begun and not committed when it was killed."""
    # A process that took its place has another pid: what that one begins was not in flight.
    pids = {run.pid for run in runs if run.started_at <= death.at}
    begun = {run.update_id for run in runs if run.pid in pids and run.started_at <= death.last_begin_at}
    return {update_id for update_id in begun if not _was_finished(rows.get(update_id), death.at)}


def _was_finished(row: Row | None, at: float) -> bool:
    return row is not None and row.finished_at is not None and row.finished_at <= at


def _find_lost(
    deliveries: Iterable[Delivery], rows: Mapping[int, Row], runs_of: Mapping[int, Sequence[Run]]
) -> Iterable[Breach]:
    for delivery in deliveries:
        if delivery.answered_at is None:
            continue
        row = rows.get(delivery.update_id)
        if row is None:
            yield Breach(delivery.update_id, "answered 2xx and not in the inbox")
        elif row.state not in ("done", "dead"):
            yield Breach(delivery.update_id, f"answered 2xx and {row.state} at the end")
        elif row.state == "done" and not runs_of.get(delivery.update_id):
            yield Breach(delivery.update_id, "done at the end, and no handler ever ran")


def _find_doubled(runs: Sequence[Run], row: Row | None, deaths: Sequence[Death]) -> Iterable[Breach]:
    for earlier, later in pairwise(runs):
        where = f"{earlier.instance}/{earlier.pid} and {later.instance}/{later.pid}"
        if later.started_at < earlier.last_seen_at:
            yield Breach(later.update_id, f"ran twice at one time, on {where}")
        elif _is_after_completion(later, row):
            yield Breach(later.update_id, f"ran after its completion, on {where}")
        elif earlier.ending is Ending.WELL and not any(
            # Ended, and not yet committed: a kill in that moment makes it run again.
            death.instance == earlier.instance
            and earlier.started_at <= death.last_begin_at
            and death.at <= later.started_at
            for death in deaths
        ):
            yield Breach(later.update_id, f"ran again after it had ended well, on {where}")


def _is_after_completion(run: Run, row: Row | None) -> bool:
    return (
        row is not None
        and row.finished_at is not None
        and run.started_at > row.finished_at + _CLOCK_TOLERANCE_SECONDS
    )


def _find_out_of_order(
    deliveries: Iterable[Delivery], runs_of: Mapping[int, Sequence[Run]]
) -> Iterable[Breach]:
    by_chat: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        by_chat[delivery.chat_id].append(delivery)
    for chat in by_chat.values():
        answered = sorted(
            (item for item in chat if item.answered_at is not None), key=lambda item: item.answered_at or 0.0
        )
        # Of all that had been answered when the next was sent, the one that was over last.
        last: tuple[float, int] | None = None
        known = 0
        for second in sorted(chat, key=lambda item: item.first_sent_at):
            while known < len(answered) and (answered[known].answered_at or 0.0) <= second.first_sent_at:
                first = answered[known]
                known += 1
                ran = runs_of.get(first.update_id)
                if ran and (last is None or ran[-1].last_seen_at > last[0]):
                    last = (ran[-1].last_seen_at, first.update_id)
            its_runs = runs_of.get(second.update_id)
            if its_runs and last is not None and its_runs[0].started_at < last[0]:
                yield Breach(
                    second.update_id,
                    f"began before {last[1]} was over, which was answered before it was sent",
                )
