"""Runs first in our own processes when they are measured: production has no tornado, `run_webhook` needs it.

Where it is installed, tenacity and python-telegram-bot import it, and a supervisor and its worker would have 3 MiB of it.
"""

import sys

sys.modules["tornado"] = None  # type: ignore[assignment]
