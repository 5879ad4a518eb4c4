"""The wall clock of another process jumps, and nothing else of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.campaign.faults import Unavailable
from tests.campaign.faults.faketime import WallClock

# It tells its wall clock and its boot clock whenever it is asked.
SCRIPT = """
import subprocess, sys, time
for _ in sys.stdin:
    child = subprocess.run([sys.executable, "-c", "import time; print(time.time())"], capture_output=True, text=True)
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    time.sleep(0.1)
    print(time.time(), child.stdout.strip(), began, time.monotonic(), flush=True)
"""


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="needs Linux")
def test_b16_the_wall_clock_jumps_while_a_process_runs_and_the_others_do_not(tmp_path: Path) -> None:
    """An hour ahead, an hour behind, and back; its children with it; sleeping and the other clocks stay real."""
    try:
        clock = WallClock(tmp_path)
    except Unavailable as missing:
        pytest.skip(str(missing))
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **clock.environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for jump in (0.0, 3600.0, -3600.0, 0.0):
            clock.jump(jump)
            before = (time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic())
            process.stdin.write("\n")
            process.stdin.flush()
            wall, child, boot, monotonic = map(float, process.stdout.readline().split())
            after = (time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic())
            # libfaketime keeps whole microseconds at best.
            for seen in (wall, child):
                assert before[0] - 0.01 <= seen - jump <= after[0] + 0.01
            assert before[1] <= boot <= after[1]
            assert before[2] <= monotonic <= after[2]
            assert after[2] - before[2] >= 0.1
        process.stdin.close()
