"""The one tree of errors. Those that one part alone raises and catches are defined there, and drawn here all the same.

SupervisorError
  ├ ConfigurationError        the operator's: name every fault, exit 2
  │   └ MenuError             in the file of the built-in bot's menu
  ├ DatabaseRefused           the operator's: a pooler, a standby, too old a server; exit 2 at first contact
  ├ DatabaseAway              nobody's to mend here: no database, or no answer in time; repeat later
  ├ SchemaError               the schema is not what this version needs; stays PASSIVE and says so
  ├ WireError                 ours: supervisor and worker do not understand each other
  ├ CommandFailed             a command of the operator's was not carried out; exit 1
  ├ TelegramError             Telegram's answer, or none
  │   ├ TokenRefused          401 or 404: the token is not valid (any more); do not repeat
  │   ├ Conflict              409: somebody else did the same at the same time
  │   ├ BadRequest            400 and other 4xx: repeating does not help
  │   ├ RetryLater            429: `retry_after_seconds` must pass first
  │   └ TelegramUnavailable   5xx, time-out, no connection: repeat with backoff; `may_be_applied`, unless it was never sent
  │
  │   of the worker, which takes updates in
  ├ MalformedUpdate           the sender's, who is not Telegram: answer 400
  ├ NotStored                 the update is not known to be stored: answer 503
  │   └ BufferFull            too many wait already
  ├ LookupFailed              what is registered is not known at the moment: answer 503
  ├ _Stuck                    polled updates that cannot be acknowledged: fetch again after a pause
  │
  │   of the worker, which runs the bot
  ├ StopAsked                 the bot's: it called stop_running() while it was coming up; it does not lead
  ├ StartTimedOut             the bot's: it was still about to start when its time was over; it does not lead
  ├ UnreadableUpdate          python-telegram-bot makes nothing of it: a dead letter
  ├ Superseded                the term is over: stop dispatching at once
  ├ ArrivalsRefused           the exchange took along what the database refuses: again, without it
  └ HandlersStuck             the bot's: handlers ignore their cancellation; the process has to be replaced

Not of it: what carries a word from one function of ours to the next (TermOver, the faults of a URL or a DSN); UnsuitableServer
and TokenUnknown, which are to be caught with what psycopg and python-telegram-bot raise themselves; and RetryUpdate, which is
the bot's to raise, and not ours.
"""

from __future__ import annotations

import re


class SupervisorError(Exception):
    """Base of everything that this project raises on purpose."""


class ConfigurationError(SupervisorError):
    """The environment is not usable. `faults` has a line for each: the variable, what was expected, the remedy."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class DatabaseRefused(SupervisorError):
    """DATABASE_URL leads to a server on which leadership cannot be held; the message says why and what to use instead."""


class SchemaError(SupervisorError):
    """The schema could not be applied, or is not what this version needs."""


class WireError(SupervisorError):
    """Supervisor and worker do not understand each other."""


class CommandFailed(SupervisorError):
    """A command of the operator's was not carried out; the message says why, and what to do."""


class TelegramError(SupervisorError):
    """A Bot API call did not succeed. `method` is its name; the text never holds the token."""

    def __init__(self, method: str, description: str) -> None:
        super().__init__(f"{method}: {description}")
        self.method = method
        self.description = description


class TokenRefused(TelegramError):
    """401 or 404: Telegram does not know the token. Repeating is hammering; a new token is needed."""


class Conflict(TelegramError):
    """409: terminated by another call of the same kind."""


class BadRequest(TelegramError):
    """400 or another 4xx: the call will not succeed as it stands."""


class RetryLater(TelegramError):
    """429: the same call may be made again after `retry_after_seconds`."""

    def __init__(self, method: str, description: str, retry_after_seconds: float) -> None:
        super().__init__(method, description)
        self.retry_after_seconds = retry_after_seconds


class TelegramUnavailable(TelegramError):
    """5xx, time-out or no connection. The call may nevertheless have been applied, unless `may_be_applied` is false."""

    def __init__(self, method: str, description: str, *, may_be_applied: bool = True) -> None:
        super().__init__(method, description)
        self.may_be_applied = may_be_applied


_DRAWING = " |+-"
"""What the traceback of an exception group is drawn with."""

_BEFORE_THE_LINE = re.compile(
    r"(?P<frame>[ |+-]*)File \".*\", line \d+, in "
    r"|(?P<chain>[ |+-]*)(?:The above exception was|During handling of the above exception)"
    r"|(?P<member>[ |+-]*\+)-+ \d+ -+$"
)
"""The last of these in a traceback is followed by the line that names the exception: a frame; or, where that has no frames, the
rule of a chain, or the one before a member of a group."""

_INDENTED = {"frame": -2, "chain": 0, "member": 1}
"""Columns from the end of what stands before them to that line."""


def naming_line(text: str) -> str:
    """Of an error that is kept as a text, in one line: that of its traceback which names the exception.

    It is not always the last one: messages have several lines, and notes come after them. Of a group it is that of the last
    exception within. Where there is no traceback it is the last line. "" for an empty text.
    """
    lines = text.splitlines()
    found = [
        (at, mark) for at, line in enumerate(lines) if (mark := _BEFORE_THE_LINE.match(line)) is not None
    ]
    if found:
        at, mark = found[-1]
        assert mark.lastgroup is not None
        edge = mark.end(mark.lastgroup) + _INDENTED[mark.lastgroup]
        for line in lines[at + 1 :]:
            if line[edge : edge + 1].strip(_DRAWING):
                return line[edge:].rstrip()
    bare = (line.lstrip(_DRAWING).rstrip() for line in reversed(lines))
    return next((line for line in bare if line), "")
