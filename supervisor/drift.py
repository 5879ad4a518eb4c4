"""Whether the registration at Telegram is the one that we want, and whether deliveries fail since we made it. Pure.

    memory ── setWebhook succeeded ──────────────────────────────────► asserted(changed) ──► memory
    memory ── getWebhookInfo answered ──► look(wanted, memory, info) ──► WebhookFacts, and memory

Most of it is told by one answer. Two things are not, since Telegram shows the same in two cases; a memory of what it showed
before tells them apart.

    allowed_updates     Telegram drops kinds that it does not know, and does not show its default. Such a list stands for ours
                        if it was there before our setWebhook and is there in the first look after it; otherwise it is drift.
    last_error          stays after recovery. It is news only if it is younger than our last assertion.

Not promised: that drift is somebody's attack. What follows from it is the core's to decide.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from shared.secret import Secret
from shared.webhook_info import NOT_BY_DEFAULT, WebhookInfo
from supervisor import messages as m


class Wanted(Struct, frozen=True):
    """What is to be registered."""

    url: Secret | None  # None: no webhook, updates are polled
    max_connections: int
    allowed_updates: frozenset[str]


class Memory(Struct, frozen=True):
    """What earlier answers showed, as far as the next one is judged by it; None: not known."""

    shown: frozenset[str] | None = None  # the allowed_updates that Telegram showed last
    kept: frozenset[str] | None = None  # those that our last setWebhook left as they were
    failed_before: int | None = None  # the date of the last failed delivery before our last setWebhook

    def asserted(self, *, changed: bool) -> Memory:
        """The memory after our setWebhook; `changed` is False for "already set"."""
        # With a registration that is made anew Telegram begins a new history (TELEGRAM.md, getWebhookInfo).
        return Memory(kept=self.shown, failed_before=0 if changed else None)


def look(wanted: Wanted, memory: Memory, info: WebhookInfo) -> tuple[m.WebhookFacts, Memory]:
    """Take an answer in.

    Args:
        wanted: what is to be registered.
        memory: of the answers before; Memory() where there was none.
        info: what Telegram has.

    Returns:
        The facts, with a delivery error only if it is news; and the memory for the next answer.
    """
    facts = compare(wanted, info, memory.kept)
    shown = frozenset(info.allowed_updates or ())
    failed = info.last_error_date or 0
    after = Memory(
        shown=shown,
        # Only the look after our own call tells what Telegram makes of our list. What comes later is somebody's.
        kept=memory.kept if memory.kept == shown else None,
        # Told from the first look by Telegram's own dates: its clock and ours need not agree.
        failed_before=failed if memory.failed_before is None else memory.failed_before,
    )
    is_news = memory.failed_before is not None and failed > memory.failed_before
    return (facts if is_news else replace(facts, last_error=None)), after


def compare(wanted: Wanted, info: WebhookInfo, kept: frozenset[str] | None = None) -> m.WebhookFacts:
    """What Telegram has, against what we want. The URL is compared, and never named: it holds the secret path.

    Args:
        wanted: what is to be registered.
        info: what Telegram has.
        kept: the allowed_updates that it had before our last setWebhook, where it has them still.
    """
    drift = []
    shown = frozenset(info.allowed_updates or ())
    if wanted.url is None:
        if info.url:
            drift.append("a webhook is set (another system uses our token)")
    elif not info.url:
        drift.append("no webhook is set (somebody deleted it, or polled with our token)")
    elif info.url != wanted.url.reveal():
        drift.append("another URL is registered (another system uses our token)")
    else:
        if info.has_custom_certificate:
            # We upload none, and with it Telegram trusts that one alone. A call without a certificate removes it.
            drift.append("somebody uploaded a certificate (has_custom_certificate)")
        if info.max_connections is not None and info.max_connections != wanted.max_connections:
            drift.append(f"max_connections is {info.max_connections}, not {wanted.max_connections}")
        if shown != wanted.allowed_updates and not (
            shown == kept and _may_stand_for(shown, wanted.allowed_updates)
        ):
            drift.append(f"allowed_updates is {sorted(shown)}, not {sorted(wanted.allowed_updates)}")
    return m.WebhookFacts(
        in_sync=not drift,
        drift="; ".join(drift) or None,
        pending_update_count=info.pending_update_count,
        last_error=info.last_error_message,
        last_error_date=info.last_error_date,
    )


def _may_stand_for(shown: frozenset[str], wanted: frozenset[str]) -> bool:
    """Whether Telegram may show this list where it was given ours: kinds that it does not know are dropped, and a list that is
    the default is not shown at all. If it is so, setting it anew changes nothing: that is how this is told from drift."""
    return shown < wanted if shown else wanted.isdisjoint(NOT_BY_DEFAULT)
