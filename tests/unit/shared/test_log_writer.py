"""Whoever logs never waits, and what could not be written is counted."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.line_writer import LineWriter

LIMIT_SECONDS = 30.0  # on a hang


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's ends, to read from and to write to."""
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:  # the test closed it
            continue


def read_until(fd: int, end: bytes) -> bytes:
    """Everything up to and with `end`."""
    found = b""
    while end not in found:
        assert select.select([fd], [], [], LIMIT_SECONDS)[0], f"nothing more after {found[-200:]!r}"
        found += os.read(fd, 65536)
    return found


def in_pipe(reader: int) -> int:
    """How many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)


def fill(fd: int, line: bytes) -> None:
    """Writes lines until the pipe takes no more."""
    os.set_blocking(fd, False)
    try:
        while True:
            os.write(fd, line)
    except BlockingIOError:
        os.set_blocking(fd, True)


def test_lines_are_written_in_their_order(pipe: tuple[int, int]) -> None:
    """And a flush returns when they are out."""
    reader, fd = pipe
    writer = LineWriter(fd)
    for number in range(500):
        writer.put(b"line %d\n" % number)
    assert writer.flush(LIMIT_SECONDS)
    assert read_until(reader, b"line 499\n") == b"".join(b"line %d\n" % number for number in range(500))


def test_b15_a_reader_that_stops_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    """Every put returns although nothing is read; when reading resumes, what was kept comes whole, then the count."""
    reader, fd = pipe
    line = b"x" * 999 + b"\n"
    fill(fd, line)
    before = in_pipe(reader) // len(line)
    writer = LineWriter(fd, queue_bytes=100_000)
    for _ in range(1000):  # far more than the queue holds
        writer.put(line)
    assert not writer.flush(0.01)  # and waiting for them has its limit
    found = read_until(reader, b"dropped\n")
    assert found == line * (before + 100) + b"900 lines dropped\n"
    writer.put(b"after\n")
    assert read_until(reader, b"after\n") == b"after\n"


def test_b15_a_reader_that_stops_is_waited_for_briefly_and_once(pipe: tuple[int, int]) -> None:
    """Not at each flush, but again when it has taken what the one before it waited for."""
    reader, fd = pipe
    fill(fd, b"before\n")
    writer = LineWriter(fd, brief_flush_seconds=0.01)
    writer.put(b"first of many\n")
    writer.flush_briefly()
    writer._brief_flush_seconds = 10 * LIMIT_SECONDS
    for _ in range(100):  # would hang
        writer.put(b"more\n")
        writer.flush_briefly()
    read_until(reader, b"more\n" * 100)
    assert writer.flush(LIMIT_SECONDS)
    for number in range(100):
        writer.put(b"last %d\n" % number)
        writer.flush_briefly()
        assert os.read(reader, in_pipe(reader)) == b"last %d\n" % number
    writer.flush_briefly()


def test_a_queue_that_was_full_takes_lines_again_when_half_is_written(pipe: tuple[int, int]) -> None:
    """The count stands where the lines are missing, once, and not before every line that finds room."""
    reader, fd = pipe
    line = b"x" * 999 + b"\n"
    fill(fd, line)
    full = in_pipe(reader)
    writer = LineWriter(fd, queue_bytes=100_000)
    for _ in range(101):
        writer.put(line)
    found = os.read(reader, 20_000)
    deadline = time.monotonic() + LIMIT_SECONDS
    while in_pipe(reader) < full and time.monotonic() < deadline:  # until a fifth of the queue is written
        time.sleep(0.001)
    writer.put(b"y" * 999 + b"\n")
    done = False
    while not done:
        done = writer.flush(0.01)
        while select.select([reader], [], [], 0)[0]:
            found += os.read(reader, 100_000)
    assert found == line * (full // 1000 + 100) + b"2 lines dropped\n"
    writer.put(b"taken\n")
    assert read_until(reader, b"taken\n") == b"taken\n"


def test_b15_a_descriptor_that_does_not_block_is_waited_for(pipe: tuple[int, int]) -> None:
    """A sharer of standard output can make it so for everybody; no line is torn by it."""
    reader, fd = pipe
    os.set_blocking(fd, False)
    writer = LineWriter(fd)
    lines = [b"%06d" % number + b"y" * 3000 + b"\n" for number in range(200)]
    for line in lines:
        writer.put(line)
    assert not writer.flush(0.01)
    assert read_until(reader, lines[-1]) == b"".join(lines)


def test_b15_a_reader_that_is_gone_is_no_error(pipe: tuple[int, int]) -> None:
    """EPIPE costs the lines, and ends nothing."""
    reader, fd = pipe
    os.close(reader)
    writer = LineWriter(fd)
    for _ in range(10):
        writer.put(b"into the void\n")
    assert writer.flush(LIMIT_SECONDS)


def test_lines_that_fail_are_counted_when_writing_works_again(pipe: tuple[int, int]) -> None:
    """As with a disk that was full: here the descriptor is closed for a while."""
    reader, fd = pipe
    spare = os.dup(fd)
    os.close(fd)
    writer = LineWriter(fd)
    writer.tell_dropped_by(lambda count: b"lost %d\n" % count)
    for _ in range(3):
        writer.put(b"lost\n")
    assert writer.flush(LIMIT_SECONDS)
    os.dup2(spare, fd)
    os.close(spare)
    writer.put(b"again\n")
    assert read_until(reader, b"again\n") == b"lost 3\nagain\n"


@pytest.mark.skipif(sys.platform != "linux", reason="pipes that keep writes apart are Linux's")
def test_lines_that_wait_are_written_together_and_no_write_is_longer_than_a_pipe_keeps_whole() -> None:
    """Each line by itself would wake the thread, and stop the event loop, for each."""
    reader, fd = os.pipe2(os.O_DIRECT)  # a read returns what one write wrote
    fill(fd, b"before\n")
    writer = LineWriter(fd)
    lines = [b"line %d of many\n" % number for number in range(500)]
    for line in lines:
        writer.put(line)
    writes: list[bytes] = []
    while lines[-1] not in b"".join(writes):
        assert select.select([reader], [], [], LIMIT_SECONDS)[0]
        writes += [written for written in (os.read(reader, 65536),) if written != b"before\n"]
    assert b"".join(writes) == b"".join(lines)
    assert len(writes) < 10
    assert all(len(written) <= 4096 and written.endswith(b"\n") for written in writes)
    os.close(reader)
    os.close(fd)


def test_of_a_write_that_fails_halfway_the_lines_that_were_cut_are_counted(tmp_path: Path) -> None:
    """A disk that is full, or a limit of a file's size: what had room is there, and only the rest counts."""
    program = """
import os, resource, signal, sys, threading
from shared.line_writer import LineWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
writer = LineWriter(fd)
with writer._lock:
    for number in range(10):
        writer.put(b"line number %d\\n" % number)
assert writer.flush(30)
print(writer._dropped)
"""
    path = tmp_path / "log"
    ran = subprocess.run(
        [sys.executable, "-c", program.replace("\\\\", "\\"), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert path.read_bytes().startswith(b"line number 0\nline number 1\nline number 2\n")
    assert int(ran.stdout) == 7


def test_lines_of_many_threads_stay_whole(pipe: tuple[int, int]) -> None:
    """Also between each other."""
    reader, fd = pipe
    writer = LineWriter(fd)

    def write(letter: bytes) -> None:
        for _ in range(100):
            writer.put(letter * 500 + b"\n")

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_SECONDS)
    writer.put(b"end\n")
    lines = read_until(reader, b"end\n").splitlines()[:-1]
    assert len(lines) == 300
    assert set(lines) == {b"a" * 500, b"b" * 500, b"c" * 500}


def test_a_put_within_a_put_does_not_lock_up(pipe: tuple[int, int]) -> None:
    """The garbage collector, or a signal's handler, may log in the middle of a put, in the same thread."""
    reader, fd = pipe
    writer = LineWriter(fd)

    class Line(bytes):
        """Logs another line when its length is taken, which a put does inside of its critical section."""

        def __len__(self) -> int:
            if not threading.current_thread().name.startswith("log"):
                writer.put(b"inner\n")
            return 6

    done = threading.Thread(target=lambda: writer.put(Line(b"outer\n")), daemon=True)
    done.start()
    done.join(LIMIT_SECONDS)
    assert not done.is_alive()
    assert b"inner\n" in read_until(reader, b"outer\n")
