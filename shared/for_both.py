"""Everything that a supervisor and its worker both import, and need at once: imported here, before the worker is forked.

A fork shares the memory of what is there, and spares the second import (supervisor/spawn.py). The rest of what both import,
httpx first of all, comes later, in each of them: connections wait meanwhile.

Not promised: that it imports. Where a package is missing, a worker of its own says which (webhook_worker/packages.py).
"""

import shared.backoff
import shared.config
import shared.database.link
import shared.log
import shared.telegram_api
import shared.wire  # noqa: F401 - all of these are for whoever imports them next
