"""What is skipped for want of a tool is seen where it has to be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.emulator_process import PROJECT_FOLDER

_TESTS = """
import pytest
from tests.campaign.faults import find_program, Unavailable

@pytest.fixture
def tool():
    try:
        yield find_program("no-such-program", "no-such-package")
    except Unavailable as missing:
        pytest.skip(str(missing))

def test_in_a_fixture(tool):
    pass

def test_in_a_test():
    try:
        find_program("no-such-program", "no-such-package")
    except Unavailable as missing:
        pytest.skip(str(missing))

def test_another_system():
    pytest.skip("needs Windows")
"""


@pytest.mark.parametrize(
    ("in_ci", "status", "summary"),
    [("true", 1, "1 failed, 1 skipped, 1 error"), ("false", 0, "3 skipped"), ("", 0, "3 skipped")],
)
def test_a_fault_that_cannot_be_made_fails_where_nothing_may_be_skipped(
    tmp_path: Path, in_ci: str, status: int, summary: str
) -> None:
    """With CI=true. What no program can help is skipped there too."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_tools.py").write_text(_TESTS)
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, str(tmp_path)],
        cwd=PROJECT_FOLDER,
        env={**os.environ, "CI": in_ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert f"{summary} in" in ended.stdout
    assert "no-such-program is not installed" in ended.stdout
