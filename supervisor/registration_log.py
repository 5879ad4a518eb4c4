"""The record in Postgres of what is, or is about to be, registered at Telegram.

Written before setWebhook, so that whichever instance gets the first request with a new path or secret can look it up; those
before a confirmed one are superseded, and go `SUPERSEDED_KEPT` later: until then requests that were under way are taken.

Holds hashes only: a look-up needs no more, and a dump of the database gives no secret away.

Four names are near to each other:

    registrar                        sets the registration at Telegram, and looks at it there
    registration_log, here           writes down in Postgres which one is set or about to be, for an owner and for `webhook set`
    webhook_worker/registrations     reads that in every worker, and remembers it
    webhook_worker/verify            has a Registration for each of them, with which a request is compared
"""

from __future__ import annotations

import psycopg

from shared.config import Config
from shared.database import SUPERSEDED_KEPT
from shared.secret import digest

_RECORD = """
INSERT INTO webhook_supervisor.registrations AS r (bot_id, path_hash, secret_hash, recorded_at)
VALUES (%s, %s, %s, clock_timestamp())
ON CONFLICT (bot_id, path_hash, secret_hash) DO UPDATE SET
    recorded_at = CASE WHEN r.superseded_at IS NULL THEN r.recorded_at ELSE clock_timestamp() END,
    confirmed_at = CASE WHEN r.superseded_at IS NULL THEN r.confirmed_at END,
    superseded_at = NULL"""

_CONFIRM = """
UPDATE webhook_supervisor.registrations
SET confirmed_at = CASE WHEN path_hash = %(path)s AND secret_hash = %(secret)s
                        THEN COALESCE(confirmed_at, clock_timestamp()) ELSE confirmed_at END,
    superseded_at = CASE WHEN path_hash = %(path)s AND secret_hash = %(secret)s
                         THEN NULL ELSE COALESCE(superseded_at, clock_timestamp()) END
WHERE bot_id = %(bot)s"""

_FORGET = """
DELETE FROM webhook_supervisor.registrations
WHERE bot_id = %s AND superseded_at < clock_timestamp() - %s::interval"""


class RegistrationLog:
    """Writes our registration's row on the lock's session, which only an owner has."""

    def __init__(self, config: Config) -> None:
        """Does no I/O."""
        self._bot_id = config.bot_id
        self._path = digest(config.webhook_path.reveal().encode())
        self._secret = digest(config.webhook_secret.reveal().encode())

    async def record(self, conn: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        """Make ours known; called before setWebhook.

        Raises:
            psycopg.Error: it may be known or not; do not set the webhook.
        """
        await conn.execute(_RECORD, (self._bot_id, self._path, self._secret))

    async def confirm(self, conn: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        """Ours stands at Telegram: supersede the others, forget those superseded long ago.

        Raises:
            psycopg.Error: the others may be accepted still; confirm again.
        """
        await conn.execute(_CONFIRM, {"bot": self._bot_id, "path": self._path, "secret": self._secret})
        await conn.execute(_FORGET, (self._bot_id, SUPERSEDED_KEPT))
