"""The loop finds what is left behind: an orphan, a zombie. How it counts: tests/unit/campaign/test_left_behind.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.campaign.remains import instance_processes, zombies_below

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def test_a_process_is_found_wherever_it_hangs_in_the_tree(tmp_path: Path) -> None:
    """By what its instance gave it: a grandchild whose parent has ended too, and nobody else's."""
    starter = "import subprocess, sys; print(subprocess.Popen(['/bin/sleep', '600']).pid)"
    others = {**os.environ, "HISTORY_DIR": str(tmp_path / "history-of-another")}
    with subprocess.Popen(["/bin/sleep", "600"], env=others) as stranger:
        orphan = int(_first_line([sys.executable, "-c", starter], tmp_path / "history"))
        try:
            assert instance_processes(tmp_path / "history") == [orphan]
        finally:
            os.kill(orphan, 9)
            stranger.kill()


def _first_line(command: list[str], history: Path) -> str:
    with subprocess.Popen(
        command, env={**os.environ, "HISTORY_DIR": str(history)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        return process.stdout.readline()


def test_a_zombie_below_us_is_found_and_one_that_was_reaped_is_not() -> None:
    """A child that has ended stays until somebody asks for its status."""
    child = subprocess.Popen(["/bin/true"])
    deadline = time.monotonic() + 30
    while child.pid not in zombies_below(os.getpid()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()
    assert child.pid not in zombies_below(os.getpid())
