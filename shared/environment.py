"""Typed reading of environment variables that collects every fault instead of ending at the first.

Each fault is one line: the variable, what it must be, what was found, the remedy. What was found is quoted only where it
cannot be, hold, or be a part of, the value of a variable that is secret: people do paste a token into the wrong field.

Not promised: any knowledge of this project. Which variables there are, and how they relate, is `shared.config`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

Choice = TypeVar("Choice", bound=Enum)

_MAX_QUOTED_CHARACTERS = 60
# A shorter piece of a secret tells little, and to hide it would hide most faults.
_PIECE_CHARACTERS = 8
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
_SECONDS = re.compile(r"-?(?:[0-9]{1,12}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})")
_TRUE = frozenset({"1", "true"})
_FALSE = frozenset({"0", "false"})


class EnvironmentReader:
    """Reads variables one by one; afterwards `faults` holds a line for everything that was wrong.

    A faulty variable reads as its default, so that the reading goes on to the next fault. An empty one counts as unset.
    """

    def __init__(self, environ: Mapping[str, str], *, secret_names: frozenset[str]) -> None:
        self._environ = environ
        self._secrets = tuple(value for name in secret_names if (value := environ.get(name)))
        self.faults: list[str] = []

    def text(self, name: str) -> str | None:
        """The value as it stands, or None if unset."""
        return self._environ.get(name) or None

    def fault(self, name: str, must_be: str, found: str, remedy: str) -> None:
        """Notes a fault. `found` must not hold a secret: see `quoted`."""
        self.faults.append(f"{name} must be {must_be}; {found}; {remedy}")

    def quoted(self, value: str) -> str:
        """`found '...'`, or a description if the value has to do with a secret."""
        if any(_share(value, secret) for secret in self._secrets):
            return f"found {len(value)} characters that are also in a secret variable"
        shown = ascii(value)
        return f"found {shown if len(shown) <= _MAX_QUOTED_CHARACTERS else f'{len(value)} characters'}"

    def whole_number(self, name: str, default: int, low: int, high: int) -> int:
        """An integer from `low` to `high`."""
        text = self.text(name)
        if text is None:
            return default
        if _WHOLE_NUMBER.fullmatch(text) and low <= int(text) <= high:
            return int(text)
        self.fault(
            name,
            f"a whole number from {low} to {high}",
            self.quoted(text),
            f"correct it, or unset it for {default}",
        )
        return default

    def seconds(self, name: str, default: float, low: float, high: float) -> float:
        """A finite length of time from `low` to `high` seconds, with or without decimals."""
        text = self.text(name)
        if text is None:
            return default
        if _SECONDS.fullmatch(text) and low <= float(text) <= high:
            return float(text)
        self.fault(
            name,
            # Not as `g` has it by itself, which would write long ones in a form that is refused.
            f"a number of seconds from {low:.15g} to {high:.15g}",
            self.quoted(text),
            f"correct it, or unset it for {default:g}",
        )
        return default

    def choice(self, name: str, default: Choice) -> Choice:
        """A member of the default's Enum, by its value, which is a string in lower case."""
        text = self.text(name)
        if text is None:
            return default
        members = {str(member.value): member for member in type(default)}
        if text in members:
            return members[text]
        self.fault(
            name, " or ".join(members), self.quoted(text), f"correct it, or unset it for {default.value}"
        )
        return default

    def flag(self, name: str) -> bool:
        """1 or true, 0 or false; unset is false."""
        text = (self.text(name) or "0").lower()
        if text in _TRUE | _FALSE:
            return text in _TRUE
        self.fault(name, "1 or 0 (true or false)", self.quoted(text), "correct it, or unset it for 0")
        return False

    def pattern(self, name: str, default: str, pattern: re.Pattern[str], must_be: str, remedy: str) -> str:
        """A text that matches as a whole."""
        text = self.text(name)
        if text is None or pattern.fullmatch(text):
            return text or default
        self.fault(name, must_be, self.quoted(text), remedy)
        return default


def _share(value: str, secret: str) -> bool:
    """Whether the one holds the other, or a telling piece of it."""
    if len(value) < _PIECE_CHARACTERS:
        return secret in value or (2 * len(value) >= _PIECE_CHARACTERS and value in secret)
    pieces = (value[at : at + _PIECE_CHARACTERS] for at in range(len(value) - _PIECE_CHARACTERS + 1))
    return secret in value or any(piece in secret for piece in pieces)


def describe_characters(value: str, allowed: re.Pattern[str]) -> str | None:
    """What kinds of characters a secret has that it must not have, in words that tell nothing else of it; None if none.

    Args:
        allowed: matches one character that may be there.
    """
    if value != value.strip():
        return "it begins or ends with white space"
    kinds = {
        kind: None
        for character in value
        if not allowed.fullmatch(character)
        for kind in [
            "white space"
            if character.isspace()
            else "a character that is not ASCII"
            if not character.isascii()
            else "a control character"
            if not character.isprintable()
            else "a quotation mark"
            if character in "\"'"
            else "punctuation that is not allowed"
            if not character.isalnum()
            else "a letter or digit that is not allowed there"
        ]
    }
    return f"it holds {', '.join(kinds)}" if kinds else None
