"""Owner-only dispatch: claims updates under a term, runs the bot on them, commits what became of them.

    pump         one thing at a time: exchanges with the inbox, when there is something to settle, to store or to claim
                 (exchange.py, claim_plan.py), and begins flights; recovers what was in flight at a crash; rests
    flights      one task for each update in flight; a landing wakes the pump (flight.py)
    watch        the clock: deadline, drain (countdown.py), HANDLER_TIMEOUT_SECONDS; talks to nobody, so nothing holds it up
    retention    forgets rows whose time is over (retention.py)
    outage       asks whether Telegram is back, where it is away (outage.py)

A handler starts only when its claim is committed and the deadline has not passed. It is over when what became of it is
committed: while the database is away that is kept in memory, and tried again every second. Its lane goes on after that.

**Ends.** After `end()`, flights are waited for until the drain is over, then cancelled; at the deadline, and when the database
says that the term is over, they are cancelled at once. What was cancelled goes back to the inbox without the loss of an
attempt. A handler that ignores its cancellation is waited for, without a limit: `run()` returns when nothing runs any more, and
whoever cannot wait for that kills the process. What it runs stays claimed until then, so that no other term starts it beside;
if the process is killed, it was in flight at a crash.

**A handler that takes too long** is cancelled, and its update becomes a dead letter. If it goes on all the same, its lane stays
blocked, and its row says that it is not to be started again should the process end. When no slot is left, or a suspect hangs
that others wait for, run() raises HandlersStuck: the process has to be replaced.

Not promised: that a handler which ran has not run before. What was in flight when its process died runs again.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, assert_never

from shared import clock as shared_clock
from shared import log
from shared.database import DatabaseAway
from webhook_worker import lanes
from webhook_worker.claim_plan import ClaimPlan
from webhook_worker.countdown import Countdown
from webhook_worker.exchange import Exchange
from webhook_worker.flight import Flight, Flights, Handler, HandlersStuck
from webhook_worker.inbox import Inbox, Superseded
from webhook_worker.ingest import Row
from webhook_worker.lanes import Claimed, Ending
from webhook_worker.outage import Ask, Outage
from webhook_worker.retention import keep_house

AWAY_SECONDS = 1.0
"""Between two tries while the database is away; never grows, since the bot is dead meanwhile."""

LOOK_SECONDS = 0.25
"""The watch looks at the clock at least so often: a timer of the loop stands still while the machine is suspended."""

_log = log.get_logger("DISPATCH")


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """What the operator sets, and how early the deadline is obeyed.

    Attributes:
        concurrency: DISPATCH_CONCURRENCY; a suspect runs beside these, but where it is 1: nothing runs beside anything then.
        handler_timeout_seconds: HANDLER_TIMEOUT_SECONDS.
        max_attempts: MAX_ATTEMPTS.
        dead_letter_days: DEAD_LETTER_DAYS.
        margin_seconds: handlers are cancelled so long before the deadline, so that they have ended at it.
    """

    concurrency: int
    handler_timeout_seconds: float
    max_attempts: int
    dead_letter_days: int
    margin_seconds: float = 0.5


class Dispatcher:
    """Dispatches once, under one term."""

    def __init__(
        self,
        *,
        inbox: Inbox,
        handler: Handler,
        term: str,
        deadline: Callable[[], float],
        recover_at: float,
        settings: DispatchSettings,
        suspect_running: Callable[[bool], None],
        ask_telegram: AbstractAsyncContextManager[Ask, None],
        clock: Callable[[], float] = shared_clock.now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Does nothing yet.

        Args:
            inbox: of the bot.
            handler: the bot.
            term: UUID under which to claim.
            deadline: on `clock`; nothing of this runs past it, and it moves while ownership is confirmed.
            recover_at: on `clock`; what was in flight under earlier terms waits until then.
            settings: see there.
            suspect_running: told True before an update that was in flight at a crash starts, and False when its end is
                committed; must have delivered it when it returns.
            ask_telegram: a Question; open while this dispatches.
            clock: `shared.clock`.
            jitter: random, 0 to 1.
        """
        self._term = term
        self._settings = settings
        self._clock = clock
        self._flights = Flights(
            handler,
            clock=clock,
            jitter=jitter,
            timeout_seconds=settings.handler_timeout_seconds,
            may_go_on=lambda: not self._countdown.is_past_deadline(),
            on_landing=self._notice,
            suspect_running=suspect_running,
        )
        self._countdown = Countdown(
            clock=clock,
            deadline=deadline,
            margin_seconds=settings.margin_seconds,
            on_stop=self._notice,
            interrupt_all=self._flights.interrupt_all,
        )
        self._inbox = inbox.limited(self._countdown.statement_seconds)
        self._plan = ClaimPlan(concurrency=settings.concurrency, recover_at=recover_at)
        self._outage = Outage(ask_telegram, clock=clock, on_return=self._note_return)
        self._exchange = Exchange(
            inbox=self._inbox,
            term=term,
            flights=self._flights,
            plan=self._plan,
            outage=self._outage,
            concurrency=settings.concurrency,
            clock=clock,
        )
        self._event = asyncio.Event()
        self._finished = asyncio.Event()
        self.fault: str | None = None  # why the database is away for us: no exchange has succeeded since
        self._is_away = False  # as the log has it: no step has come to its end since
        self._has_exchanged = False  # in the present step
        self._stuck: HandlersStuck | None = None
        self._rests = False
        self._has_begun = False

    @property
    def running(self) -> int:
        """Handlers that have begun and not ended; may be read from any thread."""
        return self._flights.running

    @property
    def completed(self) -> int:
        """Updates that are done."""
        return self._exchange.completed

    def update_ids(self, task: asyncio.Task[Any] | None) -> list[int]:
        """See Flights.update_ids."""
        return self._flights.update_ids(task)

    def wake(self) -> None:
        """There may be new work. Cheap, and may be called any number of times, before `run` and after it too."""
        self._plan.wake()
        self._event.set()

    def store_along(
        self, rows: Sequence[Row], on_stored: Callable[[list[int]], None]
    ) -> asyncio.Future[bool] | None:
        """Has new updates stored by the exchange that claims them, where there is nothing else to do: a commit less, and a bot
        that was idle begins a round trip sooner.

        Args:
            rows: see Arrivals, as for the other.
            on_stored: the same.

        Returns:
            None: not now. Else Arrivals.are_stored, soon: before the exchange, at most what is stubborn is condemned.
        """
        are_stored = self._exchange.offer(rows, on_stored) if self._rests else None
        if are_stored is not None:
            self._rests = False
            self._event.set()
        return are_stored

    async def run(self) -> Ending:
        """Dispatches until `end` is called, the deadline comes, or the term is over in the database.

        Returns:
            Why it ended. Nothing runs any more.

        Raises:
            ExceptionGroup: with HandlersStuck, see there, or with a bug. The process has to end.
        """
        self._has_begun = True
        try:
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(self._outage.watch(), name="outage of Telegram")
                beside = [
                    tasks.create_task(self._watch(), name="dispatch watch"),
                    tasks.create_task(
                        keep_house(self._inbox, self._settings.dead_letter_days), name="retention"
                    ),
                ]
                ending = await self._pump(at_end=asking.cancel)
                for task in beside:
                    task.cancel()
        finally:
            self._exchange.leave_arrivals()
            self._flights.interrupt_all()
            self._finished.set()
        _log.info("dispatch ended", ending=ending.value, returned=self._exchange.returned)
        return ending

    def shorten_drain(self, drain_seconds: float) -> None:
        """Leaves handlers no more than this from now on; nothing more is claimed, as after `end`."""
        self._countdown.stop(Ending.ENDED, drain_seconds)

    async def end(self, drain_seconds: float) -> int:
        """Claims nothing more, waits for handlers, cancels the rest.

        Args:
            drain_seconds: how long handlers may take to end by themselves. After that, a second or two for those that are
                cancelled and for the database; for a handler that ignores its cancellation, all the time it takes.

        Returns:
            How many updates went back to the inbox unfinished.
        """
        self._countdown.stop(Ending.ENDED, drain_seconds)
        if self._has_begun:
            await self._finished.wait()
        return self._exchange.returned

    def _notice(self) -> None:
        self._event.set()

    def _note_return(self) -> None:
        """Telegram was away, and is back."""
        self._plan.telegram_is_back()
        self._event.set()

    async def _watch(self) -> None:
        while True:
            due = min(self._countdown.look(), self._flights.check_times())
            if self._flights.stubborn():
                self._event.set()
            left_seconds = due - self._clock()
            await asyncio.sleep(min(left_seconds, LOOK_SECONDS) if left_seconds > 0 else LOOK_SECONDS)

    async def _pump(self, at_end: Callable[[], object]) -> Ending:
        while self._countdown.ending is None:
            try:
                await self._step()
                self.fault, self._is_away = None, False
            except DatabaseAway as away:
                self._exchange.leave_arrivals()
                await self._wait_for_database(away)
            except Superseded as superseded:
                self._supersede(superseded)
        # Nothing is claimed any more; and the end of the term waits for threads, in one of which a name may be looked up.
        at_end()
        self._exchange.leave_arrivals()
        await self._wind_down()
        if self._stuck is not None:
            raise self._stuck
        return self._countdown.ending

    async def _step(self) -> None:
        """One thing at a time: no two statements of ours run at once, so each knows what the one before did."""
        self._has_exchanged = False
        self._flights.raise_bug()
        self._countdown.look()
        await self._look_after_stubborn()
        if self._countdown.ending is not None:
            return
        exchanges = self._exchange.is_due()
        if exchanges and (seconds := self._exchange.gather_seconds()):
            await asyncio.sleep(seconds)
            return
        if exchanges:
            claims = await self._exchange.run()
            self.fault, self._has_exchanged = None, True
            for claimed in claims:
                self._begin(claimed)
            if claims:
                await _let_land()
        # Also after an exchange: under load there is always one to be made.
        if self._plan.wants_recovery(self._clock(), must_wait=self._exchange.must_suspects_wait()):
            await self._recover()
        elif not exchanges and self._plan.wants_peek(self._exchange.free(), self._clock()):
            self._plan.begin_peek(self._clock())
            self._plan.peeked(await self._inbox.peek(self._term, self._flights.seqs))
        elif not exchanges:
            await self._rest()

    async def _rest(self) -> None:
        """Until something happens, or is due."""
        due = self._plan.rests_until(
            self._exchange.free(),
            tries_at=self._exchange.tries_at,
            must_wait=self._exchange.must_suspects_wait(),
        )
        self._rests = True
        try:
            await self._wait(due - self._clock())
        finally:
            self._rests = False
        # What lands in the same round of the loop is settled together.
        await asyncio.sleep(0)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else max(0.0, seconds)):
                await self._event.wait()
        except TimeoutError:
            return
        self._event.clear()

    def _begin(self, claimed: Claimed) -> None:
        if not self._flights.can_begin(claimed):
            return  # Stays claimed, and is found again.
        # Before each: whatever was awaited since the last look at the clock can have taken any time.
        self._countdown.look()
        if self._countdown.ending is not None:
            self._flights.give_back(claimed)
            return
        self._flights.begin(claimed)

    # --------------------------------------------------------------------------------------- crashes and other trouble

    async def _recover(self) -> None:
        """The next step for what was in flight at a crash."""
        suspects = await self._inbox.suspects(self._term)
        match lanes.next_recovery(suspects, max_attempts=self._settings.max_attempts):
            case None:
                self._plan.recovered()
            case lanes.Bury(seqs=seqs, error=error):
                for update_id in await self._inbox.bury(self._term, seqs, error):
                    _log.error("update is a dead letter", update_id=update_id, reason=error)
            case lanes.Rerun(seq=seq):
                self._plan.wake()  # If the answer is lost, the next exchange finds it.
                claimed = await self._inbox.claim_suspect(self._term, seq)
                if claimed is not None:
                    self._begin(claimed)
            case step:
                assert_never(step)

    async def _look_after_stubborn(self) -> None:
        await self._condemn(self._flights.stubborn())
        if self._flights.is_held_up(self._settings.concurrency):
            self._stuck = HandlersStuck(self._settings.handler_timeout_seconds)
            self._countdown.stop(Ending.ENDED)

    async def _condemn(self, flights: Sequence[Flight]) -> None:
        """Their time was over, and they go on: not to be started again."""
        for flight in flights:
            if not flight.is_condemned:
                text = lanes.stubborn_text(self._settings.handler_timeout_seconds, flight.waited)
                most = self._settings.max_attempts
                await self._inbox.condemn(self._term, flight.claimed, most, text)
                flight.is_condemned = True
                _log.error("handler ignores its cancellation", update_id=flight.claimed.update_id)

    def _supersede(self, superseded: Superseded) -> None:
        _log.error("dispatch stops at once", reason=str(superseded))
        self._countdown.stop(Ending.SUPERSEDED)

    async def _wait_for_database(self, away: DatabaseAway) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warning("database away, dispatch waits", reason=away.reason, unsettled=self._flights.landed)
        if not self._has_exchanged:
            self.fault = away.reason
        self._plan.wake()  # Where the recovery alone fails, updates are handled all the same: the next step finds out.
        try_at = self._clock() + AWAY_SECONDS
        while self._countdown.ending is None and self._clock() < try_at:
            await self._wait(try_at - self._clock())

    # -------------------------------------------------------------------------------------------------------- the end

    async def _wind_down(self) -> None:
        """Settles flights as they land, gives back what never began, and returns when nothing runs."""
        while self._flights.running and self._clock() < self._countdown.give_up_at(0.5):
            if self._flights.landed:
                await self._try_to_settle()
            await self._wait(LOOK_SECONDS)
            self._flights.raise_bug()
        self._flights.interrupt_all()
        if not self._flights.running:
            self._countdown.note_end_of_handlers()
        while not await self._try_to_settle(is_last=True):
            if self._clock() >= self._countdown.give_up_at():
                _log.error("database away: what was in flight runs again", updates=self._flights.landed)
                break
            await asyncio.sleep(LOOK_SECONDS / 2)
        while self._flights.running and self._stuck is None:
            await self._wait(LOOK_SECONDS)
            if self._flights.landed:
                await self._try_to_settle()
        self._flights.raise_bug()

    async def _try_to_settle(self, *, is_last: bool = False) -> bool:
        """Whether there is nothing left to settle; at the last, what was claimed without our knowledge included.

        What still runs is left claimed, and condemned if its own time was over.
        """
        if self._countdown.ending is Ending.SUPERSEDED:
            return True
        try:
            for claimed in await self._exchange.settle(is_last=is_last):
                self._flights.give_back(claimed)
            if is_last:
                await self._condemn(self._flights.overdue())
            # What has landed meanwhile: past the deadline there is no other time for it, and it would be a suspect.
            while self._flights.landed:
                await self._exchange.settle()
        except DatabaseAway:
            return False
        except Superseded as superseded:
            self._supersede(superseded)
        return True


async def _let_land() -> None:
    """Two turns of the loop: handlers that wait for nothing take their only step in the one, and land in the other.

    They are settled with what has landed during the exchange; those whose step is put off (steps.py), with what comes next.
    Else these would be two parts that take turns with their exchanges for as long as there is a backlog, and an exchange costs
    nearly as much for a part as for all.
    """
    for _ in range(2):
        await asyncio.sleep(0)
