"""Forgets rows of the inbox whose time is over, in small deletes, while others work.

Not promised: punctuality. A row may be kept for some time longer than it has to be.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

from shared import log
from shared.database import DatabaseAway
from webhook_worker.inbox import Inbox

PURGE_SECONDS = 60.0
"""Rows are kept for days, so a minute more does not count; and a look costs statements that mostly find nothing."""

GAP_SECONDS = 0.2
"""Between two deletes: 2,500 rows a second at most, and the database is free most of the time."""

_log = log.get_logger("DISPATCH")


async def keep_house(inbox: Inbox, dead_letter_days: int) -> NoReturn:
    """Forgets, until it is cancelled."""
    while True:
        await asyncio.sleep(PURGE_SECONDS)
        try:
            has_more = True
            while has_more:
                has_more = await inbox.purge(dead_letter_days)
                await asyncio.sleep(GAP_SECONDS)
        except DatabaseAway as away:
            _log.debug("nothing was purged", reason=away.reason)
