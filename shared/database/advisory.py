"""The keys of the project's advisory locks, and how the server shows them. Imports nothing of ours.

**The lock's key** is two integers, so that it shares nothing with the one-integer keys a bot may use: LOCK_CLASS, the same for
every installation, and the first four bytes, big-endian and signed, of the SHA-256 of the bot's id in decimal digits. The id is
the part of the token before the colon, so that a rotated token finds the same lock. A change of either integer would let old
and new code own one bot at the same time during a deploy: it is a breaking change.

    LOCK_CLASS       the bots' own: who has it may own the bot
    MIGRATION_CLASS  whoever changes the schema (schema.py)
    PROBE_CLASS      a lock of a moment, by which a pooler is found (pooler.py)
"""

from __future__ import annotations

import hashlib
from typing import LiteralString

LOCK_CLASS = 0x77687376
"""First integer of the advisory lock's key: "whsv". Never change it (see above)."""

# Beside the class of the bots' locks, so that no bot's key can be one of theirs.
MIGRATION_CLASS = LOCK_CLASS + 1
PROBE_CLASS = LOCK_CLASS + 2

IS_OF_KEY: LiteralString = """locktype = 'advisory' AND objsubid = 2
       AND classid = %(class)s::bigint::oid AND objid = %(object)s::bigint::oid"""
"""Of a row of pg_catalog.pg_locks: whether it is of a lock with this key of two integers. Takes `oids_of` the key."""


def lock_key(bot_id: int) -> tuple[int, int]:
    """The two arguments of `pg_advisory_lock(int, int)` for a bot, each within the signed 32 bits that Postgres takes."""
    digest = hashlib.sha256(str(bot_id).encode("ascii")).digest()
    return LOCK_CLASS, int.from_bytes(digest[:4], "big", signed=True)


def oids_of(key: tuple[int, int]) -> dict[str, int]:
    """What IS_OF_KEY takes: pg_locks shows the two signed integers of a key as unsigned oids."""
    first, second = key
    return {"class": first & 0xFFFFFFFF, "object": second & 0xFFFFFFFF}
