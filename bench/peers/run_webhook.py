"""python-telegram-bot's own webhook server, as its documentation and examples set it up."""

from __future__ import annotations

import logging

from telegram.ext import ApplicationBuilder

from bench.bots import counting
from bench.peers import settings


def main() -> None:
    """Runs until SIGTERM."""
    logging.basicConfig(format="%(asctime)s - %(name)s - %(levelname)s - %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    builder = ApplicationBuilder().token(settings.TOKEN).base_url(f"{settings.API_BASE_URL}/bot")
    counting(builder).run_webhook(
        listen=settings.HOST,
        port=settings.PORT,
        url_path=settings.URL_PATH,
        secret_token=settings.SECRET_TOKEN,
        webhook_url=settings.WEBHOOK_URL,
    )


if __name__ == "__main__":
    main()
