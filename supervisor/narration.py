"""What the log says of decisions and facts. Pure: two states and what lies between, lines out.

The tags and beginnings are INTERFACE.md's: runbooks grep for them. The core is silent; the runner logs what this says. Texts
that came from outside (reasons, faults) may hold anything; `shared.log` removes secrets from every line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from shared import wire
from supervisor import core
from supervisor import messages as m
from supervisor.state import State, is_news

Level = Literal["info", "warning", "error", "critical"]
"""Of a line; each is the name of a logger's method, which the runner calls."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log."""

    tag: str
    event: str
    fields: dict[str, object] = field(default_factory=dict)
    level: Level = "info"


PREVIEW = "preview deploy: set ALLOW_PREVIEW=1 to let it own the bot"
"""Why an instance that may not own stays PASSIVE; /status says it in the same words."""

_ACQUIRED = Line("LOCK", "PostgreSQL advisory lock acquired")
_TOKEN_REFUSED = Line(
    "BOT_VERIFY", "Telegram refuses the bot token (401): set the current one", level="error"
)


def narrate(
    before: State, event: m.Event, after: State, actions: tuple[m.Action, ...], webhook_url: str | None
) -> Iterator[Line]:
    """The lines of one step.

    Args:
        before: the facts before the event.
        event: what happened.
        after: the facts after it, with all actions begun.
        actions: what was begun.
        webhook_url: the registered URL with its secret path masked; None in polling mode.
    """
    yield from _of_opening(before, event)
    yield from _of_session(before, event)
    yield from _of_role(before, event, after)
    yield from _of_calls(before, event, after, webhook_url)
    yield from _of_worker(before, event)
    for action in actions:
        yield from _of_action(before, after, action)


def _waits(before: State, event: m.Answered | m.SessionFailed | m.SessionOpened) -> bool:
    return before.session.busy is not None and before.session.busy.id == event.id


def _of_opening(before: State, event: m.Event) -> Iterator[Line]:
    """After a failure, only the first answer shows that something has changed.

    Where the server takes sessions and no writes, each fails as the one before, every second.
    """
    again = before.session.reason is not None
    if isinstance(event, m.Answered if again else m.SessionOpened) and _waits(before, event):
        yield Line("LOCK", "database session opened")


def _of_session(before: State, event: m.Event) -> Iterator[Line]:
    match event:
        case m.SessionFailed(reason=reason, refused=refused, schema=schema) if _waits(
            before, event
        ) and is_news(before.session, reason, event.at):
            if before.session.open:
                what = "database session lost"
            elif refused:
                what = "database refused"
            elif schema:
                what = "tables cannot be made or brought up to date, trying every second"
            else:
                what = "database cannot be reached, standing by and trying every second"
            yield Line("LOCK", what, {"reason": reason}, "warning")
        case m.SessionLost(session=session, reason=reason) if before.session.id == session and is_news(
            before.session, reason, event.at
        ):
            yield Line("LOCK", "database session lost", {"reason": reason}, "warning")
        case m.LockAcquired() if _waits(before, event):
            yield _ACQUIRED
        case m.LockBusy() if _waits(before, event) and before.passive_since is None:
            # The term row may still show us: whoever was handed the lock writes it in a moment.
            holder = None if before.holder == before.settings.instance_id else before.holder
            fields: dict[str, object] = {} if holder is None else {"holder": holder}
            yield Line("LOCK", "lock held elsewhere, standing by", fields)
            yield Line("LOCK_CONTROLLER", "PASSIVE MODE (lock held elsewhere)")
        case m.TermBegun() if _waits(before, event) and isinstance(before.session.busy, m.WaitForLock):
            yield _ACQUIRED
        case m.TermDenied(successor=successor) if _waits(before, event):
            if isinstance(before.session.busy, m.WaitForLock):
                yield _ACQUIRED
            yield Line(
                "LOCK", "lock goes back: another instance is the named successor", {"successor": successor}
            )
        case m.StopRequested():
            if before.stopping_since is None:
                yield Line("LOCK_CONTROLLER", "stopping: asked by a signal")
            elif not before.stop_immediately:
                yield Line("LOCK_CONTROLLER", "signalled again")
        case m.ReplacementRequested() if before.settings.at_terminal:
            if before.stopping_since is None:
                yield Line("LOCK_CONTROLLER", "stopping: the terminal has closed")
        case m.ReplacementRequested():
            yield Line("LOCK_CONTROLLER", "replacing the worker: asked by SIGHUP")
        case _:
            return


def _of_role(before: State, event: m.Event, after: State) -> Iterator[Line]:
    now = event.at
    if isinstance(event, m.TermBegun) and after.term is not None and before.term is None:
        fields: dict[str, object] = {"term": after.term.number}
        if before.passive_since is None:
            if before.recover_at > float("-inf"):  # it has had a term
                new = "new term" if before.reaped_term is None else "new worker, new term"
                yield Line("STATE_SYNC", f"PASSIVE -> ACTIVE ({new})")
            yield Line("LOCK_CONTROLLER", "ACTIVE MODE (lock acquired immediately)", fields)
        else:
            waited = f"lock acquired after {now - before.passive_since:.1f}s as standby"
            yield Line("STATE_SYNC", f"PASSIVE -> ACTIVE ({waited})")
            yield Line("LOCK_CONTROLLER", f"ACTIVE MODE ({waited})", fields)
    elif before.term is not None and before.term.ended is None:
        ended = (
            after.term.ended
            if after.term is not None
            else core.end_reason(before, now) or m.EndReason.SESSION_LOST
        )
        if ended is not None:
            yield Line("STATE_SYNC", f"ACTIVE -> PASSIVE ({ended.value})", {"term": before.term.number})


def _of_calls(before: State, event: m.Event, after: State, webhook_url: str | None) -> Iterator[Line]:
    call = before.call
    ours = (
        before.term is not None
        and call is not None
        and call.id == getattr(event, "id", None)
        and before.term.uuid == call.term
    )
    match event:
        case m.WebhookAsserted(changed=changed) if call is not None and call.id == event.id:
            polls = before.settings.polls
            if isinstance(call, m.DeleteWebhook):
                yield Line("WEBHOOK", "webhook deleted" if changed else "webhook already deleted")
            else:
                if ours and changed and before.term is not None and before.term.registration.asserted:
                    yield from _of_drift(after, "our URL is registered with another secret")
                yield Line(
                    "WEBHOOK", "webhook set" if changed else "webhook already set", {"url": webhook_url}
                )
            if ours and (polls or isinstance(call, m.SetWebhook)):
                what = "no webhook, updates are polled" if polls else "webhook set"
                yield Line("LOCK_CONTROLLER", f"active services initialized ({what})")
        case m.IdentityVerified() if ours and before.term is not None and before.term.registration.verified:
            yield Line("BOT_VERIFY", "the bot token is good: the 401 was about another one that handlers use")
        case m.IdentityVerified(bot_id=bot_id, username=name) if ours or (
            call is not None and call.id == event.id and call.term is None
        ):
            yield Line("BOT_VERIFY", f"bot identity: @{name} (id={bot_id})")
        case m.WebhookCompared(facts=facts) if ours:
            first = before.term is not None and before.term.registration.compared_at is None
            if first:
                where = "none, updates are polled" if webhook_url is None else webhook_url
                yield Line("BOT_VERIFY", f"webhook: {where} (pending={facts.pending_update_count})")
            if not facts.in_sync:
                yield from _of_drift(after, facts.drift)
            if after.delivery_error is not None and after.delivery_error != before.delivery_error:
                fields = {"reason": after.delivery_error, "pending": facts.pending_update_count}
                yield Line("WEBHOOK", "deliveries fail", fields, "warning")
        case m.CallRetrying(reason=reason, retry_seconds=seconds) if call is not None and call.id == event.id:
            # Where updates are polled it is repeated every two seconds, for as long as an outage takes.
            if not (before.settings.polls and before.webhook_error == reason):
                fields = {"reason": reason, "retry_in": f"{seconds:.1f}s"}
                yield Line("WEBHOOK", "Telegram call failed", fields, "warning")
        case m.CallFailed(fault=m.CallFault.TERM_OVER) if call is not None and call.id == event.id:
            # Of any other call: the end of the term, which has its own line.
            if isinstance(call, m.DeleteWebhook) and not before.settings.polls:
                yield _of_cut_deletion(before)
        case m.CallFailed(fault=fault, reason=reason) if call is not None and call.id == event.id:
            yield Line(
                "WEBHOOK", "Telegram refused the call", {"reason": reason, "fault": fault.value}, "error"
            )
            if fault is m.CallFault.TOKEN_REFUSED and not before.token_refused:
                yield _TOKEN_REFUSED
        case m.WorkerSaid(message=wire.TokenRefused()) if (
            core.owns(before, event.at) and not before.token_refused
        ):
            text = "Telegram answered 401 to the bot: asking whether it refuses the bot token"
            yield Line("BOT_VERIFY", text, level="warning")
        case _:
            return


def _of_cut_deletion(before: State) -> Line:
    """Telegram may have carried it out all the same; an instance that stands by asserts the webhook when it owns."""
    if (kept_for := core.webhook_kept_for(before)) is not None:
        return Line("WEBHOOK", "deletion cut off: another instance stands by", {"instance": kept_for})
    return Line("WEBHOOK", "deletion cut off: the webhook may be set still", level="warning")


def _of_drift(after: State, drift: str | None) -> Iterator[Line]:
    yield Line("WEBHOOK", "registration drifted, mending it", {"drift": drift}, "warning")
    times = len(after.overwritten)
    if times > 2:
        text = "conflict: something else keeps overwriting the registration; find what else uses this token"
        yield Line("WEBHOOK", text, {"times_within_the_hour": times}, "error")


def _of_worker(before: State, event: m.Event) -> Iterator[Line]:
    match event:
        case m.WorkerSpawned(worker=id_, pid=pid):
            yield Line("WORKER", "worker started", {"worker": id_, "pid": pid})
        case m.WorkerSaid(worker=id_, message=message):
            yield from _of_words(before, id_, message)
        case m.WorkerExited(worker=id_, status=status):
            worker = before.worker(id_)
            asked = worker is not None and worker.leaving and not worker.killed_as_crash
            yield Line(
                "WORKER", "worker ended", {"worker": id_, "status": status}, "info" if asked else "warning"
            )
        case _:
            return


def _of_words(before: State, id_: int, message: wire.ToSupervisor) -> Iterator[Line]:
    match message:
        case wire.Receiving():
            yield Line("WORKER", "worker receives updates while it imports its bot", {"worker": id_})
        case wire.Accepting():
            yield Line("WORKER", "worker accepts connections", {"worker": id_})
            if not before.ever_accepted and not before.settings.may_own:
                yield Line("LOCK_CONTROLLER", f"PASSIVE MODE ({PREVIEW})")
        case wire.Dispatching():
            yield Line("WORKER", "worker dispatches updates", {"worker": id_})
        case wire.StartFailed(faults=faults):
            for fault in faults:
                yield Line("WORKER", "worker cannot start", {"worker": id_, "fault": fault}, "error")
        case wire.LeadFailed(reason=reason, transient=transient, retry_after_seconds=seconds):
            text = "; it is tried again" if transient else ""
            fields: dict[str, object] = {"worker": id_, "reason": reason}
            if seconds is not None:
                fields["retry_in"] = f"{seconds:.1f}s"
            yield Line(
                "WORKER", f"application did not start{text}", fields, "warning" if transient else "error"
            )
        case wire.TermEnded():
            yield Line("WORKER", "worker has ended its term", {"worker": id_})
        case wire.Beat(storing=storing):
            worker = before.worker(id_)
            # A worker that has not stored yet is starting; what is in its way is in its own lines.
            was = (
                worker.beat.storing
                if worker is not None and worker.beat is not None and worker.ever_stored
                else None
            )
            if not storing and was is True:
                yield Line(
                    "WORKER", "updates cannot be stored", {"reason": message.storing_reason}, "warning"
                )
            elif storing and was is False:
                yield Line("WORKER", "updates are stored again")
        case _:
            return


def _of_action(before: State, after: State, action: m.Action) -> Iterator[Line]:
    match action:
        case m.TryLock():
            yield Line("LOCK", "acquiring PostgreSQL advisory lock")
        case m.VerifyIdentity(term=None):
            yield Line("BOT_VERIFY", "the owner has another bot token: asking whether Telegram knows ours")
        case m.SetWebhook():
            yield Line("WEBHOOK", "setting webhook")
        case m.DeleteWebhook():
            yield Line("WEBHOOK", "deleting webhook")
        case m.EndTerm(worker=id_, reason=m.EndReason.NOT_STARTED):
            what = "application did not start"
            yield Line("WORKER", what, {"worker": id_, "reason": m.LEAD_TIMED_OUT}, "error")
        case m.CloseTerm(reason=reason, successor=successor):
            if (kept_for := core.webhook_kept_for(after)) is not None:
                yield Line("WEBHOOK", "webhook kept: another instance stands by", {"instance": kept_for})
            fields: dict[str, object] = {"reason": reason.value}
            if successor is not None:
                fields["successor"] = successor
            yield Line("LOCK", "term closed", fields)
        case m.ReleaseLock(gave_up=True) if after.session.left_to_other_code:
            text = "giving up the lock to an instance of another deploy: the bot was told to wait"
            seconds = after.restarts.next_lead_at - after.seen_at
            yield Line("LOCK", text, {"retry_in": f"{seconds:.1f}s", "last": after.last_crash}, "warning")
        case m.ReleaseLock(gave_up=True) if after.session.left_for_database:
            yield Line(
                "LOCK", "giving up the lock: the worker does not reach the database here", level="warning"
            )
        case m.ReleaseLock(gave_up=True) if after.session.unanswered:
            text = "giving up the lock: Telegram does not answer here"
            yield Line("LOCK", text, {"last": after.webhook_error}, "warning")
        case m.ReleaseLock(gave_up=True) if after.session.lead_failed:
            text = "giving up the lock: the bot does not start here"
            yield Line("LOCK", text, {"last": after.last_crash}, "error")
        case m.ReleaseLock(gave_up=True):
            text = "giving up the lock: the worker does not stay up"
            yield Line("LOCK", text, {"last": after.last_crash}, "error")
        case m.CloseSession(reason=reason) if before.fatal is None and is_news(
            before.session, reason, after.seen_at
        ):
            yield Line("LOCK", "database session closed", {"reason": reason})
        case m.KillWorker(worker=id_, reason=reason):
            yield Line("WORKER", "killing the worker", {"worker": id_, "reason": reason}, "warning")
        case m.ServeUnavailable(on=on):
            if on and after.ever_accepted and after.stopping_since is None:
                yield Line("WORKER", "no worker accepts: answering 503 on the public port", level="warning")
        case m.ExitProcess(code=code, faults=faults):
            for fault in faults:
                yield Line("LOCK_CONTROLLER", fault, level="critical")
            yield Line("LOCK_CONTROLLER", "exit", {"code": code})
        case _:
            return
