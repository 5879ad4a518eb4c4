"""`python -m webhook_worker`: the worker process. Only a supervisor starts it, and gives it two open sockets.

First of all, before anything slow is imported: signals and lifeline, so that it cannot outlive its supervisor.

Not promised: use by hand; `python -m supervisor` is the entry.
"""

from __future__ import annotations

import atexit
import gc
import os
import socket
import sys

from shared import wire
from webhook_worker.control import Control, answer_signals


def main() -> None:
    """Lives as long as the supervisor wants; does not return."""
    try:
        listener, connection = (
            # Taken out of the environment: the numbers mean nothing to the bot's children, who do not inherit the sockets.
            socket.socket(fileno=int(os.environ.pop(name)))
            for name in (wire.LISTEN_FD_VARIABLE, wire.CONTROL_FD_VARIABLE)
        )
    except (KeyError, ValueError, OSError):
        sys.exit("webhook_worker: started without a supervisor; run `python -m supervisor`")
    for inherited in (listener, connection):
        inherited.set_inheritable(False)
    answer_signals()
    control = Control(connection)
    control.start()

    # What is imported stays: looking for garbage in it meanwhile takes a sixth of the time (measured: 0.13 s of 0.75).
    gc.disable()
    import uvloop

    from webhook_worker.worker import work

    gc.freeze()
    gc.enable()
    loop = uvloop.new_event_loop()
    status = loop.run_until_complete(work(control, listener, os.environ))
    # Whatever still runs - connections, threads of the bot - ends here and now; the interpreter would wait for threads.
    atexit._run_exitfuncs()
    os._exit(status)


if __name__ == "__main__":
    main()
