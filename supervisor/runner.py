"""The one loop that owns the state: events in, actions out.

No locks around decisions, since nobody else touches the state (a02): shells put events into one queue and are given actions.
Signal handlers, too, only put an event into it.

Does not promise to run on time. It may be stopped for minutes; then the next step sees the clock, and the worker has long
obeyed its deadline by itself.
"""

from __future__ import annotations

import asyncio
import signal
import socket

from shared import clock, log
from shared.config import LONGEST_LINGER_SECONDS, BotMode, Config, WebhookOnExit
from supervisor import core, narration
from supervisor import messages as m
from supervisor.health import HttpServer, Sources, answer_own_port, answer_public_port
from supervisor.lease import Lease
from supervisor.registrar import Registrar
from supervisor.spawn import Spawned
from supervisor.state import Settings, State, initial
from supervisor.status import WallClock, status
from supervisor.worker_process import WorkerProcesses, to_wire

TICK_SECONDS = 0.25
"""How often time alone is looked at: fine enough for limits of seconds, and cheap."""


class Runner:
    """Runs one supervisor from start to exit code."""

    def __init__(
        self,
        config: Config,
        listener: socket.socket,
        health_listener: socket.socket | None,
        *,
        at_terminal: bool,
        first_worker: Spawned | None = None,
    ) -> None:
        """Does no I/O.

        Args:
            config: the whole configuration.
            listener: the public socket, bound and listening.
            health_listener: HEALTH_PORT's, or None.
            at_terminal: stdin is a terminal, so every signal is a person's.
            first_worker: started before us.
        """
        self._config = config
        self._listener = listener
        self._health_listener = health_listener
        settings = settings_of(config, at_terminal=at_terminal)
        self._state: State = initial(settings, clock.now() if first_worker is None else first_worker.at)
        self._events: asyncio.Queue[m.Event] = asyncio.Queue()
        self._wall = WallClock()
        self._workers = WorkerProcesses(listener, config.identity.instance_id, self._post, first=first_worker)
        sources = Sources(
            health=self._health,
            storing=self._why_not_storing,
            status=self.status,
            webhook_path=f"/webhook/{config.webhook_path.reveal()}",
        )
        self._own_port = HttpServer(lambda method, path: answer_own_port(sources, method, path))
        self._public_port = HttpServer(lambda method, path: answer_public_port(sources, method, path))

    async def run(self) -> int:
        """Run until the core says exit.

        Returns:
            The exit code of INTERFACE.md.
        """
        self._install_signal_handlers()
        try:
            async with (
                asyncio.TaskGroup() as tasks,
                Registrar(self._config, self._post, self._may_call, tasks) as registrar,
            ):
                if self._health_listener is not None:
                    await self._own_port.start(self._health_listener)
                lease = Lease(self._config, self._post, tasks)
                # The first worker, and what it has said, are known before a stop can be: it may have requests in its hands.
                code = await self._take(m.Ticked(at=clock.now()), lease, registrar)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
                ticker = tasks.create_task(self._tick(), name="ticker")
                while code is None:
                    code = await self._take(await self._events.get(), lease, registrar)
                ticker.cancel()
                lease.close()
                if self._state.call is not None:
                    registrar.cut_off(self._state.call)
            return code
        finally:
            self._workers.kill_all()
            self._public_port.stop()
            self._own_port.stop()

    def _post(self, event: m.Event) -> None:
        self._events.put_nowait(event)

    async def _tick(self) -> None:
        while True:
            self._post(m.Ticked(at=clock.now()))
            await asyncio.sleep(TICK_SECONDS)

    async def _take(self, event: m.Event, lease: Lease, registrar: Registrar) -> int | None:
        """One step, and what follows from it; the exit code, where it is the last one."""
        before = self._state
        now = clock.now()
        self._state, actions = core.step(before, event, now)
        self._log(before, event, actions)
        for action in actions:
            code = await self._carry_out(action, lease, registrar)
            if code is not None:
                return code
        call = self._state.call
        if call is not None and not core.may_call(self._state, call, now):
            registrar.cut_off(call)
        return None

    def _log(self, before: State, event: m.Event, actions: tuple[m.Action, ...]) -> None:
        for line in narration.narrate(before, event, self._state, actions, self._config.webhook_url_masked):
            getattr(log.get_logger(line.tag), line.level)(line.event, **line.fields)

    async def _carry_out(self, action: m.Action, lease: Lease, registrar: Registrar) -> int | None:
        """Hand it to its shell; the exit code, where it is the last one."""
        match action:
            case m.SessionAction():
                lease.begin(action)
            case m.CutWait():
                lease.cut_wait()
            case m.CloseSession():
                lease.close()
            case m.CallAction():
                registrar.begin(action)
            case m.SpawnWorker(worker=worker, receives_at_once=receives_at_once):
                self._workers.spawn(worker, receives_at_once=receives_at_once)
            case m.KillWorker(worker=worker):
                self._workers.kill(worker)
            case m.ServeUnavailable(on=on):
                if on:
                    await self._public_port.start(self._listener)
                else:
                    self._public_port.stop()
            case m.ExitProcess(code=code):
                return code
            case _:
                worker, message = to_wire(action)
                self._workers.send(worker, message)
        return None

    def _may_call(self, call: m.CallAction) -> bool:
        return core.may_call(self._state, call, clock.now())

    def _install_signal_handlers(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: self._post(m.StopRequested(at=clock.now())))
        loop.add_signal_handler(signal.SIGHUP, lambda: self._post(m.ReplacementRequested(at=clock.now())))
        loop.add_signal_handler(signal.SIGCHLD, self._workers.reap)

    # --------------------------------------------------------------------------------------------------------- sources

    def _health(self) -> m.Health:
        return core.health(self._state, clock.now())

    def _why_not_storing(self) -> str | None:
        return core.why_not_storing(self._state, clock.now())

    def status(self) -> dict[str, object]:
        """The body of /status."""
        return status(self._state, clock.now(), self._config, self._wall)


def settings_of(config: Config, *, at_terminal: bool) -> Settings:
    """What the core is told of the configuration."""
    return Settings(
        instance_id=config.identity.instance_id,
        token_fingerprint=config.identity.token_fingerprint,
        polls=config.mode is BotMode.POLLING,
        may_own=config.may_own,
        delete_on_exit=config.webhook_on_exit is WebhookOnExit.DELETE,
        linger_seconds=min(config.linger_seconds, LONGEST_LINGER_SECONDS),
        drain_seconds=config.drain_seconds,
        reconcile_seconds=config.reconcile_seconds,
        at_terminal=at_terminal,
    )
