"""Takes one safety out of an instance, to see whether the campaign's judge objects. Never a switch in the product.

    worker       BOT_APP=tests.campaign.sabotage:build, SABOTAGE=<safety>, SABOTAGED_BOT=<the bot itself>: BOT_APP is loaded
                 before the worker is put together, so modules are changed in time
    supervisor   python -m tests.campaign.sabotage instead of python -m supervisor

Each change names the text or the function that it replaces, and fails loudly where that is not there any more: a safety that
was not taken out would prove nothing.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import runpy
from collections.abc import Callable
from enum import Enum
from types import ModuleType
from typing import Any

SAFETY_VARIABLE = "SABOTAGE"
BOT_VARIABLE = "SABOTAGED_BOT"


class Safety(Enum):
    """What can be taken out."""

    COMPLETION_FENCE = "fence in the completion"
    CLAIM_FENCE = "fence in the claim"
    DEDUPE = "dedupe"
    LANE_ORDER = "lane order"
    ATTEMPTS_FIRST = "attempts before start"
    COMMIT_FIRST = "commit before 200"
    WORKER_DEADLINE = "the worker's own deadline"
    ASSERTION = "assertion once a term"


def take_out(safety: Safety) -> None:
    """Changes the modules of this process, whether it is a worker or a supervisor."""
    _CHANGES[safety]()


def build(builder: Any) -> Any:
    """The BOT_APP of a sabotaged worker: takes the safety out, then builds the bot itself."""
    if (safety := Safety(os.environ[SAFETY_VARIABLE])) not in _OF_SUPERVISOR:
        take_out(safety)
    module, _, name = os.environ[BOT_VARIABLE].partition(":")
    return getattr(importlib.import_module(module), name)(builder)


def _change_text(module: ModuleType, name: str, old: str, new: str) -> None:
    text = getattr(module, name)
    is_bytes = isinstance(text, bytes)
    if is_bytes:
        text = text.decode()
    assert old in text, f"{module.__name__}.{name} has changed: nothing to take out"
    text = text.replace(old, new)
    setattr(module, name, text.encode() if is_bytes else text)


def _take_fence(*statements: str) -> None:
    sql = importlib.import_module("webhook_worker.inbox_statements")
    unfenced = "owner AS MATERIALIZED (SELECT %(bot_id)s::bigint AS bot_id)"
    for name in statements:
        _change_text(sql, name, sql._OWNER.strip(), unfenced)


def _take_dedupe() -> None:
    sql = importlib.import_module("webhook_worker.inbox_statements")
    for name in ("STORE", "STORE_AND_NOTIFY"):
        # The unique index is one of rows with a key.
        _change_text(sql, name, "(bot_id, update_id, lane, body)", "(bot_id, update_id, lane, body, keyed)")
        _change_text(sql, name, "sent.length)\n", "sent.length), false\n")


def _take_lane_order() -> None:
    sql = importlib.import_module("webhook_worker.inbox_statements")
    flight = importlib.import_module("webhook_worker.flight")
    busy = "lane_key <> ALL (ARRAY(SELECT lane_key FROM busy))"
    for row in ("i.", "l.", "next."):
        _change_text(sql, "CLAIM", row + busy, "true")
    _replace(flight.Flights, "can_begin", lambda self, claimed: not (claimed.is_suspect and self.has_suspect))


def _take_attempts() -> None:
    sql = importlib.import_module("webhook_worker.inbox_statements")
    counted = "attempts = i.attempts + 1, starts = i.starts + 1, "
    for name in ("CLAIM", "CLAIM_SUSPECT"):
        _change_text(sql, name, counted, "")
    for column in (
        "attempts = CASE WHEN v.state <> 'done' THEN greatest(i.attempts - v.refund, 0) END,",
        "starts = CASE WHEN v.state <> 'done' THEN i.starts END,",
    ):
        name = column.partition(" ")[0]
        _change_text(sql, "SETTLE", column, f"{name} = i.{name} + 1,")


def _take_commit() -> None:
    ingest = importlib.import_module("webhook_worker.ingest").Ingest
    take = ingest.take

    def take_and_tell(self: Any, update_id: int, lane: Any, body: bytes, tell: Callable[..., None]) -> None:
        take(self, update_id, lane, body, lambda reason: None)  # raises where it is refused at once
        asyncio.get_running_loop().call_soon(tell, None)

    _replace(ingest, "take", take_and_tell)


def _take_deadline() -> None:
    countdown = importlib.import_module("webhook_worker.countdown").Countdown
    # Far away, whatever the supervisor says; everything else of it stays.
    begin = countdown.__init__

    def begin_without_deadline(self: Any, **arguments: Any) -> None:
        begin(self, **{**arguments, "deadline": arguments["clock"]() + 1e9})

    _replace(countdown, "__init__", begin_without_deadline)
    # The two who would see to it otherwise: the term, a second before, and the lifeline, which kills.
    term = importlib.import_module("webhook_worker.term").Term
    _replace(term, "_is_near_deadline", lambda self: False)
    _replace(term, "_end_near_deadline", _nothing)
    _replace(importlib.import_module("webhook_worker.control").Control, "_left_seconds", lambda self: None)


async def _nothing(self: Any) -> None:
    return


def _take_assertion() -> None:
    core = importlib.import_module("supervisor.core")
    messages = importlib.import_module("supervisor.messages")
    plan_call: Callable[..., Any] = core.plan_call

    def plan_first_call_only(state: Any, now: float, ids: Any) -> Any:
        call = plan_call(state, now, ids)
        # As if it were enough that somebody has set it.
        return None if isinstance(call, messages.SetWebhook) and state.term.number > 1 else call

    _replace(core, "plan_call", plan_first_call_only)


def _replace(owner: Any, name: str, new: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more: nothing to take out"
    setattr(owner, name, new)


_CHANGES: dict[Safety, Callable[[], None]] = {
    Safety.COMPLETION_FENCE: lambda: _take_fence("SETTLE"),
    Safety.CLAIM_FENCE: lambda: _take_fence("CLAIM", "CLAIM_SUSPECT"),
    Safety.DEDUPE: _take_dedupe,
    Safety.LANE_ORDER: _take_lane_order,
    Safety.ATTEMPTS_FIRST: _take_attempts,
    Safety.COMMIT_FIRST: _take_commit,
    Safety.WORKER_DEADLINE: _take_deadline,
    Safety.ASSERTION: _take_assertion,
}
_OF_SUPERVISOR = (Safety.ASSERTION,)


if __name__ == "__main__":
    if (safety := Safety(os.environ[SAFETY_VARIABLE])) in _OF_SUPERVISOR:
        take_out(safety)
    runpy.run_module("supervisor", run_name="__main__", alter_sys=True)
