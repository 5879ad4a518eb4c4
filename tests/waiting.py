"""Waiting for what others bring about: with a limit on a hang, and with a word about it where it does not come.

Not promised: that a state which lasts for less than the pause between two looks is seen.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

ValueT = TypeVar("ValueT")

HANG_SECONDS = 60.0
"""Longer than anything takes that goes on at all, on any machine."""


@overload
async def until(
    read: Callable[[], Awaitable[ValueT]],
    what: str,
    holds: Callable[[ValueT], object] = bool,
    *,
    limit_seconds: float = HANG_SECONDS,
    pause_seconds: float = 0.01,
) -> ValueT: ...


@overload
async def until(
    read: Callable[[], ValueT],
    what: str,
    holds: Callable[[ValueT], object] = bool,
    *,
    limit_seconds: float = HANG_SECONDS,
    pause_seconds: float = 0.01,
) -> ValueT: ...


async def until(
    read: Callable[[], Any],
    what: str,
    holds: Callable[[Any], object] = bool,
    *,
    limit_seconds: float = HANG_SECONDS,
    pause_seconds: float = 0.01,
) -> Any:
    """Looks again and again until a value is the wanted one, and returns it.

    Args:
        read: gives the value, or an awaitable of it.
        what: is waited for; completes "never came true: ".
        holds: whether a value is the wanted one; by default any that counts as true.
        limit_seconds: on a hang.
        pause_seconds: between two looks.

    Raises:
        AssertionError: it did not come in time; the message has the last value, which says how far it came.
    """
    value: object = "not one was read"
    try:
        async with asyncio.timeout(limit_seconds) as limit:
            while True:
                found = read()
                value = await found if inspect.isawaitable(found) else found
                if holds(value):
                    return value
                await asyncio.sleep(pause_seconds)
    except TimeoutError:
        if not limit.expired():  # it is of the reading
            raise
        raise AssertionError(f"never came true: {what}; the last value: {value!r}") from None
