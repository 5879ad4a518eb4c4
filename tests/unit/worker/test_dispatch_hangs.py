"""Handlers that hang: the dead letter says where."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.test_dispatch_turns import WAYS, scene_of
from tests.unit.worker.virtual_time import now, run
from webhook_worker import code_place
from webhook_worker.flight import STUBBORN_SECONDS
from webhook_worker.lanes import State
from webhook_worker.outcomes import Done, Outcome

TIMEOUT_SECONDS = 30.0


async def hangs(seconds: float = 3600) -> None:
    await asyncio.sleep(seconds)


async def handler(attempt: int) -> Outcome:
    await hangs()
    return Done()


PLACE = code_place.shown(__file__, hangs.__code__.co_firstlineno + 1) + " in hangs"


def test_where_a_handler_hangs_that_cannot_be_stopped_is_kept() -> None:
    """Nobody but the row can tell when its process has been replaced."""

    async def stubborn(attempt: int) -> Outcome:
        ends_at = now() + 2 * (TIMEOUT_SECONDS + STUBBORN_SECONDS)
        while now() < ends_at:
            with contextlib.suppress(asyncio.CancelledError):
                await hangs(ends_at - now())
        return Done()

    async def main() -> None:
        scene = await scene_of("plain", stubborn, handler_timeout_seconds=TIMEOUT_SECONDS)
        scene.send(1, 7)
        scene.start()
        await asyncio.sleep(TIMEOUT_SECONDS + STUBBORN_SECONDS + 5)
        said = str(scene.row(1).error).splitlines()[-1]
        assert said.endswith(f"(HANDLER_TIMEOUT_SECONDS) and ignored its cancellation: waited at {PLACE}")
        await scene.until_quiet()
        await scene.end()

    run(main)


def test_a_working_directory_that_is_gone_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is then told by its whole name."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert code_place.shown("/app/bot.py", 3) == "/app/bot.py:3"


async def test_a_bot_that_is_installed_has_a_place_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files lie among those of libraries, which is where we look last."""
    monkeypatch.setattr(code_place, "LIBRARIES", (*code_place.LIBRARIES, f"{tmp_path}/"))
    code = compile(Path(__file__).read_text(), str(tmp_path / "bot.py"), "exec")
    names: dict[str, Any] = {"__name__": "bot", "__file__": str(tmp_path / "bot.py")}
    exec(code, names)
    task = asyncio.create_task(names["hangs"]())
    await asyncio.sleep(0)
    place, _ = code_place.of_coroutine(task.get_coro())
    assert place == f"{tmp_path}/bot.py:{hangs.__code__.co_firstlineno + 1} in hangs"
    task.cancel()


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
