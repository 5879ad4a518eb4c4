"""Standard output that goes nowhere: a reader that stops reading, a disk that is full."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
from functools import partial
from pathlib import Path

from tests.campaign.faults.small_disk import a_small_disk
from tests.campaign.field import Field
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario
from tests.end_to_end.instance import eventually

_SMALLEST_PIPE = 4096
_INTO = ("/bin/sh", "-c", 'exec "$@" > "$LOG_TARGET" 2>&1', "sh")


class _Reader:
    """Reads a pipe whenever it is allowed to."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # Read and write, so that neither our opening nor the instance's waits for the other.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        # As small as can be: it must be full at once, and not after the minutes that a quiet bot takes.
        fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _SMALLEST_PIPE)
        self.read_bytes = 0
        self.go_on()

    def go_on(self) -> None:
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)

    @property
    def waiting_bytes(self) -> int:
        """What is in the pipe, unread."""
        taken = bytearray(4)
        fcntl.ioctl(self._fd, _FIONREAD, taken)
        return int.from_bytes(taken, "little")

    def close(self) -> None:
        self.stop()
        os.close(self._fd)

    def _read(self) -> None:
        self.read_bytes += len(os.read(self._fd, 1 << 16))


_FIONREAD = 0x541B


async def _has_read(reader: _Reader, size: int) -> bool:
    return reader.read_bytes > size


async def _is_longer(log: Path, size: int) -> bool:
    return log.stat().st_size > size


@scenario(
    id="b15",
    title="stdout's reader stops reading; log disk full",
    repetitions=30,
    short=4,
    needs=(Need.TMPFS,),
)
async def lose_the_log(field: Field, chance: random.Random) -> None:
    """By turns, of owner and standby: nobody waits for the log. Terms go on, updates are answered, and a stop is a stop."""
    disk = field.closing.enter_context(a_small_disk(field.folder / "disk", megabytes=1))
    log = disk.folder / "log"
    reader = _Reader(field.folder / "pipe")
    field.closing.callback(reader.close)
    await field.start("one", prefix=_INTO, LOG_TARGET=str(field.folder / "pipe"), LOG_LEVEL="DEBUG")
    await field.start("two", prefix=_INTO, LOG_TARGET=str(log), LOG_LEVEL="DEBUG")
    async with field.flowing(80.0):
        await field.steady()
        number = await field.term_number()
        for repetition in range(field.repetitions):
            seconds = chance.uniform(3.0, 6.0)
            if repetition % 2 == 0:
                field.inject("reader stops")
                reader.stop()
                await asyncio.sleep(seconds)  # the length of the fault
                if reader.waiting_bytes < _SMALLEST_PIPE // 2:
                    field.object(
                        Invariant.FAILED, f"only {reader.waiting_bytes} bytes waited: the pipe was never full"
                    )
                await field.steady()
                # More than can have waited in the pipe, and in the line that was being written to it.
                enough = reader.read_bytes + 2 * _SMALLEST_PIPE
                reader.go_on()
                await eventually(
                    partial(_has_read, reader, enough), "a log that goes on when its reader does"
                )
            else:
                field.inject("log disk full")
                # As whoever rotates it does: alone it would fill the disk before long, and could not go on ever.
                os.truncate(log, 0)
                disk.fill()
                await asyncio.sleep(seconds)  # the length of the fault
                await field.steady()
                size = log.stat().st_size
                disk.free()
                await eventually(partial(_is_longer, log, size), "a log that goes on when there is room")
            if await field.term_number() != number:
                field.object(Invariant.AVAILABLE, "a log that could not be written ended a term")
                number = await field.term_number()
            # An orderly stop while nobody reads, and while nothing can be written.
            if repetition >= field.repetitions - 2:
                reader.stop()
                disk.fill()
                victim = field.instances["one" if repetition % 2 == 0 else "two"]
                if (status := await field.stop(victim)) != 0:
                    field.object(
                        Invariant.HYGIENE, f"told to stop without a log, {victim.name} ended with {status}"
                    )
                disk.free()
                reader.go_on()
                await field.restart(victim)
                await field.steady()
                number = await field.term_number()
