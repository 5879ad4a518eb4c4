"""`python -m deploy.local`: the local system to play with, and `python -m deploy.local demo`: the same, scripted.

With TELEGRAM_BOT_TOKEN in the environment the first runs that bot, with Telegram itself (own_bot.py); its exit code is then the
supervisor's, once that runs.

Exit codes: 0 ended as asked (or: nothing was lost or doubled); 1 a part failed (or: something was); 2 not started,
because of the environment; 130 interrupted before its end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from deploy.local import demo, own_bot
from deploy.local.chat import Chat, read_lines, wait_closed
from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.errors import LocalSystemError, WorkspaceInUse
from deploy.local.first_deploy import make_live
from deploy.local.log_lines import parse_line
from deploy.local.page import server as page_server
from deploy.local.page.view import Memory
from deploy.local.platform.records import OutputLine, Release
from deploy.local.platform.service import Timing
from deploy.local.system import LocalSystem, run_system
from shared.errors import ConfigurationError
from shared.standard_streams import complain, tell

# With a tenth of the platform's patience a deploy is over in seconds.
_TIMING = Timing().scaled(0.1)
_CHAT_HELP = "Write a line and press Enter: it is a message to the bot, /start for instance. A number presses that button.\n"
_ACTIVE_LIMIT_SECONDS = 15.0
_WORTH_SHOWING = ("LOCK", "LOCK_CONTROLLER", "STATE_SYNC", "WEBHOOK", "BOT_VERIFY")


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local", description="The whole system on this machine, with a bot to talk to."
    )
    parser.add_argument("command", nargs="?", choices=("run", "demo"), default="run")
    parser.add_argument(
        "--folder", type=Path, help="for data and logs; by default .local/run or .local/demo in the project"
    )
    return parser.parse_args(arguments)


class _Stop:
    """The wish to end, by a signal or by the end of the terminal at standard input; a second Ctrl-C or SIGTERM is: at once."""

    def __init__(self, task: asyncio.Task[object] | None) -> None:
        """Listens from now on.

        Args:
            task: is cancelled at once. What is left then ends with us.
        """
        self._task = task
        self._asked = asyncio.Event()
        # Now: one that is gone is none any more.
        self._terminal = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._note_signal)
        # Of a terminal that has closed, which may be told twice and hastens nothing.
        loop.add_signal_handler(signal.SIGHUP, self._asked.set)

    @property
    def is_asked(self) -> bool:
        """Whether it has been there."""
        return self._asked.is_set()

    async def wait(self) -> None:
        """Returns when it is there."""
        closed = () if self._terminal is None else (wait_closed(self._terminal),)
        await _first_of(self._asked.wait(), *closed)
        self._asked.set()

    def _note_signal(self) -> None:
        if self.is_asked and self._task is not None:
            self._task.cancel()
        self._asked.set()


async def run(
    folder: Path,
    local_postgres: str,
    show: Callable[[str], None],
    *,
    page_port: int = page_server.DEFAULT_PORT,
    bot_app: str = "",
) -> int:
    """The system with one instance, until a signal, the end of the terminal, or the failure of a part.

    Args:
        folder: of the system.
        local_postgres: which Postgres, see `find_binaries`.
        show: gets what is to be printed.
        page_port: of the web page; 0 for none.
        bot_app: the bot, as BOT_APP names it; the menu bot if it is empty.
    """
    stop = _Stop(asyncio.current_task())
    # Where Ctrl-C is the only end, nobody wants to wait for requests that may still come.
    environment = {"LINGER_SECONDS": "0"} | ({"BOT_APP": bot_app} if bot_app else {})
    async with run_system(
        folder, timing=_TIMING, environment=environment, local_postgres=local_postgres
    ) as system:
        system.platform.output.append(lambda line: _show_line(line, show))
        memory = Memory(system)
        is_active = asyncio.Event()
        system.platform.output.append(lambda line: _note_active(line, is_active))
        await _first_of(stop.wait(), make_live(system.platform, Release("v1")))
        # It is healthy before it owns; what is written before that is answered all the same, if a little later.
        await _first_of(stop.wait(), is_active.wait(), asyncio.sleep(_ACTIVE_LIMIT_SECONDS))
        if not stop.is_asked:
            listener = _listen(page_port, show)
            show(_describe(system, listener, bot_app))
            ways_to_end = [stop.wait(), _fail_with(system)]
            if listener is not None:
                ways_to_end.append(page_server.serve_page(system, memory, listener))
            if sys.stdin.isatty():
                ways_to_end.append(_chat(system, show))
            await _first_of(*ways_to_end)
        show("stopping ...")
    return 0


async def run_own(folder: Path, local_postgres: str, show: Callable[[str], None]) -> int:
    """The bot of TELEGRAM_BOT_TOKEN, with Telegram itself, until a signal, the end of the terminal, or its own.

    Args:
        folder: of its database.
        local_postgres: which Postgres, see `find_binaries`.
        show: gets what is to be printed.

    Returns:
        The supervisor's exit status.
    """
    stop = _Stop(asyncio.current_task())
    try:
        async with own_bot.run_own_bot(folder, os.environ, show, local_postgres=local_postgres) as bot:
            show(_describe_own(bot))
            await _first_of(stop.wait(), bot.process.wait_for_exit())
            if bot.process.is_running:
                show("stopping ...")
    except ConfigurationError as error:
        for fault in error.faults:
            show(fault)
        return 2
    return bot.process.exit_status


def _describe_own(bot: own_bot.OwnBot) -> str:
    return f"""
TELEGRAM_BOT_TOKEN is set: that bot runs here, with Telegram itself, in polling mode. Write to it in Telegram.

  status       {bot.status_url}
  Postgres     127.0.0.1:{bot.postgres_port}, database bot; it is kept

Ctrl-C ends it. Unset TELEGRAM_BOT_TOKEN to get the sandbox, with a bot and a page of its own.
"""


def _listen(port: int, show: Callable[[str], None]) -> socket.socket | None:
    if port == 0:
        return None
    try:
        return page_server.listen(port)
    except OSError as error:
        # The page is an extra: everything else goes on without it.
        why = os.strerror(error.errno or 0)
        show(f"no web page: port {port} of 127.0.0.1: {why}; LOCAL_PAGE_PORT=n chooses another")
        return None


async def _first_of(*ways: Coroutine[Any, Any, object]) -> None:
    """Runs them side by side until the first ends, as it ends: an error of it is ours."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _fail_with(system: LocalSystem) -> None:
    raise LocalSystemError(await system.failure())


async def _chat(system: LocalSystem, show: Callable[[str], None]) -> None:
    """Runs until it is cancelled."""
    client = system.emulator.client
    chat = Chat(client, show)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(chat.follow(await client.last_event_seq()), name="answers")
            async for line in read_lines(sys.stdin.fileno()):
                await chat.say(line)
            # What the bot says is shown on; whoever has no keyboard wants the rest no less.
            show("the chat's input has ended; the system stays up until Ctrl-C")
    except* httpx.HTTPError as error:
        raise LocalSystemError(f"the Bot API emulator does not answer: {error.exceptions[0]}") from error


def _note_active(line: OutputLine, is_active: asyncio.Event) -> None:
    parsed = parse_line(line.text)
    if parsed is not None and parsed.begins("LOCK_CONTROLLER", "active services initialized"):
        is_active.set()


def _show_line(line: OutputLine, show: Callable[[str], None]) -> None:
    parsed = parse_line(line.text)
    if parsed is None or parsed.begins("WEBHOOK", "received"):
        # Each message of the chat would be followed by one of these.
        return
    if parsed.tag in _WORTH_SHOWING or parsed.level.upper() in ("ERROR", "CRITICAL"):
        show(f"   {line.instance} {parsed}")


def _describe(system: LocalSystem, listener: socket.socket | None, bot_app: str) -> str:
    [slot] = system.platform.slots
    bot = bot_app or "the menu bot; BOT_APP=module:attribute chooses another"
    but = ", but for what the bot does by itself" if bot_app else ""
    page = "" if listener is None else f"\n  web page     {page_server.address_of(listener)}"
    return f"""
The local system is up. Nothing in it leaves this machine{but}.
{page}
  bot          {bot}
  service      {system.platform.url}  (the platform's router: /healthz, /readyz, /webhook/...)
  instance     {slot.name}, pid {slot.pid}; http://127.0.0.1:{slot.health_port}/status
  Bot API      {system.emulator.base_url}  (an emulator; its control API: {system.emulator.control_url}/control/state)
  Postgres     127.0.0.1:{system.postgres.port}, database bot
  logs         {system.workspace.logs}

{_CHAT_HELP if sys.stdin.isatty() else ""}Ctrl-C ends everything.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs what the command line asks for; returns the exit code."""
    options = read_arguments(arguments)
    is_own = options.command == "run" and bool(os.environ.get("TELEGRAM_BOT_TOKEN"))
    for name in [name for name in os.environ if name.startswith("PG")]:
        # libpq reads these where a DSN of ours says nothing, and they are about another database.
        del os.environ[name]
    # Absolute, since the instances are started elsewhere.
    folder = (
        options.folder or PROJECT_FOLDER / ".local" / ("own_bot" if is_own else options.command)
    ).absolute()
    local_postgres = os.environ.get("LOCAL_POSTGRES", "")
    page_port = os.environ.get("LOCAL_PAGE_PORT") or str(page_server.DEFAULT_PORT)
    if not page_port.isdecimal() or int(page_port) > 65535:
        complain(f"LOCAL_PAGE_PORT must be a port, or 0 for no web page, not {page_port!r}")
        return 2
    start: Callable[[Path, str, Callable[[str], None]], Coroutine[Any, Any, int]] = demo.play
    if options.command == "run":
        bot_app = os.environ.get("BOT_APP", "")
        start = run_own if is_own else partial(run, page_port=int(page_port), bot_app=bot_app)
    try:
        return asyncio.run(start(folder, local_postgres, lambda text: tell(text, sys.stdout)))
    except WorkspaceInUse as error:
        complain(f"the local system has not started: {error}")
        return 1
    except LocalSystemError as error:
        complain(f"the local system has ended: {error}")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        complain("ended at once")
        return 130


if __name__ == "__main__":
    sys.exit(main())
