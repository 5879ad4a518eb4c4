"""The one term of a worker's life: from `Lead` to the moment when nothing of the bot runs or will run.

    Lead ─► initialize ─► dispatch ──────────────────────► no handler runs ─► stop the bot ─► over ─► TermEnded
              │             └ start (timers, jobs), polling,       ▲
              │               at recover_at                        │
              └ not before recover_at, if the bot has persistence  │
    EndTerm, or the deadline is near ──────────────────────────────┘

It dispatches once: a second `start` of an Application loses its job queue, and state loaded earlier would be stale. After the
term the worker only accepts.

Near the deadline everything ends of its own accord, whatever became of the supervisor. The lifeline's thread moves it, so it is
read each time (deadline.py):

    -1.0 s  no handler starts any more, those that run are cancelled      (dispatch.py)
    -0.5 s  no handler takes another step
     0.0 s  the bot is stopped, its persistence flushed: the next owner may load it now. Where anything of this is not done,
            the lifeline kills the process with all its children         (control.py)

What the dispatcher does after its last handler has ended is bookkeeping, which the fence protects, and which takes long when
the database is away; so it is waited for only as long as the deadline is far.

Not promised: a drain at the deadline. Handlers are interrupted then; their updates go back to the queue.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NoReturn, Protocol

from telegram.error import InvalidToken

from shared import clock, log, wire
from webhook_worker.bot import FLUSH_SECONDS, POST_STOP_SECONDS, TASKS_SECONDS
from webhook_worker.bot_start import TokenUnknown
from webhook_worker.deadline import Deadline
from webhook_worker.failures import MAX_REASON_CHARACTERS, classify, is_token_refused
from webhook_worker.ingest import Row
from webhook_worker.outcomes import Transient

STOP_SECONDS = 0.5
"""Before the deadline, for the bot to stop. The deadline is 8 s, and moved every 2 s (supervisor/state.py)."""

CANCEL_SECONDS = 0.5
"""Before that, for handlers that are cancelled: the dispatcher's margin."""

_SAVE_SECONDS = 1.0
"""For persistence, where the dispatch failed: the process is of no use any more, and its handlers may still run."""

_IDLE_POLL_SECONDS = 0.01
_TELL_SECONDS = 0.1  # before the deadline at the latest, so that the supervisor hears of it in time
_LOOK_SECONDS = 0.25  # the loop's clock stands still while the machine is suspended, the deadline's does not

_log = log.get_logger("BOT")


class TermBot(Protocol):
    """What a term needs of `bot.Bot`."""

    @property
    def has_persistence(self) -> bool: ...
    @property
    def is_identified(self) -> bool: ...
    async def initialize(self) -> None: ...
    async def start(self, *, may_begin_job: Callable[[], bool]) -> None: ...
    async def save(self) -> None: ...
    async def stop(self, *, tasks_seconds: float, flush_in_seconds: float) -> None: ...


class TermDispatcher(Protocol):
    """What a term needs of `dispatch.Dispatcher`."""

    @property
    def running(self) -> int: ...
    @property
    def completed(self) -> int: ...
    @property
    def fault(self) -> str | None: ...
    def wake(self) -> None: ...
    def store_along(
        self, rows: Sequence[Row], on_stored: Callable[[list[int]], None]
    ) -> asyncio.Future[bool] | None: ...
    async def run(self) -> object: ...
    def shorten_drain(self, drain_seconds: float) -> None: ...
    async def end(self, drain_seconds: float) -> object: ...


class TermLinks(Protocol):
    """What a term needs of `links.Links`: the session of its dispatcher. No two workers of an instance have one at a time."""

    def open_dispatch(self) -> None: ...
    async def wait_dispatch_tried(self) -> None: ...
    async def close_dispatch(self) -> None: ...


class Term:
    """Made in every worker; lives when the supervisor says Lead."""

    def __init__(
        self,
        *,
        bot: TermBot,
        links: TermLinks,
        deadline: Deadline,
        make_dispatcher: Callable[[str, Callable[[], float], float], TermDispatcher],
        poll: Callable[[], Coroutine[Any, Any, NoReturn]],
        tell: Callable[[wire.ToSupervisor], None],
        settle_threads: Callable[[], Awaitable[None]],
        over: Callable[[], None],
        redact: Callable[[str], str],
        now: Callable[[], float] = clock.now,
    ) -> None:
        """Does nothing yet.

        Args:
            bot: built, not initialised.
            links: of the worker.
            deadline: `Control.deadline`; begins before Lead comes here.
            make_dispatcher: from the term's UUID, the deadline to obey, and recover_at.
            poll: `Poller.run`: fetches updates until it is cancelled; called where Lead says so.
            tell: `Control.send`.
            settle_threads: returns when no thread of the bot's handlers runs any more.
            over: `Control.term_over`: nothing runs any more.
            redact: takes secrets out of the reason of a failure.
            now: `shared.clock`.
        """
        self._bot = bot
        self._links = links
        self._make_dispatcher = make_dispatcher
        self._fetch_updates = poll
        self._tell = tell
        self._settle_threads = settle_threads
        self._tell_over = over
        self._redact = redact
        self._now = now
        self._uuid: str | None = None
        self._deadline = deadline
        self._dispatcher: TermDispatcher | None = None
        self._ending = asyncio.Event()
        self._drain_seconds = 0.0
        self._kill_at = math.inf
        self._over = False
        self._failure: Exception | None = None

    @property
    def dispatches(self) -> bool:
        """Whether new work is taken here."""
        return self._dispatcher is not None and not self._ending.is_set()

    @property
    def may_poll(self) -> bool:
        """Whether no other owner can be there, by the clock: a process that stood still learns of its end a moment later."""
        return self.dispatches and not self._is_near_deadline()

    @property
    def is_under_way(self) -> bool:
        """Whether it has begun, and something of it may still run."""
        return self._uuid is not None and not self._over

    @property
    def owned_until(self) -> float | None:
        """Until when the supervisor's word of ownership is good; None before Lead."""
        return self._deadline.at if self._uuid is not None else None

    @property
    def completed(self) -> int:
        """How many updates were handled without a fault, and their end committed."""
        return 0 if self._dispatcher is None else self._dispatcher.completed

    @property
    def dispatch_fault(self) -> str | None:
        """Why the database is away for the dispatcher; None where it is not, or nothing is dispatched."""
        return self._dispatcher.fault if self._dispatcher is not None and self.dispatches else None

    def wake(self) -> None:
        """There may be new work in the inbox."""
        if self._dispatcher is not None:
            self._dispatcher.wake()

    def store_along(
        self, rows: Sequence[Row], on_stored: Callable[[list[int]], None]
    ) -> asyncio.Future[bool] | None:
        """See Dispatcher.store_along; None too where nothing is dispatched."""
        if self._dispatcher is None or not self.dispatches:
            return None
        return self._dispatcher.store_along(rows, on_stored)

    def lead(self, lead: wire.Lead) -> Coroutine[Any, Any, None]:
        """Begins the term at once, and not with the first step of what it returns: an EndTerm may be read together with Lead.

        Returns:
            The life of the term; ends when nothing of it runs or will run, also where the bot did not come up.
        """
        is_ours = self._uuid is None and not self._ending.is_set()
        if is_ours:
            self._uuid = lead.term
        elif self._uuid is None:
            # The lifeline has taken note of this Lead, and would kill at its deadline.
            self._tell_over()
        return self._lead(lead) if is_ours else _nothing()

    async def _lead(self, lead: wire.Lead) -> None:
        self._links.open_dispatch()
        deadline = asyncio.create_task(self._end_near_deadline(), name="deadline of the term")
        try:
            running = await self._live(lead)
            await self._stop_bot()
            await self._settle_threads()
        finally:
            deadline.cancel()
            await asyncio.wait({deadline})
        if _has_failed(deadline):
            deadline.result()  # a bug
        self._over = True
        self._tell_over()
        finishing = asyncio.create_task(self._finish(running), name="end of the dispatch")
        await asyncio.wait({finishing}, timeout=max(0.0, self._deadline.at - self._now() - _TELL_SECONDS))
        if self._failure is not None:
            self._tell_failure(self._failure)
        else:
            # Also unasked, at the deadline: an owner that came back must know that nobody dispatches.
            self._tell(wire.TermEnded())
        await finishing

    def end(self, end: wire.EndTerm) -> None:
        """Ends the term; the answer goes out when it is over, or at once if there is none."""
        if self._uuid is None:
            self._tell_over()  # it will never lead
        if self._uuid is None or self._over:
            self._tell(wire.TermEnded())
        self._kill_at = min(self._kill_at, self._now() + end.drain_seconds + wire.DRAIN_GRACE_SECONDS)
        if not self._ending.is_set():
            self._drain_seconds = end.drain_seconds
            self._ending.set()
            return
        # The supervisor was asked to stop meanwhile, and has less time.
        self._drain_seconds = min(self._drain_seconds, end.drain_seconds)
        if self._dispatcher is not None and not self._over:
            self._dispatcher.shorten_drain(end.drain_seconds)

    async def _live(self, lead: wire.Lead) -> asyncio.Task[object] | None:
        """Returns when no handler runs any more; with the dispatcher's task, if it came to that."""
        if self._bot.has_persistence and not await self._unless_ending(self._until(lambda: lead.recover_at)):
            return None
        if not await self._begin(self._bot.initialize):
            return None
        # A session that was opened for this term is on its way; a dispatcher that finds none takes the database for away.
        if not await self._unless_ending(self._links.wait_dispatch_tried()):
            return None
        dispatcher = self._make_dispatcher(
            lead.term, lambda: self._deadline.at - STOP_SECONDS, lead.recover_at
        )
        self._dispatcher = dispatcher
        running = asyncio.create_task(dispatcher.run(), name="dispatcher")
        starting = asyncio.create_task(self._start(lead.recover_at), name="start of the bot")
        polling = asyncio.create_task(self._poll(lead), name="polling")
        draining = asyncio.create_task(self._drain(dispatcher), name="drain of the dispatcher")
        self._tell(wire.Dispatching())
        try:
            # One who cannot be ended would run for as long as the term is confirmed.
            while not (running.done() or _has_failed(draining)):
                near = self._is_near_deadline()
                if near and dispatcher.running == 0:
                    break
                await asyncio.wait({running}, timeout=_IDLE_POLL_SECONDS if near else _LOOK_SECONDS)
        except asyncio.CancelledError:
            running.cancel()
            raise
        finally:
            self._ending.set()
            await asyncio.wait({starting, polling})
            draining.cancel()
            await asyncio.wait({draining})
        beside = (starting, polling, draining)
        if any(_has_failed(task) for task in (running, *beside)):
            await self._save()
        if running.done():
            running.result()
        for task in beside:
            if _has_failed(task):
                task.result()  # a bug
        return running

    async def _finish(self, running: asyncio.Task[object] | None) -> None:
        """What the dispatcher does after its last handler, and the end of its session; raises what it failed with."""
        if running is not None:
            await asyncio.wait({running})
        # Before anybody is told that the term is over: the next worker opens one of its own then.
        await self._links.close_dispatch()
        if running is not None:
            await running

    async def _drain(self, dispatcher: TermDispatcher) -> None:
        await self._ending.wait()
        await dispatcher.end(self._drain_seconds)

    async def _start(self, recover_at: float) -> None:
        """Timers and jobs, when no other owner's can run any more."""
        if await self._unless_ending(self._until(lambda: recover_at)):
            await self._begin(lambda: self._bot.start(may_begin_job=self._may_begin))

    async def _poll(self, lead: wire.Lead) -> None:
        """Where there is no webhook: fetches the updates, from when no other owner can until this one is to end."""
        if not lead.poll:
            return
        try:
            if await self._unless_ending(self._until(lambda: lead.recover_at)):
                await self._unless_ending(self._fetch_updates())
        finally:
            self._ending.set()

    async def _begin(self, step: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """A step of the bot's begin, unless the term ends first. If it fails, the term ends."""
        if not self._may_begin() or self._ending.is_set():
            return False
        try:
            return await self._unless_ending(step())
        except Exception as exc:  # noqa: BLE001 - of somebody else's code; `lead` tells the supervisor, who replaces the worker
            self._failure = exc
            self._ending.set()
            return False

    def _may_begin(self) -> bool:
        """Whether no other owner can be there, by the clock. If one can, the term ends: what was refused is not made up for."""
        if not self._is_near_deadline():
            return True
        # After a time in which the process stood still this may come before whoever watches the deadline.
        self._ending.set()
        return False

    async def _save(self) -> None:
        """What the updates that are done have left behind; nobody runs them again."""
        left_seconds = min(self._deadline.at, self._kill_at) - self._now()
        if left_seconds <= 0:
            return
        saving = asyncio.create_task(self._bot.save(), name="last save of the bot")
        # Not waited for any longer, whatever it does: the end of the process must not hang on somebody else's code.
        await asyncio.wait({saving}, timeout=min(_SAVE_SECONDS, left_seconds))
        saving.cancel()
        if not saving.done():
            _log.error("persistence did not take the last save", seconds=_SAVE_SECONDS)
        elif not saving.cancelled() and (error := saving.exception()) is not None:
            _log.error("persistence did not take the last save", exc_info=error)

    async def _stop_bot(self) -> None:
        # Without a limit of ours: there are two already, the deadline's and that of the supervisor, who both kill. What has
        # not stopped may still write, and only the end of the process makes sure that it does not. But what is flushed before
        # the kill is not lost, so jobs and hooks have to fit into what is left.
        to_deadline = self._deadline.at - self._now() - STOP_SECONDS / 2
        to_kill = self._kill_at - self._now() - FLUSH_SECONDS
        try:
            await self._bot.stop(
                tasks_seconds=max(0.0, min(TASKS_SECONDS, to_deadline, to_kill - POST_STOP_SECONDS)),
                flush_in_seconds=max(0.0, min(to_deadline, to_kill)),
            )
        except Exception:  # noqa: BLE001 - a group of what the bot's own hooks raised; it is stopped all the same
            _log.exception("the bot did not stop cleanly")

    def _tell_failure(self, error: Exception) -> None:
        is_token_unknown = isinstance(error, TokenUnknown)
        # By python-telegram-bot's name for it, which is the one that is looked up.
        kind = InvalidToken if is_token_unknown else type(error)
        reason = self._redact(f"{kind.__name__}: {error}").replace("\n", " ")[:MAX_REASON_CHARACTERS]
        if is_token_unknown:
            self._tell(wire.TokenRefused())
            _log.critical("the bot does not start", reason=reason)
        else:
            _log.critical("the bot does not start", exc_info=error)  # its own traceback is what helps
        # For an update a refused token is one that will be changed. A bot that does not start for want of it has to be seen.
        match classify(error):
            case Transient(retry_after_seconds=seconds) if not is_token_refused(error):
                of_get_me = seconds is not None and not self._bot.is_identified
                self._tell(
                    wire.LeadFailed(reason, transient=True, retry_after_seconds=seconds, of_get_me=of_get_me)
                )
            case _:
                self._tell(wire.LeadFailed(reason))

    async def _unless_ending(self, work: Coroutine[Any, Any, None]) -> bool:
        """Does the work, unless the term ends first; whether it was done."""
        task = asyncio.create_task(work, name="begin of the term")
        ending = asyncio.create_task(self._ending.wait(), name="end of the term")
        try:
            await asyncio.wait({task, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            task.cancel()
            await asyncio.wait({task, ending})
        if task.cancelled():
            return False
        task.result()
        return True

    async def _until(self, moment: Callable[[], float]) -> None:
        # Not an event: the moment moves, and is on another clock than the loop's.
        while (left_seconds := moment() - self._now()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(left_seconds, _LOOK_SECONDS))

    async def _end_near_deadline(self) -> None:
        await self._until(lambda: self._deadline.at - STOP_SECONDS - CANCEL_SECONDS)
        self._ending.set()

    def _is_near_deadline(self) -> bool:
        return self._now() >= self._deadline.at - STOP_SECONDS - CANCEL_SECONDS


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


async def _nothing() -> None:
    """Of a term that is not ours."""
