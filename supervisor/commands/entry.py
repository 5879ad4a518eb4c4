"""The command line of the operator's commands.

    exit 0    done, and what was asked about is as it should be
    exit 1    not done, or something is not as it should be: said on standard error, or in the diagnosis
    exit 2    bad configuration, every fault on a line of its own; or the command line itself
    exit 141  its reader went away before it was done (128 + SIGPIPE, as shells have it)

A reader that has gone when all is done changes no exit code; a full disk behind standard output makes 0 a 1.

The environment is an instance's, and is judged as a whole, as at a start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

from shared import config as configuration
from shared.config import Config
from shared.errors import CommandFailed, ConfigurationError
from shared.standard_streams import complain, settle
from supervisor.commands import check, handover, inbox, status, webhook

_DESCRIPTION = """Without a command: runs the bot of this environment, that is, holds the lock, owns the webhook, keeps a worker
up; SIGTERM and SIGINT stop it, SIGHUP replaces the worker. With one: looks, or does one thing, beside what runs. Everything is
configured by environment variables (README.md, Environment)."""

_LIMIT = 50
_BEYOND = 2**63
"""Whole numbers of the database are smaller."""


def run(arguments: Sequence[str]) -> int:
    """Carries out one command.

    Args:
        arguments: what stands after `python -m supervisor`; the first is the command.

    Returns:
        The exit code, as above.
    """
    try:
        code = _run(make_parser().parse_args(arguments))
        lost = settle(sys.stdout)
    except BrokenPipeError:
        code, lost = 128 + signal.SIGPIPE, None
    except OSError as exc:
        # A full disk behind standard output, where a line is written at once, or no descriptor for the event loop.
        code, lost = 1, None
        complain(f"not done to its end: {exc.strerror or repr(exc)}")
    finally:
        # Whichever way it ends, argparse's too.
        settle(sys.stdout)
        settle(sys.stderr)
    # Where the reader of it all has gone, nobody misses the rest.
    if lost is not None and not isinstance(lost, BrokenPipeError):
        complain(f"standard output cannot be written: {lost.strerror or repr(lost)}")
        code = code or 1
    return code


def _run(chosen: argparse.Namespace) -> int:
    try:
        config = configuration.load(os.environ, stdin_is_terminal=False, stdout_is_terminal=False)
    except ConfigurationError as exc:
        if chosen.command == "check":
            return check.tell_configuration(exc.faults, as_json=chosen.json)
        for fault in exc.faults:
            complain(fault)
        return 2
    try:
        return asyncio.run(_carry_out(chosen, config))
    except CommandFailed as failed:
        complain(failed)
        return 1
    except KeyboardInterrupt:
        return 130  # as shells have it


def _carry_out(chosen: argparse.Namespace, config: Config) -> Coroutine[Any, Any, int]:
    match (chosen.command, getattr(chosen, "action", None)):
        case ("check", _):
            return check.check(config, as_json=chosen.json)
        case ("status", _):
            return status.status(config, as_json=chosen.json)
        case ("handover", _):
            return handover.hand_over(config)
        case ("webhook", "info"):
            return webhook.info(config, as_json=chosen.json)
        case ("webhook", "set"):
            return webhook.set_webhook(config, force=chosen.force)
        case ("webhook", "delete"):
            return webhook.delete_webhook(config, force=chosen.force)
        case ("inbox", "list"):
            states = inbox.STATES if chosen.state is None else (chosen.state,)
            return inbox.list_inbox(config, states=states, limit=chosen.limit, as_json=chosen.json)
        case ("inbox", "show"):
            return inbox.show(config, chosen.update_id, with_body=chosen.body, as_json=chosen.json)
        case ("inbox", "retry"):
            return inbox.retry(config, chosen.update_ids, every_dead=chosen.every_dead)
        case ("inbox", "drop"):
            return inbox.drop(config, chosen.update_ids, every_dead=chosen.every_dead)
        case _:
            raise AssertionError(f"no command {chosen.command}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends with 2, whoever reads of it: older argparse (Python 3.11.2) ends with the error of its own writing."""
        complain(f"{self.format_usage()}{self.prog}: error: {message}")
        sys.exit(2)


def make_parser() -> _Parser:
    """What may be asked for, by its whole name: `inbox drop --a`, a slip, would drop every dead letter."""
    parser = _Parser(
        prog="python -m supervisor",
        description=_DESCRIPTION,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(to: argparse._SubParsersAction[_Parser], name: str, says: str) -> _Parser:
        return to.add_parser(name, help=says, description=says, allow_abbrev=False)

    def with_json(command: _Parser) -> None:
        command.add_argument("--json", action="store_true", help="one JSON document, for programs")

    with_json(add(commands, "check", "every phase of the diagnosis, without changing anything"))
    with_json(
        add(commands, "status", "who owns since when, every instance, the inbox, the last registration")
    )

    add(
        commands, "handover", "asks the owner to give up to another ready instance, and waits until that owns"
    )

    of_webhook = add(commands, "webhook", "the registration by hand").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    with_json(add(of_webhook, "info", "what Telegram has, and whether it is what this environment says"))
    for name, says in (
        ("set", "registers what this environment says"),
        ("delete", "removes the registration"),
    ):
        add(of_webhook, name, f"{says}; not while an instance owns").add_argument(
            "--force", action="store_true", help="also while an instance owns, or nobody can tell"
        )

    of_inbox = add(commands, "inbox", "the dead letters and the backlog").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    listing = add(of_inbox, "list", "what waits, runs or is dead, oldest first")
    listing.add_argument("--state", choices=inbox.STATES, help="only these")
    listing.add_argument(
        "--limit", type=_positive, default=_LIMIT, metavar="N", help=f"{_LIMIT} if not given"
    )
    with_json(listing)
    showing = add(of_inbox, "show", "one update, with its error in full")
    showing.add_argument("update_id", type=_update_id, metavar="UPDATE_ID")
    showing.add_argument("--body", action="store_true", help="also what was sent: people's own words")
    with_json(showing)
    for name, says in (
        ("retry", "runs dead letters again, and at once what waits for its next try"),
        ("drop", "drops dead letters, and what waits, unrun"),
    ):
        changing = add(of_inbox, name, says)
        which = changing.add_mutually_exclusive_group(required=True)
        which.add_argument("update_ids", type=_update_id, nargs="*", default=[], metavar="UPDATE_ID")
        which.add_argument("--all-dead", dest="every_dead", action="store_true", help="every dead letter")
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < _BEYOND):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _update_id(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = _BEYOND
    if not -_BEYOND <= number < _BEYOND:
        raise argparse.ArgumentTypeError(f"{text!r} is not an update_id, as the log and `inbox list` show it")
    return number
