"""What takes updates in: the server on the inherited socket, the webhook behind it, and the ingest that stores.

Made by the worker, and by who stands in for it while the bot is imported (early.py). Imports nothing of the bot's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from shared.answers import ready_answer
from shared.config import BotMode, Config
from shared.database import Link
from shared.late_import import import_late
from webhook_worker.app import App, Webhook
from webhook_worker.health import Health
from webhook_worker.inbox_writer import InboxWriter
from webhook_worker.ingest import Ingest, StoreAlong
from webhook_worker.links import FIRST_CONNECT_SECONDS, Covered
from webhook_worker.registrations import Registrations, fetch_from
from webhook_worker.server import Server
from webhook_worker.verify import registration_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class Reception:
    """Server, webhook and ingest of one event loop.

    Attributes:
        server: accepts from `open` on; what is to be done with its connections then is asked of it.
        ingest: stores what the webhook takes, and what comes in another way (poller.py).
    """

    def __init__(
        self,
        config: Config,
        *,
        ingest_link: Link,
        lookup_link: Link | Covered,
        health: Health,
        foreign_secret: Callable[[], None],
        dispatches_here: Callable[[], bool] = lambda: False,
        wake: Callable[[], None] = lambda: None,
        store_along: StoreAlong = lambda rows, on_stored: None,
        tells_of_tables: bool = True,
    ) -> None:
        """Does nothing yet.

        Args:
            config: the path, the secret, and whose inbox it is.
            ingest_link: stores.
            lookup_link: reads what is registered; may be the same.
            health: what /healthz says.
            foreign_secret: see Webhook.
            dispatches_here: see Ingest, and the next two.
            wake: tells the dispatcher.
            store_along: has the dispatcher store.
            tells_of_tables: see Ingest.
        """
        self._ingest_link = ingest_link
        self.ingest = Ingest(
            InboxWriter(ingest_link, config.bot_id),
            dispatches_here=dispatches_here,
            wake=wake,
            store_along=store_along,
            tells_of_tables=tells_of_tables,
        )
        webhook = Webhook(
            registrations=Registrations(
                registration_of(config.webhook_path.reveal(), config.webhook_secret.reveal()),
                fetch_from(lookup_link, config.bot_id),
            ),
            storage=self.ingest,
            # Where nothing is registered nothing can be overwritten: whoever comes with another secret is just somebody.
            foreign_secret=foreign_secret if config.mode is BotMode.WEBHOOK else _ignore,
        )
        probes = {b"/healthz": health.answer, b"/readyz": lambda: ready_answer(self.ingest.fault)}
        self.server = Server(App(webhook, probes, make_rest=_make_rest), take_at_once=webhook.take_at_once)

    async def open(self, group: asyncio.TaskGroup, listener: socket.socket) -> None:
        """Returns when connections are accepted. What goes on is two tasks of the group, which do not end by themselves."""
        group.create_task(self.ingest.run(), name="ingest")
        # A predecessor leaves the socket to us once we accept: what comes then must not find us without a session.
        await self._ingest_link.wait_tried(FIRST_CONNECT_SECONDS)
        group.create_task(self.server.serve([listener]), name="server")
        await self.server.wait_accepting()


def _ignore() -> None:
    pass


async def _make_rest() -> ASGIApp:
    module = await import_late("webhook_worker.rest_app")
    app: ASGIApp = module.rest_app()
    return app
