"""The Makefile on machines that are not ready for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what `make` reads, and no .venv; its path has a space, as people's paths do."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    folder = tmp_path / "my project"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return folder


def make(project: Path, python: str | None) -> subprocess.CompletedProcess[str]:
    """`make run` with an interpreter, or with whichever there is."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON"))
    }
    return subprocess.run(
        ["make", "run", *([] if python is None else [f"PYTHON={python}"])],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def script(folder: Path, text: str) -> str:
    """An interpreter that lacks something."""
    path = folder / "python-lacking"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_no_python_is_said(project: Path) -> None:
    """By name, with the remedy."""
    answer = make(project, "python-that-is-not-there")
    assert answer.returncode != 0
    assert "no python-that-is-not-there here: install Python 3.11 or newer" in answer.stderr


def test_an_old_python_is_said(project: Path) -> None:
    """With the version that was found."""
    old = script(project, 'case "$*" in *version_info*) exit 1;; *-V*) echo Python 3.9.2;; esac')
    answer = make(project, old)
    assert answer.returncode != 0
    assert "is Python 3.9.2: need Python 3.11 or newer" in answer.stderr


def test_a_python_that_is_newer_than_what_is_tested_is_tried_with_a_warning(project: Path) -> None:
    """It may do."""
    new = script(project, 'case "$*" in *"(3, 14)"*|"-m venv"*) exit 1;; *-V*) echo Python 3.14.2;; esac')
    answer = make(project, new)
    assert answer.returncode != 0
    assert "Python 3.14.2 is newer than what is tested, 3.11 to 3.13" in answer.stderr


def test_a_venv_of_another_version_is_made_anew_for_a_python_that_is_named(project: Path) -> None:
    """Also a complete one; and one that is of that version, or that nobody has named another for, stays."""
    says = 'case "$*" in *%d.%d*) echo {};; "-m venv"*) echo made anew; cp "$0" .venv/bin/python;; esac'
    (project / ".venv/bin").mkdir(parents=True)
    Path(script(project, says.format("3.11"))).rename(project / ".venv/bin/python")
    python = script(project, says.format("3.12"))
    for named, is_made, is_installed in (
        (None, False, True),
        (None, False, False),
        (str(project / ".venv/bin/python"), False, True),
        (python, True, True),
        (python, False, False),
        (None, False, False),
    ):
        answer = make(project, named)
        assert answer.returncode == 0, answer.stderr
        assert ("made anew" in answer.stdout, "installing" in answer.stdout) == (is_made, is_installed), named


def test_a_python_without_venv_is_said(project: Path) -> None:
    """Debian leaves it out."""
    answer = make(project, script(project, 'case "$*" in *ensurepip*) exit 1;; esac'))
    assert answer.returncode != 0
    assert (
        "has no venv and ensurepip: install them (Debian, Ubuntu: apt install python3-venv)" in answer.stderr
    )
    assert not (project / ".venv").exists()
