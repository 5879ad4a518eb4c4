"""What is drift and what is none, and which delivery errors are news; from answers of Telegram's and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from shared.secret import Secret
from shared.webhook_info import WebhookInfo
from supervisor import messages as m
from supervisor.drift import Memory, Wanted, compare, look

PATH = "p" * 40
URL = f"https://bot.example/webhook/{PATH}"


def wanted(*kinds: str) -> Wanted:
    return Wanted(url=Secret(URL), max_connections=40, allowed_updates=frozenset(kinds))


POLLED = Wanted(url=None, max_connections=40, allowed_updates=frozenset())


def info(**changes: Any) -> WebhookInfo:
    """Telegram has what we want, with these changes."""
    fields: dict[str, Any] = {"url": URL, "max_connections": 40, **changes}
    return WebhookInfo(**fields)


class Telegram:
    """What it shows, look by look, to one who remembers."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._memory = Memory()
        self._shows: dict[str, Any] = {}

    def asserted(self, *, changed: bool) -> None:
        self._memory = self._memory.asserted(changed=changed)

    def compare(self, **shows: Any) -> m.WebhookFacts:
        """getWebhookInfo, with these fields from now on."""
        self._shows.update(shows)
        facts, self._memory = look(self._wanted, self._memory, info(**self._shows))
        return facts


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (info(url=""), "no webhook is set"),
        (info(url=URL + "x", pending_update_count=3), "another URL"),
        (info(max_connections=3), "max_connections is 3"),
        (info(allowed_updates=("poll",)), "allowed_updates"),
        (info(has_custom_certificate=True), "certificate"),
    ],
)
def test_a19_what_differs_is_named_and_the_url_is_not(found: WebhookInfo, words: str) -> None:
    """Words for the log, from which a human knows what happened, and no secret path."""
    facts = compare(wanted(), found)
    assert not facts.in_sync
    assert words in str(facts.drift)
    assert PATH not in str(facts.drift)


def test_a16_history_and_a_backlog_are_no_drift() -> None:
    """What is mended is the registration; to set it again would not deliver a backlog sooner."""
    facts = compare(wanted(), info(pending_update_count=12, last_error_message="502 long ago"))
    assert facts.in_sync
    assert facts.pending_update_count == 12


def test_who_polls_wants_no_webhook_at_all() -> None:
    """One with our own URL takes the updates away just as well."""
    assert not compare(POLLED, info()).in_sync
    assert compare(POLLED, info(url="", allowed_updates=("poll",), max_connections=3)).in_sync


@pytest.mark.parametrize(
    ("kinds", "kept", "shown", "in_sync"),
    [
        ("message,poll", None, ("message",), False),  # not set by us since
        ("message,poll", ("message", "chat_member"), ("message",), False),  # it was another before
        ("message,poll", ("message",), ("message",), True),
        ("message", ("message", "poll"), ("message", "poll"), False),  # never more than ours
        ("message", ("poll",), ("poll",), False),
        ("message,poll", (), None, True),  # the default of that server
        ("message,chat_member", (), None, False),  # which leaves this one out
    ],
)
def test_a19_only_what_telegram_may_make_of_our_list_stands_for_it(
    kinds: str, kept: tuple[str, ...] | None, shown: tuple[str, ...] | None, in_sync: bool
) -> None:
    """And only if it was there before we set ours, and is there after."""
    found = info(allowed_updates=shown)
    facts = compare(wanted(*kinds.split(",")), found, None if kept is None else frozenset(kept))
    assert facts.in_sync is in_sync
    assert (facts.drift is None) is in_sync


def test_a19_a_shorter_list_that_somebody_sets_later_is_drift() -> None:
    """Only the look that follows our own setWebhook tells what Telegram makes of our list."""
    telegram = Telegram(wanted("message", "poll"))
    assert not telegram.compare(allowed_updates=("message",)).in_sync
    telegram.asserted(changed=True)
    assert telegram.compare(allowed_updates=("message", "poll")).in_sync
    assert not telegram.compare(allowed_updates=("message",)).in_sync


def test_a19_a_list_that_stands_for_ours_does_so_until_it_changes() -> None:
    """And not again after somebody had set another."""
    telegram = Telegram(wanted("message", "poll", "later"))
    telegram.compare(allowed_updates=("message", "poll"))
    telegram.asserted(changed=True)
    assert telegram.compare().in_sync
    assert telegram.compare().in_sync
    assert not telegram.compare(allowed_updates=("message",)).in_sync
    assert not telegram.compare(allowed_updates=("message", "poll")).in_sync


def test_a16_an_error_from_before_our_assertion_is_history() -> None:
    """`last_error_*` stays after recovery; whoever reads it in /status would look for what is long over."""
    telegram = Telegram(wanted())
    telegram.asserted(changed=False)
    old = {"last_error_date": 100, "last_error_message": "Connection refused"}
    assert telegram.compare(**old).last_error is None
    assert telegram.compare().last_error is None
    assert telegram.compare(last_error_date=160).last_error == "Connection refused"
    assert telegram.compare().last_error == "Connection refused", "as long as Telegram tells of it"
    telegram.asserted(changed=False)
    assert telegram.compare().last_error is None


def test_an_error_after_a_registration_that_was_made_anew_is_news_at_once() -> None:
    """With it Telegram forgets what was before."""
    telegram = Telegram(wanted())
    telegram.asserted(changed=True)
    facts = telegram.compare(last_error_date=100, last_error_message="Connection refused")
    assert facts.last_error == "Connection refused"


def test_a19_a_certificate_that_somebody_uploaded_is_drift_until_it_is_gone() -> None:
    """With our URL and all else as we set it, Telegram trusts that certificate alone, and no delivery reaches us."""
    telegram = Telegram(wanted())
    assert not telegram.compare(has_custom_certificate=True).in_sync
    assert telegram.compare(has_custom_certificate=False).in_sync
