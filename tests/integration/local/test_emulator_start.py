"""The emulator as a process of the local system."""

from pathlib import Path

import httpx
import pytest

from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator_process import RunningEmulator, run_emulator
from deploy.local.errors import InstanceFailed


async def test_it_answers_its_bot_and_its_control(
    running_emulator: RunningEmulator, emulator: EmulatorClient
) -> None:
    """Both addresses work, and the token is that of its bot."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{running_emulator.base_url}/bot{running_emulator.token}/getMe")
    assert answer.json()["result"]["is_bot"] is True
    assert (await emulator.counts()).sent == 0


async def test_one_that_does_not_start_is_reported(tmp_path: Path) -> None:
    """The message names its log, and the log says why."""
    with pytest.raises(InstanceFailed, match=r"emulator\.log"):
        async with run_emulator(tmp_path / "emulator.log", arguments=["--no-such-option"]):
            pass
    assert "--no-such-option" in (tmp_path / "emulator.log").read_text()
