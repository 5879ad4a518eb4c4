"""update_id, limits and expiry of TELEGRAM.md, as pure rules; queues and lifetimes of the kinds."""

from __future__ import annotations

import json
import random

import pytest

from deploy.local.emulator.delivery_plan import DeliveryPlan, Failed
from deploy.local.emulator.update_kinds import (
    DEFAULT_ALLOWED,
    KINDS,
    expiry_of,
    find_kind,
    list_allowed,
    name_queue,
    resolve_allowed,
)
from deploy.local.emulator.update_log import MAX_UPDATES, Refusal, StoredUpdate, UpdateLog

WEEK = 7 * 86_400


def _push(log: UpdateLog, now: float = 0.0, queue: str = "q", lifetime: float = 1e9) -> StoredUpdate:
    update = log.push("message", queue, b'{"message":{}}', now + lifetime, now)
    assert isinstance(update, StoredUpdate)
    return update


def test_update_id_grows_by_one() -> None:
    """From a random start: n, n + 1, n + 2, also past forgotten ones."""
    log = UpdateLog(random.Random(1))
    first = _push(log)
    log.forget(first.seq)
    assert [_push(log).update_id, _push(log).update_id] == [first.update_id + 1, first.update_id + 2]
    assert _push(UpdateLog(random.Random(2))).update_id != first.update_id


def test_update_id_restarts_at_random_after_a_week_without_updates() -> None:
    """A week to the second goes on; more than a week does not; updates that still wait keep the numbering."""
    log = UpdateLog(random.Random(1))
    first = _push(log, 0.0)
    log.forget(first.seq)
    second = _push(log, WEEK)
    assert second.update_id == first.update_id + 1
    assert _push(log, 3 * WEEK).update_id == first.update_id + 2  # the second still waits
    log.clear()
    assert _push(log, 5 * WEEK).update_id not in range(first.update_id, first.update_id + 100)


def test_body_has_the_update_id_in_front_and_the_rest_untouched() -> None:
    """Also for an empty object, and for bytes that a JSON encoder would write otherwise."""
    log = UpdateLog(random.Random(1))
    update = log.push("", None, rb'{ "a" : "\u0000\ud800" }', 9.0, 0.0, update_id=5)
    assert isinstance(update, StoredUpdate)
    assert update.body == b'{"update_id":5,\n' + rb' "a" : "\u0000\ud800" }'
    empty = log.push("", None, b"{}", 9.0, 0.0, update_id=6)
    assert isinstance(empty, StoredUpdate)
    assert json.loads(empty.body) == {"update_id": 6}


def test_100_000_updates_are_kept_at_most() -> None:
    """The next is refused, and taken again when there is room."""
    log = UpdateLog(random.Random(1))
    first = _push(log)
    for _ in range(MAX_UPDATES - 1):
        _push(log)
    assert len(log) == 100_000
    assert log.push("message", "q", b"{}", 9.0, 0.0) is Refusal.FULL
    log.forget(first.seq)
    _push(log)


def test_updates_expire_and_are_not_taken_when_they_already_have() -> None:
    """What is past its time is neither loaded nor counted."""
    log = UpdateLog(random.Random(1))
    _push(log, 0.0, lifetime=30)
    kept = _push(log, 0.0, lifetime=150)
    assert [update.seq for update in log.load(1, 10, 100.0)] == [kept.seq]
    assert (len(log), log.expired_count) == (1, 1)
    assert log.push("message", "q", b"{}", 99.0, 100.0) is Refusal.EXPIRED


def test_over_64_kib_is_refused() -> None:
    """An update's JSON is at most 64 KiB."""
    log = UpdateLog(random.Random(1))
    assert log.push("message", "q", b'{"x":"%b"}' % (b"x" * 65_536), 9.0, 0.0) is Refusal.TOO_LARGE


def test_plan_loads_at_most_twice_max_connections_and_sends_one_of_a_queue() -> None:
    """Room for 2 x max_connections; of each queue only the first is due."""
    log, plan = UpdateLog(random.Random(1)), DeliveryPlan(3, random.Random(1))
    assert plan.room == 6
    updates = [_push(log, queue=queue) for queue in ("a", "a", "b")]
    plan.load(updates, 0.0)
    assert plan.room == 3
    assert [plan.take_due(0.0), plan.take_due(0.0), plan.take_due(0.0)] == [updates[0], updates[2], None]
    plan.succeeded(updates[0].seq)
    assert plan.take_due(0.0) is updates[1]


def test_plan_drops_what_would_be_tried_after_its_end_and_goes_on_with_the_queue() -> None:
    """The next of the queue is due at once."""
    log, plan = UpdateLog(random.Random(1)), DeliveryPlan(1, random.Random(1))
    short, later = _push(log, lifetime=5), _push(log, lifetime=500)
    plan.load([short, later], 0.0)
    plan.take_due(0.0)
    assert plan.failed(short.seq, 0, 0.0, 0.0) == (Failed.RETRY, 0)
    plan.take_due(0.0)
    assert plan.failed(short.seq, 10, 0.0, 0.0) == (Failed.DROPPED, 10)
    assert plan.take_due(0.0) is later


def test_plan_draws_the_cap_between_60_and_120_s() -> None:
    """Over many failures of many updates every cap lies inside, and they differ."""
    log, plan, caps = UpdateLog(random.Random(1)), DeliveryPlan(1, random.Random(1)), set()
    update = _push(log)
    plan.load([update], 0.0)
    now = 0.0
    for count in range(200):
        assert plan.take_due(now) is update
        _, delay = plan.failed(update.seq, 0, now, now)
        now += delay
        if count > 8:
            caps.add(delay)
    assert min(caps) >= 60
    assert max(caps) <= 120
    assert len(caps) > 20


@pytest.mark.parametrize(
    ("kind", "payload", "queue", "lifetime"),
    [
        ("message", {"chat": {"id": -5}, "from": {"id": 7}, "date": 900}, "messages:-5", 86_300),
        ("edited_message", {"chat": {"id": -5}, "date": 0, "edit_date": 1000}, "messages:-5", 86_400),
        ("callback_query", {"from": {"id": 7}, "message": {"chat": {"id": -5}}}, "callback_queries:7", 150),
        ("shipping_query", {"from": {"id": 7}}, "payments:7", 150),
        ("pre_checkout_query", {"from": {"id": 7}}, "payments:7", 150),
        ("chosen_inline_result", {"from": {"id": 7}}, "chosen_inline_results:7", 600),
        ("inline_query", {"from": {"id": 7}}, "inline_queries:7", 30),
        ("my_chat_member", {"chat": {"id": -5}, "from": {"id": 7}, "date": 1000}, "my_membership:-5", 86_400),
        (
            "chat_member",
            {"chat": {"id": -5}, "from": {"id": 7}, "new_chat_member": {"user": {"id": 8}}, "date": 1000},
            "membership:8",
            86_400,
        ),
        ("poll_answer", {"poll_id": "9", "user": {"id": 7}}, "polls:9", 86_400),
        ("poll", {"id": "9"}, "polls:9", 86_400),
        ("brand_new", {"chat": {"id": -5}}, None, 86_400),
    ],
)
def test_queue_and_lifetime_of_each_kind(
    kind: str, payload: object, queue: str | None, lifetime: int
) -> None:
    """Queues are by (chat or user, kind); lifetimes as in the table, a message's from its own date."""
    assert name_queue(kind, payload) == queue
    assert expiry_of(kind, payload, 1000.0) == 1000 + lifetime


def test_allowed_updates_default_and_unknown_names() -> None:
    """Three kinds are left out by default; unknown names are ignored; nothing known left is the default."""
    assert set(KINDS) - DEFAULT_ALLOWED == {"chat_member", "message_reaction", "message_reaction_count"}
    assert resolve_allowed([]) == DEFAULT_ALLOWED
    assert resolve_allowed(["nonsense"]) == DEFAULT_ALLOWED
    assert resolve_allowed(["POLL", "nonsense"]) == {"poll"}
    assert list_allowed(DEFAULT_ALLOWED) is None
    assert list_allowed(frozenset({"poll", "message"})) == ["message", "poll"]


def test_find_kind_prefers_a_known_field() -> None:
    """`update_id` is no kind; a known field wins over an unknown one."""
    assert find_kind({"update_id": 1, "brand_new": {}, "message": {}}) == "message"
    assert find_kind({"update_id": 1, "brand_new": {}}) == "brand_new"
    assert find_kind({"update_id": 1}) == ""
