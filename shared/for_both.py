"""Everything that a supervisor and its worker both import, and need at once: imported here, before the worker is forked.

A fork shares the memory of what is there, and spares the second import (supervisor/spawn.py). Connections wait meanwhile.

Not promised: that it imports. Where a package is missing, a worker of its own says which (webhook_worker/packages.py).
"""

# ruff: noqa: F401 - all of these are for whoever imports them next

import shared.backoff
import shared.config
import shared.database.link
import shared.log
import shared.telegram_api
import shared.wire

# isort: split

import httpx  # after shared.telegram_api, which leaves out a part of it

# isort: split

import httpcore  # which httpx imports with its first client
