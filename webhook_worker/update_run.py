"""One try at one update: every task that runs for it, and every error that python-telegram-bot reports in it.

`Application.process_update` tells its caller neither: it swallows what handlers raise, and returns before handlers with
`block=False` end. So an Application is *adopted*: its instance gets a subclass of its own class, made on the spot, that sees

    process_error        every exception of a handler, a filter, a `block=False` handler or a task; then the bot's own error
                         handlers run as ever. An error that one of those has dealt with is still an error
    create_task          every task of the Application; likewise those of error handlers with `block=False`. Their steps are
                         taken as those of blocking handlers are (`steps.beside`)
    context_types        a context that cannot be built; python-telegram-bot would log the whole update and go on
    stop_running         a bot that wants to end: as it is, it would stop the worker's event loop

Instances rather than classes, so that a ready-made Application, one of a class of its own, and one from our builder are watched
by one mechanism. What belongs to which update is told by a context variable: it reaches whatever handlers start, threads
of `asyncio.to_thread` included.

Not promised: waiting for `asyncio.create_task` of a handler, or for a thread that goes on after its handler was cancelled.
Updates that the bot itself puts into `Application.update_queue` belong to nobody. `concurrent_updates` and update processors
are not asked: the lanes and DISPATCH_CONCURRENCY decide what runs side by side.
"""

from __future__ import annotations

import asyncio
import re
import types
import warnings
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from telegram.ext import Application, ContextTypes
from telegram.warnings import PTBUserWarning

from shared.log import get_logger
from webhook_worker.failures import classify
from webhook_worker.outcomes import Transient, attempt_number
from webhook_worker.steps import AnyCoroutine, beside

AnyApplication = Application[Any, Any, Any, Any, Any, Any]

_log = get_logger("BOT")

if TYPE_CHECKING:
    _ApplicationBase = AnyApplication
else:
    # A plain mixin: the class of an instance can only be exchanged for one of the same layout.
    _ApplicationBase = object


class UpdateRun:
    """Collects the tasks and the errors of one try. Of one event loop, like everything here."""

    __slots__ = ("_beside", "_cancels", "_cut_short", "_tasks", "errors", "is_closed")

    def __init__(self) -> None:
        self.errors: list[BaseException] = []  # in the order in which they were reported
        self._beside = beside.get()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cancels = False
        self._cut_short = False
        self.is_closed = False

    async def run(self, app: AnyApplication, update: object, *, update_id: int, attempt: int) -> None:
        """Hands the update to the application and waits until everything that it started has ended.

        Blocking handlers run in the caller's task: it may look at each of their steps (steps.py does), and a cancellation
        goes to them. When they have ended, it goes to the tasks of the update, and is waited for. Whoever finishes all the
        same is taken at its word: this returns then, as if nobody had cancelled it.

        Args:
            app: adopted, and initialised.
        """
        caller = asyncio.current_task()
        assert caller is not None
        cancellations, is_own = caller.cancelling(), False
        current, number = _current.set(self), attempt_number.set(attempt)
        bound = structlog.contextvars.bind_contextvars(update_id=update_id)
        try:
            await app.process_update(update)
        except asyncio.CancelledError as exc:
            self._cut_short = True
            is_own = caller.cancelling() == cancellations
            if is_own:
                # Nobody wants this update to end: a handler awaited what was cancelled, and did not deal with it.
                self.record(exc)
            self._cancel_all()
        except _ContextNotBuilt as exc:
            self.record(exc.reason)
        except Exception as exc:  # noqa: BLE001 - what an Application of the bot's own class raises is this update's error, too
            self.record(exc)
        finally:
            structlog.contextvars.reset_contextvars(**bound)
            attempt_number.reset(number)
            _current.reset(current)
        if caller.cancelling() > cancellations:
            self._cancel_all()
        # Until each is forgotten, and not only done: it may have ended in the turn in which we are interrupted.
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError:
                self._cancel_all()
        self.is_closed = True
        if self._cut_short and not is_own:
            self._tell_errors()
            raise asyncio.CancelledError

    def record(self, exc: BaseException) -> None:
        """An error of this update; a task that its handler awaits reports the same one twice."""
        if not self.is_closed and not any(known is exc for known in self.errors):
            self.errors.append(exc)

    def track(self, task: asyncio.Task[Any]) -> None:
        """A task of this update: it has to end before the update is done."""
        if self.is_closed or task in self._tasks:
            return
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        if self._cancels:
            task.cancel()

    def in_turn(self, coroutine: AnyCoroutine) -> AnyCoroutine:
        """What a task of this update is to run in place of that coroutine."""
        if self.is_closed or self._beside is None:
            return coroutine
        return self._beside(coroutine, self._note_refusal)

    def _note_refusal(self) -> None:
        # As if we had cancelled the task: if it ends of it, the update is cut short, and not done.
        self._cancels = True

    def _tell_errors(self) -> None:
        """What nobody else tells of an update that is cut short: errors for which it would have been tried again."""
        for outcome in map(classify, self.errors):
            if isinstance(outcome, Transient):
                _log.warning("an update that is cut short had failed before", reason=outcome.reason)

    def _cancel_all(self) -> None:
        self._cancels = True
        for task in tuple(self._tasks):
            task.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            self._cut_short = self._cut_short or self._cancels
        elif (exc := task.exception()) is not None and not isinstance(exc, Exception):
            self.record(exc)  # python-telegram-bot reports only the others


_current: ContextVar[UpdateRun | None] = ContextVar("current_update_run", default=None)


class _ContextNotBuilt(BaseException):
    """Passes by the `except Exception` that would log the update's body and return as if all were well."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason


class _Adopted(_ApplicationBase):
    """What the subclass of an adopted Application adds to the Application's class."""

    __slots__ = ()

    _stop_asked: ClassVar[Callable[[], None]]

    def stop_running(self) -> None:
        type(self)._stop_asked()

    async def process_error(self, update: object, error: Exception, *args: Any, **kwargs: Any) -> bool:
        if (run := _current.get()) is not None:
            run.record(error)
            if not (run.is_closed or self.error_handlers) and isinstance(classify(error), Transient):
                # Its update waits, and the dispatch says so. The library would log an error with its traceback for each try.
                return False
        return await super().process_error(update, error, *args, **kwargs)

    def create_task(self, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        return _tracked(super().create_task(*args, **kwargs))

    def _Application__create_task(self, coroutine: Any, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        # Under its mangled name: process_error starts error handlers with `block=False` by it, past create_task.
        create: Callable[..., asyncio.Task[Any]] = super()._Application__create_task  # type: ignore[misc]
        if _current.get() is None:
            return create(coroutine, *args, **kwargs)
        task = _create_in_run(create, coroutine, *args, **kwargs)
        if isinstance(coroutine, Coroutine):
            # Cancelled before its first step, a task never comes to await it, and asyncio would complain.
            task.add_done_callback(lambda _: coroutine.close())
        return _tracked(task)

    def _Application__create_task_callback(self, *args: Any, **kwargs: Any) -> AnyCoroutine:
        coroutine: AnyCoroutine = super()._Application__create_task_callback(*args, **kwargs)  # type: ignore[misc]
        run = _current.get()
        return coroutine if run is None else run.in_turn(coroutine)


def _create_in_run(create: Callable[..., asyncio.Task[Any]], *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
    # A frame of its own, since the filter in `adopt` knows by the frame two above python-telegram-bot's that we wait.
    return create(*args, **kwargs)


def _tracked(task: asyncio.Task[Any]) -> asyncio.Task[Any]:
    if (run := _current.get()) is not None:
        run.track(task)
    return task


def adopt(app: AnyApplication, *, stop_asked: Callable[[], None]) -> None:
    """Makes an Application report its tasks and errors to the run in whose context they come up. It stays the same object.

    Args:
        app: maybe adopted before.
        stop_asked: called in place of its stop_running.
    """
    # Fresh updates are handled before the Application is started, and tasks are then "not automatically awaited": by it.
    # Ours are, by UpdateRun; for those of post_init the warning is right.
    warnings.filterwarnings(
        "ignore",
        message="Tasks created via `Application.create_task` while the application is not running",
        category=PTBUserWarning,
        module=re.escape(__name__),
    )
    if isinstance(app, _Adopted):
        type(app)._stop_asked = staticmethod(stop_asked)
        return
    kind = type(app)
    app.__class__ = types.new_class(
        kind.__name__,
        (_Adopted, kind),
        exec_body=lambda body: body.update(
            __slots__=(), __module__=kind.__module__, _stop_asked=staticmethod(stop_asked)
        ),
    )
    of_bot = app.context_types
    app.context_types = ContextTypes(
        context=_watched_context(of_bot.context),
        bot_data=of_bot.bot_data,
        chat_data=of_bot.chat_data,
        user_data=of_bot.user_data,
    )


def _watched_context(context_class: type[Any]) -> type[Any]:
    """Stands in for the bot's context class. The contexts it makes are of the bot's class, and not of this one."""

    class Watched(context_class):  # type: ignore[misc]
        from_error = context_class.from_error
        from_job = context_class.from_job

        @classmethod
        def from_update(cls, update: object, application: AnyApplication) -> Any:
            try:
                return context_class.from_update(update, application)
            except Exception as exc:
                if _current.get() is None:
                    raise
                raise _ContextNotBuilt(exc) from exc

    Watched.__name__, Watched.__qualname__ = context_class.__name__, context_class.__qualname__
    return Watched
