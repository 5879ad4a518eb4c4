"""Faults that a test puts into the Bot API: which calls they hit, and how often.

Pure. The kinds are those of SCENARIOS.md b23 and what tests need besides; what each does to a call is in `bot_api.py`.

A flood limit is a window, as Telegram's is: the call that meets it begins it, and whoever calls that method before its end gets
429 again, with the seconds that are left. Such calls are marked, so that a test can ask whether there were any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec


class FaultKind(StrEnum):
    """What happens to a call that is hit."""

    LATENCY = "latency"  # waits `seconds`, then goes on; combines with another fault
    TOO_MANY_REQUESTS = "too_many_requests"  # 429 with `retry_after`, until that is over; no effect
    SERVER_ERROR = "server_error"  # `status` (500 and above); no effect
    HANG = "hang"  # no effect, no answer; the connection stays open
    APPLIED_BUT_TIMED_OUT = "applied_but_timed_out"  # takes effect; the answer never comes
    DROP_CONNECTION = "drop_connection"  # no effect; the connection is reset
    APPLIED_BUT_DROPPED = "applied_but_dropped"  # takes effect; the connection is reset instead of an answer


class Fault(msgspec.Struct, frozen=True):
    """A rule: the next `count` calls of `method` (None: until cleared) meet this. Calls within a flood limit count as none.

    Attributes:
        method: name of a method, any case; "*" hits every method.
        bot_id: None hits every bot.
    """

    kind: FaultKind
    method: str = "*"
    count: int | None = None
    bot_id: int | None = None
    seconds: float = 0.0
    retry_after: int = 1
    status: int = 502

    def hits(self, bot_id: int, method: str) -> bool:
        return self.method.lower() in ("*", method.lower()) and self.bot_id in (None, bot_id)


class Outage(StrEnum):
    """The whole Bot API is away."""

    NONE = "none"
    BAD_GATEWAY = "bad_gateway"  # every call: 502 with an HTML page, as from a proxy
    RESET = "reset"  # every call: the connection is reset
    REFUSED = "refused"  # nobody listens


@dataclass(slots=True)
class _Rule:
    number: int
    fault: Fault
    left: int | None


@dataclass(frozen=True, slots=True)
class Met:
    """What a call meets.

    Attributes:
        latency_seconds: it waits so long first.
        fault: None: nothing else.
        is_early: it came before the end of the flood limit that a call before it was told of, or was being told of.
    """

    latency_seconds: float
    fault: Fault | None
    is_early: bool = False


@dataclass(frozen=True, slots=True)
class _Flood:
    rule: _Rule
    until: float


@dataclass(slots=True)
class FaultPlan:
    """The faults in force."""

    _rules: list[_Rule] = field(default_factory=list)
    _floods: dict[tuple[int, str], _Flood] = field(default_factory=dict)
    _next_number: int = 1

    def add(self, fault: Fault) -> int:
        """Puts a fault in force; the number clears it."""
        number = self._next_number
        self._next_number += 1
        self._rules.append(_Rule(number, fault, fault.count))
        return number

    def clear(self, number: int | None = None) -> None:
        """Ends one fault, or all; and with it the flood limits that it has begun."""
        self._rules = [rule for rule in self._rules if number is not None and rule.number != number]
        floods = self._floods.items()
        self._floods = {
            key: flood for key, flood in floods if number is not None and flood.rule.number != number
        }

    def active(self) -> list[tuple[int, Fault, int | None]]:
        """Number, fault and calls left of each that still hits."""
        return [(rule.number, rule.fault, rule.left) for rule in self._rules]

    def take(self, bot_id: int, method: str, now: float) -> Met:
        """What a call meets: latency, and the first other fault; both count as used.

        Args:
            bot_id: whose call.
            method: in any case.
            now: of a monotonic clock, in seconds.
        """
        key = (bot_id, method.lower())
        flood = self._floods.get(key)
        if flood is not None and now < flood.until:
            left = msgspec.structs.replace(flood.rule.fault, retry_after=math.ceil(flood.until - now))
            return Met(0.0, left, is_early=True)
        latency, chosen = 0.0, None
        for rule in self._rules:
            if not rule.fault.hits(bot_id, method):
                continue
            if rule.fault.kind is FaultKind.LATENCY:
                latency += rule.fault.seconds
            elif chosen is None:
                chosen = rule.fault
                if chosen.kind is FaultKind.TOO_MANY_REQUESTS:
                    self._floods[key] = _Flood(rule, now + chosen.retry_after)
            else:
                continue
            if rule.left is not None:
                rule.left -= 1
        self._rules = [rule for rule in self._rules if rule.left is None or rule.left > 0]
        return Met(latency, chosen)
