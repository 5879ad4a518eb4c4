"""GET /metrics: everything that /status knows in numbers and states, and nothing else."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from shared import config
from shared.wire import Beat, InboxDepth, PoolUse
from supervisor import messages as m
from supervisor import metrics
from supervisor.health import Sources, answer_own_port
from supervisor.state import State, with_worker
from supervisor.status import WallClock, status
from tests.unit.supervisor.courses import settle
from tests.unit.supervisor.world import World

ROOT = Path(__file__).parents[3]
WALL = datetime.datetime(2026, 1, 12, 14, 40, tzinfo=datetime.UTC)
ENVIRONMENT = {
    "TELEGRAM_BOT_TOKEN": "123456:the-secret-part-of-the-token-here-x",
    "DATABASE_URL": "postgresql://user:the-database-password@db.example.com/bot",
    "WEBHOOK_BASE_URL": "https://bot.example.com",
    "WEBHOOK_SECRET_PATH": "the-secret-path-of-the-webhook",
    "WEBHOOK_SECRET_TOKEN": "the-secret-token-of-the-webhook",
    "INSTANCE_ID": "one",
    "DEPLOY_ID": "v7",
}
CONFIG = config.load(ENVIRONMENT, stdin_is_terminal=False, stdout_is_terminal=False)
BEAT = Beat(
    loop_lag_ms=2.5,
    storing=True,
    storing_reason=None,
    inbox=InboxDepth(pending=11, in_flight=12, dead=13, oldest_pending_seconds=14.5),
    pool=PoolUse(size=3, in_use=2, waiting=21, unstored=24),
)

METRICS = {
    "role": ("active", {}, 1),
    "term.number": ("term", {}, 1),
    "term.since": ("term_start_timestamp_seconds", {}, WALL.timestamp() - 20.25),
    "lock.state": ("lock_state", {"state": "held"}, 1),
    "webhook.in_sync": ("webhook_in_sync", {}, 1),
    "webhook.pending_update_count": ("webhook_pending_updates", {}, 22),
    "webhook.last_checked": ("webhook_last_check_timestamp_seconds", {}, WALL.timestamp() - 5.25),
    "worker.ready": ("worker_ready", {}, 1),
    "worker.restarts": ("worker_restarts_total", {}, 23),
    "worker.loop_lag_ms": ("worker_loop_lag_seconds", {}, 0.0025),
    "inbox.pending": ("inbox_updates", {"state": "pending"}, 11),
    "inbox.in_flight": ("inbox_updates", {"state": "in_flight"}, 12),
    "inbox.dead": ("inbox_updates", {"state": "dead"}, 13),
    "inbox.oldest_pending_seconds": ("inbox_oldest_pending_seconds", {}, 14.5),
    "pool.size": ("pool_connections", {}, 3),
    "pool.in_use": ("pool_connections_in_use", {}, 2),
    "pool.waiting": ("pool_waiting", {}, 21),
    "pool.unstored": ("unstored_updates", {}, 24),
    "uptime_seconds": ("uptime_seconds", {}, 60),
}
"""Where a number or state of /status is found again, and as what, for `owner()`."""

LABELS = {"instance_id", "deploy_id"}
WORDS = {
    "lock.holder",
    "lock.reason",
    "webhook.url",
    "webhook.last_error",
    "worker.pid",  # a name rather than a quantity
    "worker.last_crash",
    "worker.dispatch_fault",
}
"""What has no metric."""


def status_of(state: State, now: float) -> dict[str, Any]:
    """The body of /status."""
    return status(state, now, CONFIG, WallClock(lambda: WALL))


def owner() -> dict[str, Any]:
    """The status of an owner of whom all is known."""
    world = World()
    one = world.boot("a")
    settle(world)
    world.run_until(lambda: one.state.webhook is not None)
    state, now = one.state, world.now
    assert state.term is not None
    assert state.webhook is not None
    state = replace(
        with_worker(state, state.workers[-1].id, beat=BEAT),
        started_at=now - 60,
        term=replace(state.term, began_at=now - 20.25),
        webhook=replace(state.webhook, pending_update_count=22),
        webhook_compared_at=now - 5.25,
        restarts=replace(state.restarts, ever=23),
    )
    return status_of(state, now)


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels; the text is what a scraper understands, and says nothing twice."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def names(body: Mapping[str, Any]) -> set[str]:
    """The names of what is exposed, without the prefix that they all have."""
    exposed = {name for name, _ in samples(metrics.exposition(body))}
    assert all(name.startswith("webhook_supervisor_") for name in exposed)
    return {name.removeprefix("webhook_supervisor_") for name in exposed}


def leaves(body: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted path of everything in /status."""
    for key, value in body.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


# ------------------------------------------------------------------------------------------------------------- content


def test_every_number_and_state_of_status_has_its_metric() -> None:
    """With its value, in base units; a field that is added to /status must be put somewhere too."""
    body = owner()
    assert set(leaves(body)) == METRICS.keys() | LABELS | WORDS
    found = samples(metrics.exposition(body))
    for path, (name, labels, value) in METRICS.items():
        assert found["webhook_supervisor_" + name, tuple(labels.items())] == value, path
    identity = {name: body[name] for name in sorted(LABELS)}
    assert found["webhook_supervisor_info", tuple(identity.items())] == 1
    assert names(body) == {name for name, _, _ in METRICS.values()} | {"info"}


@pytest.mark.parametrize(("path", "value"), [("role", "PASSIVE"), ("in_sync", False), ("ready", False)])
def test_what_is_not_so_is_0(path: str, value: object) -> None:
    """A state that is known and not the good one is told, not left out."""
    body = owner()
    part = body if path == "role" else body["webhook" if path == "in_sync" else "worker"]
    part[path] = value
    name = {"role": "active", "in_sync": "webhook_in_sync", "ready": "worker_ready"}[path]
    assert samples(metrics.exposition(body))[f"webhook_supervisor_{name}", ()] == 0


def test_what_is_not_known_is_left_out() -> None:
    """A process that just started knows nothing of term, webhook, worker, inbox; 0 would tell an alert that all is well."""
    world = World()
    state = world.boot("a").state
    assert names(status_of(state, world.now)) == {
        *("info", "uptime_seconds", "active", "lock_state"),
        *("worker_ready", "worker_restarts_total"),
    }


def test_an_inbox_that_cannot_be_counted_is_left_out() -> None:
    """The database is away: the worker beats, without counts."""
    body = owner()
    body["inbox"] = dict.fromkeys(body["inbox"])
    missing = names(owner()) - names(body)
    assert missing == {"inbox_updates", "inbox_oldest_pending_seconds"}


def test_a_standby_tells_nothing_of_a_webhook_that_it_does_not_look_at() -> None:
    """What it found while it owned would be the maximum over all instances until it ends."""
    body = owner()
    body["role"], body["webhook"]["in_sync"] = "PASSIVE", None
    missing = names(owner()) - names(body)
    assert missing == {
        *("webhook_in_sync", "webhook_pending_updates", "webhook_last_check_timestamp_seconds"),
    }


def test_a_deploy_without_a_name_has_no_label() -> None:
    """None is not a name."""
    body = owner()
    body["deploy_id"] = None
    info = next(labels for name, labels in samples(metrics.exposition(body)) if name.endswith("_info"))
    assert [name for name, _ in info] == ["instance_id"]


def test_the_lock_is_in_one_state_at_every_step() -> None:
    """Start, lock, hand-over, a database that is away: four series, of which the one is 1 that /status says."""
    world = World()
    seen = set()
    for name in ("a", "b"):
        world.boot(name)
    stopped = False
    end = world.now + 40
    while world.now < end:
        world.next()
        if not stopped and world.now > end - 20:
            world.stop_database(5)
            stopped = True
        for instance in world.instances.values():
            body = status_of(instance.state, world.now)
            seen.add(body["lock"]["state"])
            assert {
                labels[0][1]: value
                for (name, labels), value in samples(metrics.exposition(body)).items()
                if name == "webhook_supervisor_lock_state"
            } == {state: state == body["lock"]["state"] for state in metrics.LOCK_STATES}
    assert seen == set(metrics.LOCK_STATES)


def test_a21_no_secret_and_no_free_words_are_exposed() -> None:
    """What anybody wrote - Telegram, the database, the bot - stays in /status: a label is kept for years."""
    body = owner()
    for path in WORDS - {"worker.pid"}:
        part, _, field = path.partition(".")
        body[part][field] = f"words of {path}"
    text = metrics.exposition(body).decode()
    assert "words of" not in text
    token = ENVIRONMENT["TELEGRAM_BOT_TOKEN"]
    for secret in (
        *(token, token.partition(":")[2], "the-database-password"),
        *(ENVIRONMENT["WEBHOOK_SECRET_PATH"], ENVIRONMENT["WEBHOOK_SECRET_TOKEN"]),
    ):
        assert secret not in text


def test_names_of_an_instance_may_have_any_characters() -> None:
    """INSTANCE_ID and DEPLOY_ID are the platform's, and must not end the label, or the line."""
    body = owner()
    body["instance_id"], body["deploy_id"] = 'a"} 1\nb\\', "é"
    info = next(labels for name, labels in samples(metrics.exposition(body)) if name.endswith("_info"))
    assert dict(info) == {"instance_id": 'a"} 1\nb\\', "deploy_id": "é"}


def test_nothing_of_the_library_itself_is_exposed() -> None:
    """Its collectors of the process, the platform and the garbage are not ours, and cost reads of /proc at each scrape."""
    text = metrics.exposition(owner()).decode()
    assert {line.split()[2] for line in text.splitlines() if line.startswith("#")} == {
        "webhook_supervisor_" + name for name in names(owner())
    }


def test_the_runbook_names_every_metric_and_no_other() -> None:
    """Alerts are written after it."""
    runbook = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Metrics$(.*?)^## ", runbook, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert set(re.findall(r"webhook_supervisor_([a-z_]+)", section[1])) == names(owner())


# --------------------------------------------------------------------------------------------------------------- route


def sources() -> Sources:
    return Sources(
        health=lambda: m.Health(ok=True, role="ACTIVE", reason=None),
        storing=lambda: None,
        status=owner,
        webhook_path=f"/webhook/{ENVIRONMENT['WEBHOOK_SECRET_PATH']}",
    )


def test_metrics_are_answered_on_the_own_port() -> None:
    """With the content type that belongs to the text; HEAD too, and nothing else."""
    answer = answer_own_port(sources(), "GET", "/metrics")
    assert answer.status == 200
    assert dict(answer.headers) == {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    assert ("webhook_supervisor_active", ()) in samples(answer.body)
    assert answer_own_port(sources(), "HEAD", "/metrics").status == 200
    refused = answer_own_port(sources(), "POST", "/metrics")
    assert (refused.status, refused.headers, refused.body) == (405, (("Allow", "GET, HEAD"),), b"")


def test_the_library_is_imported_by_who_asks_for_metrics_alone() -> None:
    """A supervisor that starts, and answers probes and /status, is small; that is measured."""
    script = (
        "import sys, json, supervisor.__main__, supervisor.runner\n"
        "from supervisor.health import Sources, answer_own_port\n"
        "sources = Sources(None, lambda: None, lambda: json.load(sys.stdin), '')\n"
        "answer_own_port(sources, 'GET', '/readyz')\n"
        "before = 'prometheus_client' in sys.modules\n"
        "answer_own_port(sources, 'GET', '/metrics')\n"
        "print(before, 'prometheus_client' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, input=json.dumps(owner()), capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "True"], done.stderr
