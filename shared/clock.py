"""The one clock on which ownership is measured.

A deadline is set by the supervisor and obeyed by the worker, so both must read the same clock, and it must run on while the
machine is suspended: a laptop that slept an hour has long lost its lock. CLOCK_MONOTONIC stands still in suspend on Linux;
CLOCK_BOOTTIME does not. On macOS CLOCK_MONOTONIC is the one that runs on. Neither moves when somebody sets the wall clock.

Not promised: comparability between machines. What crosses machines is a length in seconds, or the database's clock.
"""

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on the clock shared by all processes of this machine; only differences and comparisons mean anything."""
    return time.clock_gettime(_CLOCK)
