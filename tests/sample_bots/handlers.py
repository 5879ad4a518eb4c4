"""Handlers and hooks for the bots of tests, and what is said of an update that a handler failed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from telegram import Update
from telegram.ext import CallbackContext, MessageHandler, filters

from tests.sample_bots.running import AnyApplication, AnyBuilder
from webhook_worker.outcomes import Failed, Outcome

Context = CallbackContext[Any, Any, Any, Any]
Handler = Callable[[Update, Context], Coroutine[Any, Any, Any]]


def on_message(app: AnyApplication, handler: Handler, *, block: bool = True, group: int = 0) -> None:
    """Adds a handler for every message."""
    app.add_handler(MessageHandler(filters.ALL, handler, block=block), group=group)


def raising(exc: Exception) -> Handler:
    """A handler that raises."""

    async def handler(update: Update, context: Context) -> None:
        raise exc

    return handler


def failed(outcome: Outcome, *texts: str) -> None:
    """It is Failed, and these stand in its traceback, in this order."""
    assert isinstance(outcome, Failed), outcome
    rest = outcome.traceback_text
    for text in texts:
        assert text in rest, outcome.traceback_text
        rest = rest.partition(text)[2]


def noting(
    log: list[str], name: str, exc: Exception | None = None
) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """A hook that says that it ran, and may raise."""

    async def hook(app: object) -> None:
        log.append(name)
        if exc is not None:
            raise exc

    return hook


def hooked(builder: AnyBuilder, log: list[str], **raised: Exception) -> AnyBuilder:
    """The builder with every hook."""
    return (
        builder.post_init(noting(log, "post_init", raised.get("post_init")))
        .post_stop(noting(log, "post_stop", raised.get("post_stop")))
        .post_shutdown(noting(log, "post_shutdown", raised.get("post_shutdown")))
    )
