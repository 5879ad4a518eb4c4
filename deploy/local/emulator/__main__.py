"""`python -m deploy.local.emulator`: the emulator as a process.

Its first and only line on stdout is JSON: `{"base_url", "control_url", "bot_ids"}`. It runs until SIGTERM or SIGINT.

Tokens can be given as EMULATOR_TOKENS in the environment, separated by commas, so that they are not seen in the list of
processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from typing import NoReturn

import msgspec
import uvloop

from deploy.local.emulator.emulator import DEFAULT_TOKEN, Emulator, StaticResolver
from deploy.local.emulator.errors import ControlError


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.emulator", description="A Bot API server to test against."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--port", type=int, default=0, help="of the Bot API and the control API; 0: a free one"
    )
    parser.add_argument("--control-port", type=int, default=0, help="of the control API alone; 0: a free one")
    parser.add_argument(
        "--token", action="append", default=[], help="of a bot; may be repeated (or EMULATOR_TOKENS)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of all random choices")
    parser.add_argument(
        "--no-local",
        action="store_true",
        help="webhooks as on api.telegram.org: https only, ports 443, 80, 88, 8443",
    )
    parser.add_argument(
        "--resolve",
        action="append",
        default=[],
        metavar="HOST=IP",
        help="where a webhook's host is, instead of DNS; may be repeated; '*' stands for every host",
    )
    parser.add_argument("--history-limit", type=int, default=500_000, help="entries kept of each journal")
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> None:
    addresses = dict(entry.partition("=")[::2] for entry in options.resolve)
    emulator = Emulator(
        options.token
        or [token for token in os.environ.get("EMULATOR_TOKENS", DEFAULT_TOKEN).split(",") if token],
        host=options.host,
        port=options.port,
        control_port=options.control_port,
        local_mode=not options.no_local,
        seed=options.seed,
        resolver=StaticResolver(addresses),
        history_limit=options.history_limit,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with emulator:
        started = {
            "base_url": emulator.base_url,
            "control_url": emulator.control_url,
            "bot_ids": [bot.id for bot in emulator.control.state("").bots],
        }
        print(msgspec.json.encode(started).decode(), flush=True)
        await stop.wait()


def main() -> NoReturn:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(read_arguments()))
    except (ControlError, OSError) as exc:
        print(f"emulator: {exc}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
