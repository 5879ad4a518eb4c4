"""python-telegram-bot's example customwebhookbot/starlettebot.py, reduced to updates from Telegram.

As there: Updates are put into the Application's queue, which runs in the same process, and uvicorn has its defaults but for the
address, so it writes its access log. Added: the check of the secret token, which whoever follows the example adds.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from telegram import Update
from telegram.ext import ApplicationBuilder

from bench.bots import counting
from bench.peers import settings


async def main() -> None:
    """Runs until SIGTERM."""
    logging.basicConfig(format="%(asctime)s - %(name)s - %(levelname)s - %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    builder = ApplicationBuilder().token(settings.TOKEN).base_url(f"{settings.API_BASE_URL}/bot")
    application = counting(builder.updater(None))
    await application.bot.set_webhook(
        settings.WEBHOOK_URL, secret_token=settings.SECRET_TOKEN, allowed_updates=Update.ALL_TYPES
    )

    async def telegram(request: Request) -> Response:
        """Handle incoming Telegram updates by putting them into the `update_queue`."""
        if request.headers.get("X-Telegram-Bot-Api-Secret-Token") != settings.SECRET_TOKEN:
            return Response(status_code=HTTPStatus.FORBIDDEN)
        await application.update_queue.put(Update.de_json(data=await request.json(), bot=application.bot))
        return Response()

    starlette_app = Starlette(routes=[Route(f"/{settings.URL_PATH}", telegram, methods=["POST"])])
    webserver = uvicorn.Server(
        config=uvicorn.Config(app=starlette_app, port=settings.PORT, use_colors=False, host=settings.HOST)
    )
    async with application:
        await application.start()
        await webserver.serve()
        await application.stop()


if __name__ == "__main__":
    asyncio.run(main())
