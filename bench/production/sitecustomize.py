"""Runs first in every server that is measured: without the packages that its own installation would not have.

All that are compared are installed in one environment, and import what they find there: tenacity and python-telegram-bot
tornado, which only `run_webhook` needs, and httpx click, which comes with uvicorn. Each is some MiB.
"""

import os
import sys

for _name in filter(None, os.environ.get("BENCH_NOT_INSTALLED", "").split(",")):
    sys.modules[_name] = None  # type: ignore[assignment]
