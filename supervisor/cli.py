"""The command line of `python -m supervisor`, and the way from a bound port to a running supervisor.

Not here: decisions. Bad configuration ends with status 2 and one line for each fault, all at once, without a traceback.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from dataclasses import dataclass
from typing import NoReturn

from shared import config as configuration
from shared import log
from shared.config import Config
from shared.errors import ConfigurationError
from shared.standard_streams import complain
from supervisor.listening import listen
from supervisor.spawn import Spawned


@dataclass(frozen=True, slots=True)
class Started:
    """What was done before anything else: PORT's socket, or why there is none; and the first worker, if there is one."""

    listener: socket.socket | None
    error: OSError | None
    worker: Spawned | None = None


def main(arguments: list[str], started: Started) -> int:
    """Run the supervisor, or the command that stands behind its name.

    Args:
        arguments: what stands after the program's name.
        started: the public socket, and who will serve it.

    Returns:
        The exit code of INTERFACE.md, where nothing was run.
    """
    if arguments:
        from supervisor.commands.entry import run  # not beside a start, which is measured

        return run(arguments)
    # None where it was closed when the interpreter began.
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    is_read = sys.stdout is not None and sys.stdout.isatty()
    try:
        config = configuration.load(os.environ, stdin_is_terminal=at_terminal, stdout_is_terminal=is_read)
    except ConfigurationError as exc:
        faults = _bind_faults(started.error, os.environ.get("PORT") or str(configuration.DEFAULT_PORT))
        if any(fault.startswith("HOST must be ") for fault in exc.faults):
            faults = ()  # what is no address cannot be bound either
        return _refuse((*exc.faults, *faults), started.worker)
    if faults := _bind_faults(started.error, str(config.port)):
        return _refuse(faults, started.worker)
    assert started.listener is not None
    log.configure(config.log_format, config.log_level, config.secrets)
    for caution in config.cautions:
        log.get_logger("CONFIG").warning(caution)
    return _run(config, started, at_terminal=at_terminal)


def _run(config: Config, started: Started, *, at_terminal: bool) -> NoReturn:
    """Ends the process with the exit code of INTERFACE.md."""
    import asyncio

    from supervisor.runner import Runner

    async def run() -> NoReturn:
        assert started.listener is not None
        runner = Runner(
            config,
            started.listener,
            _bind_health(config),
            at_terminal=at_terminal,
            first_worker=started.worker,
        )
        try:
            code = await runner.run()
        except Exception:  # noqa: BLE001 - a fault of ours, which ends the process
            log.get_logger("LOCK_CONTROLLER").critical(
                "the supervisor ends by a fault of its own", exc_info=True
            )
            code = 1
        # Here and now: asyncio and the interpreter would wait for threads, and one that asks a resolver which does not answer
        # cannot be ended. The platform would have to kill us, and no signal would be heard any more.
        log.flush()
        os._exit(code)

    with asyncio.Runner() as loop:
        loop.run(run())


def _bind_health(config: Config) -> socket.socket | None:
    if config.health_port == 0:
        return None
    try:
        return listen(config.health_host, config.health_port, backlog=128)
    except (OSError, UnicodeError) as exc:
        error = exc if isinstance(exc, OSError) else OSError(0, "not a name or an address")
        remedy = "set another HEALTH_PORT, or 0 to turn it off"
        if not _is_of_port(error):
            remedy = "set HEALTH_HOST to an address of this machine, or unset it for 127.0.0.1"
        # Two instances on one machine are a usual thing; health on PORT goes on.
        log.get_logger("HEALTH").warning(
            "HEALTH_PORT cannot be bound, going on without it",
            port=config.health_port,
            host=config.health_host,
            reason=_reason(error),
            remedy=remedy,
        )
        return None


def _bind_faults(error: OSError | None, port: str) -> tuple[str, ...]:
    if error is None:
        return ()
    if not _is_of_port(error):
        # Not quoted: people paste a secret into the wrong field.
        return (
            f"HOST: cannot be bound: {_reason(error)}; expected an address of this machine; "
            "correct it, or unset it for 0.0.0.0",
        )
    taken = error.errno == errno.EADDRINUSE
    why = "is taken by another process" if taken else f"cannot be bound: {_reason(error)}"
    return (f"PORT: {port} {why}; expected a free port on HOST; stop the other process or set another PORT",)


def _is_of_port(error: OSError) -> bool:
    """Whether another port would do; anything else that a bind ends with is the address's, or its name's."""
    return error.errno in (errno.EADDRINUSE, errno.EACCES)


def _reason(error: OSError) -> str:
    # `socket.create_server` adds the address, as it was given.
    return str(error.strerror).partition(" (while attempting ")[0]


def _refuse(faults: tuple[str, ...], worker: Spawned | None) -> int:
    if worker is not None:
        worker.end()
    for fault in faults:
        complain(fault)
    return 2
