"""What is measured, what is to be reached, and what came out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Better(Enum):
    """Which side of the target is the good one."""

    HIGHER = "at least"
    LOWER = "at most"


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table.

    Attributes:
        name: key in results.json.
        text: what is measured, with its unit where it is no ratio.
        value: to be reached.
    """

    name: str
    text: str
    value: float
    better: Better = Better.HIGHER

    def is_met(self, value: float) -> bool:
        """Whether what came out is as good as it was to be."""
        return value >= self.value if self.better is Better.HIGHER else value <= self.value


_LOWER = Better.LOWER

TARGETS: Sequence[Target] = (
    Target("ack_vs_run_webhook", "acknowledged after commit / `run_webhook` acknowledged (not durable)", 8),
    Target("ack_vs_bare_uvicorn", "acknowledged after commit / bare uvicorn that reads the body and answers", 0.75),
    Target("ack_vs_insert_per_request", "acknowledged after commit / an INSERT per request, pool of 8", 4),
    Target("ack_vs_insert_per_request_slow_fsync", "the same, with an fsync of 2 ms", 6),
    Target("handled_vs_run_webhook", "stored, handled by python-telegram-bot, done / `run_webhook` handled", 2.5),
    Target("handled_vs_starlette", "the same / python-telegram-bot's Starlette example", 1.8),
    Target("handled_vs_aiogram", "the same / aiogram 3 in the background mode", 2),
    Target("start_vs_run_webhook", "exec to the first 200 / `run_webhook`'s", 1.0, _LOWER),
    Target("bind_vs_python", "exec to the bound port / `python -c pass`", 2, _LOWER),
    Target("memory_vs_run_webhook", "memory of supervisor and worker, idle / `run_webhook`'s", 2.0, _LOWER),
    Target("memory_backlog", "the same under a backlog of 100,000 / idle", 1.3, _LOWER),
    Target("supervisor_mib", "supervisor alone, MiB", 40, _LOWER),
    Target("takeover_vs_polling", "kill -9 of the owner to the next term / polling each second, medians", 0.02, _LOWER),
    Target("takeover_p99_vs_polling", "the same, 99th percentile / the median of polling", 0.05, _LOWER),
    Target("wakeup_median_ms", "update committed to handler started, idle system, median, ms", 2, _LOWER),
    Target("wakeup_p99_ms", "the same, 99th percentile of 10,000, ms", 10, _LOWER),
    Target("blocked_chat", "a handler of 10 s: the other chat whose median it moves most / without it", 1.1, _LOWER),
    Target("soak_median_drift", "an hour at 1,000/s: median answer, last 5 minutes / first 5", 1.25, _LOWER),
    Target("soak_p99_drift", "the same, 99th percentile", 1.25, _LOWER),
    Target("soak_slowest_statement_ms", "the same: the slowest statement, ms", 100, _LOWER),
    Target("soak_table_drift", "the same, keys kept for 5 minutes: tables at the end / when the first keys went", 1.1, _LOWER),
    Target("soak_bytes_per_update", "keys kept for days: growth for a completed update, bytes", 150, _LOWER),
    Target("purge_median_drift", "median answer while a day's keys are purged / otherwise", 1.1, _LOWER),
)  # fmt: skip
"""The table, in its order."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What came out for one target.

    Attributes:
        name: of the target.
        value: the ratio, or what the target's text says.
        rounds: the values of the rounds, where the value is their median.
        beside: what stands beside it: rates, CPU-seconds for 1,000 updates, numbers of rounds; by what it is.
    """

    name: str
    value: float
    rounds: Sequence[float] = ()
    beside: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a plot.

    Attributes:
        plot: name of the plot's file, without its ending.
        label: what the line is.
        x: with its unit, e.g. "connections".
        y: with its unit, e.g. "updates a second".
        points: pairs of x and y.
    """

    plot: str
    label: str
    x: str
    y: str
    points: Sequence[tuple[float, float]]
