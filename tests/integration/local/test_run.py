"""`python -m deploy.local`, as a user runs it: with a terminal, without one, and killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.integration.local.local_run import LIMIT_SECONDS, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def descendants(pid: int) -> set[int]:
    """Everything below a process, by the parents that /proc names."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that have not ended; a zombie has."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found


def wait_until_gone(pids: set[int]) -> None:
    """All of them have ended."""
    begin = time.monotonic()
    while left := alive(pids):
        assert time.monotonic() - begin < LIMIT_SECONDS, f"still there: {left}"
        time.sleep(0.01)


def wait_until_it_says(log: Path, text: str, count: int) -> None:
    """So many times."""
    begin = time.monotonic()
    while not log.exists() or log.read_text().count(text) < count:
        assert time.monotonic() - begin < LIMIT_SECONDS, f"{text} is not in it {count} times"
        time.sleep(0.01)


def test_a_user_talks_to_the_bot_at_a_terminal(tmp_path: Path) -> None:
    """`/start` is answered with a menu, a number presses a button, Ctrl-C ends everything with exit code 0."""
    with running(tmp_path, with_terminal=True) as (process, terminal):
        text = terminal.wait_for("Ctrl-C ends everything")
        assert "control API" in text
        below = descendants(process.pid)
        assert len(below) >= 6
        terminal.type("/start\n")
        assert "[1]" in terminal.wait_for("bot: ", "[1]")
        terminal.type("1\n")
        terminal.wait_for("bot, edited: ")
        process.send_signal(signal.SIGINT)
        terminal.wait_for("stopping")
        assert process.wait(LIMIT_SECONDS) == 0
        assert alive(below) == set()
    assert not (tmp_path / "postgres" / "data").exists()


def test_a_bot_of_ones_own_runs_in_the_sandbox(tmp_path: Path) -> None:
    """BOT_APP of the shell is passed on, and what runs is said."""
    own = "tests.integration.local.own_bots:echo"
    with running(tmp_path, with_terminal=True, variables={"BOT_APP": own}) as (process, terminal):
        text = terminal.wait_for("Ctrl-C ends everything")
        assert re.search(rf"^ +bot +{own}\s*$", text, re.MULTILINE)
        terminal.type("something\n")
        terminal.wait_for("bot: heard something")
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_SECONDS) == 0


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (
            "no_such_bot.main:build",
            "BOT_APP must be a bot; no_such_bot.main:build: there is no module 'no_such_bot'",
        ),
        ("no_such_bot", "BOT_APP must be module:attribute; found 'no_such_bot'"),
    ],
)
def test_a_bot_that_is_none_ends_it_after_one_start(tmp_path: Path, own: str, reason: str) -> None:
    """No retry helps. The reason is the last word, as text, also where the instance had no log yet."""
    with running(tmp_path, variables={"BOT_APP": own}) as (process, terminal):
        text = terminal.wait_for("the local system has ended", "\n")
        assert process.wait(LIMIT_SECONDS) == 1
    assert f"the local system has ended: the instance ended with exit code 2: {reason}" in text
    [log] = (tmp_path / "logs").glob("srv-*.log")
    said = [line for line in log.read_text().splitlines() if '"error"' not in line]
    assert len([line for line in said if reason in line]) == 1


def test_the_end_of_the_chat_is_not_the_end_of_the_system(tmp_path: Path) -> None:
    """Ctrl-D, or a terminal that nobody types at: it stays up until Ctrl-C, and shows on what the bot says."""
    with running(tmp_path, with_terminal=True) as (process, terminal):
        text = terminal.wait_for("Ctrl-C ends everything")
        service = re.search(r"service +(http://\S+)", text)
        assert service is not None
        terminal.type("/start\n\x04")
        terminal.wait_for("stays up until Ctrl-C", "bot: ")
        assert httpx.get(f"{service[1]}/healthz", trust_env=False, timeout=LIMIT_SECONDS).is_success
        process.send_signal(signal.SIGINT)
        terminal.wait_for("stopping")
        assert process.wait(LIMIT_SECONDS) == 0


@pytest.mark.parametrize("typed", ["", "\x04"])
def test_the_end_of_the_terminal_is_the_end_of_the_system(tmp_path: Path, typed: str) -> None:
    """Its window is closed, and nobody passes the SIGHUP on, as under a `make` that leads the session; also after Ctrl-D."""
    with running(tmp_path, with_terminal=True) as (process, terminal):
        terminal.wait_for("Ctrl-C ends everything")
        below = descendants(process.pid)
        if typed:
            terminal.type(typed)
            terminal.wait_for("stays up until Ctrl-C")
        terminal.leave()
        assert process.wait(LIMIT_SECONDS) == 0
        assert alive(below) == set()


def test_a_terminal_that_closes_during_the_start_ends_the_system_too(tmp_path: Path) -> None:
    """It is none any more when it is looked at for the first time."""
    with running(tmp_path, with_terminal=True) as (process, terminal):
        wait_until_it_says(tmp_path / "lock", f"{process.pid}", 1)
        terminal.leave()
        assert process.wait(LIMIT_SECONDS) == 0


def test_a_terminal_that_closes_may_tell_twice(tmp_path: Path) -> None:
    """As the shell and the kernel do: the end is in order all the same."""
    with running(tmp_path, with_terminal=True) as (process, terminal):
        terminal.wait_for("Ctrl-C ends everything")
        process.send_signal(signal.SIGHUP)
        terminal.wait_for("stopping")
        process.send_signal(signal.SIGHUP)
        assert process.wait(LIMIT_SECONDS) == 0


def test_without_a_terminal_it_stays_up_until_sigterm(tmp_path: Path) -> None:
    """As in a script or a service; nothing is read, and what was printed holds no secret."""
    with running(tmp_path, with_terminal=False) as (process, terminal):
        text = terminal.wait_for("Ctrl-C ends everything")
        password = (tmp_path / "postgres" / "data" / "password").read_text()
        below = descendants(process.pid)
        assert process.poll() is None
        process.terminate()
        text += terminal.wait_for("stopping")
        assert process.wait(LIMIT_SECONDS) == 0
        assert alive(below) == set()
        assert password not in text
        logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
        assert password not in logs
        assert "sandbox-" not in text + logs


def test_the_end_of_its_reader_is_not_the_end_of_the_system(tmp_path: Path) -> None:
    """`make run | head`: it stays up, and its instance's log goes on, of which nobody reads any more."""
    with running(tmp_path, with_terminal=False) as (process, terminal):
        text = terminal.wait_for("Ctrl-C ends everything")
        found = re.search(r"instance +(\S+), pid (\d+)", text)
        assert found is not None
        log, supervisor = tmp_path / "logs" / f"{found[1]}.log", int(found[2])
        terminal.leave()
        for count in (1, 2):
            # A line that is to be shown.
            os.kill(supervisor, signal.SIGHUP)
            wait_until_it_says(log, "replacing the worker: asked by SIGHUP", count)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_SECONDS) == 0


def test_a_second_system_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Instead of taking the data away from the first."""
    with running(tmp_path, with_terminal=False) as (first, terminal):
        terminal.wait_for("Ctrl-C ends everything")
        with running(tmp_path, with_terminal=False) as (second, other):
            text = other.wait_for("another local system runs", "\n")
            assert f"the local system has not started: another local system runs (pid {first.pid})" in text
            assert second.wait(LIMIT_SECONDS) == 1
        assert first.poll() is None


def test_its_death_leaves_nothing(tmp_path: Path) -> None:
    """Postgres, the emulator, supervisor and worker end with whoever started them."""
    with running(tmp_path, with_terminal=False) as (process, terminal):
        terminal.wait_for("Ctrl-C ends everything")
        below = descendants(process.pid)
        assert len(below) >= 6
        process.kill()
        process.wait()
        wait_until_gone(below)


def arguments(pid: int) -> list[bytes]:
    """What a program was started with; nothing of one that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:]
    return []


def test_the_death_of_a_part_ends_it_with_a_reason(tmp_path: Path) -> None:
    """Here the emulator's: exit code 1, the log named, nothing left."""
    with running(tmp_path, with_terminal=False) as (process, terminal):
        terminal.wait_for("Ctrl-C ends everything")
        below = descendants(process.pid)
        [emulator] = [pid for pid in below if arguments(pid)[:2] == [b"-m", b"deploy.local.emulator"]]
        os.kill(emulator, signal.SIGKILL)
        assert "emulator.log" in terminal.wait_for("the local system has ended", "\n")
        assert process.wait(LIMIT_SECONDS) == 1
        assert alive(below) == set()
