"""The emulator as one thing: `async with Emulator(...) as emulator`.

Two listeners: `base_url` serves the Bot API and the control API, `control_url` the control API alone, so that it stays
in reach while the Bot API refuses connections.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from typing import Any, Self

from deploy.local.emulator.bot import Bot
from deploy.local.emulator.bot_api import Account, BotApi
from deploy.local.emulator.chats import Chats
from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator.clock import Clock, SystemClock
from deploy.local.emulator.control import Control
from deploy.local.emulator.control_http import ControlHttp
from deploy.local.emulator.control_messages import NewBot
from deploy.local.emulator.faults import Outage
from deploy.local.emulator.http_server import HttpServer, Request, Response
from deploy.local.emulator.journal import ApiCall, BotEvent, DeliveryJournal, Journal
from deploy.local.emulator.webhook_actor import Resolver, SystemResolver

DEFAULT_TOKEN = "123456789:EMULATED-bot_token-that-opens-nothing"  # noqa: S105 - a token of the emulator's own


class StaticResolver:
    """Resolves the names that it was given; asks the system for others.

    The name "*" stands for every name, for setups in which nothing must leave the machine.
    """

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = dict(addresses)
        self._system = SystemResolver()

    async def resolve(self, host: str, port: int) -> str:
        address = self._addresses.get(host) or self._addresses.get("*")
        return address or await self._system.resolve(host, port)


class Emulator:
    """A Bot API server for tests and for a system on one machine.

    Args:
        tokens: of the bots that exist from the start; more can be added by the control API.
        local_mode: takes http and any port for webhooks, as a server that was started with `--local`.
        seed: of every random choice.
        history_limit: how many entries each journal keeps.
    """

    def __init__(
        self,
        tokens: Iterable[str] = (DEFAULT_TOKEN,),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        control_port: int = 0,
        local_mode: bool = True,
        seed: int | None = None,
        clock: Clock | None = None,
        resolver: Resolver | None = None,
        history_limit: int = 500_000,
    ) -> None:
        self._tokens = list(tokens)
        self._host, self._port, self._control_port = host, port, control_port
        self._local_mode = local_mode
        self._rng = random.Random(seed)
        self._clock = clock or SystemClock()
        self._resolver = resolver or SystemResolver()
        self._accounts: dict[int, Account] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        deliveries = DeliveryJournal(history_limit, self._clock)
        calls: Journal[ApiCall] = Journal(history_limit)
        self._outbox: Journal[BotEvent] = Journal(history_limit)
        self._deliveries = deliveries
        self._api = BotApi(self._accounts, calls, self._clock)
        self.control = Control(
            self._accounts, self._api, deliveries, calls, self._outbox, self._open_account, self._clock.now
        )
        self._control_http = ControlHttp(self.control, self)
        self._main = HttpServer(self._handle, "emulator")
        self._side = HttpServer(self._handle_control, "emulator-control")

    async def __aenter__(self) -> Self:
        for token in self._tokens:
            self.control.add_bot(NewBot(token))
        await self._main.start(self._host, self._port)
        await self._side.start(self._host, self._control_port)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._main.aclose()
        await self._side.aclose()
        for account in self._accounts.values():
            await account.bot.aclose()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def base_url(self) -> str:
        """For TELEGRAM_API_BASE_URL and for `EmulatorClient`."""
        return self._main.url

    @property
    def control_url(self) -> str:
        return self._side.url

    def client(self) -> EmulatorClient:
        """A client of the control API; use it as a context manager."""
        return EmulatorClient(self.base_url)

    def bot(self, bot_id: int | None = None) -> Bot:
        """A bot's account; without an id, that of the only bot."""
        return self.control.account(bot_id).bot

    async def set_outage(self, outage: Outage) -> None:
        """Takes the Bot API away, or gives it back; webhooks are delivered all the same."""
        self.control.set_outage(outage)
        if outage is Outage.REFUSED:
            # Later: the answer to the call that asked for this is still to be sent, over a connection that goes too.
            self._spawn(self._main.stop_listening(), "outage")
        else:
            await self._main.listen_again()

    async def _handle(self, request: Request) -> Response | None:
        if request.path.startswith("/control/"):
            return await self._control_http.handle(request)
        response = await self._api.handle(request)
        # An acknowledgement by getUpdates, or a dropped backlog, may have made a bot idle.
        self._deliveries.wake()
        return response

    async def _handle_control(self, request: Request) -> Response:
        return await self._control_http.handle(request)

    def _open_account(self, new: NewBot) -> Account:
        bot_id = int(new.token.partition(":")[0])
        profile = {
            "id": bot_id,
            "is_bot": True,
            "first_name": new.first_name or "Emulated",
            "username": new.username or f"emulated_{bot_id}_bot",
            "can_join_groups": True,
            "can_read_all_group_messages": False,
            "supports_inline_queries": True,
            "can_connect_to_business": False,
            "has_main_web_app": False,
        }
        bot = Bot(
            new.token,
            profile,
            clock=self._clock,
            rng=self._rng,
            journal=self._deliveries,
            resolver=self._resolver,
            local_mode=self._local_mode,
            run_method=self._run_method,
        )
        account = Account(bot, Chats(profile, self._outbox, self._clock, self._rng))
        self._accounts[bot_id] = account
        return account

    def _run_method(self, bot: Bot, method: str, values: Mapping[str, Any]) -> None:
        self._spawn(
            self._api.run_from_webhook(self._accounts[bot.id], method, values), f"{method}-from-webhook"
        )

    def _spawn(self, work: Any, name: str) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=f"emulator-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
