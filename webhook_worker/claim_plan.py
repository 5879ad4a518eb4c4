"""When the dispatch asks the inbox for updates, and for which.

    woken, or an answer was lost ────────► at once ────────────────────┐
    a retry is due ──────────────────────► then ───────────────────────┤
    a claim saw only a part of the lanes ► at once, or a moment later ─┼──► ClaimRequest ──► Batch: says when to ask again
    no news for a second ────────────────► peek: is there anything? ───┘
    suspects, once they may start ───────► a step of recovery, while none of them runs

**Ahead of time.** When an update that had failed before succeeds, what it waited for is back, and two others may go ahead of
their time; each of those that succeeds lets two more go, and the first that fails again ends it. So a thousand lanes are back
seconds after an outage, and none hammers while it lasts. The first of few lanes would be late: where it is Telegram that was
away, two may go as soon as it answers (outage.py).

**Lost answers.** Whoever sends a statement that claims says `wake` before, or when its answer is lost: what it has claimed all
the same is found by the next claim.

Pure: is given the time, and never waits. Not promised: that there is anything to claim when a claim is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from webhook_worker.lanes import Claimed, State, Verdict

POLL_SECONDS = 1.0
"""Behind wake(): how long an update may wait whose notification was lost."""

SWEEP_SECONDS = 0.05
"""Between two claims that see nothing but blocked lanes: 5,000 lanes a second, for a twentieth of a backend's time."""

AHEAD_STEP = 2


class Sweep(Struct, frozen=True):
    """Where the walk over the lanes stands; a new claim goes on after the last lane that had its turn.

    Attributes:
        after_lane: the walk begins behind this lane_key, and comes round to it.
        turn: grows by one each claim; which of the sources of heads is served first.
    """

    after_lane: int = -(2**63)
    turn: int = 0

    def next(self, after_lane: int) -> Sweep:
        """After a claim that walked as far as `after_lane`."""
        return replace(self, after_lane=after_lane, turn=(self.turn + 1) % 3)


class ClaimRequest(Struct, frozen=True):
    """What to claim.

    Attributes:
        free: at most so many.
        sweep: where the walk stands.
        known: seqs of all that is in flight here.
        ahead: so many of them may be retries that are not due.
    """

    free: int
    sweep: Sweep
    known: Sequence[int]
    ahead: int = 0


class Batch(Struct, frozen=True):
    """What a claim got.

    Attributes:
        claimed: in the order of seq; more than was asked for when some had been claimed without our knowledge.
        sweep: for the next claim.
        is_complete: the walk has seen all lanes; False: there may be more.
        next_retry_seconds: when the next retry is due, None if none waits.
        has_suspects: something waits for recovery.
    """

    claimed: tuple[Claimed, ...]
    sweep: Sweep
    is_complete: bool
    next_retry_seconds: float | None
    has_suspects: bool


class ClaimPlan:
    """Of one dispatcher; every `now` is on its clock."""

    def __init__(self, *, concurrency: int, recover_at: float) -> None:
        """Nothing is known yet: a claim is wanted, and a recovery.

        Args:
            concurrency: DISPATCH_CONCURRENCY.
            recover_at: what was in flight under earlier terms waits until then.
        """
        self._concurrency = concurrency
        self._recover_at = recover_at
        self._sweep = Sweep()
        self._ahead = 0
        self._woken = True
        self._claim_at = self._peek_at = -math.inf
        self._has_suspects = True

    def wake(self) -> None:
        """There may be something to claim: new work, or what a claim got whose answer is lost."""
        self._woken = True

    def telegram_is_back(self) -> None:
        """It was away: two of those that wait for it may go at once."""
        self._ahead = max(self._ahead, AHEAD_STEP)
        self.wake()

    def ended(self, claimed: Claimed, verdict: Verdict) -> None:
        """What became of an update is committed: more may run ahead of their time now, or none."""
        if verdict.is_retry:
            # One that is told its own time says nothing about whether the others' cause is over.
            if not verdict.is_told:
                self._ahead = 0
        elif verdict.state is State.DONE and claimed.retries > 0:
            self._ahead = min(self._concurrency, self._ahead + AHEAD_STEP)

    # ------------------------------------------------------------------------------------------------------------ claims

    def wants_claim(self, free: int, now: float) -> bool:
        """Whether to claim; `free` are the slots for it."""
        return free > 0 and (self._woken or now >= self._claim_at)

    def request(self, free: int, known: Sequence[int]) -> ClaimRequest:
        """The claim that is sent now, so that whoever wakes from now on gets another; see ClaimRequest."""
        self._woken = False
        return ClaimRequest(free, self._sweep, known, ahead=min(self._ahead, free))

    def last_request(self, known: Sequence[int]) -> ClaimRequest:
        """Claims nothing, and finds what was claimed without our knowledge."""
        return ClaimRequest(0, self._sweep, known)

    def took(self, batch: Batch, now: float) -> None:
        """The claim's answer has come. What was settled with it has `ended` before."""
        self._sweep = batch.sweep
        self._has_suspects = batch.has_suspects
        # What was settled with it may have said that nothing more may be.
        self._ahead = max(0, self._ahead - sum(claimed.is_ahead for claimed in batch.claimed))
        self._peek_at = now + POLL_SECONDS
        self._claim_at = math.inf if batch.next_retry_seconds is None else now + batch.next_retry_seconds
        if not batch.is_complete:
            # The walk stopped halfway: go on at once where it was worth it, later where all that it saw was blocked.
            self._claim_at = now if batch.claimed else min(self._claim_at, now + SWEEP_SECONDS)

    # --------------------------------------------------------------------------------------------------- peeks, recovery

    def wants_peek(self, free: int, now: float) -> bool:
        """Whether to ask if there is anything to claim, where no claim is wanted."""
        return free > 0 and now >= self._peek_at

    def begin_peek(self, now: float) -> None:
        """It is asked now; whatever becomes of the answer, not again before its time."""
        self._peek_at = now + POLL_SECONDS

    def peeked(self, found: bool) -> None:
        """The answer, which may be older than the last `wake`."""
        self._woken |= found

    def wants_recovery(self, now: float, *, must_wait: bool) -> bool:
        """Whether to take a step of recovery; `must_wait`: one is in flight already, or there is no slot for it."""
        return self._has_suspects and not must_wait and now >= self._recover_at

    def recovered(self) -> None:
        """Nothing waits for recovery, until a claim finds that something does."""
        self._has_suspects = False

    # -------------------------------------------------------------------------------------------------------------- rest

    def rests_until(self, free: int, *, tries_at: float, must_wait: bool) -> float:
        """When something is wanted of all this, if nothing happens before; infinite: never.

        Args:
            free: slots.
            tries_at: when there may be one, where there is none now.
            must_wait: as above.
        """
        due = min(self._peek_at, self._claim_at) if free else tries_at
        if self._has_suspects and not must_wait:
            due = min(due, self._recover_at)
        return due
