"""Takes secrets out of text: what is known by its value, and what is known by its form.

By value: each secret in every form in which libraries write it (as it is, percent-encoded, and escaped as by repr or JSON).
By form: anything that looks like a bot token, the password in `scheme://user:password@host`, and what follows `password=` or
`'password':` and the like, so that a secret that nobody announced is caught too.

A short or common secret is a problem of its own: with the DSN password "a", or "postgres", replaced wherever it occurs, the log
could not be read and its tags not be found. So by value

    8 characters and more, and every bot token     are replaced wherever they occur
    4 to 7 of more than one kind ("s3cret")        are replaced where they stand as a word
    all others ("a", "admin", "1234")              are left to the forms above

Not promised: finding a secret that somebody took apart, reversed or encoded in another way (base64, hexadecimal).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

from shared.secret import MASK

_ANYWHERE_CHARACTERS = 8  # as short as no sensible secret is, and longer than most words of our log lines
_WORD_CHARACTERS = 4

_LONGEST_TOKEN = 256

_TOKEN = re.compile(r"[0-9]+:[A-Za-z0-9_-]+")

# Each begins with something that is rare or cannot repeat, so that no text makes the search quadratic.
_FORMS = (
    # A bot token: 8 to 10 digits and 35 characters today, both of which have grown before.
    (re.compile(r"(?<![0-9])[0-9]{6,}(?::|%3[Aa])[A-Za-z0-9_-]{30,}"), MASK),
    (re.compile(r"(?P<before>://[^\s:/@'\"]*:)[^\s/@]+(?=@)"), rf"\g<before>{MASK}"),
    (
        re.compile(
            r"""(?P<before>(?:password|client_secret)\\?["']?\s*[=:]\s*)"""
            r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s'"&,;)}\]]+)""",
            re.IGNORECASE,
        ),
        rf"\g<before>{MASK}",
    ),
)


class Redactor:
    """Removes a fixed set of secrets from any text. Calling it twice changes nothing more.

    Attributes:
        leaves_numbers: no secret is a number, so none is in a number.
        longest: the characters of the longest that is known by its value, and as many as forms have as a rule.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        known = list(secrets)
        patterns = _patterns_of(known)
        # The longest first: the DSN before the password in it, else the rest of the DSN would stay.
        ordered = sorted(patterns, key=lambda pattern: patterns[pattern], reverse=True)
        self._values = re.compile("|".join(ordered)) if ordered else None
        self._shortest = min(patterns.values(), default=0)
        self.longest = max(_LONGEST_TOKEN, max(patterns.values(), default=0))
        self.leaves_numbers = not any(part.lstrip("-").isdecimal() for each in known for part in _parts(each))

    def __call__(self, text: str) -> str:
        """The text with every secret replaced by the mask."""
        if self._values is not None and len(text) >= self._shortest:
            text = self._values.sub(MASK, text)
        # Most texts are keys, numbers and short messages: not worth three searches.
        if ":" not in text and "=" not in text and "%" not in text:
            return text
        for form, replacement in _FORMS:
            text = form.sub(replacement, text)
        return text

    def bounded(self, text: str, limit_characters: int) -> str:
        """The same for a text of any length, of which little more than the limit is looked at and left."""
        if len(text) <= limit_characters:
            return self(text)
        # The cut may go through a secret, of which a piece is left that nothing recognises: it goes too.
        left = self(text[: limit_characters + self.longest])[: -self.longest]
        return f"{left} ... ({len(text) - limit_characters} more characters)"


def _patterns_of(secrets: Iterable[str]) -> dict[str, int]:
    """Regular expressions, each with the length of what it matches."""
    patterns: dict[str, int] = {}
    for secret in secrets:
        for part in _parts(secret):
            for form in _written(part):
                if len(part) >= _ANYWHERE_CHARACTERS or _TOKEN.fullmatch(part):
                    patterns[re.escape(form)] = len(form)
                elif len(part) >= _WORD_CHARACTERS and _kinds(part) > 1:
                    patterns[rf"(?<!\w){re.escape(form)}(?!\w)"] = len(form)
    return patterns


def _parts(secret: str) -> list[str]:
    # Of a token the part after the colon is the secret; it turns up alone where libraries split it.
    return [secret, secret.partition(":")[2]] if _TOKEN.fullmatch(secret) else [secret]


def _written(secret: str) -> set[str]:
    raw = secret.encode("utf-8", "surrogateescape")
    encoded = quote(raw, safe="")
    forms = {
        secret,
        encoded,
        re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), encoded),
        quote(raw, safe="/:@"),
        quote_plus(raw),
        repr(secret)[1:-1],
        repr(raw)[2:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    }
    return {form for form in forms if form}


def _kinds(text: str) -> int:
    return len({"letter" if c.isalpha() else "digit" if c.isdigit() else "other" for c in text})
