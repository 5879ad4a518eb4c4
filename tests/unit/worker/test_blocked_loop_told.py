"""When an event loop counts as blocked, by its beats and by how often it is looked at; and where a thread is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from webhook_worker import code_place
from webhook_worker.blocked_loop import BLOCKED_SECONDS, GAP_SECONDS, BlockedLoop

HANG_SECONDS = 30.0
LOOK_SECONDS = 0.25


class Watch:
    """Looks four times a second, as the lifeline's thread, and writes down what is to be told and when."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[tuple[float, float]] = []
        self._loop = BlockedLoop()
        self._beat_at = self.now

    def pass_by(self, seconds: float, *, beats: bool) -> None:
        """Time goes on, and the loop turns or does not."""
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.now += LOOK_SECONDS
            if beats and self.now >= self._beat_at + 1:
                self._beat_at = self.now
            self._look()

    def stand_still(self, seconds: float) -> None:
        """The whole process does, and this thread is the first to go on."""
        self.now += seconds
        self._look()

    def _look(self) -> None:
        seconds = self._loop.look(self.now, self._beat_at)
        if seconds is not None:
            self.told.append((self.now, seconds))


def test_a_loop_that_beats_is_not_blocked() -> None:
    """However long it goes on."""
    watch = Watch()
    watch.pass_by(600, beats=True)
    assert watch.told == []


def test_a27_a_blocked_loop_is_told_of_once_and_before_the_supervisor_kills() -> None:
    """With the seconds since the last beat; the next one is another."""
    watch = Watch()
    watch.pass_by(10, beats=True)
    watch.pass_by(60, beats=False)
    watch.pass_by(3, beats=True)
    watch.pass_by(8, beats=False)
    assert watch.told == [(115.0, BLOCKED_SECONDS), (177.25, BLOCKED_SECONDS)]


@pytest.mark.parametrize("seconds", [GAP_SECONDS + 1, 3600.0])
def test_b06_the_loop_of_a_process_that_stood_still_was_not_blocked(seconds: float) -> None:
    """Stopped, or suspended with its machine: the loop beats a moment after."""
    watch = Watch()
    for _ in range(3):
        watch.pass_by(10, beats=True)
        watch.stand_still(seconds)
    watch.pass_by(10, beats=True)
    assert watch.told == []


def test_b06_a_loop_that_is_blocked_after_that_too_is_told_of_for_what_was_seen_of_it() -> None:
    """And not for the hour in which nothing ran."""
    watch = Watch()
    watch.pass_by(3, beats=False)
    watch.stand_still(3600.0)
    watch.pass_by(BLOCKED_SECONDS + 1, beats=False)
    assert watch.told == [(100 + 3 + 3600 + BLOCKED_SECONDS, BLOCKED_SECONDS)]


def test_the_first_look_counts_from_itself() -> None:
    """Nobody looked before the term, while the bot was imported."""
    watch = Watch()
    watch.now += 1000.0
    watch.pass_by(BLOCKED_SECONDS, beats=False)
    assert watch.told == []
    watch.pass_by(1, beats=False)
    assert [seconds for _, seconds in watch.told] == [BLOCKED_SECONDS]


@contextmanager
def thread_of(target: Callable[[threading.Event], object]) -> Iterator[int]:
    """A thread that waits for an event."""
    may_end = threading.Event()
    thread = threading.Thread(target=target, args=(may_end,))
    thread.start()
    assert thread.ident is not None
    try:
        yield thread.ident
    finally:
        may_end.set()
        thread.join()


def handle_order(may_end: threading.Event) -> None:
    """A handler that blocks: what it calls has frames of its own, in `threading`."""
    may_end.wait(HANG_SECONDS)


def until_in(ident: int, place: str) -> None:
    """Returns when the thread is there."""
    end = time.monotonic() + HANG_SECONDS
    while (found := code_place.of_thread(ident)) != place:
        assert time.monotonic() < end, found
        time.sleep(0.001)


def test_a27_a_place_is_that_of_the_operators_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The innermost line of it, whatever of a library's it waits in; from the working directory, or in full."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + lines.index("    may_end.wait(HANG_SECONDS)")
    monkeypatch.chdir(Path(__file__).parents[3])
    with thread_of(handle_order) as ident:
        until_in(ident, f"tests/unit/worker/test_blocked_loop_told.py:{line} in handle_order")
        monkeypatch.chdir(tmp_path)
        until_in(ident, f"{__file__}:{line} in handle_order")
    assert code_place.of_thread(ident) is None


def test_where_there_is_nothing_of_the_operators_the_innermost_frame_is_told() -> None:
    """Threads of libraries, and the built-in bot."""
    with thread_of(threading.Event.wait) as ident:
        place = code_place.of_thread(ident)
    assert place is not None
    assert Path(place.partition(":")[0]).name == "threading.py"
