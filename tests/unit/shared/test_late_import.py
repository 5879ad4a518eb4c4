"""What takes long is done beside the event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from shared.late_import import import_late, run_beside

LIMIT_SECONDS = 30.0  # on a hang


async def test_a_module_that_is_there_needs_no_thread() -> None:
    """Most calls of a process are not the first."""
    before = threading.active_count()
    importing = import_late("json")
    with pytest.raises(StopIteration) as ended:
        importing.send(None)  # to its end, without a turn of the loop
    assert ended.value.value is sys.modules["json"]
    assert threading.active_count() == before


async def test_a_module_that_is_being_imported_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in sys.modules from its beginning, and has next to nothing in it then."""
    source = "import threading\nthreading.begun.set()\nassert threading.go_on.wait(30)\nWHOLE = True\n"
    (tmp_path / "slowly_imported.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "begun", begun, raising=False)
    monkeypatch.setattr(threading, "go_on", go_on, raising=False)
    first = asyncio.create_task(import_late("slowly_imported"))
    while not begun.is_set():
        await asyncio.sleep(0)
    second = asyncio.create_task(import_late("slowly_imported"))
    await asyncio.sleep(0)
    assert not second.done()
    go_on.set()
    async with asyncio.timeout(LIMIT_SECONDS):
        for module in await asyncio.gather(first, second):
            assert module.WHOLE


async def test_what_fails_there_fails_here() -> None:
    """With its own error."""
    with pytest.raises(ModuleNotFoundError):
        await import_late("no_module_of_this_name")


async def test_who_is_cancelled_does_not_wait_for_the_thread() -> None:
    """Nor does the loop."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def do() -> None:
        begun.set()
        go_on.wait(LIMIT_SECONDS)
        ended.set()

    waiting = asyncio.create_task(run_beside(do))
    while not begun.is_set():
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not ended.is_set()
    go_on.set()
