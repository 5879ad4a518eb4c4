"""What the peers read of the environment that ours has."""

from __future__ import annotations

import os

HOST = "127.0.0.1"
PORT = int(os.environ["PORT"])
TOKEN = os.environ["TELEGRAM_BOT_TOKEN"]
API_BASE_URL = os.environ["TELEGRAM_API_BASE_URL"]
DATABASE_URL = os.environ["DATABASE_URL"]
SECRET_TOKEN = os.environ["WEBHOOK_SECRET_TOKEN"]
URL_PATH = "webhook/" + os.environ["WEBHOOK_SECRET_PATH"]
WEBHOOK_URL = f"{os.environ['WEBHOOK_BASE_URL']}/{URL_PATH}"
