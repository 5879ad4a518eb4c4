"""What the dispatch asks the inbox for, and what it gets. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from webhook_worker.lanes import Claimed


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
