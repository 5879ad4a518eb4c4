"""The starter of Postgres, against the real server and real signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from deploy.local.errors import PostgresUnavailable
from deploy.local.ports import is_listening
from deploy.local.postgres import PostgresServer, StopMode
from deploy.local.postgres_binaries import find_binaries
from deploy.local.postgres_process import Privilege

ROOT = Path(__file__).resolve().parents[3]
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def wait_until(condition: Callable[[], bool], *, limit_seconds: float = 30) -> float:
    """The seconds until the condition held; fails at the limit."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < limit_seconds, "waited in vain"
        time.sleep(0.01)
    return time.monotonic() - begin


def processes_in(folder: Path) -> list[int]:
    """The pids of everybody who works in a data folder: the postmaster and all its children do."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "cwd") == str(folder):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def make_table(server: PostgresServer) -> None:
    """Commits a row that the later assertions look for."""
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")


def read_table(server: PostgresServer) -> object:
    """What the row says now."""
    with psycopg.connect(server.dsn()) as connection:
        return connection.execute("SELECT answer FROM kept").fetchone()


def test_each_test_has_a_database_of_its_own(database_url: str, postgres_server: PostgresServer) -> None:
    """`database_url` is empty, its server a supported one, and reachable with the password alone."""
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_stat_user_tables").fetchone() == (0,)
        assert connection.info.server_version >= 140000
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"host=127.0.0.1 port={postgres_server.port} user=postgres dbname=postgres")


@pytest.mark.parametrize("mode", list(StopMode))
def test_committed_data_and_port_outlive_every_kind_of_end(
    own_postgres_server: PostgresServer, mode: StopMode
) -> None:
    """Clients that reconnect find the same server again, after an orderly end as after a SIGKILL."""
    make_table(own_postgres_server)
    port, first_pid = own_postgres_server.port, own_postgres_server.pid
    with closing(psycopg.connect(own_postgres_server.dsn())) as session:
        own_postgres_server.restart(mode)
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert own_postgres_server.port == port
    assert own_postgres_server.pid != first_pid
    assert read_table(own_postgres_server) == (42,)


@needs_proc
@pytest.mark.parametrize("mode", list(StopMode))
def test_stop_returns_when_the_last_process_is_gone(
    own_postgres_server: PostgresServer, tmp_path: Path, mode: StopMode
) -> None:
    """No child is left, not even of a postmaster that was killed with a query under way."""
    with closing(psycopg.connect(own_postgres_server.dsn(), autocommit=True)) as session:
        # Sent and not waited for: the backend is inside the query when its postmaster dies.
        session.pgconn.send_query(b"SELECT pg_sleep(100)")
        own_postgres_server.stop(mode)
        assert processes_in(tmp_path / "own-postgres" / "data") == []
    assert not is_listening(own_postgres_server.port)


@needs_proc
@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="no System V shared memory here")
def test_a_killed_server_leaves_no_shared_memory(own_postgres_server: PostgresServer) -> None:
    """The kernel would keep the segment of a killed postmaster until the next boot."""
    pid_file = next(iter(Path(f"/proc/{own_postgres_server.pid}/cwd").resolve().glob("postmaster.pid")))
    segment = pid_file.read_text().splitlines()[6].split()[1]

    def segments() -> list[str]:
        return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]

    assert segment in segments()
    own_postgres_server.kill()
    assert segment not in segments()


STARTER = """
import sys, time
from pathlib import Path
from deploy.local.postgres import PostgresServer
from deploy.local.postgres_binaries import find_binaries
server = PostgresServer(
    Path(sys.argv[1]), binaries=find_binaries(sys.argv[2]), durable=False, keep_data=sys.argv[3] == "keep"
)
server.start()
print(server.pid, server.port, flush=True)
time.sleep(600)
"""


def spawn_starter(folder: Path, keep: str) -> tuple[subprocess.Popen[str], int, int]:
    """A process that runs a server and waits to be killed; with the postmaster's pid and port."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder), os.environ.get("LOCAL_POSTGRES", ""), keep],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert starter.stdout is not None
    pid, port = starter.stdout.readline().split()
    return starter, int(pid), int(port)


def end_starter(starter: subprocess.Popen[str]) -> None:
    """SIGKILL, and the pipe closed."""
    starter.kill()
    starter.wait()
    assert starter.stdout is not None
    starter.stdout.close()


@needs_proc
def test_the_server_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the starter, a query under way: soon nothing runs, and nothing unwanted is on disk."""
    folder = tmp_path / "orphaned"
    starter, pid, port = spawn_starter(folder, "discard")
    dsn = f"postgresql://postgres:{(folder / 'data' / 'password').read_text()}@127.0.0.1:{port}/postgres"
    with closing(psycopg.connect(dsn, autocommit=True)) as session:
        session.pgconn.send_query(b"SELECT pg_sleep(100)")
        assert pid in processes_in(folder / "data")
        end_starter(starter)
        wait_until(lambda: processes_in(folder / "data") == [])
    wait_until(lambda: not (folder / "data").exists())


@needs_proc
def test_the_server_ends_when_its_guard_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the guard: the kernel tells Postgres, which takes its children along."""
    folder = tmp_path / "unguarded"
    starter, pid, _ = spawn_starter(folder, "keep")
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        guard = int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])
        os.kill(guard, signal.SIGKILL)
        wait_until(lambda: processes_in(folder / "data") == [])
    finally:
        end_starter(starter)


def test_data_that_was_kept_is_used_again(tmp_path: Path) -> None:
    """A second server in the same folder continues the first, a lying pid file notwithstanding."""
    binaries = find_binaries(os.environ.get("LOCAL_POSTGRES", ""))
    with PostgresServer(tmp_path, binaries=binaries) as first:
        make_table(first)
    (tmp_path / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path / 'data'}\n")
    with PostgresServer(tmp_path, binaries=binaries) as second:
        assert read_table(second) == (42,)


def test_data_of_one_that_died_while_it_made_it_is_made_anew(tmp_path: Path) -> None:
    """It has no password yet, with which alone it could be used."""
    (tmp_path / "data" / "base").mkdir(parents=True)
    (tmp_path / "data" / "PG_VERSION").write_text("18\n")
    binaries = find_binaries(os.environ.get("LOCAL_POSTGRES", ""))
    with PostgresServer(tmp_path, binaries=binaries, durable=False) as server:
        assert server.create_database("bot")


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The message carries what Postgres itself said."""
    binaries = find_binaries(os.environ.get("LOCAL_POSTGRES", ""))
    server = PostgresServer(tmp_path, binaries=binaries, settings={"shared_buffers": "nonsense"})
    with pytest.raises(PostgresUnavailable, match="shared_buffers"):
        server.start()
    assert not server.is_running
    server.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
def test_root_without_user_namespaces_drops_to_nobody(tmp_path: Path) -> None:
    """Data and binaries in folders of root's alone: copies work elsewhere, and are gone at the end."""
    closed_folder = tmp_path / "closed"
    closed_folder.mkdir(mode=0o700)
    package = find_binaries().parent.parent
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, closed_folder / libraries.name)
    binaries = closed_folder / package.name / "pginstall18" / "bin"
    shutil.copytree(package / "pginstall18", binaries.parent, symlinks=True)
    with PostgresServer(closed_folder / "server", binaries=binaries, privilege=Privilege.DROP) as server:
        make_table(server)
        server.restart(StopMode.KILL)
        assert read_table(server) == (42,)
        process = Path(f"/proc/{server.pid}")
        assert process.stat().st_uid == 65534
        program, data = (process / "exe").readlink(), (process / "cwd").readlink()
    assert not program.exists()
    assert not data.exists()
