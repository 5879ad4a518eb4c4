"""Handlers that hang: the dead letter says where."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.worker.test_dispatch_turns import WAYS, scene_of
from tests.unit.worker.virtual_time import run
from webhook_worker import code_place
from webhook_worker.lanes import State
from webhook_worker.outcomes import Done, Outcome

TIMEOUT_SECONDS = 30.0


async def hangs() -> None:
    await asyncio.sleep(3600)


async def handler(attempt: int) -> Outcome:
    await hangs()
    return Done()


PLACE = code_place.shown(__file__, hangs.__code__.co_firstlineno + 1) + " in hangs"


@pytest.mark.parametrize("way", WAYS)
def test_where_a_handler_hung_is_kept(way: str) -> None:
    """The line of the bot that waits, in one line, and the way there above it."""

    async def main() -> None:
        scene = await scene_of(way, handler, handler_timeout_seconds=TIMEOUT_SECONDS)
        scene.send(1, 7)
        scene.start()
        await scene.until_quiet()
        row = scene.row(1)
        assert row.state is State.DEAD
        lines = str(row.error).splitlines()
        assert lines[-1] == f"the handler took longer than 30 s (HANDLER_TIMEOUT_SECONDS): waited at {PLACE}"
        assert lines[0] == "Traceback (most recent call last):"
        assert any(
            line.startswith(f'  File "{__file__}", line ') and line.endswith(" in hangs") for line in lines
        )
        await scene.end()

    run(main)
