"""A small file system of its own, that can be filled up and freed.

A tmpfs, mounted by a process that ends with us and unmounts it then, also when we are killed.

For Postgres the two ways to be full differ. Where the log (WAL) cannot grow, the server ends itself (PANIC) and cannot even
recover before there is room. Where only tables cannot grow, statements fail (53100) and the server lives: put a tablespace
here for that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.campaign.faults import Unavailable, find_program, require_root

_BLOCK = b"\0" * (1 << 16)
# `read` comes back at the end of our pipe, however we end. Lazily, since somebody may still have files open.
_KEEPER = """
mount -t tmpfs -o "size=$2,mode=0755" campaign "$1" || exit 1
echo mounted
read -r _
umount "$1" 2> /dev/null || umount -l "$1"
"""


class SmallDisk:
    """A mounted file system.

    Attributes:
        folder: its root.
    """

    def __init__(self, folder: Path) -> None:
        """Use `a_small_disk`."""
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> int:
        """Leaves no room for a single byte; how many were taken."""
        with self._ballast.open("ab", buffering=0) as ballast:
            size = len(_BLOCK)
            while size:
                try:
                    # A short write is the last that fitted.
                    if ballast.write(_BLOCK[:size]) < size:
                        size //= 2
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
            return ballast.tell()

    def free(self) -> None:
        """Gives the room back."""
        self._ballast.unlink(missing_ok=True)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Full until the block ends."""
        self.fill()
        try:
            yield
        finally:
            self.free()

    @property
    def free_bytes(self) -> int:
        """How much room there is."""
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_frsize


@contextmanager
def a_small_disk(folder: Path, *, megabytes: int) -> Iterator[SmallDisk]:
    """An empty file system in a folder, which is made; unmounted at the end, whoever still uses it.

    Raises:
        Unavailable: not root, or the kernel does not let us mount.
    """
    require_root("a file system of its own")
    folder.mkdir(parents=True)
    keeper = subprocess.Popen(
        [find_program("sh", "dash"), "-c", _KEEPER, "sh", str(folder), f"{megabytes}m"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A Ctrl-C at the terminal is ours: it must live to unmount.
        start_new_session=True,
        text=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        said = keeper.stdout.readline().strip()
        if said != "mounted":
            raise Unavailable(f"no file system can be mounted here: {said}")
        yield SmallDisk(folder)
    finally:
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()
        with contextlib.suppress(OSError):
            folder.rmdir()
