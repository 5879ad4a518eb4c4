"""GET /status: the facts, as an operator reads them.

Decides nothing: whether this instance owns or waits, and who holds the lock, is asked of the core. An instance that does not
own shows no registration, also if it was the owner before.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

from shared.config import Config
from supervisor import core
from supervisor import messages as m
from supervisor.narration import PREVIEW
from supervisor.state import State

_SET = datetime.timedelta(seconds=5)
"""Two clocks that part by more than this were set: by themselves they part less in hours."""


class WallClock:
    """Tells moments of the shared clock in UTC, and each again as it was told first, unless the clock was set meanwhile.

    Two clocks are never read at once, so that each telling would differ by microseconds.
    """

    def __init__(
        self, read: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)
    ) -> None:
        """Has told nothing yet."""
        self.read = read
        self._told: dict[str, tuple[float, datetime.datetime]] = {}

    def tell(self, name: str, moment: float | None, now: float) -> str | None:
        """In ISO 8601; None for None.

        Args:
            name: of what was then; the latest moment of each is kept.
            moment: seconds on the shared clock.
            now: the same, of this call.
        """
        if moment is None:
            return None
        at = self.read() - datetime.timedelta(seconds=now - moment)
        before, told = self._told.get(name, (None, at))
        if before != moment or abs(at - told) > _SET:
            told = at
        self._told[name] = (moment, told)
        return told.isoformat()


def status(state: State, now: float, config: Config, wall: WallClock) -> dict[str, object]:
    """INTERFACE.md's /status, from facts.

    Args:
        state: the facts.
        now: seconds on the shared clock.
        config: who we are, and the masked URL.
        wall: tells `since` and `last_checked`.
    """
    worker = next((w for w in reversed(state.workers) if w.accepting), None)
    shown_worker = worker or next(reversed(state.workers), None)
    beat = worker.beat if worker is not None else None
    counts = ("pending", "in_flight", "dead", "oldest_pending_seconds")
    inbox = None if beat is None else beat.inbox
    pool = None if beat is None else beat.pool
    owns = core.owns(state, now)
    if not state.session.open:
        lock = "unreachable"
    elif state.session.lock_held:
        lock = "held"
    else:
        # Tried once, it may have left the queue since: for want of a worker, to stop, in favour of others.
        waits = state.session.lock_tried and core.may_own_now(state, now)
        lock = "waiting" if waits else "not waiting"
    term = state.term
    # An instance that does not own asks Telegram about its token at most, so its findings as an earlier owner are no news. The
    # time of the last comparison stays true, and is shown.
    webhook = state.webhook if owns else None
    webhook_error = state.webhook_error
    if not (owns or state.token_refused or core.asks_for_itself(state)):
        webhook_error = None
    leader = state.worker(term.worker) if owns and term is not None else None
    dispatch_fault = None if leader is None or leader.beat is None else leader.beat.dispatch_fault
    polling = None if leader is None or leader.beat is None else leader.beat.polling_reason
    return {
        "role": "ACTIVE" if owns else "PASSIVE",
        "term": None
        if state.term is None
        else {"number": state.term.number, "since": wall.tell("since", state.term.began_at, now)},
        "instance_id": config.identity.instance_id,
        "deploy_id": config.identity.deploy_id,
        "lock": {"state": lock, "holder": core.holder(state), "reason": _lock_reason(state, lock, now)},
        "webhook": {
            "url": config.webhook_url_masked,
            "in_sync": _in_sync(state) if owns else None,
            "last_error": webhook_error or polling or _delivery_error(webhook, wall.read()),
            "pending_update_count": None if webhook is None else webhook.pending_update_count,
            "last_checked": wall.tell("last_checked", state.webhook_compared_at, now),
        },
        "worker": {
            "pid": None if shown_worker is None else shown_worker.pid,
            "ready": worker is not None,
            "restarts": state.restarts.ever,
            "loop_lag_ms": None if beat is None else beat.loop_lag_ms,
            "last_crash": state.last_crash,
            "dispatch_fault": dispatch_fault,
        },
        "inbox": {name: getattr(inbox, name, None) for name in counts},
        "pool": {name: getattr(pool, name, None) for name in ("size", "in_use", "waiting", "unstored")},
        "uptime_seconds": round(now - state.started_at, 3),
    }


def _lock_reason(state: State, lock: str, now: float) -> str | None:
    """Why the session is not open, which comes first, or why an instance that is well leaves the lock to others."""
    if state.session.reason is not None or lock != "not waiting":
        return state.session.reason
    if not state.settings.may_own:
        return PREVIEW
    if state.stopping_since is None and now < state.abstain_until:
        seconds = state.abstain_until - now
        return f"gave up the lock: leaves it to others for {seconds:.0f} s more, see [LOCK] in the log"
    return None


def _in_sync(state: State) -> bool | None:
    """Whether the owner's registration is as wanted; None: it is asserted, and nobody has looked at it since in this term."""
    if state.term is None or not state.term.registration.asserted:
        return False
    registration = state.term.registration
    compared_at = registration.compared_at
    if compared_at is None or compared_at < registration.asserted_at or state.webhook is None:
        return None
    return state.webhook.in_sync


def _delivery_error(webhook: m.WebhookFacts | None, wall: datetime.datetime) -> str | None:
    """Telegram tells of the last one for as long as the registration stands, recovered or not: so with its age."""
    if webhook is None or webhook.last_error is None or webhook.last_error_date is None:
        return None
    return f"{webhook.last_error} ({wall.timestamp() - webhook.last_error_date:.0f} s ago)"
