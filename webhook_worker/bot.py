"""The bot in its worker: a python-telegram-bot Application from the first getMe to the last flush of its persistence.

    bot_app.load ─► Bot ── initialize ──► handle, handle ... ──► stop
                             └────── start ──────┘

Fresh updates may be handled between `initialize` and `start`: an owner that took over after an unclean end runs jobs and timers
only when the old owner's deadline has passed. Both happen once: a second `start` of an Application loses its job queue.

Not promised: `conversation_timeout` of a conversation entered before `start` (there is no timer to set); a second life after
`stop`; that `stop` ends threads, or tasks that the bot made by `asyncio.create_task`. The end of the process does.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from msgspec.structs import replace
from telegram import Update
from telegram import __version__ as telegram_version
from telegram.ext import ExtBot

from shared.errors import SupervisorError
from shared.log import get_logger, info_numbers
from shared.wire import LEAD_SECONDS
from webhook_worker import flow
from webhook_worker.bot_start import BotStart
from webhook_worker.failures import is_token_refused, outcome_of
from webhook_worker.jobs import (
    SAVING_CODES,
    WORK_CODES,
    cancel_tasks,
    detach_jobs,
    job_queue_of,
    make_up_jobs,
)
from webhook_worker.outcomes import Done, Failed, Outcome, Transient
from webhook_worker.token_doubt import TokenDoubt
from webhook_worker.update_reader import read_update
from webhook_worker.update_run import AnyApplication, UpdateRun, adopt
from webhook_worker.updates import decode

TASKS_SECONDS = 3.0
"""How long `stop` waits for jobs, and for tasks that belong to no update. Handlers have had DRAIN_SECONDS before, and 25 s
are all there is."""

POST_STOP_SECONDS = 1.0
"""For post_stop, however long jobs and tasks take: what is kept for it of the time that `stop` has."""

FLUSH_SECONDS = 0.5
"""The same for what comes after it, the flush of persistence."""

_LOOK_SECONDS = 0.1  # whether the application's stop goes on, once there is nothing left to wait for

_log = get_logger("BOT")


class UnreadableUpdate(SupervisorError):
    """python-telegram-bot cannot make an update of the body."""


class _Phase(enum.Enum):
    """Of a bot's life; in this order, and STOPPED after any but the first."""

    BUILT = "built"  # nothing of it was called
    BEGINNING = "beginning"  # in `initialize`, or failed there
    INITIALIZED = "initialized"  # handles updates
    STARTED = "started"  # and runs jobs and timers
    STOPPED = "stopped"  # or on the way there


class Bot:
    """One adopted Application. Made by `bot_app.load`; lives in one event loop."""

    def __init__(
        self,
        app: AnyApplication,
        *,
        redact: Callable[[str], str],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        limit_seconds: float = LEAD_SECONDS,
    ) -> None:
        """Adopts the application; neither calls Telegram nor starts anything.

        Args:
            app: built, not running.
            redact: takes the secrets out of a text; errors of handlers go into the database.
            sleep: between two tries to reach Telegram.
            limit_seconds: how long `initialize` may take.
        """
        adopt(app, stop_asked=self._note_stop_asked)
        self._app = app
        self._redact = redact
        self._beginning = BotStart(
            app, sleep=sleep, limit_seconds=limit_seconds, is_stop_asked=lambda: self._stop_asked
        )
        self._phase = _Phase.BUILT
        self._began_at = datetime.now(UTC)  # as of `initialize`
        self._stop_asked = False
        self._token_refused = False
        self._token_doubt = TokenDoubt(app)

    @property
    def has_persistence(self) -> bool:
        """The application loads state in `initialize`, so nobody else may be writing it by then."""
        return self._app.persistence is not None

    @property
    def is_identified(self) -> bool:
        """Whether getMe was ever answered: the first call of all, so until then no other was told anything."""
        return self._beginning.is_identified

    def take_token_refused(self) -> bool:
        """Whether a handler was answered 401 about the bot's token since this was last asked: it was revoked.

        For one reader. What the start meets is not among it: `initialize` raises TokenUnknown.
        """
        taken, self._token_refused = self._token_refused, False
        return taken

    async def initialize(self) -> None:
        """Initialises the application, which calls getMe and loads persistence, and runs its post_init, within LEAD_SECONDS.

        Raises:
            Exception: see BotStart.run.
        """
        self._phase = _Phase.BEGINNING
        self._began_at = datetime.now(UTC)
        await self._beginning.run()
        self._phase = _Phase.INITIALIZED

    async def start(self, *, may_begin_job: Callable[[], bool] = lambda: True) -> None:
        """Starts the application: its job queue, and the regular saving of its persistence.

        What came due since `initialize` was called runs now.

        Args:
            may_begin_job: see detach_jobs.
        """
        detach_jobs(self._app, may_begin_job)
        make_up_jobs(self._app, self._began_at)
        await self._app.start()
        self._phase = _Phase.STARTED

    async def handle(self, body: bytes, attempt: int) -> Outcome:
        """Hands one update to the bot's handlers and waits for every task that they start through the Application.

        Cancelling it cancels the blocking handlers, which run in the caller's task, then those tasks, and waits for all to
        end. Nothing of the update runs when this has returned or raised.

        Args:
            body: as Telegram sent it.
            attempt: 1 the first time; handlers see it as `webhook_worker.attempt()`.

        Returns:
            What became of it, whatever is in the body and whatever the handlers raise.

        Raises:
            RuntimeError: the application is not running any more: a handler or a job has stopped it, or shut it down. That is
                not the update's fault, and all that come after it would fail: the worker has to be replaced.
        """
        if not self._is_up:
            raise RuntimeError("Bot.handle before Bot.initialize: handlers would run without the bot's state")
        self._check_alive()
        try:
            update = self._read(body)
            event, fields = flow.describe(update)
        except Exception as exc:  # noqa: BLE001 - whichever way it cannot be read: it is this update that failed, nothing else
            unreadable = UnreadableUpdate(f"python-telegram-bot {telegram_version} cannot read this update")
            unreadable.__cause__ = exc
            return self._without_secrets(outcome_of([unreadable]))
        if attempt > 1:
            fields["attempt"] = attempt
        info_numbers("FLOW", event, fields)
        run = UpdateRun()
        await run.run(self._app, update, update_id=update.update_id, attempt=attempt)
        if not run.errors:
            return Done()
        self._check_alive()
        is_refused = any(map(is_token_refused, run.errors)) and await self._token_doubt.is_own()
        self._token_refused = self._token_refused or is_refused
        outcome = outcome_of(run.errors)
        if is_refused and isinstance(outcome, Transient):
            outcome = replace(outcome, is_token_refused=True)
        return self._without_secrets(outcome)

    @property
    def _is_up(self) -> bool:
        return self._phase is _Phase.INITIALIZED or self._phase is _Phase.STARTED

    def _note_stop_asked(self) -> None:
        if self._phase is _Phase.BEGINNING:
            self._stop_asked = True
        elif not self._stop_asked:
            self._stop_asked = True  # said once
            _log.warning(
                "Application.stop_running() does nothing here: the supervisor decides when the bot stops; to end an instance, "
                "send SIGTERM to its supervisor"
            )

    def _check_alive(self) -> None:
        # Of its two states the Application tells only one in public.
        lives = self._app.running or self._phase is _Phase.INITIALIZED
        if not (lives and self._app._initialized):
            raise RuntimeError(
                "the bot's Application was stopped or shut down by the bot itself: leave Application.stop() and shutdown() "
                "to the worker"
            )

    async def save(self) -> None:
        """Gives the persistence what it has not got yet, and flushes it: for an end that `stop` has no part in.

        Raises:
            Exception: of the persistence.
        """
        if self._is_up and self._app.persistence is not None:
            await self._app.update_persistence()
            await self._app.persistence.flush()

    async def stop(self, *, tasks_seconds: float = TASKS_SECONDS, flush_in_seconds: float = math.inf) -> None:
        """Stops and shuts down the application, flushes its persistence, and runs post_stop and post_shutdown.

        Call it when no update is being handled any more. Every step is taken, even if the one before raised. Afterwards no
        job and no task of the application runs: what ignores its cancellation is waited for. Cancelling this skips the steps
        that are left, the flush included. Does nothing where nothing began, and the second time.

        Args:
            tasks_seconds: how long jobs and tasks that belong to no update may go on; then they are cancelled.
            flush_in_seconds: when the flush has to begin: a post_stop that is not done then is cancelled.

        Raises:
            ExceptionGroup: what the steps raised.
        """
        if self._phase in {_Phase.BUILT, _Phase.STOPPED}:
            return
        self._phase = _Phase.STOPPED
        app = self._app
        was_running = app.running
        errors: list[Exception] = []
        flush_at = asyncio.get_running_loop().time() + flush_in_seconds
        if was_running:
            await _step(errors, lambda: self._stop_running(tasks_seconds))
        await _step(errors, lambda: cancel_tasks(WORK_CODES))
        if was_running:
            await _step(errors, lambda: self._post_stop(flush_at))
        await _step(errors, app.shutdown)
        # An application that did not come to be initialised leaves it open.
        await _step(errors, app.bot.shutdown)
        # Not before the flush: interrupted in the middle of a save, it would lose what it had taken out to be saved.
        await _step(errors, lambda: cancel_tasks(SAVING_CODES))
        await _step(errors, lambda: app.post_shutdown and app.post_shutdown(app))
        if errors:
            raise ExceptionGroup("the bot did not stop cleanly", errors)

    async def _post_stop(self, until: float) -> None:
        if self._app.post_stop is None:
            return
        limit = asyncio.timeout_at(None if math.isinf(until) else until)
        try:
            async with limit:
                await self._app.post_stop(self._app)
        except TimeoutError:
            if limit.expired():
                raise TimeoutError("post_stop was cancelled: the worker has no more time for it") from None
            raise

    async def _stop_running(self, tasks_seconds: float) -> None:
        job_queue = job_queue_of(self._app)
        if job_queue is not None:
            job_queue.scheduler.pause()
        # In a task of its own, and never cut short by us: it would not get to its last save, and leave timers running.
        stopping = asyncio.create_task(self._app.stop(), name="stop of the application")
        try:
            ended, _ = await asyncio.wait({stopping}, timeout=tasks_seconds)
            if not ended:
                _log.warning(
                    "jobs and tasks of the bot are cancelled at its stop", after_seconds=tasks_seconds
                )
            while not ended:
                await cancel_tasks(WORK_CODES)
                ended, _ = await asyncio.wait({stopping}, timeout=_LOOK_SECONDS)
        finally:
            stopping.cancel()
            await asyncio.wait({stopping})
            if job_queue is not None:
                await job_queue.stop(wait=False)
        if not stopping.cancelled():  # it is when its own fetcher had to be
            stopping.result()

    def _read(self, body: bytes) -> Update:
        update = read_update(decode(body), self._app.bot)
        if isinstance(self._app.bot, ExtBot):
            # As python-telegram-bot's own webhook does: for `arbitrary_callback_data`.
            self._app.bot.insert_callback_data(update)
        return update

    def _without_secrets(self, outcome: Transient | Failed) -> Transient | Failed:
        match outcome:
            case Transient(reason):
                return replace(outcome, reason=self._redact(reason))
            case Failed(text):
                return Failed(self._redact(text))


async def _step(errors: list[Exception], step: Callable[[], Awaitable[None] | None]) -> None:
    try:
        if (awaitable := step()) is not None:
            await awaitable
    except Exception as exc:  # noqa: BLE001 - raised by `stop` with the others; the steps behind it must be taken
        errors.append(exc)
