"""The registrar of a modelled process: its calls to the modelled Telegram."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

from supervisor import core
from supervisor import messages as m
from tests.unit.supervisor.modelled_session import SessionShell

CALL = 0.05
PAUSES = {"retry": 1.0, "retry late": 60.0, "wait": 30.0, "wait long": 300.0}
LATE = 5.0
"""How long a late answer waits in the queue: until the next term of the same instance has begun."""


class CallShell(SessionShell):
    """Carries out `CallAction`s: asks the permit before every attempt, and is cut off when the term ends."""

    def _begin_call(self, action: m.BotCall) -> None:
        self.pending_call = action.id
        self.world.at(CALL / 2, lambda: self._attempt(action))

    def _cut_off(self, call: m.CallAction) -> None:
        # One whose answer is in the queue has ended for the shell: nothing is left to be cut off.
        if self.pending_call == call.id != self.queued_answer:
            self.pending_call = None
            self.post(m.CallFailed, 0.001, id=call.id, fault=m.CallFault.TERM_OVER, reason="the term is over")

    def _attempt(self, action: m.BotCall) -> None:
        if not self.lives or self.pending_call != action.id:
            return
        if not core.may_call(self.state, action, self.world.now):
            self._cut_off(action)
            return
        fault, self.call_fault = self.always_call_fault or self.call_fault, None
        if self.world.telegram.is_away:
            fault = "retry"
        if fault == "hang":
            return
        if fault in PAUSES:
            pause = PAUSES[fault]
            is_told = fault.startswith("wait")
            self.post(m.CallRetrying, id=action.id, reason="503", retry_seconds=pause, is_told=is_told)
            self.world.at(pause, lambda: self._attempt(action))
            return
        if fault == "late":
            self.queued_answer = action.id
        self._apply(action, fault)

    def _apply(self, action: m.BotCall, fault: str | None) -> None:
        telegram, delay = self.world.telegram, LATE if fault == "late" else CALL / 2
        if fault == "refuse" or self.token in telegram.refused_tokens:
            self._end_call(
                m.CallFailed, delay, action, fault=m.CallFault.TOKEN_REFUSED, reason="Unauthorized"
            )
            return
        if fault == "reject":
            self._end_call(m.CallFailed, delay, action, fault=m.CallFault.REJECTED, reason="bad webhook")
            return
        wanted = None if self.state.settings.polls else f"ours-{self.token}"
        match action:
            case m.SetWebhook() | m.DeleteWebhook():
                url = wanted if isinstance(action, m.SetWebhook) else None
                changed = telegram.url != url or telegram.foreign_secret
                telegram.url, telegram.foreign_secret = url, False
                telegram.changes.append((self.world.now, type(action).__name__, self.name))
                self._end_call(m.WebhookAsserted, delay, action, changed=changed)
            case m.VerifyIdentity():
                self._end_call(m.IdentityVerified, delay, action, bot_id=7, username="menu_bot")
            case m.CompareWebhook():
                in_sync = telegram.url == wanted
                message, date, pending = telegram.failure or (None, None, 0)
                drift = None if in_sync else "another URL is registered"
                facts = m.WebhookFacts(in_sync, drift, pending, message, date)
                self._end_call(m.WebhookCompared, delay, action, facts=facts)
            case _:
                assert_never(action)

    def _end_call(
        self, make: Callable[..., m.Event], delay: float, action: m.CallAction, **fields: Any
    ) -> None:
        def deliver() -> None:
            if self.pending_call == action.id:
                self.pending_call = None
                self.post(make, id=action.id, **fields)

        self.world.at(delay, deliver)
