"""`python -m supervisor`: the port first, then the first worker, everything else after. Or a command, which needs neither.

A platform that scans for the port gives up on a deploy whose port is not open (a04, a20), and imports take most of a start. So
the socket is bound and listening before anything but `socket` and listening.py is imported; who connects meanwhile waits in its
backlog. The worker, who will answer them, imports most: it is on its way before we import anything that it does not need too
(spawn.py).
"""

import os
import signal
import socket
import sys

from supervisor.listening import listen

DEFAULT_PORT = "8080"
DEFAULT_HOST = "0.0.0.0"  # noqa: S104 - the platform's router comes from elsewhere
"""Those of shared/config.py, which is not imported yet."""

BACKLOG = 2048
"""Connections that wait while no worker accepts: Telegram's 100 at most, and the probes of any platform."""


def open_standard_streams() -> None:
    """Whoever started us may have closed one (`<&-`, `>&-`): its number would be that of the next socket, PORT's.

    A worker is given /dev/null as its standard input, and so in place of the socket; our log would be written into the other.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(number, True)  # as a standard stream is: the worker writes there too


def bind() -> tuple[socket.socket | None, OSError | None]:
    """Bind HOST and PORT as they stand; whether they make sense is judged with the whole configuration."""
    port, host = os.environ.get("PORT") or DEFAULT_PORT, os.environ.get("HOST") or DEFAULT_HOST
    if not (port.isascii() and port.isdigit() and len(port) <= 20 and 0 < int(port) < 65536):
        return None, None
    try:
        listener = listen(host, int(port), backlog=BACKLOG)
        # Known to the object too: a duplicate is made as blocking as that is, for all processes that have the socket, and
        # whoever accepts just then would wait, with its whole event loop, until somebody connects.
        listener.setblocking(False)
        return listener, None
    except OSError as exc:
        return None, exc
    except (TypeError, ValueError):
        return None, OSError(0, "HOST is not a name or an address")


if __name__ == "__main__":
    listener, error = None, None
    open_standard_streams()
    if len(sys.argv) == 1:  # not one of an operator's commands (commands/entry.py)
        # A stop that comes while we import waits for the handlers (runner.py); as PID 1 of a container it would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        listener, error = bind()
    worker = None
    if listener is not None:
        from shared.inherited import INSTANCE_VARIABLE
        from shared.naming import new_instance_id
        from supervisor.spawn import start_first_worker

        os.environ[INSTANCE_VARIABLE] = instance_id = new_instance_id(os.environ)
        try:
            worker = start_first_worker(listener, instance_id)
        except OSError:
            worker = None  # the core asks for one, and again if it must
        else:
            if worker is None:  # we are its fork
                import runpy

                runpy.run_module("webhook_worker", run_name="__main__", alter_sys=True)
                sys.exit("webhook_worker: it returned, which it never does")
            worker.wait_for_first_word()

    from supervisor.cli import Started, main

    sys.exit(main(sys.argv[1:], Started(listener, error, worker)))
