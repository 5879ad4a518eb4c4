"""The first deploy on the platform, with instances that end: by a fault that stays, and by one that may pass."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.errors import InstanceFailed
from deploy.local.first_deploy import make_live
from deploy.local.platform.records import Occurrence, Release
from deploy.local.platform.service import Timing
from deploy.local.platform.simulator import Platform

ROOT = Path(__file__).resolve().parents[3]
FAKE = shlex.join([sys.executable, str(Path(__file__).with_name("fake_instance.py"))])
TIMING = replace(Timing(), cancel_seconds=60, respawn_seconds=0.1, probe_interval_seconds=0.05)


def platform_of(folder: Path, script: str) -> Platform:
    """Its instances are a shell's script, which finds the folder in $DATA."""
    return Platform(
        folder=ROOT,
        log_folder=folder,
        environment={"DATA": str(folder)},
        timing=TIMING,
        command=("/bin/sh", "-c", script),
    )


def spawned(platform: Platform) -> int:
    """How many processes were started."""
    return [record.what for record in platform.history].count(Occurrence.SPAWNED)


@pytest.mark.parametrize("status", [2, 3])
async def test_a_fault_that_stays_ends_it_after_one_start(tmp_path: Path, status: int) -> None:
    """With every line that was critical, and none else."""
    script = f"""
    echo '{{"level": "critical", "tag": "X", "event": "one fault"}}'
    echo '{{"level": "critical", "tag": "X", "event": "and another"}}'
    echo '{{"level": "info", "tag": "X", "event": "exit"}}'; echo 'Traceback' >&2; exit {status}"""
    async with platform_of(tmp_path, script) as platform:
        with pytest.raises(InstanceFailed) as caught:
            await make_live(platform, Release("one"))
        assert spawned(platform) == 1
    assert str(caught.value) == f"the instance ended with exit code {status}: one fault\n  and another"
    assert (platform.output, platform.noted) == ([], [])


async def test_a_fault_before_there_is_a_log_is_said(tmp_path: Path) -> None:
    """In plain lines, all of them; and those of an earlier process are not among them."""
    script = (
        'test -e "$DATA/second" || { touch "$DATA/second"; echo first; exit 7; }; echo PORT is taken; exit 2'
    )
    async with platform_of(tmp_path, script) as platform:
        with pytest.raises(InstanceFailed) as caught:
            await make_live(platform, Release("one"))
    assert str(caught.value) == "the instance ended with exit code 2: PORT is taken"


async def test_whatever_else_it_ends_by_is_tried_again(tmp_path: Path) -> None:
    """As the platform does."""
    script = f'test -e "$DATA/second" || {{ touch "$DATA/second"; exit 4; }}; exec {FAKE}'
    async with platform_of(tmp_path, script) as platform:
        await make_live(platform, Release("one"))
        assert spawned(platform) == 2
        assert len(platform.routed) == 1
        assert (platform.output, platform.noted) == ([], [])
