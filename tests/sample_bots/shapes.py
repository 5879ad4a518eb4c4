"""One bot in every shape that BOT_APP can name. All are for TOKEN and API_URL."""

from __future__ import annotations

import asyncio
from typing import Any

from telegram.ext import Application, ApplicationBuilder, ExtBot

from tests.sample_bots.settings import API_URL, OTHER_TOKEN, TOKEN

AnyBuilder = ApplicationBuilder[Any, Any, Any, Any, Any, Any]
AnyApplication = Application[Any, Any, Any, Any, Any, Any]


def _ready(token: str = TOKEN, api_url: str = API_URL) -> AnyApplication:
    return ApplicationBuilder().token(token).base_url(f"{api_url}/bot").build()


ready: AnyApplication = _ready()
bare_builder: AnyBuilder = ApplicationBuilder()  # lacks token, Bot API server, and says nothing of an updater
full_builder: AnyBuilder = ApplicationBuilder().token(TOKEN).base_url(f"{API_URL}/bot").updater(None)
without_job_queue: AnyBuilder = ApplicationBuilder().job_queue(None)
own_bot: AnyBuilder = ApplicationBuilder().bot(ExtBot(TOKEN, base_url=f"{API_URL}/bot"))
builder_class = ApplicationBuilder

other_token = _ready(token=OTHER_TOKEN)
other_token_of_the_same_bot = _ready(token=TOKEN + "x")
other_token_in_builder: AnyBuilder = ApplicationBuilder().token(OTHER_TOKEN)
other_api = _ready(api_url="https://api.telegram.org")

a_text = "not a bot"


class OwnApplication(AnyApplication):
    """A class of the bot's own, with state and with slots."""

    __slots__ = ("shop",)

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.shop = "open"


def with_builder(builder: AnyBuilder) -> AnyApplication:
    """The recommended one."""
    return builder.build()


def builder_returned(builder: AnyBuilder) -> AnyBuilder:
    """Leaves the building to the worker."""
    return builder.concurrent_updates(True)


def own_class(builder: AnyBuilder) -> AnyApplication:
    """An Application of a class of its own."""
    return builder.application_class(OwnApplication).build()


def with_token(token: str) -> AnyApplication:
    """Builds it all itself."""
    return _ready(token)


def keyword_only(*, builder: AnyBuilder, debug: bool = False) -> AnyApplication:
    """Another parameter with a default."""
    assert debug is False
    return builder.build()


def positional_only(name: str = "x", token: str = "", /, *rest: object, **more: object) -> AnyApplication:
    """Parameters that cannot be named; a default before."""
    assert name == "x"
    assert (rest, more) == ((), {})
    return _ready(token)


def without_parameters() -> AnyApplication:
    """Takes the token from the environment itself."""
    return _ready()


async def asynchronous(builder: AnyBuilder) -> AnyApplication:
    """Makes something in the loop first."""
    loop = asyncio.get_running_loop()
    app = builder.build()
    app.bot_data["loop"] = loop
    return app


class Factory:
    """A bot behind an attribute of an attribute."""

    async def __call__(self, builder: AnyBuilder) -> AnyBuilder:
        return builder

    @staticmethod
    def build(builder: AnyBuilder) -> AnyApplication:
        """The same, plain."""
        return builder.build()


factory = Factory()


def needs_more(builder: AnyBuilder, database: object) -> AnyApplication:
    """Wants what nobody gives."""
    raise AssertionError


def forgets_to_return(builder: AnyBuilder) -> None:
    """A common slip."""
    builder.build()


def raises(token: str) -> AnyApplication:
    """Tells more than it should."""
    raise LookupError(f"no settings\nfor {token}")


async def raises_later(builder: AnyBuilder) -> AnyApplication:
    """The same, asynchronous."""
    await asyncio.sleep(0)
    raise LookupError("no settings")


def raises_in_library(builder: AnyBuilder) -> AnyApplication:
    """The line of the bot is what helps, not that of the library."""
    return builder.token("twice").bot(ExtBot(TOKEN)).build()


async def runs_already(builder: AnyBuilder) -> AnyApplication:
    """Does the worker's work."""
    app = builder.job_queue(None).build()
    app._running = True
    return app
