"""A string that does not show itself, and the digest by which others may know it again.

Not promised: safety from whoever calls `reveal()`, from a debugger, or from a core dump; the string is in memory as it is.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn

MASK = "***"
"""What stands in place of every secret, here, in URLs and in the log."""


class Secret:
    """A token, path or DSN; its repr, str and format are a mask, so that no dump of a configuration holds it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself; hand it to whoever sends it, and to nobody who prints."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret('{MASK}')"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(
            self._value.encode("utf-8", "surrogatepass"), other._value.encode("utf-8", "surrogatepass")
        )

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> NoReturn:
        # Pickles end up in files and pipes, where nobody masks them.
        raise TypeError("a Secret is not pickled or copied; pass the object itself")


def digest(value: bytes) -> bytes:
    """SHA-256: the form in which paths and secrets are recorded in the database, and compared with what a request has."""
    return hashlib.sha256(value).digest()
