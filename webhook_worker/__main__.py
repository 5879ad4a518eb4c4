"""`python -m webhook_worker`: the worker process. Only a supervisor starts it, and gives it two open sockets and a pipe.

First of all, before anything slow is imported: signals and lifeline, so that it cannot outlive its supervisor.

Not promised: use by hand; `python -m supervisor` is the entry.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from shared.inherited import CONTROL_FD_VARIABLE, LIFELINE_FD_VARIABLE, LISTEN_FD_VARIABLE, RECEIVE_VARIABLE
from webhook_worker.control import Control, answer_signals, die_with

if TYPE_CHECKING:
    from shared.config import Config


def main() -> None:
    """Lives as long as the supervisor wants; does not return."""
    try:
        listener = take_inherited(LISTEN_FD_VARIABLE, is_shared=True)
        connection = take_inherited(CONTROL_FD_VARIABLE)
        lifeline = take_descriptor(LIFELINE_FD_VARIABLE)
    except (KeyError, ValueError, OSError):
        sys.exit("webhook_worker: started without a supervisor; run `python -m supervisor`")
    receives_at_once = os.environ.pop(RECEIVE_VARIABLE, "") != ""
    take_name()
    answer_signals()
    die_with(lifeline)
    control = Control(connection)
    control.start()

    # What is imported stays: looking for garbage in it meanwhile takes a sixth of the time (measured: 0.13 s of 0.75).
    gc.disable()
    from webhook_worker.event_loop import Loop

    loop = Loop()
    config = loop.run_until_complete(_configured(control))
    if config is None:
        _exit(2)

    from webhook_worker.early import EarlyReception

    early = EarlyReception(config, listener, control) if receives_at_once else None
    if early is not None:
        early.start()

    from webhook_worker.worker import work

    gc.freeze()
    gc.enable()
    _exit(loop.run_until_complete(work(control, listener, config, early)))


def take_name() -> None:
    """For `top` and `ps -e`: the first worker, a fork, has the arguments of its supervisor. Linux only; 15 bytes at most."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as name:
        name.write("webhook_worker")


def take_inherited(name: str, *, is_shared: bool = False) -> socket.socket:
    """The socket whose descriptor a variable has.

    Args:
        name: of the variable.
        is_shared: other processes accept on it, and must never wait there.

    Raises:
        KeyError, ValueError, OSError: there is none.
    """
    inherited = socket.socket(fileno=take_descriptor(name))
    if is_shared:
        # It does not block as it is. The object does not know, and would make it block with its first duplicate, for everybody.
        inherited.setblocking(False)
    return inherited


def take_descriptor(name: str) -> int:
    """The descriptor that a variable has. The bot's children do not inherit it.

    Raises:
        KeyError, ValueError, OSError: there is none.
    """
    descriptor = int(os.environ.pop(name))
    os.set_inheritable(descriptor, False)
    return descriptor


async def _configured(control: Control) -> Config | None:
    """What the environment says, and the log by it; None if that or a package is no good, and the supervisor is told."""
    from shared import config, log, wire
    from shared.errors import ConfigurationError
    from webhook_worker import packages

    is_read = sys.stdout is not None and sys.stdout.isatty()
    try:
        found = config.load(os.environ, stdin_is_terminal=False, stdout_is_terminal=is_read)
        # Before anything imports one: the early reception has psycopg and uvicorn.
        packages.check(found.bot_app)
    except ConfigurationError as exc:
        control.send(wire.StartFailed(wire.shortened(exc.faults)))
        return None
    log.configure(found.log_format, found.log_level, found.secrets)
    log.take_prints()
    return found


def _exit(status: int) -> NoReturn:
    """Whatever still runs - connections, threads of the bot - ends here and now; the interpreter would wait for threads."""
    atexit._run_exitfuncs()
    os._exit(status)


if __name__ == "__main__":
    main()
