"""Histories are read as they were written."""

from __future__ import annotations

from typing import Any

from deploy.local.emulator.journal import DeliveryAttempt, Outcome
from deploy.local.evidence import assemble_runs, summarize_attempts
from deploy.local.history import Delivery, Ending, Run
from deploy.local.log_lines import LogLine, parse_line
from deploy.local.platform.records import Occurrence, OutputLine, Record
from deploy.local.timeline import first, format_timeline, moments_of


def line(event: str, update_id: int, at: float, ending: str = "") -> dict[str, Any]:
    """A line of the traffic bot's file."""
    return {
        "event": event,
        "update_id": update_id,
        "chat_id": 7,
        "instance": "a",
        "pid": 11,
        "at": at,
        "ending": ending,
    }


def run(
    update_id: int, started_at: float, last_seen_at: float, ending: Ending, *, is_told: bool = False
) -> Run:
    """The run that such lines amount to."""
    return Run(update_id, 7, "a", 11, started_at, last_seen_at, ending, is_told)


def test_runs_that_interleave_are_told_apart() -> None:
    """Each line belongs to the run of its update that began last."""
    lines = [
        line("start", 1, 1.0),
        line("start", 2, 1.1),
        line("alive", 1, 1.2),
        line("end", 2, 1.3, "failed"),
        line("start", 2, 1.4),
        line("end", 1, 1.5, "well"),
    ]
    assert assemble_runs(lines) == [
        run(1, 1.0, 1.5, Ending.WELL, is_told=True),
        run(2, 1.1, 1.3, Ending.FAILED, is_told=True),
        run(2, 1.4, 1.4, Ending.INTERRUPTED),
    ]


def test_a_run_without_an_end_was_interrupted_at_its_last_sign_of_life() -> None:
    """That is all that a killed process leaves."""
    assert assemble_runs([line("start", 1, 1.0), line("alive", 1, 1.9)]) == [
        run(1, 1.0, 1.9, Ending.INTERRUPTED)
    ]


def test_a_cancellation_is_no_sign_of_work() -> None:
    """A frozen process meets it when it goes on, long after another has run the update; its last work was before."""
    lines = [line("start", 1, 1.0), line("alive", 1, 1.1), line("end", 1, 20.0, "interrupted")]
    assert assemble_runs(lines) == [run(1, 1.0, 1.1, Ending.INTERRUPTED, is_told=True)]


def attempt(seq: int, started: float, outcome: Outcome | None, status: int | None) -> DeliveryAttempt:
    """One attempt that took a tenth of a second."""
    answered = started + 0.1 if outcome is Outcome.DELIVERED else None
    return DeliveryAttempt(
        seq=seq,
        bot_id=1,
        update_id=5,
        kind="message",
        queue="7",
        connection=1,
        started_at=0,
        started_monotonic=started,
        answered_200_monotonic=answered,
        status=status,
        outcome=outcome,
    )


def test_attempts_become_one_delivery() -> None:
    """First sent, first answered; a closed connection and a 502 are failures, a change of the webhook is not."""
    attempts = [
        attempt(1, 1.0, Outcome.RETRY, 502),
        attempt(2, 2.0, Outcome.RETRY, None),
        attempt(3, 3.0, Outcome.ABANDONED, None),
        attempt(4, 4.0, Outcome.DELIVERED, 200),
        attempt(5, 5.0, Outcome.DELIVERED, 200),
    ]
    assert summarize_attempts(5, 7, attempts) == Delivery(5, 7, 1.0, 4.1, failures=2)


def test_an_answer_of_2xx_that_is_not_200_is_counted() -> None:
    """It was taken, and it is not what the interface promises."""
    delivery = summarize_attempts(5, 7, [attempt(1, 1.0, Outcome.DELIVERED, 204)])
    assert delivery.answered_at == 1.1
    assert delivery.failures == 1


def test_an_update_that_was_never_sent_has_no_answer() -> None:
    """And no time."""
    assert summarize_attempts(5, 7, []) == Delivery(5, 7, float("inf"), None)


def test_log_lines_are_read_and_everything_else_is_left_alone() -> None:
    """The JSON form of INTERFACE.md; a traceback, a number, or text is no log line."""
    text = '{"timestamp": "t", "level": "info", "tag": "LOCK", "event": "PostgreSQL ...", "term": 3}'
    parsed = parse_line(text)
    assert parsed == LogLine("t", "info", "LOCK", "PostgreSQL ...", {"term": 3})
    assert parsed.begins("LOCK", "PostgreSQL")
    assert not parsed.begins("WEBHOOK", "PostgreSQL")
    assert str(parsed) == "[LOCK] PostgreSQL ... term=3"
    for other in ("Traceback (most recent call last):", "7", "", "[]", '{"level": "info"}'):
        assert parse_line(other) is None


def test_the_timeline_has_platform_and_instances_in_one_order() -> None:
    """Sorted by time, counted from the scenario's begin; the first of a kind is found."""
    records = [
        Record(10.0, Occurrence.SPAWNED, "a", "pid 1"),
        Record(12.0, Occurrence.HEALTHY, "a"),
    ]
    lines = [
        OutputLine(11.0, "a", '{"tag": "LOCK", "event": "PostgreSQL advisory lock acquired"}'),
        OutputLine(
            11.5, "a", '{"tag": "LOCK_CONTROLLER", "event": "ACTIVE MODE (lock acquired immediately)"}'
        ),
        OutputLine(11.6, "a", "noise"),
        OutputLine(13.0, "b", '{"tag": "LOCK", "event": "PostgreSQL advisory lock acquired"}'),
    ]
    moments = moments_of(records, lines)
    assert [moment.what for moment in moments] == [
        "process spawned",
        "lock acquired",
        "active",
        "healthy",
        "lock acquired",
    ]
    assert first(moments, "lock acquired") == 11.0
    assert first(moments, "lock acquired", after=11.5) == 13.0
    assert first(moments, "lock acquired", who="b") == 13.0
    assert first(moments, "webhook set") is None
    text = format_timeline(moments, 10.0)
    assert text.splitlines()[2].split() == [
        "1.500",
        "active",
        "a",
        "ACTIVE",
        "MODE",
        "(lock",
        "acquired",
        "immediately)",
    ]
