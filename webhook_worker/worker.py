"""The worker put together: what it is made of, in which order it comes up, and what it does when it is told something.

    BOT_APP ─► links to the database (links.py) ─► server ─► Accepting, then a Beat a second
    SetHealth, Lead, Extend, EndTerm, StopAccepting, Exit ─► whoever they are for

Every task belongs to one group; one that ends unexpectedly ends the process, with its traceback in the log and status 1.

Not promised: an orderly end of what is open at `Exit`. Whoever wants one says StopAccepting and EndTerm before.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from collections.abc import Callable
from typing import Any, NoReturn, assert_never

from shared import clock, log, wire
from shared.config import Config
from shared.errors import ConfigurationError
from shared.redaction import Redactor
from shared.telegram_api import TelegramApi
from webhook_worker import bot_app, code_place
from webhook_worker.beat import Beats
from webhook_worker.bot import Bot
from webhook_worker.control import Control
from webhook_worker.dispatch import Dispatcher, DispatchSettings
from webhook_worker.early import EarlyReception, end_failed, handed_over
from webhook_worker.health import Health
from webhook_worker.inbox import Inbox
from webhook_worker.links import Links
from webhook_worker.outage import ASK_SECONDS, Question
from webhook_worker.poller import CALL_SECONDS, Poller
from webhook_worker.reception import Reception
from webhook_worker.term import CANCEL_SECONDS, Term
from webhook_worker.threads import HandlerThreads

_log = log.get_logger("WORKER")


async def work(
    control: Control, listener: socket.socket, config: Config, early: EarlyReception | None
) -> int:
    """Comes up, and lives until it is told to exit or something fails.

    Args:
        control: its lifeline runs already.
        listener: the inherited socket, listening.
        config: of this instance; the log is configured by it.
        early: accepts on the same socket, until we do.

    Returns:
        The exit status: 0 told to, 1 failed, 2 BOT_APP is no good. Tasks are still running; the caller ends the process.
    """
    try:
        bot = await bot_app.load(config)
    except ConfigurationError as exc:
        return await end_failed(control, early, exc.faults)
    await handed_over(early)
    worker = _Worker(config, bot, control, listener, early)
    living = asyncio.create_task(worker.live(), name="worker")
    either: set[asyncio.Future[Any]] = {living, worker.exit}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if worker.exit.done():
        return worker.exit.result()
    _log.critical("the worker ends", exc_info=living.exception())
    return 1


class _Worker:
    def __init__(
        self,
        config: Config,
        bot: Bot,
        control: Control,
        listener: socket.socket,
        early: EarlyReception | None,
    ) -> None:
        self._config = config
        self._early = early
        self._control = control
        self._listener = listener
        self.exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._links = Links(config, starts_alone=early is not None, on_notify=lambda: self._term.wake())
        self._bot = bot
        self._dispatcher: Dispatcher | None = None
        self._health = Health() if early is None else early.health
        self._term = Term(
            bot=bot,
            links=self._links,
            deadline=control.deadline,
            make_dispatcher=self._make_dispatcher,
            poll=lambda: self._poller.run(),
            tell=control.send,
            settle_threads=HandlerThreads().settle,
            over=control.term_over,
            redact=Redactor(config.secrets),
        )
        self._reception = Reception(
            config,
            ingest_link=self._links.ingest,
            lookup_link=self._links.for_lookups,
            health=self._health,
            foreign_secret=lambda: control.send(wire.ForeignRegistration()),
            dispatches_here=lambda: self._term.dispatches,
            wake=self._term.wake,
            store_along=self._term.store_along,
            tells_of_tables=early is None,
        )
        self._poller = Poller(
            lambda: TelegramApi(config.api_base_url, config.token, timeout_seconds=CALL_SECONDS),
            self._reception.ingest,
            allowed_updates=config.allowed_updates,
            webhook_active=lambda: control.send(wire.ForeignRegistration()),
            token_refused=lambda: control.send(wire.TokenRefused()),
            may_fetch=lambda: self._term.may_poll,
        )
        # Not before: the early reception's thread answers with it already.
        self._health.owned_until = lambda: self._term.owned_until

    def _make_dispatcher(self, term: str, deadline: Callable[[], float], recover_at: float) -> Dispatcher:
        config = self._config
        self._dispatcher = Dispatcher(
            inbox=Inbox(self._links.for_dispatch, config.bot_id),
            handler=self._bot,
            term=term,
            deadline=deadline,
            recover_at=recover_at,
            settings=DispatchSettings(
                concurrency=config.dispatch_concurrency,
                handler_timeout_seconds=config.handler_timeout_seconds,
                max_attempts=config.max_attempts,
                dead_letter_days=config.dead_letter_days,
                margin_seconds=CANCEL_SECONDS,
            ),
            suspect_running=lambda running: self._control.send(wire.SuspectRunning(running)),
            ask_telegram=Question(
                lambda: TelegramApi(config.api_base_url, config.token, timeout_seconds=ASK_SECONDS)
            ),
        )
        return self._dispatcher

    def _tell_blocked(self, thread: int, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        # In a thread that is made for it, while the loop's may go on at any moment: each of these is one look.
        current = asyncio.current_task(loop)
        _log.warning(
            "event loop is blocked",
            seconds=round(seconds, 1),
            at=code_place.of_thread(thread),
            update_ids=[] if self._dispatcher is None else self._dispatcher.update_ids(current),
        )

    async def live(self) -> None:
        """Returns when it cannot go on; raises what went wrong."""
        beats = Beats(
            tell=self._control.send,
            fault=lambda: self._reception.ingest.fault,
            wait_tried=self._reception.ingest.wait_tried,
            polling_fault=lambda: self._poller.fault,
            unstored=self._unstored_count,
            token_refused=self._bot.take_token_refused,
            completed=lambda: self._term.completed,
            dispatch_fault=lambda: self._term.dispatch_fault,
            links=self._links.distinct,
            inbox=Inbox(self._links.for_lookups, self._config.bot_id),
            has_session=lambda: self._links.for_lookups.connected,
        )
        messages: asyncio.Queue[wire.ToWorker] = asyncio.Queue()

        def deliver(message: wire.ToWorker) -> None:
            # What health is, before the first probe asks; all else is for one that accepts.
            if isinstance(message, wire.SetHealth):
                self._obey(message)
            else:
                messages.put_nowait(message)

        self._control.attach(deliver)
        self._control.watch(
            functools.partial(self._tell_blocked, threading.get_ident(), asyncio.get_running_loop())
        )
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._links.open(group)
            await self._reception.open(group, self._listener)
            if self._early is not None:
                group.create_task(self._early.leave(wire.HANDOVER_LINGER_SECONDS), name="early reception")
            self._control.send(wire.Accepting())
            group.create_task(self._obey_all(messages), name="obedience")
            group.create_task(beats.run(), name="beats")
            group.create_task(beats.count(), name="counts of the inbox")
            group.create_task(self._links.open_late(), name="links that come late")

    async def _obey_all(self, messages: asyncio.Queue[wire.ToWorker]) -> NoReturn:
        while True:
            self._obey(await messages.get())

    def _obey(self, message: wire.ToWorker) -> None:
        match message:
            case wire.SetHealth(ok=ok, role=role, reason=reason):
                self._health.set(role, reason, ok=ok)
            case wire.Lead():
                self._group.create_task(self._term.lead(message), name="term")
            case wire.Extend():
                pass  # the lifeline's thread has moved the deadline, when it came
            case wire.EndTerm():
                self._term.end(message)
            case wire.StopAccepting(linger_seconds=linger_seconds):
                self._group.create_task(self._stop_accepting(linger_seconds), name="end of accepting")
            case wire.Exit():
                if not self.exit.done():
                    self.exit.set_result(0)
            case _:
                assert_never(message)

    async def _stop_accepting(self, linger_seconds: float) -> None:
        until = clock.now() + linger_seconds + wire.ANSWER_SECONDS
        if self._term.owned_until is None:
            # It will never lead, and its replacement may at any moment.
            self._group.create_task(self._links.close_dispatch(), name="end of the link of the dispatch")
        async with asyncio.TaskGroup() as group:
            group.create_task(
                self._reception.server.stop_accepting(linger_seconds, stays=lambda: self._term.is_under_way),
                name="end of the server",
            )
            if self._early is not None:
                group.create_task(self._early.leave(linger_seconds), name="early reception")
        # What was told to exit cuts off whom it has not answered.
        await self._reception.server.wait_idle(until - clock.now())
        if self._early is not None:
            await self._early.wait_answered(max(0.0, until - clock.now()))
        self._control.send(wire.ConnectionsClosed())

    def _unstored_count(self) -> int:
        early = 0 if self._early is None else self._early.unstored_count
        return early + self._reception.ingest.unstored_count
