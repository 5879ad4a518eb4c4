"""GET /metrics: what /status says, as Prometheus text.

A metric for every number and every state of /status, made of the same reading, so that the two cannot tell different stories
and neither awaits anything (a26). What is not known is left out and is never 0: an alert must not take silence for a good
value. What /status says in words (reasons, errors, names of others) and the worker's pid are no metrics.

Does not promise history: what came and went between two scrapes was not seen, but for counters. The inbox is counted by each
instance for all of them, so across instances take the maximum and not the sum. CPU and memory are not told, as the library's
own collectors are in a registry of its own.

Imported when somebody first asks for /metrics: the library costs some 15 ms of CPU and 1 MiB, which a start need not pay, nor
an instance that nobody scrapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""What the library's own server says to a client that asks for no format. Every scraper reads it."""

LOCK_STATES = ("held", "waiting", "not waiting", "unreachable")
"""Each has its series, 1 for the one that is and 0 for the others, so that a state that ends is seen to end."""

_PREFIX = "webhook_supervisor_"


def exposition(status: Mapping[str, Any]) -> bytes:
    """The body of /metrics.

    Args:
        status: the body of /status.
    """
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    return generate_latest(registry)


class StatusCollector(Collector):
    """The metrics of one reading of /status."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Every metric of which something is known."""
        return (metric for metric in self._all() if metric.samples)

    def _all(self) -> Iterator[Metric]:
        status = self._status
        # Without labels for what is not known: to Prometheus an empty one is the same, to people it is a riddle.
        named = {name: status[name] for name in ("instance_id", "deploy_id") if status[name] is not None}
        yield InfoMetricFamily(_PREFIX.rstrip("_"), "Which instance this is, of which deploy.", named)
        yield _gauge("uptime_seconds", "Since the supervisor's start.", status["uptime_seconds"])
        owns = status["role"] == "ACTIVE"
        yield _gauge("active", "1: this instance owns, 0: it is PASSIVE.", owns)
        term = status["term"] or {}
        yield _gauge("term", "Number of this instance's term; grows with each owner.", term.get("number"))
        since = _timestamp(term.get("since"))
        yield _gauge("term_start_timestamp_seconds", "When this instance's term began, in Unix time.", since)
        lock = {state: state == status["lock"]["state"] for state in LOCK_STATES}
        yield _states("lock_state", "1 for the state that the lock is in for this instance.", lock)
        # A standby does not ask Telegram, and what it found as an owner of before is no news.
        webhook = status["webhook"] if owns else {}
        yield _gauge(
            "webhook_in_sync", "Owner only. 1: the webhook is registered as wanted.", webhook.get("in_sync")
        )
        yield _gauge(
            "webhook_pending_updates",
            "Owner only. What waits at Telegram, by its last answer.",
            webhook.get("pending_update_count"),
        )
        yield _gauge(
            "webhook_last_check_timestamp_seconds",
            "Owner only. When the registration was last compared with Telegram's, in Unix time.",
            _timestamp(webhook.get("last_checked")),
        )
        worker = status["worker"]
        yield _gauge("worker_ready", "1: a worker accepts, with its bot built.", worker["ready"])
        yield CounterMetricFamily(
            _PREFIX + "worker_restarts", "Ends of workers that nobody had asked for.", worker["restarts"]
        )
        lag_ms = worker["loop_lag_ms"]
        lag = None if lag_ms is None else lag_ms / 1000
        yield _gauge("worker_loop_lag_seconds", "How late the worker's event loop last came back.", lag)
        inbox = {name: status["inbox"][name] for name in ("pending", "in_flight", "dead")}
        yield _states("inbox_updates", "Updates in the inbox by state, of all instances together.", inbox)
        yield _gauge(
            "inbox_oldest_pending_seconds",
            "Age of the oldest update that waits in the inbox, 0 if none does.",
            status["inbox"]["oldest_pending_seconds"],
        )
        pool = status["pool"]
        yield _gauge("pool_connections", "The worker's database connections.", pool["size"])
        yield _gauge("pool_connections_in_use", "Those in use.", pool["in_use"])
        yield _gauge("pool_waiting", "Callers in the worker that wait for a connection.", pool["waiting"])
        yield _gauge(
            "unstored_updates", "Updates that have come and wait to be stored, unanswered.", pool["unstored"]
        )


def _gauge(name: str, documentation: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, documentation, value)


def _states(name: str, documentation: str, values: Mapping[str, float | None]) -> GaugeMetricFamily:
    """A gauge with a series for each state of which the value is known."""
    family = GaugeMetricFamily(_PREFIX + name, documentation, labels=("state",))
    for state, value in values.items():
        if value is not None:
            family.add_metric((state,), value)
    return family


def _timestamp(moment: str | None) -> float | None:
    return None if moment is None else datetime.fromisoformat(moment).timestamp()
