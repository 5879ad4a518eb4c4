"""The one loop that owns the state: events in, actions out.

No locks around decisions, since nobody else touches the state (a02): shells put events into one queue and are given actions.
Signal handlers, too, only put an event into it.

Does not promise to run on time. It may be stopped for minutes; then the next step sees the clock, and the worker has long
obeyed its deadline by itself.
"""

from __future__ import annotations

import asyncio
import datetime
import signal
import socket
from collections.abc import Callable
from typing import assert_never

from shared import clock, log, wire
from shared.config import LONGEST_LINGER_SECONDS, BotMode, Config, WebhookOnExit
from supervisor import core, narration
from supervisor import messages as m
from supervisor.health import HttpServer, Readings, answer_own_port, answer_public_port
from supervisor.lease import Lease
from supervisor.registrar import Registrar
from supervisor.spawn import Spawned
from supervisor.state import Settings, State, initial
from supervisor.worker_process import WorkerProcesses

TICK_SECONDS = 0.25
"""How often time alone is looked at: fine enough for limits of seconds, and cheap."""

_SET = datetime.timedelta(seconds=5)
"""By so much two clocks part only where one was set; what they drift apart in hours is less."""


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
        readings = Readings(
            health=self._health,
            storing=self._why_not_storing,
            status=self.status,
            webhook_path=f"/webhook/{config.webhook_path.reveal()}",
        )
        self._own_port = HttpServer(lambda method, path: answer_own_port(readings, method, path))
        self._public_port = HttpServer(lambda method, path: answer_public_port(readings, method, path))

    async def run(self) -> int:
        """Run until the core says exit.

        Returns:
            The exit code of INTERFACE.md.
        """
        self._install_signal_handlers()
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._health_listener is not None:
                    await self._own_port.start(self._health_listener)
                lease = Lease(self._config, self._post, tasks)
                registrar = Registrar(self._config, self._post, self._may_call, tasks)
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
                await registrar.close()
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

    # -------------------------------------------------------------------------------------------------------- readings

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
        mode=m.Mode.POLLING if config.mode is BotMode.POLLING else m.Mode.WEBHOOK,
        may_own=config.may_own,
        delete_on_exit=config.webhook_on_exit is WebhookOnExit.DELETE,
        linger_seconds=min(config.linger_seconds, LONGEST_LINGER_SECONDS),
        drain_seconds=config.drain_seconds,
        reconcile_seconds=config.reconcile_seconds,
        at_terminal=at_terminal,
    )


class WallClock:
    """Tells moments of the shared clock in UTC, and each again as it was told first, unless the clock was set meanwhile.

    Two clocks are never read at once, so that each telling would differ by microseconds.
    """

    def __init__(
        self, read: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)
    ) -> None:
        """Has told nothing yet."""
        self.read = read
        self._told: dict[str, tuple[float, datetime.datetime]] = {}

    def tell(self, name: str, moment: float | None, now: float) -> str | None:
        """In ISO 8601; None for None.

        Args:
            name: of what was then; the latest moment of each is kept.
            moment: seconds on the shared clock.
            now: the same, of this call.
        """
        if moment is None:
            return None
        at = self.read() - datetime.timedelta(seconds=now - moment)
        before, told = self._told.get(name, (None, at))
        if before != moment or abs(at - told) > _SET:
            told = at
        self._told[name] = (moment, told)
        return told.isoformat()


def status(state: State, now: float, config: Config, wall: WallClock) -> dict[str, object]:
    """INTERFACE.md's /status, from facts.

    Args:
        state: the facts.
        now: seconds on the shared clock.
        config: who we are, and the masked URL.
        wall: tells `since` and `last_checked`.
    """
    worker = next((w for w in reversed(state.workers) if w.accepting), None)
    shown_worker = worker or next(reversed(state.workers), None)
    beat = worker.beat if worker is not None else None
    counts = ("pending", "in_flight", "dead", "oldest_pending_seconds")
    inbox = None if beat is None else beat.inbox
    pool = None if beat is None else beat.pool
    owns = core.owns(state, now)
    if not state.session.open:
        lock = "unreachable"
    elif state.session.lock_held:
        lock = "held"
    else:
        lock = "waiting" if state.session.lock_tried else "not waiting"
    term = state.term
    # Who does not own asks Telegram about its token at most: what it found as an owner of before is no news. When that was, is
    # true as it stands.
    webhook = state.webhook if owns else None
    webhook_error = state.webhook_error
    if not (owns or state.token_refused or core.asks_for_itself(state)):
        webhook_error = None
    leader = state.worker(term.worker) if owns and term is not None else None
    polling = None if leader is None or leader.beat is None else leader.beat.polling_reason
    return {
        "role": "ACTIVE" if owns else "PASSIVE",
        "term": None
        if state.term is None
        else {"number": state.term.number, "since": wall.tell("since", state.term.began_at, now)},
        "instance_id": config.identity.instance_id,
        "deploy_id": config.identity.deploy_id,
        "lock": {"state": lock, "holder": core.holder(state), "reason": state.session.reason},
        "webhook": {
            "url": config.webhook_url_masked,
            "in_sync": _in_sync(state) if owns else None,
            "last_error": webhook_error or polling or _delivery_error(webhook, wall.read()),
            "pending_update_count": None if webhook is None else webhook.pending_update_count,
            "last_checked": wall.tell("last_checked", state.webhook_compared_at, now),
        },
        "worker": {
            "pid": None if shown_worker is None else shown_worker.pid,
            "ready": worker is not None,
            "restarts": state.restarts.ever,
            "loop_lag_ms": None if beat is None else beat.loop_lag_ms,
            "last_crash": state.last_crash,
        },
        "inbox": {name: getattr(inbox, name, None) for name in counts},
        "pool": {name: getattr(pool, name, None) for name in ("size", "in_use", "waiting", "unstored")},
        "uptime_seconds": round(now - state.started_at, 3),
    }


def _in_sync(state: State) -> bool | None:
    """Whether the owner's registration is as wanted; None: it is asserted, and nobody has looked at it since in this term."""
    if state.term is None or not state.term.registration.asserted:
        return False
    registration = state.term.registration
    compared_at = registration.compared_at
    if compared_at is None or compared_at < registration.asserted_at or state.webhook is None:
        return None
    return state.webhook.in_sync


def _delivery_error(webhook: m.WebhookFacts | None, wall: datetime.datetime) -> str | None:
    """Telegram tells of the last one for as long as the registration stands, recovered or not: so with its age."""
    if webhook is None or webhook.last_error is None or webhook.last_error_date is None:
        return None
    return f"{webhook.last_error} ({wall.timestamp() - webhook.last_error_date:.0f} s ago)"


def to_wire(action: m.WorkerAction) -> tuple[int, wire.ToWorker]:
    """The worker and the control message that carries `action` out."""
    match action:
        case m.TellHealth(worker=worker, health=health):
            said = "ok" if health.ok else "failing"
            return worker, wire.SetHealth(status=said, role=health.role, reason=health.reason)
        case m.Lead(worker=worker):
            return worker, wire.Lead(
                term=action.term,
                number=action.number,
                deadline=action.deadline,
                recover_at=action.recover_at,
                poll=action.poll,
            )
        case m.Extend(worker=worker, term=term, deadline=deadline):
            return worker, wire.Extend(term=term, deadline=deadline)
        case m.StopAccepting(worker=worker, linger_seconds=seconds):
            return worker, wire.StopAccepting(linger_seconds=seconds)
        case m.EndTerm(worker=worker, drain_seconds=seconds):
            return worker, wire.EndTerm(drain_seconds=seconds)
        case m.ExitWorker(worker=worker):
            return worker, wire.Exit()
        case _:
            assert_never(action)
