"""What a worker answers to the first probe of all: what it was told before it accepted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import clock, wire
from shared import config as configuration
from webhook_worker.control import Control
from webhook_worker.deadline import Deadline
from webhook_worker.worker import _Worker

HANG_SECONDS = 60.0
ENVIRON = {
    "TELEGRAM_BOT_TOKEN": f"123456789:{'t' * 35}",
    "DATABASE_URL": "postgresql://x:x@127.0.0.1:1/x",  # away, which keeps no worker from coming up
    "WEBHOOK_BASE_URL": "https://bot.example.com",
}


class Recorder(Control):
    """Knows at once what there is to be read, and what the worker's health was when it said that it accepts."""

    def __init__(self, *messages: wire.ToWorker) -> None:
        """No socket, no lifeline."""
        self.deadline = Deadline(clock.now)
        self._messages = messages
        self.worker: _Worker | None = None
        self.accepting: asyncio.Future[tuple[int, dict[str, str]]] = (
            asyncio.get_running_loop().create_future()
        )

    def attach(self, deliver: Any) -> None:
        """All of it came before."""
        for message in self._messages:
            deliver(message)

    def send(self, message: wire.ToSupervisor) -> None:
        """Looks at the worker."""
        if isinstance(message, wire.Accepting):
            assert self.worker is not None
            self.accepting.set_result(self.worker._health.answer())


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], (503, {"status": "failing", "role": "PASSIVE", "reason": "starting"})),
        ([wire.SetHealth(ok=True, role="PASSIVE")], (200, {"status": "ok", "role": "PASSIVE"})),
        (
            [wire.SetHealth(ok=True, role="PASSIVE"), wire.SetHealth(False, "PASSIVE", "stopping")],
            (503, {"status": "failing", "role": "PASSIVE", "reason": "stopping"}),
        ),
    ],
)
async def test_b17_what_was_told_before_it_accepts_is_what_it_answers_from_then_on(
    said: list[wire.ToWorker], expected: tuple[int, dict[str, str]]
) -> None:
    """A worker that replaces another is as healthy as that one, and not starting."""
    config = configuration.load(ENVIRON, stdin_is_terminal=False, stdout_is_terminal=False)
    bot = cast(Any, SimpleNamespace(take_token_refused=lambda: False))
    control = Recorder(*said)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        control.worker = _Worker(config, bot, control, listener, None)
        living = asyncio.create_task(control.worker.live())
        async with asyncio.timeout(HANG_SECONDS):
            either: set[asyncio.Future[Any]] = {living, control.accepting}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        assert control.accepting.result() == expected
        living.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await living
