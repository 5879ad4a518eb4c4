"""What the dispatch decides: which outcome means what for the row, when a retry is due, who goes next after a crash.

    claimed ──► handler ──► Outcome ──┬─ Done ────────────► done    body gone, the lane goes on
                   │                  ├─ Transient ───────► pending retry_at in the future, the lane waits
                   │                  │   ... for 24 h ───► dead    when it was tried for an hour at least
                   │                  └─ Failed ──────────► dead    kept with its traceback, the lane goes on
                   ├─ took too long ──────────────────────► dead
                   ├─ end of the term ────────────────────► pending the attempt is given back
                   │   ... and it goes on ────┐
                   └─ process died ───────────┴─ stays claimed: a suspect ──┬► claimed again, by itself, an attempt more
                                                                            └► dead, after MAX_ATTEMPTS starts

**Attempts.** A claim counts one, before the work starts; an end that says nothing against the update (a transient failure, an
orderly interruption) gives it back. So the attempts of a row that nobody runs are the crashes it was in, and a row that has
any is a suspect: it starts only when no other suspect runs, fewest attempts first.

**Waiting.** A transient failure waits longer each time, with jitter. Once another update shows that what it waits for is back,
it may go ahead of its time (claim_plan.py).

Pure: no clock, no database, no randomness but what is given. Not promised: that every SQL statement agrees with this page;
tests run both.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import assert_never

from msgspec import Struct

from shared.backoff import doubled_seconds
from webhook_worker.outcomes import Done, Failed, Outcome, Transient, storable

RETRY_FIRST_SECONDS = 1.0
RETRY_MAX_SECONDS = 30.0
"""Longest wait for a retry that Telegram did not time itself. With 20 lanes that wait, one of them tries every second or
so, and its success brings the others back; an hour's outage costs one lane about 160 starts."""

GIVE_UP_SECONDS = 24 * 3600.0
"""Age at which a transient failure becomes a dead letter: as long as Telegram itself keeps an update (TELEGRAM.md, expiry)."""

GIVE_UP_TRIED_SECONDS = 2 * 3600.0
"""... once it was tried for so long, by its pauses: some 320 retries. An update may be old before its first start (a weekend
without a worker), and then neither one flood limit nor an hour's outage of Telegram ends it; twice that hour, since
pauses are random."""

MAX_ERROR_CHARACTERS = 40_000
"""Of what the column `error` gets, whoever made it; failures.py has a lower limit for tracebacks."""


class State(enum.Enum):
    """Of a row of the inbox; the values are those of the column."""

    PENDING = "pending"
    CLAIMED = "claimed"
    DONE = "done"
    DEAD = "dead"


class Interruption(enum.Enum):
    """Why the dispatcher cancelled a handler."""

    TIMEOUT = "timeout"  # longer than HANDLER_TIMEOUT_SECONDS: the update's own doing
    TERM_OVER = "term over"  # drained, past the deadline, superseded: nothing against the update


class Ending(enum.Enum):
    """How a dispatch ended."""

    ENDED = "ended"  # it was asked to
    DEADLINE = "deadline"  # ownership was not confirmed in time
    SUPERSEDED = "superseded"  # another term has begun, or ours was ended, in the database


class Claimed(Struct, frozen=True):
    """An update that is ours to run. `starts` tells this claim from all others of the row.

    Attributes:
        attempts: starts that count, this one included; more than one: it was in flight at a crash.
        starts: all starts, this one included.
        retries: transient failures so far.
        age_seconds: since it was received, when it was claimed.
        is_ahead: its retry was not due yet.
    """

    seq: int
    starts: int
    update_id: int
    lane_key: int
    body: bytes
    attempts: int
    retries: int
    age_seconds: float
    is_ahead: bool

    @property
    def is_suspect(self) -> bool:
        """Whether it was in flight at a crash, and must run by itself."""
        return self.attempts > 1


class Suspect(Struct, frozen=True):
    """A row that was in flight at a crash and waits to be started again; `attempts` are its crashes."""

    seq: int
    attempts: int


class Verdict(Struct, frozen=True):
    """What becomes of a claimed row.

    Attributes:
        refund: attempts to give back.
        is_retry: it failed transiently: counts toward the backoff.
        retry_seconds: from now on it must wait so long.
        is_told: ... because Telegram said so: not to be shortened.
        is_refused: Telegram refused the bot's token.
        error: for the operator; None leaves what is there.
    """

    state: State
    refund: int = 0
    is_retry: bool = False
    retry_seconds: float | None = None
    is_told: bool = False
    is_refused: bool = False
    error: str | None = None


DONE = Verdict(State.DONE)
GIVE_BACK = Verdict(State.PENDING, refund=1)


class Settlement(Struct, frozen=True):
    """A verdict on one claim of one row."""

    seq: int
    starts: int
    verdict: Verdict


class Waited(Struct, frozen=True):
    """Where a handler was when its time was over: `my_bot/main.py:42 in order`, and the way there as a traceback has it."""

    place: str
    way: str


def judge(
    outcome: Outcome | None,
    interruption: Interruption | None,
    *,
    retries: int,
    age_seconds: float,
    timeout_seconds: float,
    jitter: float,
    waited: Waited | None = None,
) -> Verdict:
    """What becomes of a row whose handler has ended.

    A handler that had finished when its cancellation came has done its work. One that answers a cancellation with an error
    was interrupted all the same: what it says is about the interruption.

    Args:
        outcome: what the handler reported; None: it was cancelled.
        interruption: why we had cancelled it, if we had.
        retries: transient failures before this run.
        age_seconds: since the update was received.
        timeout_seconds: HANDLER_TIMEOUT_SECONDS, for the text.
        jitter: random, 0 to 1.
        waited: where the handler was when its time was over, if that is known.
    """
    if isinstance(outcome, Done):
        return DONE
    match interruption:
        case Interruption.TERM_OVER:
            return GIVE_BACK
        case Interruption.TIMEOUT:
            text = _too_long(timeout_seconds)
            if isinstance(outcome, Failed):
                text = f"{text}, and ended with:\n{outcome.traceback_text}"
            else:
                text = _with_place(text, waited)
            return Verdict(State.DEAD, error=storable(text, MAX_ERROR_CHARACTERS))
        case None:
            pass
        case _:
            assert_never(interruption)
    match outcome:
        case None:
            return Verdict(State.DEAD, error="the handler was cancelled, and not by the dispatch")
        case Failed(traceback_text=text):
            return Verdict(State.DEAD, error=storable(text, MAX_ERROR_CHARACTERS))
        case Transient(reason=reason, retry_after_seconds=told, is_token_refused=is_refused):
            # Half of the jitter: the pauses so far, on average; all but the first five are as long.
            tried_seconds = retries * backoff_seconds(retries, told, jitter=0.5)
            if age_seconds >= GIVE_UP_SECONDS and tried_seconds >= GIVE_UP_TRIED_SECONDS:
                hours = GIVE_UP_SECONDS / 3600
                text = f"given up, {hours:g} h and more after it came; transient failures: {retries + 1}, the last: {reason}"
                return Verdict(State.DEAD, error=storable(text, MAX_ERROR_CHARACTERS))
            return Verdict(
                State.PENDING,
                refund=1,
                is_retry=True,
                retry_seconds=backoff_seconds(retries, told, jitter=jitter),
                is_told=told is not None,
                is_refused=is_refused,
                error=storable(reason, MAX_ERROR_CHARACTERS),
            )
        case _:
            assert_never(outcome)


def backoff_seconds(retries: int, told_seconds: float | None, *, jitter: float) -> float:
    """How long an update waits after a transient failure.

    Args:
        retries: transient failures before this one.
        told_seconds: Telegram's `retry_after`: never less than that; a second more at most, so that a thousand that were
            told the same do not come back at once.
        jitter: random, 0 to 1.
    """
    if told_seconds is not None:
        return max(0.0, told_seconds) + jitter
    longest = doubled_seconds(RETRY_FIRST_SECONDS, retries, RETRY_MAX_SECONDS)
    return longest * (0.5 + jitter / 2)


class Rerun(Struct, frozen=True):
    """Start this suspect, by itself."""

    seq: int


class Bury(Struct, frozen=True):
    """These have been started often enough: dead letters, before anything else is started."""

    seqs: tuple[int, ...]
    error: str


def next_recovery(suspects: Iterable[Suspect], *, max_attempts: int) -> Rerun | Bury | None:
    """The next step of recovery after a crash: fewest attempts first, so that a poison update comes after the innocents.

    Args:
        suspects: all that may start now.
        max_attempts: MAX_ATTEMPTS, the first start included.
    """
    waiting = sorted(suspects, key=lambda suspect: (suspect.attempts, suspect.seq))
    exhausted = tuple(suspect.seq for suspect in waiting if suspect.attempts >= max_attempts)
    if exhausted:
        return Bury(exhausted, exhausted_text(max_attempts))
    return Rerun(waiting[0].seq) if waiting else None


def exhausted_text(max_attempts: int) -> str:
    """Why an update is not started again after a crash."""
    return (
        f"not started again: its process ended while it ran, MAX_ATTEMPTS={max_attempts} starts in all; retry it when its "
        "handler no longer crashes, hangs or takes too much memory"
    )


def stubborn_text(timeout_seconds: float, waited: Waited | None) -> str:
    """Why an update whose handler cannot be stopped is not to be started again; `waited` as in `judge`."""
    text = _with_place(f"{_too_long(timeout_seconds)} and ignored its cancellation", waited)
    return storable(text, MAX_ERROR_CHARACTERS)


def _too_long(timeout_seconds: float) -> str:
    return f"the handler took longer than {timeout_seconds:g} s (HANDLER_TIMEOUT_SECONDS)"


def _with_place(text: str, waited: Waited | None) -> str:
    if waited is None:
        return text
    return f"Traceback (most recent call last):\n{waited.way}{text}: waited at {waited.place}"
