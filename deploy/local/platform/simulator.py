"""The platform at work: processes are started, probed, signalled and routed to as `sequence` decides.

An instance is `python -m supervisor` in a process of its own, started as in a container (launch.py): when its
first process ends, nothing of it stays. It gets what Render gives: PORT,
RENDER_INSTANCE_ID, RENDER_GIT_COMMIT, RENDER_SERVICE_ID and RENDER_EXTERNAL_URL (here http and 127.0.0.1,
which the bot accepts since its Bot API server is not Telegram's), and a HEALTH_PORT, which on one machine
cannot be the same for all.

Not promised: that the platform survives a fault of its own. One unexpected error ends all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from types import TracebackType
from typing import Self, assert_never

from deploy.local.errors import InstanceFailed
from deploy.local.guarded import GuardedProcess
from deploy.local.platform import sequence, service
from deploy.local.platform.launch import Launch, launch_under_guard
from deploy.local.platform.probe import passes_http, passes_tcp
from deploy.local.platform.records import Occurrence, OutputLine, Record, Release, Slot
from deploy.local.platform.router import Router, Target
from deploy.local.platform.service import DeployStatus, Service, Timing
from deploy.local.ports import LOOPBACK, free_port

HEALTH_PATH = "/healthz"
# Until the port is bound it is asked more often than any platform would, so that the timeline is worth
# reading.
_BOUND_POLL_SECONDS = 0.02
# And until the instance is healthy for the first time.
_FIRST_HEALTHY_POLL_SECONDS = 0.1


class Platform:
    """A service on the platform; an async context manager, at whose end everything has ended.

    Attributes:
        url: where the world reaches the service.
        history: what happened, in order.
        noted: called with every record of the history, by default nobody.
        output: called with every line that an instance writes, by default nobody; lines are in `log_folder` too.
        router: for its `on_exchange`.
    """

    def __init__(
        self,
        *,
        folder: Path,
        log_folder: Path,
        environment: Mapping[str, str],
        timing: Timing,
        router: Router | None = None,
        command: Sequence[str] = (sys.executable, "-m", "supervisor"),
        launch: Launch | None = None,
    ) -> None:
        """Does nothing yet.

        Args:
            folder: where the instances are started: the project.
            log_folder: gets a file `<instance>.log` for each; it exists.
            environment: the service's variables, the same for all deploys.
            timing: how patient the platform is.
            router: somebody else's, who has opened it and closes it later; None for one of our own.
            command: what an instance is.
            launch: another way to start an instance, which then has no use for `folder`, `log_folder` and `command`,
                and tells nobody of its output.
        """
        self._log_folder = log_folder
        self._environment = dict(environment)
        self._launch = launch or launch_under_guard(
            command, folder=folder, log_folder=log_folder, tell=self._tell
        )
        self._releases: list[Release] = []
        self._slots: dict[str, Slot] = {}
        self._service = Service()
        self._events: asyncio.Queue[service.Event] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._tasks = asyncio.TaskGroup()
        self._is_closing = False
        self._lives: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self.timing = timing
        self.history: list[Record] = []
        self.noted: list[Callable[[Record], None]] = []
        self.output: list[Callable[[OutputLine], None]] = []
        self._opens_router = router is None
        self.router = Router(free_port()) if router is None else router

    @property
    def url(self) -> str:
        """The public address."""
        return f"http://{LOOPBACK}:{self.router.port}"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The instances that there are."""
        return tuple(self._slots.values())

    @property
    def routed(self) -> tuple[str, ...]:
        """The names of the instances that get traffic."""
        return self._service.routed

    @property
    def releases(self) -> tuple[Release, ...]:
        """What was deployed; that of deploy 1 is the first."""
        return tuple(self._releases)

    def slot(self, name: str) -> Slot:
        """The instance of that name.

        Raises:
            KeyError: there is none, or no more.
        """
        return self._slots[name]

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        if self._opens_router:
            await self.router.__aenter__()
        self._loop = self._tasks.create_task(self._run(), name="platform")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.let_go()
        # As at the end of a service: everybody is told at once. Traffic goes on meanwhile, as it would.
        delay = 0.0 if kind is not None else self.timing.shutdown_delay_seconds
        try:
            await asyncio.gather(
                *(
                    self._end(slot, delay)
                    for slot in self._slots.values()
                    if slot.process is not None and slot.process.is_running
                )
            )
            for life in tuple(self._lives):
                await life
        except asyncio.CancelledError:
            # Somebody does not want to wait: not for a frozen instance either, which no SIGTERM reaches.
            for slot in self._slots.values():
                self._signal(slot.name, SIGKILL)
            raise
        finally:
            if self._opens_router:
                await self.router.__aexit__(None, None, None)
            # An error of the block's own would come out wrapped in a group; one of our tasks arrives in the block
            # as a cancellation, and must come out instead of it.
            is_cancelled = isinstance(error, asyncio.CancelledError)
            await self._tasks.__aexit__(*((kind, error, trace) if is_cancelled else (None, None, None)))

    async def let_go(self) -> None:
        """Decides nothing any more: instances run on, are routed to as before, and are not replaced when they end."""
        # Not by cancelling it: a process that is being spawned must not be lost sight of.
        self._is_closing = True
        self._wake()
        if self._loop is not None:
            await asyncio.wait([self._loop])

    def deploy(self, release: Release, *, count: int | None = None) -> int:
        """Begins a deploy and returns its number; a deploy that is still booting is cancelled.

        Args:
            release: what to run.
            count: how many instances; by default as many as what is live has, and at least one.
        """
        live = self._service.with_status(DeployStatus.LIVE)
        self._releases.append(release)
        number = len(self._releases)
        self._note(Occurrence.DEPLOY_REQUESTED, "", f"deploy {number}, commit {release.commit}")
        if count is None:
            count = 1 if live is None else max(live.count, 1)
        # At once and not by the queue, so that the number is that of the decision.
        self._service = sequence.observe(
            self._service, service.DeployRequested(count), time.monotonic(), self.timing
        )
        self._wake()
        return number

    def rollback(self) -> int:
        """Deploys what was live before what is live; returns the new deploy's number.

        Raises:
            InstanceFailed: nothing was.
        """
        earlier = self._service.with_status(DeployStatus.RETIRED)
        if earlier is None:
            raise InstanceFailed("there is no earlier deploy to roll back to")
        return self.deploy(self._releases[earlier.number - 1])

    def scale(self, count: int) -> None:
        """Changes how many instances the live deploy has."""
        self._events.put_nowait(service.ScaleRequested(count))

    def restart(self, name: str) -> None:
        """Ends an instance's process with SIGTERM and starts another in its place."""
        self._events.put_nowait(service.RestartRequested(name))

    def stop(self, name: str) -> None:
        """Ends an instance with SIGTERM, for good."""
        self._events.put_nowait(service.StopRequested(name))

    def send_signal(self, name: str, number: Signals) -> None:
        """Sends a signal to an instance's first process, the supervisor: SIGKILL, SIGSTOP, SIGHUP ..."""
        slot = self._slots[name]
        if slot.process is not None:
            if number is SIGKILL:
                self._note(Occurrence.SIGKILL_SENT, name, f"pid {slot.process.pid}")
            slot.process.signal(number)

    def kill(self, name: str) -> None:
        """kill -9; the platform starts another process in its place."""
        self.send_signal(name, SIGKILL)

    async def wait_until(self, condition: Callable[[], bool], *, limit_seconds: float) -> None:
        """Returns when a condition on this platform holds.

        Raises:
            InstanceFailed: it does not in time; the message has the end of what the instances wrote.
        """
        try:
            async with asyncio.timeout(limit_seconds), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError as error:
            raise InstanceFailed(f"waited {limit_seconds} s in vain; {self._last_words()}") from error

    async def wait_until_live(self, number: int, *, limit_seconds: float = 120) -> None:
        """Returns when a deploy gets the traffic.

        Raises:
            InstanceFailed: it was cancelled, or is not live in time.
        """
        await self.wait_until(
            lambda: self._service.deploy(number).status is not DeployStatus.BOOTING,
            limit_seconds=limit_seconds,
        )
        if self._service.deploy(number).status is DeployStatus.CANCELLED:
            raise InstanceFailed(f"deploy {number} was cancelled; {self._last_words()}")

    async def wait_until_retired(self, number: int) -> None:
        """Returns when the last process of a deploy is gone."""
        await self.wait_until(
            lambda: all(slot.deploy != number for slot in self._slots.values()), limit_seconds=120
        )

    async def _run(self) -> None:
        """The one loop that owns the state."""
        while True:
            self._service, actions = sequence.plan(self._service, time.monotonic(), self.timing)
            for action in actions:
                if self._is_closing:
                    return
                await self._act(action)
            if self._is_closing:
                return
            self._forget()
            async with self._changed:
                self._changed.notify_all()
            now = time.monotonic()
            deadline = sequence.next_deadline(self._service, now, self.timing)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if deadline is None else deadline - now):
                    event = await self._events.get()
                    self._service = sequence.observe(self._service, event, time.monotonic(), self.timing)

    async def _act(self, action: service.Action) -> None:
        match action:
            case service.Spawn():
                await self._spawn(action)
            case service.Terminate(name):
                self._note(Occurrence.SIGTERM_SENT, name)
                self._signal(name, SIGTERM)
            case service.Kill(name):
                self._note(Occurrence.SIGKILL_SENT, name)
                self._signal(name, SIGKILL)
            case service.Route(names):
                self._note(Occurrence.ROUTED, "", ", ".join(names) or "nobody")
                self.router.route([Target(name, self._slots[name].port) for name in names])
            case service.Announce(number, status):
                self._note(_OCCURRENCES[status], "", f"deploy {number}")
            case _:
                assert_never(action)

    async def _spawn(self, action: service.Spawn) -> None:
        slot = self._slots.get(action.name)
        if slot is None:
            slot = self._slots[action.name] = Slot(action.name, action.deploy, free_port(), free_port())
        release = self._releases[action.deploy - 1]
        slot.life = action.life
        slot.process = await self._launch(
            slot,
            {
                **self._environment,
                **release.environment,
                "PORT": str(slot.port),
                "HEALTH_PORT": str(slot.health_port),
                "HOST": LOOPBACK,
                "RENDER": "true",
                "RENDER_EXTERNAL_URL": self.url,
                "RENDER_INSTANCE_ID": slot.name,
                # Render gives a commit's hash; a name would tell the bot more than it is told there.
                "RENDER_GIT_COMMIT": hashlib.sha256(release.commit.encode()).hexdigest()[:40],
                "RENDER_SERVICE_ID": "srv-local",
            },
        )
        self._note(Occurrence.SPAWNED, slot.name, f"pid {slot.process.pid}")
        life = self._tasks.create_task(self._follow(slot, slot.process), name=f"life of {slot.name}")
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)

    async def _follow(self, slot: Slot, process: GuardedProcess) -> None:
        """From the spawn of a process to its end."""
        number = slot.life
        probing = asyncio.create_task(self._probe(slot, number), name=f"probes of {slot.name}")
        try:
            await process.wait_for_exit()
        finally:
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing
        self._note(Occurrence.EXITED, slot.name, f"status {process.exit_status}")
        # The container is gone with its first process: nobody is routed to what may be left of it.
        self.router.route([target for target in self.router.targets if target.name != slot.name])
        await process.wait()
        if process.leftovers:
            self._note(Occurrence.LEFTOVERS, slot.name, str(process.leftovers))
        self._events.put_nowait(service.Exited(slot.name, number))

    async def _probe(self, slot: Slot, life: int) -> None:
        """Asks a process for its health until it is gone."""
        while not await passes_tcp(slot.port, limit_seconds=self.timing.probe_limit_seconds):  # noqa: ASYNC110
            # Nobody can tell us: asking is what a platform does.
            await asyncio.sleep(_BOUND_POLL_SECONDS)
        self._note(Occurrence.BOUND, slot.name)
        passed: bool | None = None
        while True:
            passes = await passes_http(slot.port, HEALTH_PATH, limit_seconds=self.timing.probe_limit_seconds)
            if passes and not passed:
                self._note(Occurrence.HEALTHY, slot.name)
            elif passed and not passes and not self._is_ending(slot.name):
                self._note(Occurrence.FAILING, slot.name)
            passed = passes or (None if passed is None else False)
            event = service.ProbePassed if passes else service.ProbeFailed
            self._events.put_nowait(event(slot.name, life))
            await asyncio.sleep(
                self.timing.probe_interval_seconds if passed is not None else _FIRST_HEALTHY_POLL_SECONDS
            )

    async def _end(self, slot: Slot, delay_seconds: float) -> None:
        assert slot.process is not None
        self._note(Occurrence.SIGTERM_SENT, slot.name)
        await slot.process.end(SIGTERM, limit_seconds=delay_seconds)

    def _is_ending(self, name: str) -> bool:
        # An instance that has been told to end is right to say that it is not healthy.
        return any(item.name == name and item.terminated_at is not None for item in self._service.instances)

    def _signal(self, name: str, number: Signals) -> None:
        process = self._slots[name].process
        if process is not None:
            process.signal(number)

    def _forget(self) -> None:
        """Drops the slots of instances that the service has no more."""
        kept = {instance.name for instance in self._service.instances}
        for name in [name for name in self._slots if name not in kept]:
            del self._slots[name]

    def _wake(self) -> None:
        # Any event will do: a report about a process that never was changes nothing.
        self._events.put_nowait(service.ProbePassed("", 0))

    def _tell(self, line: OutputLine) -> None:
        for listener in self.output:
            listener(line)

    def _note(self, what: Occurrence, instance: str, detail: str = "") -> None:
        record = Record(time.monotonic(), what, instance, detail)
        self.history.append(record)
        for listener in self.noted:
            listener(record)

    def _last_words(self) -> str:
        words = []
        for path in sorted(self._log_folder.glob("srv-*.log")):
            lines = path.read_text(errors="replace").splitlines()[-5:]
            words.append("\n  ".join([f"the last lines of {path}:", *lines]))
        return "\n".join(words) or "no instance wrote anything"


_OCCURRENCES = {
    DeployStatus.BOOTING: Occurrence.DEPLOY_REQUESTED,
    DeployStatus.LIVE: Occurrence.DEPLOY_LIVE,
    DeployStatus.RETIRED: Occurrence.DEPLOY_RETIRED,
    DeployStatus.CANCELLED: Occurrence.DEPLOY_CANCELLED,
}
