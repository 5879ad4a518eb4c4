"""How the answers to Bot API calls change the facts. Pure.

    it is tried again          the call is still under way, and the next one has to wait as long, where that is asked of it
    the token is refused       ... and asked about again after minutes; where Telegram never took it, this process cannot run
    not ours any more          what Telegram has was changed by somebody: it is mended, the oftener the later
    rejected                   tried again after a while: what is to be registered may come to be right

Any answer of Telegram's but a refused token proves the token, whichever term it was for; of the registration it says something
where the call's term still stands. Of a call that was cut off nothing is known: Telegram may have applied it.

`supervisor.core` decides what to do. Some things can only be told in the moment of an answer, and are decided here: how long
the next call waits; that somebody keeps overwriting the registration; and that a token which Telegram never took ends the
process (`State.fatal`, exit code 3).
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from shared.backoff import doubled_seconds
from supervisor import messages as m
from supervisor.state import State, not_read_before, with_registration

OVERWRITTEN_FORGOTTEN_SECONDS = 3600.0
"""After an hour without a foreign change of the registration the next one is mended at once again."""

LONGEST_CONFLICT_PAUSE_SECONDS = 900.0
REJECTED_PAUSE_SECONDS = 60.0
"""A registration that Telegram rejects (400) will be rejected again; but hosts come to resolve, and servers are mended."""

TOKEN_PAUSE_SECONDS = 300.0
"""A refused token is tried again this often: tokens are not restored, and 401s must not hammer."""


def conflict_pause_seconds(overwritten: int, reconcile_seconds: float) -> float:
    """How long to wait before mending a registration that was overwritten so often within the hour.

    Twice at once, since a laptop that polled is the usual case; then ever more slowly, since two systems that overwrite each
    other close each other's deliveries at every turn.
    """
    if overwritten <= 2:
        return 0.0
    return doubled_seconds(reconcile_seconds, overwritten - 3, LONGEST_CONFLICT_PAUSE_SECONDS)


def observe_call(state: State, event: m.CallAnswer) -> State:
    """The state after what the shell said of a Bot API call; of one that nobody waits for it leaves it as it is."""
    call = state.call
    if call is None or call.id != event.id:
        return state
    if isinstance(event, m.CallRetrying):
        # The shell waits by itself. The time is kept for the next call, which has to wait as long if this one is cut off.
        state, until = replace(state, webhook_error=event.reason), event.at + event.retry_seconds
        if isinstance(call, m.Read):
            return not_read_before(state, until, of_get_me=isinstance(call, m.VerifyIdentity))
        # Of writes, a flood limit alone: after a mere failure a new term asserts at once.
        return replace(state, writes_from=until) if event.is_told else state
    state = replace(state, call=None)
    of_this_term = state.term is not None and state.term.uuid == call.term
    if isinstance(event, m.CallFailed) and event.fault is m.CallFault.TOKEN_REFUSED:
        if isinstance(call, m.DeleteWebhook) and not state.settings.polls and of_this_term:
            # The deletion is given up, as after any other refusal: nothing else would keep it from being repeated at once.
            state = with_registration(state, deleted=True)
        return _token_refused(state, event.at, event.reason)
    if not (isinstance(event, m.CallFailed) and event.fault is m.CallFault.TERM_OVER):
        # Any other answer, a rejection too, comes after the check of the token.
        state = replace(state, telegram_answered=True, token_refused=False)
    if call.term is None:
        return replace(state, webhook_error=None)  # of the tries before; a standby has no other
    if not of_this_term:
        return state
    match event:
        case m.WebhookAsserted():
            state = replace(state, webhook_error=None)
            if isinstance(call, m.DeleteWebhook) and not state.settings.polls:
                return with_registration(state, deleted=True)
            assert state.term is not None
            registration = state.term.registration
            if event.changed and registration.asserted:
                # Asserted again for a foreign secret; what had been asserted before, somebody has changed since.
                state = _note_overwritten(state, event.at)
            # What stands now is looked at now: it may not be what was asked for, and until then nobody knows that it is.
            return with_registration(
                state,
                asserted=True,
                asserted_at=event.at,
                confirmed=False,
                next_compare_at=event.at,
                refusal_asserted=registration.refusal_asserted and not event.changed,
            )
        case m.IdentityVerified():
            return with_registration(state, verified=True)
        case m.WebhookCompared(facts=facts):
            return _observe_comparison(state, event.at, facts)
        case m.CallFailed():
            return _observe_rejection(state, call, event)
        case _:
            assert_never(event)


def _token_refused(state: State, at: float, reason: str) -> State:
    fatal = state.fatal
    if not state.telegram_answered and fatal is None:
        fault = f"TELEGRAM_BOT_TOKEN is not valid: {reason}; take the current one from @BotFather"
        fatal = m.ExitProcess(code=3, faults=(fault,))
    return replace(
        state,
        token_refused=True,
        token_retry_at=at + TOKEN_PAUSE_SECONDS,
        webhook_error=reason,
        fatal=fatal,
    )


def _observe_comparison(state: State, at: float, facts: m.WebhookFacts) -> State:
    reconcile = state.settings.reconcile_seconds
    failing, before = _delivery_error(state, facts), state.webhook
    state = replace(state, webhook=facts, webhook_compared_at=at, delivery_error=failing)
    state = with_registration(state, compared_at=at, next_compare_at=at + reconcile)
    if (
        _is_refused_delivery(before, facts)
        and state.term is not None
        and not state.term.registration.refusal_asserted
    ):
        # Our URL is registered with a secret that no instance takes. The requests may all reach standbys, which register
        # nothing, so the owner asserts. If that changes nothing, something in front of us refuses them, and one assertion is
        # enough.
        state = with_registration(state, foreign_at=at, refusal_asserted=True)
    if facts.in_sync:
        return replace(state, webhook_error=None)
    state = _note_overwritten(replace(state, webhook_error=facts.drift), at)
    return with_registration(state, asserted=False)


def _delivery_error(state: State, facts: m.WebhookFacts) -> str | None:
    """Why deliveries fail: an error since the last look, while updates wait; then until none waits, or another comes."""
    if facts.last_error is None or facts.pending_update_count == 0:
        return None
    before = state.webhook.last_error_date if state.webhook is not None else None
    return facts.last_error if facts.last_error_date != before else state.delivery_error


def _is_refused_delivery(before: m.WebhookFacts | None, facts: m.WebhookFacts) -> bool:
    """Whether an instance of ours has answered 401 to Telegram, since the last look."""
    is_new = before is None or facts.last_error_date != before.last_error_date
    return is_new and facts.last_error is not None and " 401 " in f" {facts.last_error} "


def _note_overwritten(state: State, at: float) -> State:
    """Somebody has changed what we had asserted: the oftener, the longer until we do the next time."""
    overwritten = (*(t for t in state.overwritten if at - t < OVERWRITTEN_FORGOTTEN_SECONDS), at)
    pause = conflict_pause_seconds(len(overwritten), state.settings.reconcile_seconds)
    return with_registration(replace(state, overwritten=overwritten), next_set_at=at + pause)


def _observe_rejection(state: State, call: m.CallAction, event: m.CallFailed) -> State:
    if isinstance(call, m.DeleteWebhook) and not state.settings.polls:
        return with_registration(state, deleted=True)
    if event.fault is m.CallFault.TERM_OVER:
        return state
    state = replace(state, webhook_error=event.reason)
    match call:
        case m.SetWebhook() | m.DeleteWebhook():
            return with_registration(state, next_set_at=event.at + REJECTED_PAUSE_SECONDS)
        case _:
            return with_registration(state, next_compare_at=event.at + state.settings.reconcile_seconds)
