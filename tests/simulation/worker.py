"""A simulated worker process: the product's own parts, put together as webhook_worker/worker.py puts them.

    webhook ─► ingest ─► writer ─► link        term ─► dispatcher ─► inbox ─► link
    control socket: a call each way that arrives a moment later; the lifeline is a timer that no blocked loop delays

Not simulated: uvicorn, FastAPI, python-telegram-bot, threads of handlers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random
from typing import Any, NoReturn, assert_never

from shared import wire
from tests.simulation.agenda import Agenda, Entry
from tests.simulation.bot import Bot
from tests.simulation.history import History
from tests.simulation.link import Link, LinkedInbox, LinkedWriter, fetch_registrations
from tests.simulation.postgres import Postgres
from tests.simulation.process import Process
from webhook_worker.app import Webhook
from webhook_worker.deadline import Deadline
from webhook_worker.dispatch import Dispatcher, DispatchSettings
from webhook_worker.flight import HandlersStuck
from webhook_worker.health import Health
from webhook_worker.ingest import Ingest
from webhook_worker.links import FIRST_CONNECT_SECONDS
from webhook_worker.registrations import Registrations
from webhook_worker.term import CANCEL_SECONDS, Term
from webhook_worker.verify import registration_of

MAKE_TERM = Term
MAKE_INGEST = Ingest
MAKE_HEALTH = Health
HAS_LIFELINE = True
"""What a worker is made of; sabotage.py takes safeties out of them."""

_CONTROL_SECONDS = 0.0005
_DISPATCH_CONNECT_SECONDS = 1.0
_FAILED_LINGER_SECONDS = 0.5
_FAILED_ANSWER_SECONDS = 12.0
_LOOK_SECONDS = 0.25

Reply = Callable[[int | None], None]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The part of the configuration that a worker has, and how the plan's bot is.

    Attributes:
        start_seconds: from the spawn until BOT_APP is built.
        receives_at_once: it accepts after half of that.
        start_fault: what happens then: "", "faults", "crash", "hang".
        fails_to_lead: the bot is broken from when it begins to own.
    """

    path: str
    secret: str
    concurrency: int = 8
    handler_timeout_seconds: float = 30.0
    max_attempts: int = 5
    has_persistence: bool = False
    start_seconds: float = 1.0
    receives_at_once: bool = False
    start_fault: str = ""
    fails_to_lead: bool = False


class _Links:
    """As webhook_worker/links.py, of one that starts beside another."""

    def __init__(self, dispatch: Link, group: Callable[[], asyncio.TaskGroup]) -> None:
        self._dispatch = dispatch
        self._group = group
        self._life: asyncio.Task[None] | None = None

    def open_dispatch(self) -> None:
        """See Links."""
        self._life = self._group().create_task(self._dispatch.keep(), name="link")

    async def wait_dispatch_tried(self) -> None:
        """See Links."""
        await self._dispatch.wait_tried(_DISPATCH_CONNECT_SECONDS)

    async def close_dispatch(self) -> None:
        """See Links."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
            self._dispatch.close()


class Worker:
    """One process, from its spawn to its death."""

    def __init__(
        self,
        name: str,
        host: str,
        agenda: Agenda,
        postgres: Postgres,
        history: History,
        random: Random,
        settings: WorkerSettings,
        *,
        tell: Callable[[wire.ToSupervisor], None],
        on_exit: Callable[[str], None],
        on_accepting: Callable[[], None],
        is_telegram_away: Callable[[], bool],
    ) -> None:
        """Is spawned, and comes up by itself.

        Args:
            name: of the process.
            host: from where it connects.
            agenda, postgres, history, random: of the simulation.
            settings: of its instance.
            tell: takes what it says to the supervisor.
            on_exit: it is dead; called once, with the status in words.
            on_accepting: it accepts connections from now on.
            is_telegram_away: whether a call of a handler would fail.
        """
        self.process = Process(agenda, name)  # type: ignore[abstract] # as a loop of asyncio's own may be
        self.accepting = False
        self._agenda = agenda
        self._postgres = postgres
        self._host = host
        self._history = history
        self._random = random
        self._settings = settings
        self._tell_supervisor = tell
        self._on_exit = on_exit
        self._on_accepting = on_accepting
        self._open: dict[int, Reply] = {}
        self._count = 0
        self._term_name = ""
        self._deadline = Deadline(self.process.time)
        self._led: str | None = None  # the term, by what the lifeline has read
        self._term_is_over = False
        self._lifeline: Entry | None = None
        self._health = MAKE_HEALTH(clock=self.process.time)
        self._bot = Bot(
            self.process,
            history,
            random,
            term=lambda: self._term_name,
            crash=lambda: self.die("killed by SIGSEGV"),
            is_telegram_away=is_telegram_away,
            has_persistence=settings.has_persistence,
            fails_to_lead=settings.fails_to_lead,
        )
        self._links: list[Link] = []
        start_seconds = settings.start_seconds * (0.7 + 0.6 * random.random())
        self._build_seconds = start_seconds / 2 if settings.receives_at_once else 0.0
        agenda.after(start_seconds - self._build_seconds, self.process.post, self._come_up)

    # ---------------------------------------------------------------------------------------------------- from outside

    @property
    def is_alive(self) -> bool:
        """Whether the process is there, stopped or not."""
        return not self.process.dead

    @property
    def leads(self) -> bool:
        """Whether a term was given to it."""
        return self._term_name != ""

    def die(self, status: str) -> None:
        """Ends it: a signal, a crash, an exit."""
        if self.process.dead:
            return
        self.accepting = False
        self._bot.die()
        self.process.kill()
        for link in self._links:
            link.close()
        if self._lifeline is not None:
            self._lifeline.cancel()
        self._history.note(self.process.name, status)
        for reply in list(self._open.values()):
            reply(None)
        self._open.clear()
        self._on_exit(status)

    def obey_soon(self, message: wire.ToWorker) -> None:
        """Puts a message into the control socket."""
        self._agenda.after(_CONTROL_SECONDS, self._receive, message)

    def request(self, path: bytes, secret: bytes, body: bytes, reply: Reply) -> None:
        """A connection was accepted, and this came on it."""
        self._count += 1
        number = self._count
        self._open[number] = reply
        self.process.post(self._begin_request, number, path, secret, body)

    @property
    def answers(self) -> bool:
        """Whether a probe that comes to it is answered: it accepts, and does not stand still."""
        return self.accepting and not self.process.stopped and not self.process.is_blocked

    @property
    def is_healthy(self) -> bool:
        """Whether /healthz of the public port answers 200."""
        return self._health.answer()[0] == 200

    @property
    def claims_to_own(self) -> bool:
        """Whether /healthz says so."""
        return self._health.answer()[1]["role"] == "ACTIVE"

    # -------------------------------------------------------------------------------------------------------- control

    def _receive(self, message: wire.ToWorker) -> None:
        """In the lifeline's thread, which a blocked loop does not hold up, and a stop does."""
        if self.process.dead:
            return
        if isinstance(message, wire.Lead) and self._led is None:
            self._led = message.term
            self._deadline.begin(message.deadline)
            self._watch_deadline()
        elif isinstance(message, wire.Extend) and not self.process.stopped:
            self._extend(message)
        self.process.post(self._obey, message)

    def _extend(self, extend: wire.Extend) -> None:
        if extend.term == self._led:
            self._deadline.extend(extend.deadline)

    def _watch_deadline(self) -> None:
        if self.process.dead or self._term_is_over:
            return
        left = self._deadline.at - self._agenda.now
        if left <= 0 and not self.process.stopped:
            self.lifeline()
            return
        self._lifeline = self._agenda.after(
            max(min(left, 1.0), 1e-7) if left > 0 else 0.05, self._watch_deadline
        )

    def lifeline(self) -> None:
        """The deadline has passed, and something of the term still runs."""
        if HAS_LIFELINE:
            self.die("killed by its lifeline at the deadline")

    def _tell(self, message: wire.ToSupervisor) -> None:
        self._agenda.after(_CONTROL_SECONDS, self._tell_supervisor, message)

    def _come_up(self) -> None:
        if self._settings.start_fault and not self._settings.receives_at_once:
            self._fail()
            return
        self.process.create_task(self._live(), name="worker").add_done_callback(self._ended)

    def _fail(self) -> None:
        if self._settings.start_fault == "hang":
            return
        is_said = self._settings.start_fault == "faults"
        if is_said:
            self._tell(wire.StartFailed(("BOT_APP cannot be imported",)))
        self._agenda.after(0.01, self.die, "exit status 2" if is_said else "killed by SIGKILL")

    async def _build_bot(self) -> None:
        """As main thread and early reception do it; returns when the bot is built, if it ever is."""
        self._tell(wire.Receiving())
        self._group.create_task(self._beat(), name="beats")
        await asyncio.sleep(self._build_seconds)
        is_wanted = self.accepting
        if is_wanted and self._settings.start_fault == "faults":
            self.accepting = False
            await self._close(_FAILED_LINGER_SECONDS, _FAILED_ANSWER_SECONDS)
        if is_wanted and self._settings.start_fault:
            self._fail()
        if not is_wanted or self._settings.start_fault:
            await asyncio.Event().wait()

    def _ended(self, living: asyncio.Task[None]) -> None:
        error = living.exception()
        if error is not None and not _is_handlers_stuck(error):
            raise AssertionError(f"{self.process.name} failed") from error
        self.die("exit status 1")

    async def _live(self) -> None:
        """As _Worker.live."""
        settings = self._settings
        self._dispatch_link = Link(self.process, self._host, self._postgres, "dispatch")
        self._term = MAKE_TERM(
            bot=self._bot,
            links=_Links(self._dispatch_link, lambda: self._group),
            deadline=self._deadline,
            make_dispatcher=self._make_dispatcher,
            poll=_never_polls,
            tell=self._tell,
            settle_threads=_nothing_to_settle,
            over=self._note_term_over,
            redact=str,
            now=self.process.time,
        )
        self._health.owned_until = lambda: self._term.owned_until
        ingest_link = Link(self.process, self._host, self._postgres, "ingest")
        lookups = Link(self.process, self._host, self._postgres, "look-ups", on_notify=self._term.wake)
        self._links = [ingest_link, self._dispatch_link, lookups]
        self._ingest = MAKE_INGEST(
            LinkedWriter(ingest_link),
            dispatches_here=lambda: self._term.dispatches,
            wake=self._term.wake,
            store_along=self._term.store_along,
        )
        self._webhook = Webhook(
            registrations=Registrations(
                registration_of(settings.path, settings.secret),
                lambda: fetch_registrations(lookups),
                clock=self.process.time,
            ),
            storage=self._ingest,
            foreign_secret=lambda: self._tell(wire.ForeignRegistration()),
            clock=self.process.time,
        )
        async with asyncio.TaskGroup() as group:
            self._group = group
            for link in (ingest_link, lookups):
                group.create_task(link.keep(), name="link")
            group.create_task(self._ingest.run(), name="ingest")
            await ingest_link.wait_tried(FIRST_CONNECT_SECONDS)
            self.accepting = True
            self._on_accepting()
            if settings.receives_at_once:
                await self._build_bot()
            else:
                self._group.create_task(self._beat(), name="beats")
            self._tell(wire.Accepting())
            await asyncio.Event().wait()

    async def _beat(self) -> None:
        depth, pool = None, wire.PoolUse()
        await self._ingest.wait_tried(1.0)
        while True:
            fault = self._ingest.fault
            self._tell(
                wire.Beat(
                    loop_lag_ms=0.0,
                    storing=fault is None,
                    storing_reason=fault,
                    inbox=depth,
                    pool=pool,
                    completed=self._term.completed,
                    dispatch_fault=self._term.dispatch_fault,
                )
            )
            await asyncio.sleep(1.0)

    def _make_dispatcher(self, term: str, deadline: Callable[[], float], recover_at: float) -> Dispatcher:
        settings = self._settings
        return Dispatcher(
            inbox=LinkedInbox(self._dispatch_link),
            handler=self._bot,
            term=term,
            deadline=deadline,
            recover_at=recover_at,
            settings=DispatchSettings(
                concurrency=settings.concurrency,
                handler_timeout_seconds=settings.handler_timeout_seconds,
                max_attempts=settings.max_attempts,
                dead_letter_days=30,
                margin_seconds=CANCEL_SECONDS,
            ),
            suspect_running=lambda running: self._tell(wire.SuspectRunning(running)),
            ask_telegram=nullcontext(self._bot.ask_telegram),
            clock=self.process.time,
            jitter=self._random.random,
        )

    def _note_term_over(self) -> None:
        self._term_is_over = True

    def _obey(self, message: wire.ToWorker) -> None:
        match message:
            case wire.SetHealth(ok=ok, role=role, reason=reason):
                self._health.set(role, reason, ok=ok)
            case wire.Lead():
                self._term_name = message.term
                self._history.note(self.process.name, f"leads term {message.term}")
                self._group.create_task(self._term.lead(message), name="term")
            case wire.Extend():
                self._extend(message)  # where it came while the process was stopped
            case wire.EndTerm():
                self._term.end(message)
            case wire.StopAccepting(linger_seconds=linger_seconds):
                self.accepting = False
                self._group.create_task(self._stop_accepting(linger_seconds), name="end of accepting")
            case wire.Exit():
                self._agenda.after(self._random.choice([0.01, 0.1]), self.die, "exit status 0")
            case _:
                assert_never(message)

    async def _stop_accepting(self, linger_seconds: float) -> None:
        await self._close(linger_seconds, wire.ANSWER_SECONDS)
        self._tell(wire.ConnectionsClosed())

    async def _close(self, linger_seconds: float, answer_seconds: float) -> None:
        # Nobody's connection is open but to be answered.
        end = self.process.time() + linger_seconds + answer_seconds
        while self._open and self.process.time() < end:
            await asyncio.sleep(0.05)

    # -------------------------------------------------------------------------------------------------------- requests

    def _begin_request(self, number: int, path: bytes, secret: bytes, body: bytes) -> None:
        self.process.create_task(self._serve(number, path, secret, body))

    async def _serve(self, number: int, path: bytes, secret: bytes, body: bytes) -> None:
        scope: dict[str, Any] = {
            "raw_path": path,
            "method": "POST",
            "headers": [(b"x-telegram-bot-api-secret-token", secret)],
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        status = await self._webhook.take(scope, receive)
        reply = self._open.pop(number, None)
        if reply is not None:
            reply(status)


async def _nothing_to_settle() -> None:
    return


async def _never_polls() -> NoReturn:
    raise AssertionError("the simulated bots have webhooks")


def _is_handlers_stuck(error: BaseException) -> bool:
    return isinstance(error, BaseExceptionGroup) and error.split(HandlersStuck)[1] is None
