"""aiogram 3 on aiohttp, as its documentation sets it up behind a proxy: each update is a task of its own, after its answer."""

from __future__ import annotations

import logging
import os
import sys

from aiogram import Bot, Dispatcher, F, Router
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Message
from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application
from aiohttp import web

from bench.counter import VARIABLE, Counter
from bench.peers import settings

router = Router()
_counter = Counter(os.environ.get(VARIABLE))


async def count(message: Message) -> None:
    """As cheap as a handler can be."""
    _counter.add_one()


router.message.register(count, F.text)


async def on_startup(bot: Bot) -> None:
    """Registers."""
    await bot.set_webhook(settings.WEBHOOK_URL, secret_token=settings.SECRET_TOKEN)


def main() -> None:
    """Runs until SIGTERM."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    dispatcher = Dispatcher()
    dispatcher.include_router(router)
    dispatcher.startup.register(on_startup)
    bot = Bot(settings.TOKEN, session=AiohttpSession(api=TelegramAPIServer.from_base(settings.API_BASE_URL)))
    app = web.Application()
    handler = SimpleRequestHandler(
        dispatcher=dispatcher, bot=bot, handle_in_background=True, secret_token=settings.SECRET_TOKEN
    )
    handler.register(app, path=f"/{settings.URL_PATH}")
    setup_application(app, dispatcher, bot=bot)
    web.run_app(app, host=settings.HOST, port=settings.PORT)


if __name__ == "__main__":
    main()
