"""A Postgres server of our own, for as long as we live.

Which binaries: postgres_binaries.py. As whom they run: postgres_process.py. The server and its data are ours in any
case, in a folder of ours.

The server listens on 127.0.0.1 alone unless told otherwise, with a password, since other people may have accounts on
the machine.
It ends with us (guard.py): after `stop`, or within about a second of our sudden death, with all its children.

Everything here blocks, for a second at most where the machine is not busy: from asyncio, use
`asyncio.to_thread`. Not promised: that the data survives where `drop` had to put it elsewhere.
"""

import contextlib
import enum
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql

from deploy.local import guard
from deploy.local.errors import PostgresUnavailable
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.postgres_binaries import copy_installation
from deploy.local.postgres_process import (
    Privilege,
    end_previous_server,
    everybody_reaches,
    find_privilege,
    finish,
    run,
    start_guarded,
)

_USER = "postgres"
_POLL_SECONDS = 0.01
# Without these the wheel's defaults for a machine of its own would take 128 MB, and shared memory segments
# would stay in /dev/shm after a kill.
_LIGHT = {
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] %a ",
}
# For tests: a crash of the *machine* may lose data, one of the server does not.
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on"}


class StopMode(enum.Enum):
    """How a server is told to end; the value is the signal that Postgres defines for it."""

    FAST = signal.SIGINT  # Ends the sessions, writes a checkpoint.
    IMMEDIATE = signal.SIGQUIT  # Drops everything; the next start recovers from the log.
    KILL = signal.SIGKILL  # As the machine's out-of-memory killer would.


class PostgresServer:
    """One server with its data folder; started and ended any number of times, then closed.

    Attributes:
        address: where we reach it.
        port: the same for all starts, so that clients find the server again.
        log_path: what Postgres writes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binaries: Path,
        durable: bool = True,
        keep_data: bool = True,
        settings: Mapping[str, str] | None = None,
        privilege: Privilege | None = None,
        address: str = LOOPBACK,
        admits: Sequence[str] = (),
        starter: Sequence[str] = (),
    ) -> None:
        """Does nothing yet.

        Args:
            folder: for `data` and `postgres.log`; made when it is not there. Earlier data is used again.
            binaries: from `find_binaries`.
            durable: False turns fsync off, for tests.
            keep_data: False deletes the data, not the log, at `close`, and also when this process dies.
            settings: further settings of the server, e.g. `{"max_connections": "12"}`.
            privilege: as whom Postgres runs; None finds out what works here.
            address: another one than 127.0.0.1 is for a server in a network namespace, which must have it.
            admits: networks from which clients may come besides, as CIDR.
            starter: a command line that the server's own is put behind, e.g. `nsenter ... --`; it must exec.
        """
        self._folder = folder.absolute()
        self._binaries = binaries
        self._keep_data = keep_data
        listen = {"listen_addresses": LOOPBACK if address == LOOPBACK else "*"}
        self._settings = {**_LIGHT, **listen, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self._privilege = privilege
        self._admits = tuple(admits)
        self._starter = tuple(starter)
        self._is_prepared = False
        self._data = self._folder / "data"
        self._elsewhere: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._password = ""
        self.address = address
        self.port = 0
        self.log_path = self._folder / "postgres.log"

    @property
    def pid(self) -> int:
        """The postmaster's pid; 0 when it is not running."""
        return self._pid if self.is_running else 0

    @property
    def is_running(self) -> bool:
        """Whether the server, or a child of it, is there."""
        return self._guard is not None and self._guard.poll() is None

    def dsn(self, database: str = "postgres", *, address: str | None = None) -> str:
        """A libpq URL, with the password, for one of the databases; by another address of the server if given."""
        return f"postgresql://{_USER}:{self._password}@{address or self.address}:{self.port}/{database}"

    @property
    def privilege(self) -> Privilege:
        """As whom it runs; known once it was started."""
        assert self._privilege is not None, "start it first"
        return self._privilege

    @property
    def binaries(self) -> Path:
        """The folder of its programs, as far as whoever it runs as reaches it."""
        return self._binaries

    def start(self) -> None:
        """Starts the server and returns when it answers queries.

        Raises:
            PostgresUnavailable: it did not come up; the message has the end of its log.
        """
        if self.is_running:
            return
        privilege = self._prepare()
        end_previous_server(self._data)
        deadline = time.monotonic() + 60
        while True:
            fault = self._try_to_start(privilege, deadline)
            if fault is None:
                return
            # Somebody was quicker with the port. The first start may choose another; later ones must wait.
            if "could not bind" not in fault or time.monotonic() >= deadline:
                raise PostgresUnavailable(f"Postgres did not start, see {self.log_path}:\n{fault}")
            if self._pid == 0:
                self.port = free_port()

    def stop(self, mode: StopMode = StopMode.FAST) -> None:
        """Ends the server and waits until its last process is gone; nothing when it is not running.

        Args:
            mode: how it is told to. After 30 s it is IMMEDIATE, three seconds later SIGKILL.
        """
        process = self._guard
        if process is None:
            return
        for step, patience in ((mode, 30.0), (StopMode.IMMEDIATE, 3.0), (StopMode.KILL, 10.0)):
            self._send(step)
            try:
                process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        finish(process)
        self._guard = None

    def restart(self, mode: StopMode = StopMode.FAST) -> None:
        """Ends the server in the given way and starts it on the same port with the same data."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL to the postmaster; returns when its children are gone too. `start` recovers the data."""
        self.stop(StopMode.KILL)

    def close(self) -> None:
        """Ends the server for good, and deletes what must not stay."""
        self.stop(StopMode.FAST if self._keep_data else StopMode.IMMEDIATE)
        for folder in self._transient_folders():
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_database(self, name: str) -> str:
        """Creates an empty database and returns its DSN."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def open_database(self, name: str) -> str:
        """Creates the database if it is not there, and returns its DSN."""
        with contextlib.suppress(psycopg.errors.DuplicateDatabase):
            self.create_database(name)
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drops a database, ending the sessions in it; nothing where there is none."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def lend(self, folder: Path) -> None:
        """Makes a folder in which the server may keep a tablespace; its parents must let whoever it runs as pass."""
        folder.mkdir(mode=0o700)
        if self.privilege is Privilege.DROP:
            os.chown(folder, guard.UNPRIVILEGED_ID, guard.UNPRIVILEGED_ID)

    def _send(self, mode: StopMode) -> None:
        process = self._guard
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(f"signal {int(mode.value)}\n".encode())
        except BrokenPipeError:
            # The server ended by itself, and its guard with it: that is what was asked for.
            return

    def _prepare(self) -> Privilege:
        """Chooses the user, finds or makes the data folder, and ends what an earlier process left in it."""
        if self._is_prepared and self._privilege is not None:
            return self._privilege
        self._folder.mkdir(parents=True, exist_ok=True)
        privilege = self._privilege or find_privilege(self._binaries, self._folder)
        if privilege is Privilege.DROP:
            self._move_within_reach()
        if (self._data / "password").exists():
            self._password = (self._data / "password").read_text()
        else:
            self._empty()
            self._initialize(privilege)
            with (self._data / "pg_hba.conf").open("a") as rules:
                rules.writelines(f"host all all {network} scram-sha-256\n" for network in self._admits)
        self.port = free_port()
        self._privilege = privilege
        self._is_prepared = True
        return privilege

    def _empty(self) -> None:
        """Removes what one has left that died while it made it; the folder stays, which may be made over to another user."""
        for path in self._data.iterdir() if self._data.exists() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _move_within_reach(self) -> None:
        reachable = everybody_reaches(self._folder)
        if not reachable or not everybody_reaches(self._binaries):
            self._elsewhere = Path(tempfile.mkdtemp(prefix="local-postgres-"))
            self._elsewhere.chmod(0o755)
        if self._elsewhere is not None and not everybody_reaches(self._binaries):
            self._binaries = copy_installation(self._binaries, self._elsewhere)
        if self._elsewhere is not None and not reachable:
            self._data = self._elsewhere / "data"
        self._data.mkdir(mode=0o700, exist_ok=True)
        os.chown(self._data, guard.UNPRIVILEGED_ID, guard.UNPRIVILEGED_ID)

    def _initialize(self, privilege: Privilege) -> None:
        self._password = secrets.token_urlsafe(18)
        # In a folder of its own, made over to the uid of Postgres: initdb has no other safe way to be told.
        with tempfile.TemporaryDirectory(prefix="initdb-", dir=self._data.parent) as secret_folder:
            secret = Path(secret_folder) / "password"
            secret.write_text(self._password)
            if privilege is Privilege.DROP:
                for path in (Path(secret_folder), secret):
                    os.chown(path, guard.UNPRIVILEGED_ID, guard.UNPRIVILEGED_ID)
            run(
                [
                    str(self._binaries / "initdb"),
                    *("-D", str(self._data), "-U", _USER, "--auth=scram-sha-256", f"--pwfile={secret}"),
                    *("--encoding=UTF8", "--locale=C", "--no-sync"),
                ],
                privilege,
                limit_seconds=120,
                remove=[self._data, Path(secret_folder), *self._transient_folders()],
            )
        # Last, and at once: with it the folder counts as made.
        password = self._data / "password.new"
        password.touch(mode=0o600)
        password.write_text(self._password)
        password.rename(self._data / "password")

    def _try_to_start(self, privilege: Privilege, deadline: float) -> str | None:
        """None, or what Postgres said when it ended instead."""
        settings = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with self.log_path.open("ab") as log:
            begin = log.tell()
            process = start_guarded(
                [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port), *settings],
                privilege,
                log.fileno(),
                # Postgres' immediate shutdown, which takes its children along; SIGKILL would leave them.
                orphan_signal=signal.SIGQUIT,
                remove=self._transient_folders(),
                starter=self._starter,
            )
        self._guard = process
        assert process.stdout is not None
        # The guard's first line, or its end.
        words = process.stdout.readline().split()
        pid = int(words[1]) if words else 0
        while process.poll() is None:
            if self._answers():
                self._pid = pid
                return None
            if time.monotonic() >= deadline:
                self.stop(StopMode.IMMEDIATE)
                break
            time.sleep(_POLL_SECONDS)
        if self._guard is not None:
            finish(self._guard)
            self._guard = None
        with self.log_path.open("rb") as written:
            written.seek(begin)
            return written.read().decode(errors="replace")[-4000:] or "it said nothing"

    def _answers(self) -> bool:
        # The last line of the pid file says "ready"; only then is a connection worth its time.
        try:
            if (
                "ready"
                not in (self._data / "postmaster.pid").read_text().rpartition("\n")[0].splitlines()[-1]
            ):
                return False
        except (OSError, IndexError):
            return False
        try:
            psycopg.connect(self.dsn(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _transient_folders(self) -> list[Path]:
        folders = [] if self._keep_data else [self._data]
        return folders if self._elsewhere is None else [*folders, self._elsewhere]
