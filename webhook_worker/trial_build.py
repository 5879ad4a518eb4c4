"""`python -m webhook_worker.trial_build`: builds the bot that BOT_APP names, as every worker does, and ends.

    exit 0    it is built
    exit 2    it is not: a line for each fault on standard error

For the supervisor's diagnosis, in a process of its own: the operator's code is imported and called, which may print, hang or
end the process. Nothing of the bot is initialised, and Telegram is not called.
"""

from __future__ import annotations

import asyncio
import os
import sys

from shared import config as configuration
from shared.errors import ConfigurationError


def main() -> int:
    """Builds it; the exit status."""
    try:
        config = configuration.load(os.environ, stdin_is_terminal=False, stdout_is_terminal=False)
        from webhook_worker import packages

        packages.check(config.bot_app)
        from webhook_worker import bot_app

        asyncio.run(bot_app.load(config))
    except ConfigurationError as exc:
        for fault in exc.faults:
            print(fault, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # threads of the bot are not waited for
