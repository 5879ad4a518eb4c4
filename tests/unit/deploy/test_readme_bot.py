"""The README's bot is one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from shared import config
from webhook_worker import bot_app

ROOT = Path(__file__).parents[3]


EXAMPLES = re.findall(
    r"^```python\n(# (my_bot/\w+\.py) .*?BOT_APP=(\S+)\n.*?)^```$",
    (ROOT / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize(("text", "file", "bot"), EXAMPLES, ids=[file for _, file, _ in EXAMPLES])
async def test_readme_example_of_a_bot_is_accepted(
    text: str, file: str, bot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever copies a bot of the README's as it stands, and names it in BOT_APP, has one that starts."""
    (tmp_path / "my_bot").mkdir()
    (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_bot", raising=False)  # the other example's
    environ = {
        "TELEGRAM_BOT_TOKEN": "123456:AAAbbbCCCdddEEEfffGGG",
        "DATABASE_URL": "postgresql://user:password@database.internal/bot",
        "WEBHOOK_BASE_URL": "https://bot.example",
        "BOT_APP": bot,
    }
    loaded = await bot_app.load(config.load(environ, stdin_is_terminal=False, stdout_is_terminal=False))
    assert not loaded.has_persistence


def test_readme_has_a_bot_to_begin_with_and_one_that_uses_all_that_we_export() -> None:
    """The examples are found, so that the test above is about something."""
    assert [file for _, file, _ in EXAMPLES] == ["my_bot/main.py", "my_bot/shop.py"]
    assert "from webhook_worker import RetryUpdate, attempt" in EXAMPLES[1][0]
