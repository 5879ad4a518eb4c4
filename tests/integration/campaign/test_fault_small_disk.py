"""A small file system is filled up and freed, alone and under a Postgres."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.local.emulator_process import PROJECT_FOLDER
from deploy.local.postgres import PostgresServer
from tests.campaign.faults import Unavailable
from tests.campaign.faults.small_disk import SmallDisk, a_small_disk

HANG_SECONDS = 30.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        with a_small_disk(tmp_path / "disk", megabytes=8) as made:
            yield made
    except Unavailable as missing:
        pytest.skip(str(missing))


def test_a_full_disk_takes_no_byte_and_a_freed_one_does(disk: SmallDisk) -> None:
    """ENOSPC, as a disk says it."""
    disk.fill()
    assert disk.free_bytes == 0
    with pytest.raises(OSError, match="No space") as refused:
        (disk.folder / "more").write_bytes(b"x")
    assert refused.value.errno == errno.ENOSPC
    disk.free()
    (disk.folder / "more").write_bytes(b"x" * (1 << 20))


def test_nothing_is_left_when_the_block_ends_or_we_are_killed(tmp_path: Path) -> None:
    """No mount stays, whichever way it ended."""
    folder = tmp_path / "disk"
    try:
        with a_small_disk(folder, megabytes=1):
            assert folder.is_mount()
    except Unavailable as missing:
        pytest.skip(str(missing))
    assert not folder.exists()
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from tests.campaign.faults.small_disk import a_small_disk

        with a_small_disk(Path({str(folder)!r}), megabytes=1):
            print(os.path.ismount({str(folder)!r}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT_FOLDER,
        check=False,
    )
    assert ended.stdout.strip() == "True"
    deadline = time.monotonic() + HANG_SECONDS
    while folder.is_mount():
        assert time.monotonic() < deadline, "still mounted"
        time.sleep(0.02)


def test_a_full_tablespace_fails_statements_and_spares_the_server(
    own_postgres_server: PostgresServer, disk: SmallDisk
) -> None:
    """53100 from who writes, nothing for who reads; freed, writing goes on in the same session."""
    own_postgres_server.lend(disk.folder / "tables")
    with psycopg.connect(own_postgres_server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{disk.folder / 'tables'}'".encode())
        connection.execute("CREATE TABLE grown (it text) TABLESPACE small")
        disk.fill()
        grow = "INSERT INTO grown SELECT repeat('x', 100) FROM generate_series(1, 1000)"
        with pytest.raises(psycopg.errors.DiskFull):
            connection.execute(grow.encode())
        assert connection.execute("SELECT count(*) FROM grown").fetchone() == (0,)
        disk.free()
        connection.execute(grow.encode())
    # Before its disk goes.
    own_postgres_server.close()
