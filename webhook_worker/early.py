"""Takes updates in while the bot is imported: the same reception as later, with a loop and a thread of its own.

    main thread     imports python-telegram-bot and BOT_APP ──► its own reception accepts ──► leave()
    this thread     accepts and stores ───────────────────────────────────────────────────► the last connection closes

What the operator's module does while it is imported may take minutes, needs the main thread (signals, sqlite3, an event loop
to ask for), and must not keep an update waiting. It is there only where nobody else receives: at the first start, and
after a worker that died.

The control socket is this thread's until `hand_over`: the supervisor may want a worker to leave that is not up yet, and sees
by its beats that it answers.

Not promised: quick answers. The two threads take turns at the interpreter.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket
import sys
import threading
from typing import NoReturn

from shared import log, wire
from shared.config import Config
from shared.database import Link
from webhook_worker.control import Control
from webhook_worker.event_loop import Loop
from webhook_worker.health import Health
from webhook_worker.links import pool_use
from webhook_worker.reception import Reception

_SWITCH_SECONDS = 0.0005
"""How long the main thread may import before this one has its turn, where 0.005 is the default: an update needs several."""

_ANSWER_SECONDS = 40.0
"""For what is being answered when the linger is over: longer than a body may take to arrive, and a flush."""

_END_SECONDS = 5.0

_FAILED_LINGER_SECONDS = 0.5
_FAILED_ANSWER_SECONDS = 12.0
"""Where there is no bot to accept for: how long the early reception serves its open connections, and how long what is being
answered then may take: more than a flush."""

_log = log.get_logger("WORKER")


class EarlyReception:
    """The thread and what it does. `start`, `hand_over` and `leave` are the main thread's."""

    def __init__(self, config: Config, listener: socket.socket, control: Control) -> None:
        """Does nothing yet.

        Args:
            config: the worker's.
            listener: the inherited socket; a duplicate of it is used and closed.
            control: its lifeline runs already, and it is attached to no loop.
        """
        self.health = Health()
        self._config = config
        self._listener = listener.dup()
        self._control = control
        self._loop = Loop()
        self._reception: Reception | None = None
        self._is_handed_over = False
        self._switch_seconds = sys.getswitchinterval()
        self._linger_seconds = 0.0
        self._leaving: asyncio.Event | None = None
        self._is_up = threading.Event()
        self._closed: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._answered: concurrent.futures.Future[None] = concurrent.futures.Future()

    def start(self) -> None:
        """Returns when the control socket is this thread's."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        threading.Thread(target=self._run, name="early reception", daemon=True).start()
        self._is_up.wait()

    @property
    def unstored_count(self) -> int:
        """How many updates wait to be stored."""
        return 0 if self._reception is None else self._reception.ingest.unstored_count

    async def hand_over(self) -> bool:
        """Gives the control socket away, to be attached to the loop of the caller.

        Returns:
            False: the supervisor wants this worker to leave. Then the socket stays, and so does the bot: it is not to come up.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._hand_over(), self._loop))

    async def leave(self, linger_seconds: float) -> None:
        """Stops accepting; returns when no new request can come. More than once does no harm.

        What is being answered then is answered all the same: that is waited for in the thread.

        Args:
            linger_seconds: see Server.stop_accepting.
        """
        self._loop.call_soon_threadsafe(self._leave, linger_seconds)
        await asyncio.shield(asyncio.wrap_future(self._closed))

    async def wait_answered(self, limit_seconds: float) -> None:
        """After `leave`: returns when everybody has an answer, or at the limit."""
        await asyncio.wait({asyncio.wrap_future(self._answered)}, timeout=limit_seconds)

    # ---------------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except BaseException:  # noqa: BLE001 - a bug of ours, in a thread whose end nobody would see
            _log.critical("the early reception ends", exc_info=True)
            if not self._is_handed_over:
                _exit(1)
        for future in (self._closed, self._answered):
            if not future.done():
                future.set_result(None)
        # The loop is left open: the main thread may still speak to it, and is not heard.

    async def _live(self) -> None:
        self._leaving = asyncio.Event()
        self._control.attach(self._obey)
        self._is_up.set()
        link = Link(self._config.database_url.reveal(), name="early reception")
        self._reception = Reception(
            self._config,
            ingest_link=link,
            lookup_link=link,
            health=self.health,
            foreign_secret=lambda: self._tell(wire.ForeignRegistration()),
        )
        async with link:
            living = asyncio.create_task(self._receive(link, self._reception), name="reception")
            leaving = asyncio.create_task(self._leaving.wait(), name="leaving")
            await asyncio.wait({living, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()
            await self._reception.server.stop_accepting(self._linger_seconds)
            self._closed.set_result(None)
            if not self._is_handed_over:
                # Exit comes next, and cuts off whom we have not answered.
                await self._reception.server.wait_idle(wire.ANSWER_SECONDS)
            self._tell(wire.ConnectionsClosed())
            await self._reception.server.wait_answered(_ANSWER_SECONDS)
            sys.setswitchinterval(self._switch_seconds)
            living.cancel()
            await asyncio.wait({living}, timeout=_END_SECONDS)
        self._answered.set_result(None)
        if not self._is_handed_over:
            await self._loop.create_future()  # for the supervisor's Exit

    async def _receive(self, link: Link, reception: Reception) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(link.keep(), name="link")
            await reception.open(group, self._listener)
            self._tell(wire.Receiving())
            await reception.ingest.wait_tried(wire.BEAT_SECONDS)  # as in beat.py
            while not self._is_handed_over:
                self._tell(_beat(link, reception))
                await asyncio.sleep(wire.BEAT_SECONDS)

    async def _hand_over(self) -> bool:
        assert self._leaving is not None
        if self._leaving.is_set():
            return False
        self._is_handed_over = True
        self._control.detach()
        return True

    def _leave(self, linger_seconds: float) -> None:
        assert self._leaving is not None
        if not self._leaving.is_set():
            self._linger_seconds = linger_seconds
            self._leaving.set()

    def _tell(self, message: wire.ToSupervisor) -> None:
        # Later the main thread speaks, of the end of what this one accepted too. A foreign secret comes again.
        if not self._is_handed_over:
            self._control.send(message)

    def _obey(self, message: wire.ToWorker) -> None:
        match message:
            case wire.SetHealth(ok=ok, role=role, reason=reason):
                self.health.set(role, reason, ok=ok)
            case wire.StopAccepting(linger_seconds=linger_seconds):
                self._leave(linger_seconds)
            case wire.Exit():
                _exit(0)
            case _:
                raise AssertionError(f"said to a worker whose bot is not built: {message}")


def _beat(link: Link, reception: Reception) -> wire.Beat:
    fault = reception.ingest.fault
    return wire.Beat(
        loop_lag_ms=0.0,
        storing=fault is None,
        storing_reason=fault,
        inbox=None,
        pool=pool_use([link], reception.ingest.unstored_count),
    )


def _exit(status: int) -> NoReturn:
    # Not what the operator has registered to be run at exit: it is being imported in another thread.
    log.flush()
    os._exit(status)


async def handed_over(early: EarlyReception | None) -> None:
    """Returns when the control socket is the caller's; never if the worker is to leave, which the early reception sees to."""
    if early is not None and not await early.hand_over():
        await asyncio.get_running_loop().create_future()


async def end_failed(control: Control, early: EarlyReception | None, faults: tuple[str, ...]) -> int:
    """Where there is no bot to accept for: answers whom the early reception has heard, and tells the supervisor why.

    Returns:
        The exit status.
    """
    await handed_over(early)
    if early is not None:
        await early.leave(_FAILED_LINGER_SECONDS)
        await early.wait_answered(_FAILED_ANSWER_SECONDS)
    control.send(wire.StartFailed(wire.shortened(faults)))
    return 2
