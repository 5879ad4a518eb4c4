"""One scenario's ground: a database, an emulator, a router, instances, traffic, probes; and the means to break things.

Everything that is injected or dies is written down here, since the judge must know it. How to use it: `tests.campaign`.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator_process import RunningEmulator
from deploy.local.history import Death
from deploy.local.log_lines import LogLine
from deploy.local.platform.router import Exchange, Router
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.postgres import PostgresServer
from deploy.local.traffic import Traffic
from tests.campaign.evidence import Evidence, Freeze, Standstill
from tests.campaign.instance import SUPERVISOR, Descriptors, Instance
from tests.campaign.judge import Invariant, Objection
from tests.campaign.probes import Prober
from tests.campaign.recorder import Recorder
from tests.campaign.recovery import Fault
from tests.campaign.sabotage import BOT_VARIABLE, SAFETY_VARIABLE, Safety
from tests.campaign.scenario import Scenario
from tests.campaign.tenure import instance_of
from tests.campaign.webhooks import expected_webhook
from tests.end_to_end.instance import HANG_SECONDS, eventually, is_alive

CHATS = 300
ORPHANS_GONE = "supervisor killed to the end of all that it had started"

PER_SECOND = 40.0
"""Updates a second: always some in flight, and cheap enough for two cores with everything else on them."""


class Field:
    """Where one scenario takes place.

    Attributes:
        scenario: which one.
        repetitions: how often its fault is to be repeated.
        is_short: whether this is the shortened campaign.
        sabotage: the safety that is taken out of every instance; None in a campaign.
        folder: for whatever the scenario wants to keep; the instances' logs are there.
        server: the database's server; restart it only with `own_server=True`.
        database: the database's name in it.
        database_url: its direct DSN.
        telegram: users, calls, deliveries, faults of the Bot API.
        router: the platform's, in front of the instances.
        exchanges: what went through it and did not end with 200.
        instances: by name.
        starts: of instances, so far.
        traffic: what users wrote.
        faults: what was injected.
        deaths: who was killed.
        freezes: which workers were stopped and went on, beyond their deadline.
        objections: what was found while the system stood.
        expects_webhook: whether, at the end, an owner must stand with its webhook in place.
        standstills: when instances could not answer; see `standing_still`.
        urls: what each instance registers, by its name; kept when the instance is forgotten.
        urls_of_others: what is registered by somebody who is no instance of the field: the scenario, or one beside it.
        revise: what a scenario that knows better makes of the evidence before it is judged: see lagging.py.
        times: what a scenario measures itself, by name, in seconds.
        figures: what it counts, by name.
        closing: what a scenario opened and the conclusion still needs; closed at the end, before the instances are.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        repetitions: int,
        is_short: bool,
        sabotage: Safety | None,
        seed: int,
        folder: Path,
        server: PostgresServer,
        database: str,
        database_url: str,
        emulator: RunningEmulator,
    ) -> None:
        """Does no I/O; see `open_field`."""
        self.scenario = scenario
        self.repetitions = repetitions
        self.is_short = is_short
        self.sabotage = sabotage
        self.folder = folder
        self.server = server
        self.database = database
        self.database_url = database_url
        self.emulator = emulator
        self.router = Router(free_port())
        self.router.on_exchange = self._note_exchange
        self.exchanges: list[Exchange] = []
        self.instances: dict[str, Instance] = {}
        self.starts = 0
        self.traffic = Traffic(emulator.client, chats=CHATS, seed=seed)
        self.faults: list[Fault] = []
        self.deaths: list[Death] = []
        self.freezes: list[Freeze] = []
        self.standstills: list[Standstill] = []
        self.objections: list[Objection] = []
        self.expects_webhook = True
        self.urls: dict[str, str] = {}
        self.urls_of_others: list[str] = []
        self.revise: Callable[[Evidence], Evidence] = lambda evidence: evidence
        self.times: dict[str, list[float]] = {}
        self.figures: dict[str, float] = {}
        self.recorder = Recorder(database_url)
        self.prober = Prober(self.router)
        self.descriptors = Descriptors()
        self.closing = AsyncExitStack()
        self.history_folder = folder / "history"

    @property
    def telegram(self) -> EmulatorClient:
        """Users, the history of calls and deliveries, faults."""
        return self.emulator.client

    @property
    def public_url(self) -> str:
        """WEBHOOK_BASE_URL: the router's."""
        return f"http://{LOOPBACK}:{self.router.port}"

    @property
    def running(self) -> list[Instance]:
        """The instances whose supervisor runs."""
        return [instance for instance in self.instances.values() if instance.is_running]

    # ------------------------------------------------------------------------------------------------------ instances

    def prepare(
        self,
        name: str,
        *,
        dsn: str | None = None,
        prefix: Sequence[str] = (),
        command: Sequence[str] = SUPERVISOR,
        host: str = LOOPBACK,
        **variables: str,
    ) -> Instance:
        """An instance that is not started yet.

        Args:
            name: the platform's name for it, without a dash.
            dsn: another way to the database: through a proxy, a pooler, a namespace's gateway.
            prefix: in front of the command, by full path; must exec it (`ip netns exec`, `prlimit`, `env` do).
            command: instead of the supervisor: a wrapper of it.
            host: where it listens, is probed and gets its requests, as seen from here.
            variables: more of its environment; an empty value takes a variable out.
        """
        environment = {
            "TELEGRAM_BOT_TOKEN": self.emulator.token,
            "TELEGRAM_API_BASE_URL": self.emulator.base_url,
            "DATABASE_URL": dsn or self.database_url,
            "WEBHOOK_BASE_URL": self.public_url,
            "HOST": host,
            "HEALTH_HOST": host,
            "PORT": str(free_port()),
            "HEALTH_PORT": str(free_port()),
            "LOG_FORMAT": "json",
            "INSTANCE_ID": name,
            "RENDER_INSTANCE_ID": name,
            "DEPLOY_ID": "campaign",
            "LINGER_SECONDS": "1",
            "BOT_APP": "deploy.local.traffic_bot:build",
            "HISTORY_DIR": str(self.history_folder),
            **variables,
        }
        if self.sabotage is not None:
            environment |= {
                SAFETY_VARIABLE: self.sabotage.value,
                BOT_VARIABLE: environment["BOT_APP"],
                "BOT_APP": "tests.campaign.sabotage:build",
            }
            command = [word if word != "supervisor" else "tests.campaign.sabotage" for word in command]
        instance = Instance(
            name,
            {key: value for key, value in environment.items() if value},
            command=[*prefix, *command],
            log_path=self.folder / f"{name}.log",
        )
        instance.on_start = self._note_start
        instance.on_log = lambda line: self._note_line(instance, line)
        self.instances[name] = instance
        self.urls[name] = expected_webhook(instance)[0]
        return instance

    async def start(
        self,
        name: str,
        *,
        dsn: str | None = None,
        prefix: Sequence[str] = (),
        command: Sequence[str] = SUPERVISOR,
        host: str = LOOPBACK,
        **variables: str,
    ) -> Instance:
        """`prepare`, spawn, probe; returns before it is up. See `steady`."""
        instance = self.prepare(name, dsn=dsn, prefix=prefix, command=command, host=host, **variables)
        await self.restart(instance)
        return instance

    async def restart(self, instance: Instance) -> None:
        """Starts an instance that has ended, in its place: same ports, same name, same environment."""
        await instance.start()
        self.prober.follow(instance)

    async def stop(self, instance: Instance) -> int:
        """SIGTERM, and its exit status."""
        instance.signal(SIGTERM)
        return await instance.wait_for_exit()

    async def owner(self) -> Instance:
        """The instance whose term it is, as soon as one says so itself."""
        found: list[Instance] = []

        async def is_there() -> bool:
            rows = await self.recorder.fetch_when_back(
                "SELECT instance_id FROM webhook_supervisor.terms WHERE ended_at IS NULL"
            )
            for (instance_id,) in rows:
                instance = self.instances.get(instance_of(str(instance_id)))
                if instance is not None and instance.is_running:
                    status = await instance.try_status()
                    if (
                        status is not None
                        and status["role"] == "ACTIVE"
                        and status["instance_id"] == instance_id
                    ):
                        found.append(instance)
                        return True
            return False

        await eventually(is_there, "an owner")
        return found[-1]

    async def term_number(self) -> int:
        """The number of the last term."""
        return int((await self.recorder.fetch_when_back("SELECT number FROM webhook_supervisor.terms"))[0][0])

    async def wait_for_term_after(self, number: int) -> None:
        """Until a term has begun that is later than this one."""

        async def has_begun() -> bool:
            return await self.term_number() > number

        await eventually(has_begun, f"a term after {number}")

    async def standby(self) -> Instance:
        """Any running instance that does not own."""
        owner = await self.owner()
        return next(instance for instance in self.running if instance is not owner)

    async def steady(self) -> Instance:
        """Waits until nothing is left to recover, and returns the owner.

        Every running instance is healthy, one of them owns and its worker has claimed something in its term (there must be
        traffic), all the others wait in the lock's queue, and, while traffic flows, what is written now is answered 200.
        """
        for instance in self.running:
            await instance.wait_until_healthy()
            # A standby may wait in the queue while the worker of its last term is being replaced.
            await instance.wait_until(lambda it=instance: it.is_settled, "end of its former worker")  # type: ignore[misc]
        owner = await self.owner()

        async def dispatches() -> bool:
            rows = await self.recorder.fetch_when_back(
                "SELECT EXISTS (SELECT FROM (SELECT new_term FROM campaign.inbox_changes ORDER BY id DESC LIMIT 500) c "
                "JOIN webhook_supervisor.terms t ON t.uuid = c.new_term WHERE t.ended_at IS NULL)"
            )
            return bool(rows[0][0])

        async def wait_in_queue() -> bool:
            rows = await self.recorder.fetch_when_back(
                "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
                "WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database()"
            )
            return int(rows[0][0]) >= len(self.running) - 1

        await eventually(dispatches, "an owner that dispatches")
        await eventually(wait_in_queue, f"{len(self.running) - 1} instances in the queue")
        for instance in self.running:
            # In the end: what it accepted while no worker did is open for some seconds.
            await eventually(
                partial(self._has_given_back, instance), f"descriptors of {instance.name} given back"
            )
        if self.traffic.is_flowing:
            # What was claimed may have been stored long ago, and Telegram may be waiting with all that failed since.
            await self._wait_for_fresh_answer()
        return owner

    async def _wait_for_fresh_answer(self) -> None:
        """Until an update that nobody has written yet is answered 200."""
        old = set(self.traffic.sent)
        after = (await self.telegram.state()).last_delivery_seq

        async def is_answered() -> bool:
            attempts = await self.telegram.deliveries(after=after)
            return any(
                attempt.answered_200_at is not None
                and attempt.update_id in self.traffic.sent
                and attempt.update_id not in old
                for attempt in attempts
            )

        await eventually(is_answered, "an answer to what is written now")

    async def _has_given_back(self, instance: Instance) -> bool:
        return self.descriptors.look(instance) is None

    # ---------------------------------------------------------------------------------------------------------- faults

    def inject(self, kind: str, instance: Instance | None = None, *, at: float | None = None) -> Fault:
        """Writes down a fault, which begins now (or at `at`); recovery is measured from there."""
        fault = Fault(kind, time.monotonic() if at is None else at, "" if instance is None else instance.name)
        self.faults.append(fault)
        return fault

    def signal(self, instance: Instance, number: Signals, kind: str = "") -> Fault:
        """A signal to the supervisor alone, as a fault."""
        fault = self.inject(kind or number.name, instance)
        instance.signal(number)
        return fault

    async def kill_supervisor(self, instance: Instance, kind: str = "kill -9 supervisor") -> Fault:
        """kill -9; returns when everything of the instance is gone. What outlives it by GRACE_SECONDS is a breach of H."""
        fault = self.inject(kind, instance)
        process = instance.process
        await instance.end_suddenly()
        if process.exited_at is not None:
            self.times.setdefault(ORPHANS_GONE, []).append(time.monotonic() - process.exited_at)
        self.note_death(instance, fault.at, time.monotonic())
        return fault

    async def kill_worker(self, instance: Instance, kind: str = "kill -9 worker") -> Fault:
        """kill -9 of the worker that accepts; returns when it is gone. Its supervisor's log tells us of the death."""
        pid = await instance.worker_pid()
        fault = self.inject(kind, instance)
        os.kill(pid, SIGKILL)

        async def is_gone() -> bool:
            return not is_alive(pid)

        await eventually(is_gone, f"the end of worker {pid}")
        return fault

    async def put_in_flight(self, seconds_of_work: Sequence[float]) -> list[int]:
        """Updates of so much work beside the flow, each in another chat; returns when one of them has been claimed.

        Not when all are: a chat may wait for what was interrupted before.
        """
        await self.traffic.send(seconds_of_work)
        sent = list(self.traffic.sent)[-len(seconds_of_work) :]
        await eventually(partial(self.is_in_flight, sent), "handlers in flight")
        return sent

    async def is_in_flight(self, update_ids: Sequence[int]) -> bool:
        """Whether one of them has been claimed and is not over."""
        rows = await self.recorder.fetch(
            "SELECT EXISTS (SELECT FROM webhook_supervisor.inbox WHERE update_id = ANY(%s) AND state = 'claimed')",
            list(update_ids),
        )
        return bool(rows[0][0])

    async def write(self, text: str) -> None:
        """A user of the traffic writes something else than it; judged like everything."""
        user = min(self.traffic.sent.values(), default=1)
        sent = await self.telegram.send_text(user, text)
        assert sent.update_id is not None
        self.traffic.sent[sent.update_id] = sent.chat_id

    def note_death(self, instance: Instance, at: float, over_at: float | None = None) -> None:
        """Writes down that what ran on an instance was killed at `at`, and that all of it was gone at `over_at`."""
        self.deaths.append(Death(instance.name, at, at if over_at is None else over_at))

    @contextmanager
    def standing_still(self, instance: Instance) -> Iterator[None]:
        """While the block runs an instance need not answer its probes: it is stopped, or its bot does not let it."""
        at = time.monotonic()
        try:
            yield
        finally:
            self.standstills.append(Standstill(instance.name, at, time.monotonic()))

    def object(self, invariant: Invariant, why: str) -> None:
        """Writes down a breach that the scenario itself has seen."""
        self.objections.append(Objection(invariant, why))

    @asynccontextmanager
    async def flowing(self, per_second: float = PER_SECOND) -> AsyncIterator[None]:
        """Steady traffic of hundreds of chats while the block runs."""
        async with self.traffic.flowing(per_second):
            yield

    # ------------------------------------------------------------------------------------------------------- bookkeeping

    def _note_exchange(self, exchange: Exchange) -> None:
        if exchange.status != 200:
            self.exchanges.append(exchange)

    def _note_start(self) -> None:
        self.starts += 1

    def _note_line(self, instance: Instance, line: LogLine) -> None:
        # A worker that was killed, or crashed: what it had in flight runs again. One that was told to go ends with 0.
        if line.begins("WORKER", "worker ended") and line.fields.get("status") != "exit status 0":
            self.note_death(instance, time.monotonic())


@asynccontextmanager
async def open_field(field: Field) -> AsyncIterator[Field]:
    """The router and the recorder run, and at the end everything that was started has ended."""
    field.history_folder.mkdir()
    await field.recorder.install()
    async with field.router:
        try:
            yield field
        finally:
            await field.closing.aclose()
            for instance in field.instances.values():
                await instance.close()
            await field.prober.close()
            await field.recorder.close()


HANG = HANG_SECONDS
"""Limit of every wait."""
