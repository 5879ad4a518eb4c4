"""The README's bot is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared import config
from webhook_worker import bot_app

ROOT = Path(__file__).parents[3]


async def test_readme_example_of_a_bot_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever copies the README's bot and names it in BOT_APP has one that starts."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?BOT_APP=(\S+)\n.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert example is not None
    (tmp_path / "my_bot").mkdir()
    left_out = "\n\nasync def schedule_jobs(application: object) -> None: ...\n"
    (tmp_path / "my_bot/main.py").write_text(example[1] + left_out, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    environ = {
        "TELEGRAM_BOT_TOKEN": "123456:AAAbbbCCCdddEEEfffGGG",
        "DATABASE_URL": "postgresql://user:password@database.internal/bot",
        "WEBHOOK_BASE_URL": "https://bot.example",
        "BOT_APP": example[2],
    }
    bot = await bot_app.load(config.load(environ, stdin_is_terminal=False, stdout_is_terminal=False))
    assert not bot.has_persistence
