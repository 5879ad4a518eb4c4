"""The worker: receives updates, stores them, and, in the owner, runs the bot on them.

Law: imports `shared` and never `supervisor` or `deploy`; asks its control socket and nothing else who owns the bot; answers 200
only after a commit; runs handlers only between `Lead` and the deadline. It never touches the lock or the webhook.

    process       __main__             the start: the configuration, the early reception, the worker
                  packages             are those installed that we work with?
                  event_loop           uvloop's, with one look-up of a name at a time
                  worker               it all put together; what it does when it is told something
                  control, beat        the supervisor's word, and ours to it
                  blocked_loop         is the event loop blocked (pure); code_place: by which line of the bot's?
                  links                sessions with the database
                  term, countdown      from Lead to the end, at the latest at the deadline; deadline: as it is confirmed by now
    receive       reception            all of this group, and ingest; early: the same while the bot is imported
                  server, connection   uvicorn's (lean_uvicorn: without its command line), with bounds and a short way
                  app                  who answers which path: the webhook here, else
                  health               /healthz, /readyz
                  rest_app             FastAPI's part
                  verify               is it Telegram's? (pure); registrations: what is registered
                  updates              what an update must be (pure)
                  poller               BOT_MODE=polling
    store         ingest               batches; inbox_writer: stores them
                  inbox                as the dispatch uses it (its SQL in inbox_statements, by execution); retention
    dispatch      dispatch             one term: claim, run, settle
                  exchange             with the inbox, in one commit: settle, store, claim
                  claim_plan, pace     when to ask the inbox and for what; how many, how soon
                  lanes                what an outcome means for row and lane, who goes next (pure)
                  flight, update_run   all tries, one try; outcomes: what came of it (pure), failures: by its exception
                  steps                of handlers: may the next be taken, and now?
                  outage               is Telegram away?
                  flow                 what the log says
    bot           bot_app              BOT_APP found and called; trial_build: by itself, for the diagnosis
                  update_kinds         what handlers wait for, and Telegram does not send
                  update_reader        the Update that python-telegram-bot makes, faster
                  bot                  from getMe (bot_start) to the last flush; token_doubt: whose 401 was it?
                  jobs, threads        what runs beside updates
    built-in bot  menu_bot             shows its menu
                  menu                 pages and buttons (pure); menu_file: how one is written down, and what is wrong with it

For handlers of a bot there are two names here, and no others:

    from webhook_worker import RetryUpdate, attempt

    raise RetryUpdate("the shop is closed", retry_after_seconds=60)    handle this update again, later
    attempt()                                                          1 the first time, 2 the second ...

They are fetched when first asked for: importing this package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from webhook_worker.outcomes import RetryUpdate, attempt

__all__ = ["RetryUpdate", "attempt"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from webhook_worker import outcomes

    return getattr(outcomes, name)
