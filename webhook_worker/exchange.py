"""How the dispatch exchanges with the inbox: all that is to be told to it and asked of it goes in one commit.

    what has landed ─► settlements ─┐                ┌─► settled: the lane goes on, and the plan and the outage are told
    what came along ─► arrivals ────┼── one commit ──┼─► stored: whoever offered it is told
    free slots ──────► a request ───┘                └─► claimed: the dispatcher begins it

**Slots.** A claim is for those that are free once what has landed is settled. A suspect has a slot of its own, except where
there is one in all (DISPATCH_CONCURRENCY=1): nothing runs beside anything then, and a suspect that may start goes first.

**Lost answers.** Then nobody knows whether it happened. What had landed is settled again, which does no harm; what came along
is stored by whoever offered it; what was claimed is found by the next claim.

Not promised: that what was claimed may begin. The dispatcher looks at the clock before each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from shared.database import DatabaseAway
from webhook_worker import lanes
from webhook_worker.claim_plan import Batch, ClaimPlan, ClaimRequest
from webhook_worker.flight import Flight, Flights
from webhook_worker.inbox import Arrivals, ArrivalsRefused, Inbox
from webhook_worker.ingest import Row
from webhook_worker.lanes import Claimed
from webhook_worker.outage import Outage
from webhook_worker.pace import Pace

ALONG_ROWS = 8
ALONG_BYTES = 128 * 1024
"""Of new updates that are stored by an exchange; more is load, where storing and claiming side by side is faster."""


class Exchange:
    """Of one dispatcher, which makes one at a time.

    Attributes:
        returned: updates that went back to the inbox unfinished.
        completed: updates that are done.
    """

    def __init__(
        self,
        *,
        inbox: Inbox,
        term: str,
        flights: Flights,
        plan: ClaimPlan,
        outage: Outage,
        concurrency: int,
        clock: Callable[[], float],
    ) -> None:
        """Nothing has come along yet.

        Args:
            inbox: the dispatcher's.
            term: UUID under which to claim and settle.
            flights: where handlers land.
            plan: says when to claim, and for what.
            outage: is told what became of updates.
            concurrency: DISPATCH_CONCURRENCY.
            clock: the dispatcher's.
        """
        self._inbox = inbox
        self._term = term
        self._flights = flights
        self._plan = plan
        self._outage = outage
        self._has_one_slot = concurrency == 1
        self._clock = clock
        self._pace = Pace(concurrency, clock)
        self._arrivals: Arrivals | None = None
        self.returned = 0
        self.completed = 0

    # ------------------------------------------------------------------------------------------------------------ slots

    def free(self) -> int:
        """How many slots there are for claims."""
        if self._has_one_slot and self._plan.wants_recovery(
            self._clock(), must_wait=self._flights.has_suspect
        ):
            # It is the suspect's next: under load it would never be free.
            return 0
        return self._pace.free(self._taken())

    @property
    def tries_at(self) -> float:
        """When there may be a slot although there is none now; see Pace."""
        return self._pace.tries_at

    def must_suspects_wait(self) -> bool:
        """Whether one is in flight already, or there is no slot for it: the only one is free when what landed is settled.

        Else it would start beside what is done and not yet told: in flight at a crash, too, if it is the suspect that crashes.
        """
        is_taken = self._flights.underway + self._flights.landed > 0
        return self._flights.has_suspect or (self._has_one_slot and is_taken)

    def _taken(self) -> int:
        return self._flights.underway if self._has_one_slot else self._flights.slots

    # ---------------------------------------------------------------------------------------------------------- arrivals

    def offer(
        self, rows: Sequence[Row], on_stored: Callable[[list[int]], None]
    ) -> asyncio.Future[bool] | None:
        """Takes new updates along; only while the dispatcher rests, and so has taken none yet.

        Args:
            rows: see Arrivals, as for the other.
            on_stored: the same.

        Returns:
            Arrivals.are_stored. None where there is no slot, or an exchange with them would be slow.
        """
        if not self.free() or not self._inbox.is_one_round_trip:
            return None
        if len(rows) > ALONG_ROWS or sum(len(row.body) for row in rows) > ALONG_BYTES:
            return None
        self._arrivals = Arrivals(rows, on_stored, asyncio.get_running_loop().create_future())
        return self._arrivals.are_stored

    def leave_arrivals(self) -> None:
        """Whoever waits for them stores them himself."""
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals.end(are_stored=False)

    # --------------------------------------------------------------------------------------------------------- exchanges

    def is_due(self) -> bool:
        """Whether there is anything to settle, to claim, or to store."""
        return (
            self._flights.landed > 0
            or self._plan.wants_claim(self.free(), self._clock())
            or self._arrivals is not None
        )

    def gather_seconds(self) -> float:
        """How long it can wait for more; what came along does not wait."""
        return 0.0 if self._arrivals is not None else self._pace.gather_seconds(self._flights.landed)

    async def run(self) -> Sequence[Claimed]:
        """Settles what has landed, stores what came along, and claims for the slots that are free then.

        Returns:
            What is to begin now.

        Raises:
            Superseded: nothing was settled or claimed, and never will be.
            DatabaseAway: what has landed is still to be settled.
        """
        # First, since what has landed may say that no more is to be claimed.
        begun_at, landed = self._clock(), self._flights.landed_verdicts()
        for verdict in landed:
            if self._pace.note(verdict):
                self._plan.wake()
        free = self.free()
        request = self._plan.request(free, self._flights.seqs) if free else None
        arrivals, self._arrivals = self._arrivals, None
        batch = await self._exchange(request, arrivals)
        if batch is None:
            return ()
        rows = max(len(landed), len(batch.claimed))
        self._pace.exchanged(begun_at, rows, has_more=not batch.is_complete)
        self._plan.took(batch, self._clock())
        return batch.claimed

    async def settle(self, *, is_last: bool = False) -> Sequence[Claimed]:
        """Settles what has landed, where nothing is to begin any more.

        Args:
            is_last: what was claimed without our knowledge is looked for, too.

        Returns:
            That; it is to be given back.

        Raises:
            Superseded: as above.
            DatabaseAway: as above.
        """
        batch = await self._exchange(self._plan.last_request(self._flights.seqs) if is_last else None)
        return () if batch is None else batch.claimed

    async def _exchange(self, request: ClaimRequest | None, arrivals: Arrivals | None = None) -> Batch | None:
        landed = self._flights.take_landed()
        try:
            settlements = [flight.settlement for flight in landed]
            batch = await self._inbox.exchange(self._term, settlements, request, arrivals)
        except DatabaseAway:
            # Maybe it happened: see above.
            self._flights.put_back(landed)
            self._plan.wake()
            raise
        except ArrivalsRefused:
            # Whoever sent them finds out which it was; the rest is for the next exchange.
            self._flights.put_back(landed)
            self._plan.wake()
            return None
        finally:
            if arrivals is not None:
                arrivals.end(are_stored=False)
        for flight in landed:
            self._note_settled(flight)
        return batch

    def _note_settled(self, flight: Flight) -> None:
        self._flights.settled(flight)
        claimed, verdict = flight.claimed, flight.verdict
        assert verdict is not None
        self._outage.note(verdict)
        self._plan.ended(claimed, verdict)
        self.returned += verdict is lanes.GIVE_BACK
        self.completed += verdict.state is lanes.State.DONE
