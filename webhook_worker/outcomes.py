"""What became of one try at an update: what the bot tells the dispatch, and what its handlers may ask for and see.

Which exception makes which outcome stands in failures.py; what an outcome means for its row and its lane, in lanes.py.

Pure, and cheap to import: the two names that handlers import from `webhook_worker` come from here. Not promised: that whoever
makes an outcome keeps its texts as short as the database wants them; lanes.py sees to that once more.
"""

from __future__ import annotations

from contextvars import ContextVar

from msgspec import Struct

_MARK_CHARACTERS = 50  # of what stands where a text was cut, with a number of any length


class RetryUpdate(Exception):
    """Raised by a handler: this update cannot be handled now; handle it again later, and let its chat wait meanwhile.

    Args:
        reason: for the log.
        retry_after_seconds: not before; without it, the usual backoff.

    Raises:
        TypeError: retry_after_seconds is not a number.
    """

    def __init__(self, reason: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        try:
            # Of a number of any type, as numpy's are.
            self.retry_after_seconds = None if retry_after_seconds is None else float(retry_after_seconds)
        except (TypeError, ValueError):
            raise TypeError(
                f"RetryUpdate: retry_after_seconds is {retry_after_seconds!r}; expected a number of seconds (of a timedelta, "
                "its total_seconds())"
            ) from None


class Done(Struct, frozen=True):
    """Every handler and task of the update ended, and none reported an error."""


class Transient(Struct, frozen=True):
    """Something outside was away; the same update may succeed later."""

    reason: str  # one line
    retry_after_seconds: float | None = None  # somebody named the time; else back off
    is_token_refused: bool = False  # the bot's own: every other call of it would fare alike


class Failed(Struct, frozen=True):
    """Repeating would not help."""

    traceback_text: str  # fit for the database: no NUL, no lone surrogate, of bounded length


Outcome = Done | Transient | Failed

attempt_number: ContextVar[int] = ContextVar("attempt_number", default=0)
"""Set by whoever runs the handlers."""


def attempt() -> int:
    """Which try at the present update this is: 1 the first time; 0 outside of an update, as in jobs and post_init."""
    return attempt_number.get()


def storable(text: str, most_characters: int) -> str:
    """The text as a column of type text can hold it, and no longer: of one that is too long both ends tell something.

    A user of the bot can put NUL and lone surrogates into the message of an exception; a statement with one would always fail.

    Args:
        most_characters: more than a hundred.
    """
    text = text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= most_characters:
        return text
    kept = (most_characters - _MARK_CHARACTERS) // 2
    return f"{text[:kept]}\n... {len(text) - 2 * kept} characters left out ...\n{text[-kept:]}"
