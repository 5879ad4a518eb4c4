"""What an Application runs beside updates: jobs, tasks of jobs and hooks, its own loops. Kept apart from updates, and ended.

python-telegram-bot waits for them at its stop, without a limit, and knows of no way to end them: a job shields itself from
cancellation, tasks from before the start are forgotten, and nobody else has a list.

Not promised: anything about tasks that the bot makes by `asyncio.create_task`, and about threads. Nor that a job of a fixed
time runs once where one term ends and the next begins at just that time: an owner that is cut off may run it within the 8 s
that it has left, and the next one makes up for it. A repeating job that was made up for repeats from then on.
"""

from __future__ import annotations

import asyncio
import contextvars
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from types import CodeType
from typing import Any

from telegram.ext import Application, Job, JobQueue
from telegram.warnings import PTBUserWarning

from webhook_worker.update_run import AnyApplication

WORK_CODES = frozenset(
    coroutine.__code__
    for coroutine in (
        Application._Application__create_task_callback,  # type: ignore[attr-defined]
        Application._update_fetcher,
        Job._run,
    )
)
"""Jobs, tasks made by create_task, and the handling of what the bot puts into `Application.update_queue`."""

SAVING_CODES = frozenset({Application._persistence_updater.__code__})
"""The regular saving of persistence."""


def job_queue_of(app: AnyApplication) -> JobQueue[Any] | None:
    """The application's job queue, without a warning where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PTBUserWarning)
        return app.job_queue


def detach_jobs(app: AnyApplication, may_begin: Callable[[], bool]) -> None:
    """Runs jobs in the present context from now on, and not in that of the handler that last set the scheduler's timer.

    Else a job that comes due while that handler's update runs would be counted, logged and cancelled as a part of it.

    Args:
        app: its job queue has not been started.
        may_begin: asked before each. What it refuses is not made up for: it says no near the deadline, and so to a process that
            stood still past it, whose scheduler finds everything due before the lifeline kills it.
    """
    if (job_queue := job_queue_of(app)) is None:
        return
    scheduler: Any = job_queue.scheduler
    # As after `scheduler.configure(timezone=...)`; start() would make it.
    if "default" not in scheduler._executors:
        scheduler.add_executor(job_queue._executor, "default")
    context = contextvars.copy_context()

    def detached(submit: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        return lambda job, run_times: context.run(submit, job, run_times) if may_begin() else None

    for executor in set(scheduler._executors.values()):  # one may have two names
        executor.submit_job = detached(executor.submit_job)


def make_up_jobs(app: AnyApplication, since: datetime) -> None:
    """Has the jobs run at the start of the job queue that came due since then.

    The scheduler finds out when a job runs first only when it is started itself: by then a timer of some seconds is late, and
    dropped, and what repeats waits for its next time, maybe a day.

    Args:
        app: about to be started.
        since: what came due earlier is not made up for.
    """
    if (job_queue := job_queue_of(app)) is None:
        return
    now = datetime.now(UTC)
    for job in job_queue.scheduler.get_jobs():
        if not job.pending:
            continue
        # One that was paused has a time, None.
        is_set = hasattr(job, "next_run_time")
        due = job.next_run_time if is_set else job.trigger.get_next_fire_time(None, since)
        if due is not None and since <= due < now:
            # Not `modify`: of several that replace each other, it finds the first by their id.
            job.next_run_time = now


async def cancel_tasks(codes: frozenset[CodeType]) -> None:
    """Cancels every task of this loop that runs one of these, and waits until they have ended."""
    await asyncio.sleep(0)  # so that all have begun; before, a wrapper does not show what it will await
    tasks = {task for task in asyncio.all_tasks() - {asyncio.current_task()} if _runs(task, codes)}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _runs(task: asyncio.Task[Any], codes: frozenset[CodeType]) -> bool:
    # Instrumentations of asyncio put a coroutine of their own into each task, which awaits the one that was meant.
    coroutine: Any = task.get_coro()
    while coroutine is not None:
        if getattr(coroutine, "cr_code", None) in codes:
            return True
        coroutine = getattr(coroutine, "cr_await", None)
    return False
