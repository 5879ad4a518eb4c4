"""A simulation put together: it lets a plan happen, then leaves the system alone until it has recovered or is late."""

from __future__ import annotations

import gc
import itertools
import json
import math
import sys
import warnings
from collections.abc import Callable
from random import Random

import psycopg

from supervisor import messages as m
from supervisor.state import State
from tests.simulation import network as net
from tests.simulation.agenda import Agenda
from tests.simulation.bot import INNOCENT, Order, Work, text_of
from tests.simulation.history import History
from tests.simulation.instance import Instance, Release, token_text
from tests.simulation.plan import Fault, Plan, Step
from tests.simulation.platform import Platform
from tests.simulation.postgres import Postgres
from tests.simulation.telegram import Telegram
from tests.unit.supervisor import invariants
from webhook_worker.lanes import State as RowState

RECOVERY_SECONDS = 400.0
"""After the plan, and the end of its last fault, everything must be in order within this: Telegram's backoff of up to 120 s, a
token that is tried again after 300 s, and an abstention of a minute or two are in it."""

LONG_RECOVERY_SECONDS = 2000.0
"""The same where the webhook was overwritten three times or more, since the pause before it is mended grows to 900 s; and
where handlers misbehave: a poison update is started five times, one after the other, and a hanging one has its 30 s."""

CHECKED_SEEDS = 4
"""One of so many seeds asks all of the core's invariants after every step that decided something: that costs as much as the
rest, and has its own tests. What health says of ownership is asked after every step of every seed."""

CALM_SECONDS = 10.0
"""Between two updates after the last fault, until everything is in order."""

LIVES_SECONDS = 86_400.0
PRESS_LIVES_SECONDS = 150.0

_WAITING = (RowState.PENDING, RowState.CLAIMED)

_ODD = (Work.FAILING, Work.STUBBORN, Work.HANGING, Work.BLOCKING, Work.POISON)


class World:
    """One simulation."""

    def __init__(self, plan: Plan) -> None:
        """Nothing has happened yet."""
        self.plan = plan
        self.agenda = Agenda()
        self.history = History(self.agenda)
        self.network = net.Network(self.agenda, self.random_for("network"))
        self.postgres = Postgres(self.agenda, self.network, self.history, self.random_for("postgres"))
        self.telegram = Telegram(self.agenda, self.history, self.random_for("telegram"), token_text(0))
        self.router_random = self.random_for("router")
        self.platform_random = self.random_for("platform")
        self.platform = Platform(self)
        self.telegram.receiver = self.platform
        self.orders: dict[int, Order] = {}
        self.is_recovered = False
        self.recovery_seconds: float | None = None
        self._traffic = self.random_for("traffic")
        self._releases = [Release(1, self._deploy_id(1))]
        self._checks: dict[str, invariants.History] = {}
        self._is_calm = False
        self._calm_at = self.agenda.now + plan.seconds
        self._fault_lasts_until = self.agenda.now
        self._numbers = itertools.count(1)

    def random_for(self, name: str) -> Random:
        """A generator of its own for each part, so that one step less does not change all of them."""
        return Random(f"{self.plan.seed} {name}")

    def run(self) -> None:
        """Lets everything happen."""
        # What is there already stays: collecting it again and again costs more than a simulation.
        gc.freeze()
        gc.disable()
        try:
            self._run()
        finally:
            gc.enable()

    def _run(self) -> None:
        self.platform.begin()
        self.platform.want(self._releases[0], self.plan.instances)
        self.agenda.after(1.0, self._write_something)
        for step in self.plan.steps:
            self.agenda.after(step.at, self._befall, step)
        self.agenda.run_until(self.agenda.now + max((step.at for step in self.plan.steps), default=0.0))
        while self.agenda.now < self._calm_at:
            self.agenda.run_until(min(self.agenda.now + 1.0, self._calm_at))
            self._look_whether_recovered()
        self._calm_down()
        while not self.is_recovered and self.agenda.now < self._late_at():
            self.agenda.run_until(self.agenda.now + 1.0)
            self._look_whether_recovered()
            self.is_recovered = self._is_in_order(math.inf)
        # It must stay so.
        self.agenda.run_until(self.agenda.now + 20.0)

    def _look_whether_recovered(self) -> None:
        if self.recovery_seconds is None and self._is_in_order(self.faults_end_at):
            self.recovery_seconds = self.agenda.now - self.faults_end_at

    def _late_at(self) -> float:
        return max(self._calm_at, self.faults_end_at) + self.limit_seconds

    @property
    def limit_seconds(self) -> float:
        """Within which everything must be in order, after the plan and the end of its last fault."""
        overwritten = sum(step.fault is Fault.OVERWRITE for step in self.plan.steps)
        return LONG_RECOVERY_SECONDS if overwritten >= 3 or self.plan.odd_work > 0 else RECOVERY_SECONDS

    @property
    def faults_end_at(self) -> float:
        """When everything that befell the system until now is over, as far as it is not the system's to mend."""
        return max(self._fault_lasts_until, self.postgres.up_at)

    def end(self) -> None:
        """Lets go of everything; nothing of it can be used afterwards."""
        # Coroutines that were in the middle of something are closed when they are collected, and some want to await at that.
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                self.__dict__.clear()
                gc.collect()
        finally:
            sys.unraisablehook = hook

    # --------------------------------------------------------------------------------------------------------- traffic

    def _write_something(self) -> None:
        plan, random = self.plan, self._traffic
        pause = random.expovariate(plan.updates_per_second)
        if self.agenda.now >= 1000.0 + plan.seconds:
            if self.is_recovered:
                return
            # Someone still writes: what is wrong at Telegram, a request has to tell.
            pause += CALM_SECONDS
        self.agenda.after(pause, self._write_something)
        chat = 1 + random.randrange(plan.chats)
        is_odd = random.random() < plan.odd_work
        work = (
            random.choice(_ODD)
            if is_odd
            else random.choice([Work.PLAIN, Work.PLAIN, Work.CALLING, Work.FLAKY])
        )
        seconds = random.choice([1.0, 3.0, 12.0] if random.random() < 0.07 else [0.02, 0.1, 0.3])
        if is_odd:
            seconds = random.choice([0.1, 2.0, 6.0, 14.0])
        order = Order(work, seconds)
        presses = random.random() < 0.2
        content = {"chat": {"id": chat}, "from": {"id": chat}, "text": text_of(order)}
        kind, queue = ("callback_query", "callbacks") if presses else ("message", "messages")
        update_id = self.telegram.push(
            kind, f"{queue}:{chat}", chat, {kind: content}, PRESS_LIVES_SECONDS if presses else LIVES_SECONDS
        )
        if update_id is not None:
            self.orders[update_id] = order

    # ---------------------------------------------------------------------------------------------------------- faults

    def _befall(self, step: Step) -> None:
        self.history.note("FAULT", f"{step.fault.value} (amount {step.amount:g}, variant {step.variant})")
        self._let_last(0.0)
        act: Callable[[Step], None] = getattr(self, f"_{step.fault.name.lower()}")
        act(step)

    def _let_last(self, seconds: float, end: Callable[..., object] | None = None, *arguments: object) -> None:
        """A fault lasts so long, and then `end` ends it."""
        self._fault_lasts_until = max(self._fault_lasts_until, self.agenda.now + seconds)
        if end is not None:
            self.agenda.after(seconds, end, *arguments)

    def _let_last_until_calm(self, seconds: float, end: Callable[..., object] | None = None) -> None:
        """The same of what `_calm_down` ends, if it has not ended before."""
        self._let_last(min(seconds, self._calm_at - self.agenda.now))
        if end is not None:
            self.agenda.after(seconds, end)

    def _victim(self, step: Step) -> Instance | None:
        alive = self.platform.instances()
        owners = [one for one in alive if one.owns]
        if step.who < 0.5 and owners:
            return owners[0]
        return alive[int(step.who * len(alive))] if alive else None

    def _kill_supervisor(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None:
            victim.kill()

    def _kill_worker(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None and (worker := victim.leader()) is not None:
            worker.die("killed by SIGKILL")

    def _stop_supervisor(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None:
            victim.process.stop_signal()
            self._let_last(step.amount, victim.process.continue_signal)

    def _stop_worker(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None and (worker := victim.leader()) is not None:
            worker.process.stop_signal()
            self._let_last(step.amount, worker.process.continue_signal)

    def _stop_both(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None:
            processes = [victim.process, *(w.process for w in victim.workers.values() if w.is_alive)]
            for process in processes:
                process.stop_signal()
                self._let_last(step.amount, process.continue_signal)

    def _hang_up(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None:
            victim.hang_up()

    def _terminate(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None:
            victim.terminate()
            self.agenda.after(30.0, victim.kill)

    def _cut(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None:
            way = step.variant % 4
            self.network.cut(victim.host, up=way != 1, down=way != 2, acknowledged=way == 3)
            self._let_last(step.amount, self.network.heal, victim.host)

    def _slow(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None:
            route = self.network.route(victim.host)
            route.latency_seconds = (0.05, 0.3, 1.0)[step.variant % 3]
            self._let_last(2 * step.amount, self._be_fast, victim.host)

    def _be_fast(self, host: str) -> None:
        self.network.route(host).latency_seconds = 0.002

    def _end_session(self, step: Step) -> None:
        holder = self.postgres.ownership.holder
        if holder is None or holder not in self.postgres.sessions:
            return
        owner = next((one for one in self.platform.instances() if one.name == holder[0]), None)
        # Its owner hears of it late, and another one has begun by then, while the old one's worker works on.
        if owner is not None and step.variant % 4 == 1:
            owner.process.stop_signal()
            self._let_last(step.amount, owner.process.continue_signal)
        elif owner is not None and step.variant % 4 == 3:
            self.network.route(owner.host).latency_seconds = (0.2, 0.7, 1.5)[step.variant % 3]
            self._let_last(step.amount, self._be_fast, owner.host)
        self.postgres.sessions[holder].end("terminating connection due to administrator command")

    def _restart_database(self, step: Step) -> None:
        self.postgres.go_down(min(step.amount, 20.0))

    def _database_away(self, step: Step) -> None:
        self.postgres.go_down(step.amount)

    def _fail_over(self, step: Step) -> None:
        promote = self.postgres.replica()
        self._let_last((0.0, 0.01, 0.2, 1.5)[step.variant % 4], promote)

    def _few_sessions(self, step: Step) -> None:
        if (victim := self._victim(step)) is not None:
            self.postgres.take_sessions(victim.name, victim.host)
            self._let_last(step.amount, self.postgres.hosts_without_sessions.discard, victim.host)

    def _read_only(self, step: Step) -> None:
        self.postgres.write_fault = psycopg.errors.DiskFull("could not extend file: No space left on device")
        self._let_last_until_calm(min(step.amount, 20.0), self._be_writable)

    def _be_writable(self) -> None:
        self.postgres.write_fault = None

    def _set_database_clock(self, step: Step) -> None:
        self.postgres.wall_offset_seconds += 3600.0 if step.variant % 2 else -3600.0

    def _hold_term(self, step: Step) -> None:
        # At the most as long as idle_in_transaction_session_timeout of a worker's session lets it (shared/database).
        self.postgres.term_locked_until = self.agenda.now + min(step.amount, 10.0)
        self._let_last(min(step.amount, 10.0))

    def _telegram_away(self, step: Step) -> None:
        self.telegram.away_until = max(self.telegram.away_until, self.agenda.now + step.amount * 3)
        self._let_last_until_calm(step.amount * 3)

    def _telegram_fault(self, step: Step) -> None:
        self.telegram.call_faults.append(("429", "502", "applied", "hang")[step.variant % 4])

    def _overwrite(self, step: Step) -> None:
        foreign = self.telegram.registration.without_webhook()
        if step.variant % 3:
            foreign = type(foreign)(
                url="https://other.example/hook", max_connections=40, secret_token="other"
            )
        if step.variant % 3 == 2 and self.telegram.registration.url:
            # Our own URL with a secret of somebody else's.
            foreign = type(foreign)(
                url=self.telegram.registration.url, max_connections=40, secret_token="x" * 20
            )
        self.telegram.register(foreign, is_foreign=True)

    def _forge(self, step: Step) -> None:
        url = f"https://simulated.example/webhook/{self._releases[-1].path}"
        body = json.dumps(
            {"update_id": 10**12 + next(self._numbers), "message": {"chat": {"id": 1}}}
        ).encode()

        def answered(status: int | None) -> None:
            if status == 200:
                self.history.object_to("S", "a forged request was answered 200")

        self.platform.deliver(url, f"forged-secret-{'x' * 20}", body, answered)

    def _deploy(self, step: Step) -> None:
        last = self._releases[-1]
        number = len(self._releases) + 1
        self._want(Release(number, self._deploy_id(number), last.secrets, last.token))

    def _rotate(self, step: Step) -> None:
        last = self._releases[-1]
        number = len(self._releases) + 1
        self._want(Release(number, self._deploy_id(number), last.secrets + 1, last.token))

    def _broken_deploy(self, step: Step) -> None:
        last = self._releases[-1]
        number = last.number + 1000
        fault = ("", "faults", "crash", "hang")[step.variant % 4]
        broken = Release(
            number,
            self._deploy_id(number),
            last.secrets,
            last.token,
            start_fault=fault,
            fails_to_lead=fault in ("", "hang"),
        )
        self.platform.want(broken, self.plan.instances)
        # Sooner or later somebody looks, and deploys what worked.
        self._let_last_until_calm(100.0, lambda: self._deploy(step))

    def _roll_back(self, step: Step) -> None:
        last = self._releases[-1]
        before = self._releases[-2] if len(self._releases) > 1 else last
        # The old code, with the variables of today.
        self._want(Release(before.number, before.deploy_id, last.secrets, last.token))

    def _revoke(self, step: Step) -> None:
        last = self._releases[-1]
        number = len(self._releases) + 1
        new = Release(number, self._deploy_id(number), last.secrets, last.token + 1)
        self.telegram.token = token_text(new.token)
        self._want(new)

    def _repeat(self, step: Step) -> None:
        taken = [d for d in self.history.deliveries.values() if d.taken_at is not None]
        if not taken:
            return
        delivery = taken[int(step.who * len(taken))]
        order = self.orders[delivery.update_id]
        content = {"chat": {"id": delivery.lane}, "from": {"id": delivery.lane}, "text": text_of(order)}
        self.telegram.repeat(delivery.update_id, delivery.queue, {"message": content})

    def _restart_all(self, step: Step) -> None:
        for instance in self.platform.instances():
            instance.kill()
        self.postgres.go_down(min(step.amount, 10.0))

    def _want(self, release: Release) -> None:
        if self._is_calm:
            return
        self._releases.append(release)
        self.platform.want(release, self.plan.instances)

    def _deploy_id(self, number: int) -> str | None:
        return f"d{number}" if self.plan.has_deploy_ids else None

    def _calm_down(self) -> None:
        """No more faults; those that last end."""
        self.history.note("plan", "is over: nothing befalls the system any more")
        self._is_calm = True
        self.telegram.away_until = 0.0
        self.telegram.call_faults.clear()
        self._be_writable()
        # A broken deploy is somebody's to mend; here it is mended. Of deploys that wait, the last one is as good as all.
        last = self._releases[-1]
        self.platform.wanted = self.platform.wanted[-1:]
        broken = any(slot.release.start_fault or slot.release.fails_to_lead for slot in self.platform.slots)
        if broken or any(release.start_fault or release.fails_to_lead for release, _ in self.platform.wanted):
            self.platform.want(last, self.plan.instances)

    # ------------------------------------------------------------------------------------------------------- judgement

    def watch_step(
        self, instance: Instance, before: State, event: m.Event, actions: tuple[m.Action, ...]
    ) -> None:
        """After every step of a core: judges what health says of ownership, and in some seeds all else (CHECKED_SEEDS)."""
        state = instance.state
        invariants.check_role(instance.health, state, self.agenda.now)
        if actions and self.plan.seed % CHECKED_SEEDS == 0:
            history = self._checks.setdefault(instance.name, invariants.History())
            invariants.check(before, event, state, actions, self.agenda.now, history)

    def note_claims(self, instance: Instance) -> None:
        """Asks all its processes whether it owns."""
        for who in instance.claimants():
            self.history.note_claim(who, instance.name)

    def _is_in_order(self, before: float) -> bool:
        """Whether no fault lasts, everything is as it should be, and what users did before that moment is settled."""
        if self.agenda.now < self.faults_end_at:
            return False
        instances = self.platform.instances()
        if any(one.process.stopped for one in instances):
            return False  # its fault is not over, and what it holds of itself is old
        owners = [one for one in instances if one.owns]
        if len(owners) != 1 or not self.platform.is_quiet:
            return False
        term = owners[0].state.term
        if term is None or not term.registration.asserted or term.registration.compared_at is None:
            return False
        return self.is_registered(owners[0]) and self._is_settled(before)

    def _is_settled(self, before: float) -> bool:
        """Whether nothing from before that moment waits, at Telegram or in the inbox."""
        waiting = {row.update_id for row in self.postgres.store.rows.values() if row.state in _WAITING}
        if before == math.inf:
            return not waiting and not self.telegram.pending
        early = [one for one in self.history.deliveries.values() if one.created_at <= before]
        return all(one.is_over(self.agenda.now) and one.update_id not in waiting for one in early)

    def is_registered(self, owner: Instance) -> bool:
        """Whether Telegram has what the owner wants."""
        registration, release = self.telegram.registration, owner.release
        url = f"https://simulated.example/webhook/{release.path}"
        return (registration.url, registration.secret_token) == (url, release.secret)

    def is_innocent(self, update_id: int) -> bool:
        """Whether the update may never become a dead letter for what it is."""
        order = self.orders.get(update_id)
        return order is None or order.work in INNOCENT
