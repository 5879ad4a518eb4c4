"""A modelled instance of the supervisor, complete: process, lease, registrar, workers; and what may befall it."""

from __future__ import annotations

from shared import wire
from shared.wire import ANSWER_SECONDS, LEAD_SECONDS
from supervisor import messages as m
from tests.unit.supervisor.modelled_calls import CallShell
from tests.unit.supervisor.modelled_process import DISPATCHING, TERM_ENDED, ModelledWorker, lead_failed
from tests.unit.supervisor.modelled_session import IDLE_SESSION

LOOKING = 0.002
CLOSING = 0.3
EXITING = 0.05
FLOOD_SECONDS = 600.0
_FLOOD = "RetryAfter: Flood control exceeded"
LEAD_FAILURES = {
    "fail": lead_failed("RuntimeError: post_init raised"),
    "away": lead_failed("TimedOut: Timed out", transient=True),
    "flood": lead_failed(_FLOOD, transient=True, retry_after_seconds=FLOOD_SECONDS),
    "flood of getMe": lead_failed(_FLOOD, transient=True, retry_after_seconds=FLOOD_SECONDS, of_get_me=True),
}


class Instance(CallShell):
    """One supervisor process with modelled shells. Workers obey the control protocol, and their deadline by themselves."""

    def _carry_out(self, action: m.Action) -> None:
        match action:
            case m.SessionAction():
                self._begin_statement(action)
            case m.CutWait():
                self._cut_wait()
            case m.CloseSession():
                self._end_server_session()
            case m.CallAction():
                self._begin_call(action)
            case m.SpawnWorker(worker=id_, receives_at_once=receives_at_once):
                self._spawn(id_, receives_at_once)
            case m.KillWorker(worker=id_):
                self.end_worker(id_, "killed by SIGKILL", 0.02)
            case m.ServeUnavailable(on=on):
                self.serving_unavailable = on
            case m.ExitProcess(code=code, faults=faults):
                self._end_server_session()
                self.exit_code, self.faults = code, faults
            case _:
                self._tell_worker(action)

    # --------------------------------------------------------------------------------------------------------- workers

    def _spawn(self, id_: int, receives_at_once: bool) -> None:
        worker = ModelledWorker(id_)
        self.workers[id_] = worker
        fault, self.spawn_fault = self.always_spawn_fault or self.spawn_fault, None
        if fault == "no process":
            worker.alive = False
            self.post(
                m.WorkerExited, worker=id_, status="it could not be started: no room", chance=0.5, began=False
            )
            return
        self.post(m.WorkerSpawned, worker=id_, pid=100 + id_)

        def receive() -> None:
            if worker.alive and not worker.hung:
                self.hear(wire.Receiving(), id_)
                self.hear_beat(worker, LOOKING)

        def up() -> None:
            if not worker.alive or worker.hung or worker.told_to_leave:
                return
            if fault == "faults":
                self.hear(wire.StartFailed(faults=("BOT_APP does not import",)), id_)
            if fault in ("faults", "crash"):
                self.end_worker(id_, "exit status 1", 0.01)
            elif fault != "hang":
                worker.accepting = True
                self.hear(wire.Accepting(), id_)
                self.hear_beat(worker, LOOKING)

        if receives_at_once:
            self.world.at(self.start_seconds / 2, receive)
        self.world.at(self.start_seconds, up)

    def end_worker(self, id_: int, status: str, delay: float = 0.0) -> None:
        """The process ends, is reaped, and the core hears of it."""
        worker = self.workers[id_]
        if not worker.alive:
            return
        worker.alive = worker.dispatching = worker.accepting = False
        self.post(m.WorkerExited, delay + 0.002, worker=id_, status=status, chance=0.5)

    def _tell_worker(self, action: m.WorkerAction) -> None:
        worker = self.workers[action.worker]
        self.world.at(0.001, lambda: self._obey(worker, action))

    def _obey(self, worker: ModelledWorker, action: m.WorkerAction) -> None:
        if not worker.alive or worker.hung:
            return
        match action:
            case m.Lead(term=term, deadline=deadline, recover_at=recover_at, poll=poll):
                fault, self.lead_fault = self.always_lead_fault or self.lead_fault, None
                if fault in LEAD_FAILURES:
                    worker.term = term
                    self._fail_late(worker, LEAD_FAILURES[fault])
                    return
                if fault in ("hang", "outage", "swallow"):
                    worker.term, worker.deadline = term, deadline
                    worker.ignores_cancellation = fault == "swallow"
                    self._hang(worker, transient=fault == "outage")
                    return
                if fault is not None:
                    self._fail_late(worker, None)
                    return
                if self.token in self.world.telegram.refused_tokens:
                    worker.term = term
                    self.hear(wire.TokenRefused(), worker.id, 0.01)
                    self.hear(lead_failed("InvalidToken: Unauthorized"), worker.id, 0.011)
                    return
                worker.term, worker.deadline, worker.dispatching = term, deadline, True
                worker.polls_from = max(recover_at, self.world.now) if poll else None
                self.hear(DISPATCHING, worker.id, 0.01)
                self.world.at(deadline - self.world.now, lambda: self._past_deadline(worker))
            case m.Extend(deadline=deadline):
                worker.deadline = max(worker.deadline, deadline)
                self.world.at(deadline - self.world.now, lambda: self._past_deadline(worker))
            case m.StopAccepting(linger_seconds=linger):
                worker.accepting = False
                worker.told_to_leave = True
                closing = linger + min(self.answering_seconds, ANSWER_SECONDS)
                closing = closing if self.answering_seconds else min(CLOSING, linger)
                self.hear(wire.ConnectionsClosed(), worker.id, closing)
            case m.EndTerm() if worker.ignores_cancellation:
                return
            case m.EndTerm(drain_seconds=drain):
                ending = min(self.ending_seconds, drain) + self.bot_stop_seconds
                self.world.at(ending, lambda: self._end_dispatch(worker))
            case m.ExitWorker():
                self.world.at(EXITING, lambda: self.end_worker(worker.id, "exit status 0"))
            case _:
                return

    def _hang(self, worker: ModelledWorker, *, transient: bool) -> None:
        """Its bot does not come to an end of its start; the worker cancels it when its time is over."""

        def give_up() -> None:
            known = self.state.worker(worker.id)
            if worker.alive and not worker.hung and known is not None and known.end_term_at is None:
                reason = "TimedOut: Timed out" if transient else "StartTimedOut: post_init did not end"
                self.hear(lead_failed(reason, transient=transient), worker.id)

        if not worker.ignores_cancellation:
            self.world.at(LEAD_SECONDS, give_up)

    def _fail_late(self, worker: ModelledWorker, said: wire.LeadFailed | None) -> None:
        """Its bot does not start after all: it says so, or dies of it."""

        def fail() -> None:
            known = self.state.worker(worker.id)
            if said is None:
                self.end_worker(worker.id, "exit status 1", 0.01)
            elif worker.alive and not worker.hung and known is not None and known.end_term_at is None:
                self.hear(said, worker.id)

        self.world.at(self.failing_seconds, fail)

    def _past_deadline(self, worker: ModelledWorker) -> None:
        if worker.dispatching and self.world.now >= worker.deadline:
            self._end_dispatch(worker)

    def _end_dispatch(self, worker: ModelledWorker) -> None:
        if worker.alive and not worker.hung:
            worker.dispatching = False
            self.hear(TERM_ENDED, worker.id)

    # ---------------------------------------------------------------------------------------------------------- faults

    def stop(self) -> None:
        """SIGTERM."""
        self.post(m.StopRequested)

    def replace_worker(self) -> None:
        """SIGHUP."""
        self.post(m.ReplacementRequested)

    def kill_9(self) -> None:
        """The supervisor dies, and its workers within milliseconds."""
        self.killed = True
        for worker in self.workers.values():
            worker.alive = worker.dispatching = worker.accepting = False
        self._end_server_session()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so long; the server gives up on the session as it does."""
        self.frozen_until = self.world.now + seconds
        key = self.session

        def idle_out() -> None:
            if key is not None and self.session == key and self.world.now < self.frozen_until:
                self.lose_session("idle-session timeout")

        self.world.at(IDLE_SESSION, idle_out)

    def leader_or_any(self) -> ModelledWorker | None:
        """The worker that a fault falls on."""
        alive = [w for w in self.workers.values() if w.alive]
        return next((w for w in alive if w.term is not None), alive[-1] if alive else None)
