"""What the shells tell the core (events, in the past tense) and what it asks of them (actions, in the imperative).

An action that is answered carries an `id`; its answer echoes it, so that a late answer of an earlier session or term is
known for what it is. `at` is when the event was taken in, `sent_at` when the statement it answers was sent; both are seconds
on `shared.clock`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from shared.wire import Beat


class Mode(Enum):
    """How updates arrive."""

    WEBHOOK = "webhook"  # Telegram posts them to any instance
    POLLING = "polling"  # the owner's worker fetches them


class CallFault(Enum):
    """Why a Bot API call did not succeed, by what to do about it."""

    TOKEN_REFUSED = "token_refused"  # noqa: S105 - 401 or 404: repeating is hammering
    REJECTED = "rejected"  # another 4xx: repeating as it stands does not help
    TERM_OVER = "term_over"  # not tried, or given up: the term it was for has ended


class EndReason(Enum):
    """Why a term ends."""

    STOPPING = "stopping"  # the platform asked this instance to stop
    SESSION_LOST = "session lost"  # the lock's session is gone; somebody else may own already
    DEADLINE = "deadline passed"  # no heartbeat was answered in time
    WORKER_LOST = "worker lost"  # the worker that dispatched under it is gone
    NOT_STARTED = "the bot did not start"  # initialize, post_init or start of the application raised
    REPLACED = "worker replaced"  # SIGHUP: same owner, new worker, new term
    HANDED_OVER = "handed over to a newer deploy"
    TOKEN_REFUSED = "token refused, an instance with another token stands by"  # noqa: S105 - a reason, not a token


@dataclass(frozen=True, slots=True)
class Peer:
    """An instance as the database shows it at one moment; times are ages by the database's clock.

    `age_seconds` counts from the first announcement under its platform's instance id, `silent_seconds` from its last.
    """

    instance_id: str
    deploy_id: str | None
    token_fingerprint: str
    ready: bool
    waiting: bool  # its session waits for the lock, by pg_locks
    candidate: bool  # no backoff after giving up or failing as owner
    age_seconds: float
    silent_seconds: float
    handed_over_seconds: float | None  # since it last handed over


@dataclass(frozen=True, slots=True)
class WebhookFacts:
    """What getWebhookInfo said, compared with what we want; the URL is never in here."""

    in_sync: bool
    drift: str | None  # what differs, in words
    pending_update_count: int
    last_error: str | None


# ------------------------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, at `at`."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked(Event):
    """Time went on; nothing else did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Event):
    """SIGTERM or SIGINT, the first or a later one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementRequested(Event):
    """SIGHUP: replace the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened(Event):
    """The database is reached, suitable, and its schema is what we need."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFailed(Event):
    """OpenSession came to nothing, or a statement broke the session.

    `refused`: the server is reached and unsuitable (a transaction pooler, a standby, too old).
    """

    id: int
    reason: str
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLost(Event):
    """The open session ended without our doing. `session` is the id of its OpenSession."""

    session: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Event):
    """Base of a session's answers: the statement sent at `sent_at` was answered, so the session lived then."""

    id: int
    sent_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced(Answered):
    """Our row is written; these are all instances of the bot that spoke within the last minutes, ourselves included.

    `holder` is the instance whose term is open, by the term row.
    """

    peers: tuple[Peer, ...]
    holder: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockAcquired(Answered):
    """The advisory lock is held by our session, by pg_locks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockBusy(Answered):
    """The advisory lock is held elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermBegun(Answered):
    """The term row is ours. What was in flight before may run `recover_after_seconds` after the answer."""

    term: str
    number: int
    recover_after_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TermDenied(Answered):
    """The owner before named another instance its successor: the lock goes back."""

    successor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TermClosed(Answered):
    """The term row says that the term ended cleanly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockReleased(Answered):
    """Our session holds no lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRecorded(Answered):
    """Every instance can look up what is about to be registered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationConfirmed(Answered):
    """Earlier registrations are superseded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookAsserted(Event):
    """setWebhook (or deleteWebhook) succeeded. `changed` is False for "already set"."""

    id: int
    changed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRetrying(Event):
    """A Bot API call failed and will be repeated in `retry_seconds`."""

    id: int
    reason: str
    retry_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed(Event):
    """A Bot API call failed and is not repeated by its shell."""

    id: int
    fault: CallFault
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityVerified(Event):
    """getMe answered."""

    id: int
    bot_id: int
    username: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookCompared(Event):
    """getWebhookInfo answered."""

    id: int
    facts: WebhookFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpawned(Event):
    """The process runs; it is known by the id of its SpawnWorker."""

    worker: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAccepting(Event):
    """BOT_APP is built, connections are accepted."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStartFailed(Event):
    """The worker said why it cannot come up; it exits next."""

    worker: int
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBeat(Event):
    """The worker's event loop turned."""

    worker: int
    beat: Beat


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDispatching(Event):
    """The worker runs updates under its term."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeadFailed(Event):
    """The application did not start. Nothing of it runs or will run; the worker goes on accepting."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSuspect(Event):
    """The worker runs (or has ended) an update that was in flight at a crash."""

    worker: int
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSecretSeen(Event):
    """A request came to a right path with a wrong or a previous secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTokenRefused(Event):
    """Telegram answered 401 to the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConnectionsClosed(Event):
    """The worker accepts nothing more and has no connection left."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTermEnded(Event):
    """Nothing of this worker runs or will run, by its own word."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited(Event):
    """The process is reaped and its group is killed. `chance` in [0, 1) is the backoff's random number."""

    worker: int
    status: str
    chance: float


# ----------------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something to be done by a shell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAction(Action):
    """A statement on the lock's session; one at a time."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession(SessionAction):
    """Connect, refuse what is unsuitable, apply and check the schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce(SessionAction):
    """Write our row of the instances, read the others'. On an owner's session this is the heartbeat."""

    ready: bool
    abstain_seconds: float  # no candidate for a hand-over for so long


@dataclass(frozen=True, slots=True, kw_only=True)
class TryLock(SessionAction):
    """Take the lock if it is free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitForLock(SessionAction):
    """Wait in the queue for the lock, for at most `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginTerm(SessionAction):
    """Write the next term. `reaped_term` is a term of ours whose worker is known to be gone."""

    deadline_seconds: float
    reaped_term: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseTerm(SessionAction):
    """Write the clean end of `term`, whose worker is gone, and whom it was handed to."""

    term: str
    reason: EndReason
    successor: str | None
    recovered: bool = (
        True  # False: an earlier owner's deadline has not passed yet, so the next one has to wait it out too
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLock(SessionAction):
    """pg_advisory_unlock_all(). `gave_up`: as owner whose worker does not stay up."""

    gave_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRegistration(SessionAction):
    """Make known what is about to be registered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRegistration(SessionAction):
    """Our registration stands at Telegram: those before are superseded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSession(Action):
    """Close the session at once, whatever it is doing; with it goes the lock, and the term for `ended`."""

    session: int
    reason: str
    ended: EndReason = EndReason.SESSION_LOST


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAction(Action):
    """A Bot API call for `term`, not to be made once that has ended; one at a time."""

    id: int
    term: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetWebhook(CallAction):
    """Assert our registration, repeating what is transient and obeying retry_after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteWebhook(CallAction):
    """Remove the registration: BOT_MODE=polling, or WEBHOOK_ON_EXIT=delete. The backlog stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyIdentity(CallAction):
    """getMe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareWebhook(CallAction):
    """getWebhookInfo, compared with what we want."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnWorker(Action):
    """Start a worker on the listening socket."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TellHealth(Action):
    """Push what the worker's /healthz says."""

    worker: int
    health: Health


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead(Action):
    """Let the worker dispatch; `poll`: and fetch the updates itself."""

    worker: int
    term: str
    number: int
    deadline: float
    recover_at: float
    poll: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend(Action):
    """Tell the worker that ownership was confirmed."""

    worker: int
    term: str
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAccepting(Action):
    """Close the worker's listening socket; its connections have `linger_seconds`. `reason`: of its term's end."""

    worker: int
    linger_seconds: float
    reason: EndReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndTerm(Action):
    """End the worker's dispatch; its handlers have `drain_seconds`."""

    worker: int
    drain_seconds: float
    reason: EndReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitWorker(Action):
    """Ask the worker to end."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KillWorker(Action):
    """SIGKILL to the worker's process group. `crash`: it failed, and counts as if it had ended by itself."""

    worker: int
    reason: str
    crash: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeUnavailable(Action):
    """Answer 503 on the public port ourselves (`on`), since no worker accepts there; or cease to."""

    on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitProcess(Action):
    """End the supervisor. `faults` are lines for the operator."""

    code: int
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """What /healthz says."""

    ok: bool
    role: str  # "ACTIVE" | "PASSIVE"
    reason: str | None
