"""Settings of the sample bots."""

from __future__ import annotations

from shared import config
from shared.config import Config

TOKEN = "123456:AAAbbbCCCdddEEEfffGGGhhhIIIjjjKKK"
OTHER_TOKEN = "987654:AAAbbbCCCdddEEEfffGGGhhhIIIjjjKKK"
API_URL = "http://127.0.0.1:9"
PASSWORD = "correct-horse-battery"


def config_for(bot_app: str, *, api_url: str = API_URL, token: str = TOKEN) -> Config:
    """The configuration of an instance with that BOT_APP."""
    environ = {
        "TELEGRAM_BOT_TOKEN": token,
        "DATABASE_URL": f"postgresql://user:{PASSWORD}@127.0.0.1:9/bot",
        "WEBHOOK_BASE_URL": "https://bot.example",
        "TELEGRAM_API_BASE_URL": api_url,
        "BOT_APP": bot_app,
    }
    return config.load(environ, stdin_is_terminal=False, stdout_is_terminal=False)
