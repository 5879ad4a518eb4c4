"""Whether a request comes from Telegram: the secret path, and the secret header. Pure.

    known: our own registration, from the configuration, and those that some instance recorded in the database (as hashes).
    A path and a secret are right only together, as one registration has them.

    path                          secret                        match
    not known                     -                             PATH_UNKNOWN    } the database may know more by now, if the
    known                         not of this path              SECRET_WRONG    } secret can be one by its form
    known                         of a superseded registration  ACCEPTED_PREVIOUS
    known                         of another recorded one       ACCEPTED_OTHER
    known                         ours                          ACCEPTED

All comparisons are of SHA-256 digests and take the same time wherever they differ. (app.py keeps path and secret of the first
request that was ACCEPTED, and compares the next ones with these in constant time.)

Not promised: that ACCEPTED_PREVIOUS is somebody's attack. It is what Telegram had under way when the secret was rotated; or it
is an old instance, or a person, who registered the old secret again. The owner finds out by registering its own once more.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from shared.answers import WEBHOOK_PATH
from shared.secret import digest

# As the configuration demands them (INTERFACE.md, "Environment").
_PATH = re.compile(WEBHOOK_PATH.encode())
_SECRET = re.compile(rb"[A-Za-z0-9_-]{16,256}")


class Match(Enum):
    """How a path and a secret match what is registered; a later member is better than one before it."""

    PATH_UNKNOWN = "path unknown"
    SECRET_WRONG = "secret wrong"  # noqa: S105 - not a secret
    ACCEPTED_PREVIOUS = "accepted, by a registration that a later one has superseded"
    ACCEPTED_OTHER = "accepted, by a registration that another configuration made"
    ACCEPTED = "accepted, by our own registration"


class Standing(Enum):
    """What a registration is to this instance."""

    OWN = "own"  # from the configuration
    RECORDED = "recorded"  # by an instance with another configuration: a deploy, or a rotation, is under way
    SUPERSEDED = "superseded"  # a later one was confirmed; accepted for some minutes more


@dataclass(frozen=True, slots=True)
class Registration:
    """What was registered, or is about to be, at Telegram; SHA-256 of path and secret."""

    path_hash: bytes
    secret_hash: bytes
    standing: Standing


def registration_of(path: str, secret: str) -> Registration:
    """The registration that a configuration stands for."""
    return Registration(digest(path.encode("ascii")), digest(secret.encode("ascii")), Standing.OWN)


def secret_path(path: bytes) -> bytes | None:
    """The last part of a webhook's path; None where it cannot be a secret path by its form, as one with a `%` cannot."""
    found = _PATH.fullmatch(path)
    return None if found is None else found.group(1)


def may_be_secret(secret: bytes | None) -> bool:
    """Whether a header could be a secret token by its form."""
    return secret is not None and _SECRET.fullmatch(secret) is not None


def match(known: Iterable[Registration], path: bytes, secret: bytes | None) -> Match:
    """Compares a request with all known registrations.

    Args:
        known: of this bot.
        path: from `secret_path`.
        secret: value of X-Telegram-Bot-Api-Secret-Token, None where it is missing.
    """
    path_hash = digest(path)
    secret_hash = digest(secret) if secret is not None else b""
    best = Match.PATH_UNKNOWN
    for registration in known:
        if not hmac.compare_digest(registration.path_hash, path_hash):
            continue
        found = Match.SECRET_WRONG
        if hmac.compare_digest(registration.secret_hash, secret_hash):
            found = _ACCEPTED[registration.standing]
        if found is Match.ACCEPTED:
            return found  # nothing is better
        best = max(best, found, key=_BETTER.index)
    return best


_ACCEPTED = {
    Standing.OWN: Match.ACCEPTED,
    Standing.RECORDED: Match.ACCEPTED_OTHER,
    Standing.SUPERSEDED: Match.ACCEPTED_PREVIOUS,
}
_BETTER = list(Match)
