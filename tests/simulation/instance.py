"""A simulated instance: a supervisor with its workers, in a container that its platform starts and stops.

The loop is that of supervisor/runner.py, the state its core's, the registrar the real one. Not simulated: the supervisor's own
HTTP, the log, signals of more than one kind.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from shared import config as configuration
from shared import wire
from shared.config import Config
from shared.telegram_api import TelegramApi
from supervisor import core
from supervisor import messages as m
from supervisor.registrar import Registrar
from supervisor.state import Settings, State, initial
from supervisor.status import WallClock, status
from supervisor.worker_process import to_wire
from tests.models.ownership import Row
from tests.simulation.lease import Lease
from tests.simulation.process import Process
from tests.simulation.telegram import Transport
from tests.simulation.worker import Worker, WorkerSettings

if TYPE_CHECKING:
    from tests.simulation.world import World

STEP = core.step
"""What decides; sabotage.py takes a safety out of it."""

Reply = Callable[[int | None], None]


@dataclass(frozen=True, slots=True)
class Release:
    """What is deployed: code and variables.

    Attributes:
        deploy_id: None: the platform gives none.
        secrets: which pair of path and secret; only every other rotation changes the path.
        token: which of the bot's tokens.
        start_fault: see WorkerSettings.
        fails_to_lead: the bot is broken from when it begins to own.
    """

    number: int
    deploy_id: str | None
    secrets: int = 0
    token: int = 0
    start_fault: str = ""
    fails_to_lead: bool = False

    @property
    def path(self) -> str:
        return f"simulated-path-{self.secrets // 2:04}"

    @property
    def secret(self) -> str:
        return f"simulated-secret-{self.secrets:04}"


def token_text(number: int) -> str:
    """A token of the bot; all have the same id."""
    return f"7:simulated-token-{number:024}"


class Instance:
    """One start of the supervisor."""

    def __init__(self, world: World, name: str, host: str, release: Release) -> None:
        """Is spawned, and comes up by itself.

        Args:
            world: of the simulation.
            name: of this start.
            host: the platform's name of the instance, which a restart in place keeps.
            release: what it runs.
        """
        self.world = world
        self.name = name
        self.host = host
        self.release = release
        self.exit_code: int | None = None
        self.is_dead = False
        self.process = Process(world.agenda, name)  # type: ignore[abstract] # as a loop of asyncio's own may be
        self.workers: dict[int, Worker] = {}
        self.serves_unavailable = False
        self._backlog: list[tuple[bytes, bytes, bytes, Reply]] = []
        self._random: Random = world.random_for(name)
        self._config = _config_of(release, name)
        self._wall = WallClock(lambda: datetime.datetime.fromtimestamp(world.agenda.now, datetime.UTC))
        settings = Settings(
            instance_id=name,
            token_fingerprint=str(release.token),
            polls=False,
            may_own=True,
            delete_on_exit=False,
            linger_seconds=world.plan.linger_seconds,
            drain_seconds=world.plan.drain_seconds,
            reconcile_seconds=world.plan.reconcile_seconds,
        )
        self.state: State = initial(settings, world.agenda.now)
        digest = hashlib.sha256
        self._lease = Lease(
            self.process,
            host,
            world.postgres,
            world.random_for(f"{name} lease"),
            row=self._row,
            registration=(digest(release.path.encode()).digest(), digest(release.secret.encode()).digest()),
            post=self._post,
            confirmed=lambda deadline: world.agenda.at(deadline, world.note_claims, self),
        )
        world.agenda.after(0.1 + 0.2 * self._random.random(), self.process.post, self._begin)

    # ---------------------------------------------------------------------------------------------------- from outside

    @property
    def owns(self) -> bool:
        """Whether it believes to own."""
        return not self.is_dead and core.owns(self.state, self.world.agenda.now)

    @property
    def health(self) -> m.Health:
        """What /healthz of its own port says, or the public one where no worker accepts."""
        return core.health(self.state, self.world.agenda.now)

    def is_healthy(self) -> bool:
        """Whether a probe of the public port gets 200: the worker answers it, or else the supervisor."""
        answering = [w for w in self.workers.values() if w.answers]
        if answering:
            return answering[-1].is_healthy
        return self.serves_unavailable and not self.process.stopped and not self.is_dead and self.health.ok

    def claimants(self) -> Iterator[str]:
        """The processes that would say now that this instance owns, on any port; one that stands still says nothing."""
        for worker in self.workers.values():
            if worker.answers and worker.claims_to_own:
                yield worker.process.name
        if self.is_dead or self.process.stopped:
            return
        told = status(self.state, self.world.agenda.now, self._config, self._wall)["role"]
        if "ACTIVE" in (told, self.health.role):
            yield self.name

    def leader(self) -> Worker | None:
        """The worker that dispatches, else one that lives."""
        alive = [w for w in self.workers.values() if w.is_alive]
        return next((w for w in alive if w.leads), alive[-1] if alive else None)

    def request(self, path: bytes, secret: bytes, body: bytes, reply: Reply) -> None:
        """A connection to the public port."""
        if self.is_dead:
            reply(None)
            return
        accepting = [w for w in self.workers.values() if w.accepting]
        if accepting:
            self._random.choice(accepting).request(path, secret, body, reply)
        elif self.serves_unavailable and not self.process.stopped:
            reply(503)
        else:
            self._backlog.append((path, secret, body, reply))

    def terminate(self) -> None:
        """SIGTERM."""
        self.world.history.note(self.name, "SIGTERM")
        self.process.post(lambda: self._take(m.StopRequested(at=self.world.agenda.now)))

    def hang_up(self) -> None:
        """SIGHUP."""
        self.world.history.note(self.name, "SIGHUP")
        self.process.post(lambda: self._take(m.ReplacementRequested(at=self.world.agenda.now)))

    def kill(self, status: str = "SIGKILL") -> None:
        """Ends it at once; its workers follow within a moment, a stopped one when it goes on."""
        if self.is_dead:
            return
        self.is_dead = True
        self.world.history.note(self.name, status)
        self.process.kill()
        self._lease.close()
        for worker in self.workers.values():
            # The lifeline, a pipe that the kernel answers, or the end of the control socket (webhook_worker/control.py).
            self.world.agenda.after(
                0.001 + 0.01 * self._random.random(), worker.die, "its supervisor is gone"
            )
        for _, _, _, reply in self._backlog:
            reply(None)
        self._backlog.clear()
        self.world.agenda.after(0.02, self.world.platform.instance_ended, self)

    # -------------------------------------------------------------------------------------------------------- the loop

    def _begin(self) -> None:
        self.process.create_task(self._run(), name="supervisor")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._registrar = Registrar(
                self._config,
                self._post,
                lambda call: core.may_call(self.state, call, self.world.agenda.now),
                tasks,
                make_api=lambda config: TelegramApi(
                    config.api_base_url,
                    config.token,
                    transport=Transport(self.world.telegram, self.name, lambda: self.state.term is not None),
                ),
                chance=self._random.random,
                now=self.process.time,
            )
            while True:
                self._take(m.Ticked(at=self.world.agenda.now))
                await asyncio.sleep(self.world.plan.tick_seconds)

    def _post(self, event: m.Event) -> None:
        self.process.post(self._take, event)

    def _take(self, event: m.Event) -> None:
        """One turn of the loop, as in runner.py."""
        if self.is_dead:
            return
        now, before = self.world.agenda.now, self.state
        self.state, actions = STEP(before, event, now)
        self.world.watch_step(self, before, event, actions)
        self._note_end()
        for action in actions:
            self._carry_out(action)
            if self.is_dead:
                return
        call = self.state.call
        if call is not None and not core.may_call(self.state, call, now):
            self._registrar.cut_off(call)

    def _note_end(self) -> None:
        term = self.state.term
        if term is not None and (term.ended is not None or self.state.stopping_since is not None):
            self.world.history.note_end(term.uuid)

    def _carry_out(self, action: m.Action) -> None:
        match action:
            case m.SessionAction():
                self._lease.begin(action)
            case m.CutWait():
                self._lease.cut_wait()
            case m.CloseSession():
                self._lease.close()
            case m.CallAction():
                self._registrar.begin(action)
            case m.SpawnWorker(worker=id_, receives_at_once=receives_at_once):
                self._spawn(id_, receives_at_once)
            case m.KillWorker(worker=id_, reason=reason):
                self.world.agenda.after(0.001, self.workers[id_].die, f"killed: {reason}")
            case m.ServeUnavailable(on=on):
                self.serves_unavailable = on
                if on:
                    self._serve_backlog()
            case m.ExitProcess(code=code):
                self.exit_code = code
                self.kill(f"exits with {code}")
            case _:
                id_, message = to_wire(action)
                self.workers[id_].obey_soon(message)

    # --------------------------------------------------------------------------------------------------------- workers

    def _spawn(self, id_: int, receives_at_once: bool) -> None:
        world, release = self.world, self.release
        worker = Worker(
            f"{self.name}/w{id_}",
            self.host,
            world.agenda,
            world.postgres,
            world.history,
            world.random_for(f"{self.name} worker {id_}"),
            WorkerSettings(
                release.path,
                release.secret,
                concurrency=world.plan.concurrency,
                has_persistence=world.plan.has_persistence,
                start_seconds=world.plan.start_seconds,
                receives_at_once=receives_at_once,
                # A bot that fails to lead has come up once.
                start_fault="" if release.fails_to_lead and not self.workers else release.start_fault,
                fails_to_lead=release.fails_to_lead,
            ),
            tell=lambda message: self._hear(id_, message),
            on_exit=lambda status: self._worker_ended(id_, status),
            on_accepting=self._serve_backlog,
            is_telegram_away=world.telegram.is_away,
        )
        self.workers[id_] = worker
        self._post(m.WorkerSpawned(at=world.agenda.now, worker=id_, pid=id_))

    def _hear(self, id_: int, message: wire.ToSupervisor) -> None:
        self.process.post(
            lambda: self._take(m.WorkerSaid(at=self.world.agenda.now, worker=id_, message=message))
        )

    def _worker_ended(self, id_: int, status: str) -> None:
        if self.is_dead:
            return
        chance = self._random.random()
        self.world.agenda.after(
            0.002,
            self.process.post,
            lambda: self._take(
                m.WorkerExited(at=self.world.agenda.now, worker=id_, status=status, chance=chance)
            ),
        )

    def _serve_backlog(self) -> None:
        waiting, self._backlog = self._backlog, []
        for path, secret, body, reply in waiting:
            self.request(path, secret, body, reply)

    def _row(self) -> Row:
        release = self.release
        return Row(self.name, self.host, release.deploy_id, str(release.token), None, False, 0.0, 0.0, 0.0)


def _config_of(release: Release, name: str) -> Config:
    environ = {
        "TELEGRAM_BOT_TOKEN": token_text(release.token),
        "DATABASE_URL": "postgresql://simulated",
        "WEBHOOK_BASE_URL": "https://simulated.example",
        "WEBHOOK_SECRET_PATH": release.path,
        "WEBHOOK_SECRET_TOKEN": release.secret,
        "PORT": "8080",
        "INSTANCE_ID": name,
    }
    return configuration.load(environ, stdin_is_terminal=False, stdout_is_terminal=False)
