"""`check` builds the bot in a process of its own, and leaves nothing of it behind (b22)."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local.emulator_process import PROJECT_FOLDER
from supervisor.commands import trial_build
from tests.end_to_end.instance import HANG_SECONDS, eventually, is_alive

BOTS = "tests.integration.supervisor.built_bots"


def variables(folder: Path, bot: str) -> dict[str, str]:
    """An environment in which nothing but the bot can be reached."""
    return {
        "TELEGRAM_BOT_TOKEN": "123456:the-secret-part-of-the-token-here-x",
        "TELEGRAM_API_BASE_URL": "http://127.0.0.1:1",
        "DATABASE_URL": "postgresql://user@127.0.0.1:1/x",
        "WEBHOOK_BASE_URL": "http://127.0.0.1:1",
        "BOT_APP": f"{BOTS}:{bot}",
        "CHILD_FILE": str(folder / "child"),
    }


def set_variables(monkeypatch: pytest.MonkeyPatch, folder: Path, bot: str) -> None:
    """The same, of this process."""
    for name, value in variables(folder, bot).items():
        monkeypatch.setenv(name, value)


@contextmanager
def check(folder: Path, bot: str) -> Iterator[subprocess.Popen[bytes]]:
    """`check` of that bot, running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor", "check", "--json"],
        cwd=PROJECT_FOLDER,
        env={**os.environ, **variables(folder, bot)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


async def child_of(folder: Path) -> int:
    """The process that the bot has started, as soon as it has."""

    async def pid() -> int | None:
        text = (folder / "child").read_text() if (folder / "child").exists() else ""
        return int(text) if text.endswith("\n") else None

    await eventually(pid, "a child of the bot")
    found = await pid()
    assert found is not None
    return found


async def expect_gone(pid: int) -> None:
    async def is_gone() -> bool:
        return not is_alive(pid)

    try:
        await eventually(is_gone, f"the end of process {pid}")
    finally:
        if not await is_gone():
            os.kill(pid, signal.SIGKILL)


async def test_b22_a_bot_that_starts_a_child_while_it_is_built_is_good(tmp_path: Path) -> None:
    """The child has the bot's standard error, and ends with it."""
    with check(tmp_path, "with_child") as process:
        output, _ = await asyncio.to_thread(process.communicate, timeout=HANG_SECONDS)
    [bot] = [phase for phase in json.loads(output)["phases"] if phase["phase"] == "bot"]
    assert (bot["verdict"], bot["detail"]) == ("ok", f"{BOTS}:with_child is built")
    await expect_gone(await child_of(tmp_path))


async def test_what_failed_has_a_remedy_that_tells_and_does_not_ask(tmp_path: Path) -> None:
    """Where nothing can be reached; whoever reads it has asked the question already."""
    with check(tmp_path, "with_child") as process:
        output, _ = await asyncio.to_thread(process.communicate, timeout=HANG_SECONDS)
    phases = json.loads(output)["phases"]
    remedies = {phase["phase"]: phase["remedy"] for phase in phases if phase["verdict"] == "failed"}
    assert remedies.keys() == {"database", "telegram", "address"}
    assert [remedy for remedy in remedies.values() if not remedy or "?" in remedy] == []
    await expect_gone(await child_of(tmp_path))


async def test_b22_what_ends_the_command_ends_the_bot_and_its_child(tmp_path: Path) -> None:
    """`timeout`, and a platform, reach the command's own group alone."""
    with check(tmp_path, "never_built") as process:
        child = await child_of(tmp_path)
        process.terminate()
        assert await asyncio.to_thread(process.wait, timeout=HANG_SECONDS) == -signal.SIGTERM
    await expect_gone(child)


async def test_b22_a_bot_that_takes_too_long_leaves_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is the caller's."""
    set_variables(monkeypatch, tmp_path, "never_built")
    building = asyncio.create_task(trial_build.build())
    child = await child_of(tmp_path)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    await expect_gone(child)


async def test_what_a_bot_says_at_length_is_read_while_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody reads would hold it up; its end is kept, in whole lines."""
    set_variables(monkeypatch, tmp_path, "talkative")
    async with asyncio.timeout(HANG_SECONDS):
        status, said = await trial_build.build()
    lines: list[Any] = said.splitlines()
    assert (status, lines[-1]) == (7, "the last word")
    assert set(lines[:-1]) == {"x" * 1023}
    assert len(said) <= 1024 * 1024


@pytest.mark.parametrize("most", [7, 8])
def test_b22_a_bot_for_which_there_is_no_process_is_a_failed_phase(tmp_path: Path, most: int) -> None:
    """Descriptors run out, at the pipe or at the process; a limit of processes that is reached looks alike."""
    command = shlex.join([sys.executable, "-m", "supervisor", "check", "--json"])
    done = subprocess.run(
        ["/bin/sh", "-c", f"ulimit -n {most}; exec {command}"],
        cwd=PROJECT_FOLDER,
        env={**os.environ, **variables(tmp_path, "with_child")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert (done.returncode, done.stderr) == (1, "")
    [bot] = [phase for phase in json.loads(done.stdout)["phases"] if phase["phase"] == "bot"]
    assert bot["verdict"] == "failed"
    assert bot["detail"].startswith(
        f"no process could be started to build {BOTS}:with_child: Too many open files"
    )
    assert "ulimit -u" in bot["remedy"]
