"""A wall clock for one process and its children, that jumps when told to; its other clocks stay real.

By libfaketime (from PyPI, since Debian's breaks `time.sleep` on 3.12), preloaded into the process, which reads the jump from a
file at each look at the clock. CLOCK_MONOTONIC and CLOCK_BOOTTIME are real, as they are on a machine whose wall clock is set by
somebody.

Not promised: file times, and time-outs that the C library measures by the wall clock; Python has none.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tests.campaign.faults import Unavailable


def _library() -> Path:
    # Found without importing: the package wants to replace the clock of this process.
    found = importlib.util.find_spec("libfaketime")
    if found is None or not found.submodule_search_locations:
        raise Unavailable("libfaketime is not installed (pip install libfaketime)")
    library = Path(found.submodule_search_locations[0]) / "vendor/libfaketime/src/libfaketime.so.1"
    if not library.exists():
        raise Unavailable(f"libfaketime has no library for this system: {library} is not there")
    return library


class WallClock:
    """The wall clock of whatever is started with its variables."""

    def __init__(self, folder: Path) -> None:
        """Shows the right time until it jumps.

        Args:
            folder: for the file with the jump.

        Raises:
            Unavailable: libfaketime is not there.
        """
        self._library = _library()
        self._file = folder / "wall-clock"
        self.jump(0)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that put a process under this clock."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            # Else a jump is seen ten seconds later.
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def jump(self, seconds: float) -> None:
        """From now on the clock is so far ahead of the real one; negative: behind it."""
        # In one step: a reader must never see half a number.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+g}\n")
        new.replace(self._file)
