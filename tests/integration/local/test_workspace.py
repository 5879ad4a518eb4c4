"""The folder of a local system."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from deploy.local.errors import WorkspaceInUse
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_binaries import find_binaries
from deploy.local.workspace import open_workspace


def test_it_belongs_to_one_system_at_a_time(tmp_path: Path) -> None:
    """A second one is told what to do, and whom to end; after the first it may come."""
    # Of one that has ended: longer than any pid.
    (tmp_path / "lock").write_text("999999999999\n")
    for _ in range(2):
        with open_workspace(tmp_path):
            for _ in range(2):
                with pytest.raises(WorkspaceInUse) as caught, open_workspace(tmp_path):
                    pass
                assert f"(pid {os.getpid()})" in str(caught.value)
                assert f"end that one first (kill {os.getpid()})" in str(caught.value)
                assert "--folder" in str(caught.value)


def test_one_that_has_not_said_who_it_is_has_the_folder_all_the_same(tmp_path: Path) -> None:
    """It may be about to say it."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            pytest.raises(WorkspaceInUse, match=r"runs in .*: end that one first, or"),
            open_workspace(tmp_path),
        ):
            pass


def test_logs_stay_until_the_next_system(tmp_path: Path) -> None:
    """Read them when it is over; nothing of it is in the next one's way."""
    with open_workspace(tmp_path) as workspace:
        (workspace.logs / "x.log").write_text("said")
    assert (tmp_path / "logs" / "x.log").read_text() == "said"
    with open_workspace(tmp_path) as workspace:
        assert list(workspace.logs.iterdir()) == []


def test_a_server_that_an_earlier_system_left_is_ended(tmp_path: Path) -> None:
    """As after a crash of the whole system whose Postgres has not noticed yet."""
    server = PostgresServer(
        tmp_path / "postgres", binaries=find_binaries(os.environ.get("LOCAL_POSTGRES", "")), durable=False
    )
    server.start()
    try:
        with open_workspace(tmp_path) as workspace:
            assert list(workspace.postgres.iterdir()) == []
        assert not server.is_running
    finally:
        server.close()
