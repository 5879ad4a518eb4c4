"""Which versions we work with, and what is said of another that was installed in the place of ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.sample_bots.other_library import put_library
from webhook_worker import packages

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("version", ["22.8", "22.8.1", "22.10", "22.99rc1", "unknown"])
def test_a_version_that_we_work_with(version: str) -> None:
    """By its numbers, and not by its letters; of one that cannot be read nothing is said."""
    assert packages.is_supported(version, ">=22.8,<23")


@pytest.mark.parametrize(
    "version", ["13.15", "20.0a4", "21.11.1", "22.7", "22", "22.7.9", "23.0a1", "23", "23.1", "100.0"]
)
def test_a_version_that_we_do_not_work_with(version: str) -> None:
    """Older, or of a major version that did not exist."""
    assert not packages.is_supported(version, ">=22.8,<23")


def test_what_is_needed_is_what_pyproject_asks_for() -> None:
    """One would be moved without the other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [re.match(r"([a-z-]+)(?:\[.*\])?(.*)", line) for line in project["dependencies"]]
    asked = {line[1]: line[2] for line in lines if line is not None}
    assert {name: asked.get(name) for name in packages.NEEDED} == packages.NEEDED


def test_what_is_installed_here_is_no_fault() -> None:
    """Of the versions that all other tests run on."""
    packages.check("my_bot.main:build")


@pytest.mark.parametrize(
    ("name", "version"), [("python-telegram-bot", "13.15"), ("psycopg", "3.2.9"), ("uvicorn", "0.34.0")]
)
def test_the_diagnosis_names_another_version_and_what_is_needed(
    tmp_path: Path, name: str, version: str
) -> None:
    """In one line and with status 2, though nothing of it can be imported."""
    environ = {
        **os.environ,
        "PYTHONPATH": put_library(tmp_path, name, version),
        "TELEGRAM_BOT_TOKEN": "123456:AAAbbbCCCdddEEEfffGGG",
        "DATABASE_URL": "postgresql://user:password@database.internal/bot",
        "WEBHOOK_BASE_URL": "https://bot.example.com",
        "BOT_APP": "my_bot.main:build",
    }
    command = [sys.executable, "-m", "webhook_worker.trial_build"]
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert ended.stderr.splitlines() == [
        f"BOT_APP must be a bot; my_bot.main:build: {name} {version} is installed, "
        f"and {name}{packages.NEEDED[name]} is needed; correct the bot's own requirements, or leave it out of them"
    ]
    assert ended.returncode == 2
