"""What the shells tell the core (events, in the past tense) and what it asks of them (actions, in the imperative).

An action that is answered carries an `id`; its answer echoes it, so that a late answer of an earlier session or term is
known for what it is. `at` is when the event was taken in, `sent_at` when the statement it answers was sent; both are seconds
on `shared.clock`.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from shared.answers import Role
from shared.wire import ToSupervisor

LEAD_TIMED_OUT = "StartTimedOut: the bot did not start, nor let go when it was cancelled"
"""The reason where the worker says none."""


class CallFault(Enum):
    """Why a Bot API call did not succeed, by what to do about it."""

    TOKEN_REFUSED = "token_refused"  # noqa: S105 - 401 or 404: repeating is hammering
    REJECTED = "rejected"  # another 4xx: repeating as it stands does not help
    TERM_OVER = "term_over"  # not tried, or given up: its term has ended, or another call is more pressing


class EndReason(Enum):
    """Why a term ends."""

    STOPPING = "stopping"  # the platform asked this instance to stop
    SESSION_LOST = "session lost"  # the lock's session is gone; somebody else may own already
    DEADLINE = "deadline passed"  # no heartbeat was answered in time
    WORKER_LOST = "worker lost"  # the worker that dispatched under it is gone, or the one that should have
    NOT_STARTED = "the bot did not start"  # initialize, post_init or start of the application raised or hung
    REPLACED = "worker replaced"  # SIGHUP: same owner, new worker, new term
    HANDED_OVER = "handed over to a newer deploy"
    HANDED_OVER_ON_REQUEST = "handed over on request"  # `supervisor handover`
    TOKEN_REFUSED = "token refused, an instance with another token stands by"  # noqa: S105 - a reason, not a token
    DATABASE_AWAY = "the worker does not reach the database, an instance that does stands by"


class Peer(Struct, frozen=True):
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


class WebhookFacts(Struct, frozen=True):
    """What getWebhookInfo said, compared with what we want; the URL is never in here."""

    in_sync: bool
    drift: str | None  # what differs, in words
    pending_update_count: int
    last_error: str | None  # of deliveries since our last assertion, in Telegram's words
    last_error_date: int | None = None  # of any that Telegram remembers; seconds since the epoch


class Health(Struct, frozen=True):
    """What /healthz says."""

    ok: bool
    role: Role
    reason: str | None


# ------------------------------------------------------------------------------------------------------------ events


class _Event(Struct, frozen=True, kw_only=True):
    """Base of all events: it happened at `at`."""

    at: float


class Ticked(_Event, frozen=True, kw_only=True):
    """Time went on; nothing else did."""


class StopRequested(_Event, frozen=True, kw_only=True):
    """SIGTERM or SIGINT, the first or a later one."""


class ReplacementRequested(_Event, frozen=True, kw_only=True):
    """SIGHUP: replace the worker; at a terminal, which has closed then, a stop."""


class SessionOpened(_Event, frozen=True, kw_only=True):
    """The database is reached, suitable, and its schema is what we need."""

    id: int


class SessionFailed(_Event, frozen=True, kw_only=True):
    """OpenSession came to nothing, or a statement broke the session.

    `refused`: the server is reached and unsuitable (a transaction pooler, a standby, too old). `schema`: it is reached, and our
    tables could not be made or brought up to date.
    """

    id: int
    reason: str
    refused: bool = False
    schema: bool = False


class SessionLost(_Event, frozen=True, kw_only=True):
    """The open session ended without our doing. `session` is the id of its OpenSession."""

    session: int
    reason: str


class Answered(_Event, frozen=True, kw_only=True):
    """Base of a session's answers: the statement sent at `sent_at` was answered, so the session lived then."""

    id: int
    sent_at: float


class Announced(Answered, frozen=True, kw_only=True):
    """Our row is written; these are all instances of the bot that spoke within the last minutes, ourselves included.

    `holder` is the instance whose term is open, by the term row; it was asked to hand over `handover_requested_seconds` ago,
    by the database's clock.
    """

    peers: tuple[Peer, ...]
    holder: str | None
    handover_requested_seconds: float | None


class LockAcquired(Answered, frozen=True, kw_only=True):
    """The advisory lock is held by our session, by pg_locks, and no term was asked for with it."""


class LockBusy(Answered, frozen=True, kw_only=True):
    """The advisory lock is held elsewhere."""


class TermBegun(Answered, frozen=True, kw_only=True):
    """The term row is ours. What was in flight before may run `recover_after_seconds` after the answer."""

    term: str
    number: int
    recover_after_seconds: float


class TermDenied(Answered, frozen=True, kw_only=True):
    """The owner before named another instance its successor: the lock, which is held, goes back."""

    successor: str


class TermClosed(Answered, frozen=True, kw_only=True):
    """The term row says that the term ended cleanly."""


class LockReleased(Answered, frozen=True, kw_only=True):
    """Our session holds no lock."""


class RegistrationRecorded(Answered, frozen=True, kw_only=True):
    """Every instance can look up what is about to be registered."""


class RegistrationConfirmed(Answered, frozen=True, kw_only=True):
    """Earlier registrations are superseded."""


class WebhookAsserted(_Event, frozen=True, kw_only=True):
    """setWebhook (or deleteWebhook) succeeded. `changed` is False for "already set"."""

    id: int
    changed: bool


class CallRetrying(_Event, frozen=True, kw_only=True):
    """A Bot API call failed and will be repeated in `retry_seconds`. `is_told`: Telegram named the time (429)."""

    id: int
    reason: str
    retry_seconds: float
    is_told: bool = False


class CallFailed(_Event, frozen=True, kw_only=True):
    """A Bot API call failed and is not repeated by its shell."""

    id: int
    fault: CallFault
    reason: str


class IdentityVerified(_Event, frozen=True, kw_only=True):
    """getMe answered."""

    id: int
    bot_id: int
    username: str


class WebhookCompared(_Event, frozen=True, kw_only=True):
    """getWebhookInfo answered."""

    id: int
    facts: WebhookFacts


class WorkerSpawned(_Event, frozen=True, kw_only=True):
    """The process runs; it is known by the id of its SpawnWorker."""

    worker: int
    pid: int


class WorkerSaid(_Event, frozen=True, kw_only=True):
    """A message of the control protocol was heard from that worker (shared/wire.py)."""

    worker: int
    message: ToSupervisor


class WorkerExited(_Event, frozen=True, kw_only=True):
    """The process is reaped and its group is killed. `chance` in [0, 1) is the backoff's random number.

    `began`: false where there never was a process, for want of memory or of a number for it.
    """

    worker: int
    status: str
    chance: float
    began: bool = True


# ----------------------------------------------------------------------------------------------------------- actions


class SessionAction(Struct, frozen=True, kw_only=True):
    """Base of what is done on the lock's session; one at a time."""

    id: int


class OpenSession(SessionAction, frozen=True, kw_only=True):
    """Connect, refuse what is unsuitable, apply and check the schema."""


class Announce(SessionAction, frozen=True, kw_only=True):
    """Write our row of the instances, read the others'. On an owner's session this is the heartbeat."""

    ready: bool
    abstain_seconds: float  # no candidate for a hand-over for so long


class TryLock(SessionAction, frozen=True, kw_only=True):
    """Take the lock if it is free."""


class BeginTerm(SessionAction, frozen=True, kw_only=True):
    """Write the next term. `reaped_term` is a term of ours whose worker is known to be gone."""

    deadline_seconds: float
    reaped_term: str | None


class WaitForLock(SessionAction, frozen=True, kw_only=True):
    """Wait in the queue for the lock, for at most `seconds`.

    `then`: with the lock, and in the same message to the server, begin this term; its id is ours. The answer is LockBusy or
    what answers BeginTerm, and in the latter case the lock is held; where it was cut (CutWait), maybe LockAcquired.
    """

    seconds: float
    then: BeginTerm | None = None


class CutWait(Struct, frozen=True, kw_only=True):
    """Have the server end the WaitForLock under way: we are not to be given the lock. The wait is answered, and this is not.

    Where the lock was ours by then, that answer may be LockAcquired, without the term that was to begin.
    """


class CloseTerm(SessionAction, frozen=True, kw_only=True):
    """Write the clean end of `term`, whose worker is gone, and whom it was handed to."""

    term: str
    reason: EndReason
    successor: str | None
    # False: an earlier owner's deadline has not passed yet, so the next one has to wait it out too.
    recovered: bool = True


class ReleaseLock(SessionAction, frozen=True, kw_only=True):
    """pg_advisory_unlock_all(). `gave_up`: as owner whose worker does not stay up or does not reach the database, whose bot was
    told to wait, or whom Telegram does not answer."""

    gave_up: bool = False


class RecordRegistration(SessionAction, frozen=True, kw_only=True):
    """Make known what is about to be registered."""


class ConfirmRegistration(SessionAction, frozen=True, kw_only=True):
    """Our registration stands at Telegram: those before are superseded."""


class CloseSession(Struct, frozen=True, kw_only=True):
    """Close the session at once, whatever it is doing; with it goes the lock, and the term for `ended`."""

    session: int
    reason: str
    ended: EndReason = EndReason.SESSION_LOST


class CallAction(Struct, frozen=True, kw_only=True):
    """Base of the Bot API calls, one at a time, each for a `term`, and not to be made once that has ended.

    None: without one; getMe alone.
    """

    id: int
    term: str | None


class SetWebhook(CallAction, frozen=True, kw_only=True):
    """Assert our registration, repeating what is transient and obeying retry_after."""


class DeleteWebhook(CallAction, frozen=True, kw_only=True):
    """Remove the registration: BOT_MODE=polling, or WEBHOOK_ON_EXIT=delete. The backlog stays."""


class Read(CallAction, frozen=True, kw_only=True):
    """Base of the calls that only ask."""


class VerifyIdentity(Read, frozen=True, kw_only=True):
    """getMe."""


class CompareWebhook(Read, frozen=True, kw_only=True):
    """getWebhookInfo, compared with what we want."""


class SpawnWorker(Struct, frozen=True, kw_only=True):
    """Start a worker on the listening socket; `receives_at_once`: it shall take updates in before BOT_APP is built."""

    worker: int
    receives_at_once: bool


class TellHealth(Struct, frozen=True, kw_only=True):
    """Push what the worker's /healthz says."""

    worker: int
    health: Health


class Lead(Struct, frozen=True, kw_only=True):
    """Let the worker dispatch; `poll`: and fetch the updates itself."""

    worker: int
    term: str
    deadline: float
    recover_at: float
    poll: bool


class Extend(Struct, frozen=True, kw_only=True):
    """Tell the worker that ownership was confirmed."""

    worker: int
    term: str
    deadline: float


class StopAccepting(Struct, frozen=True, kw_only=True):
    """Close the worker's listening socket; its connections have `linger_seconds`. `reason`: of its term's end."""

    worker: int
    linger_seconds: float
    reason: EndReason | None


class EndTerm(Struct, frozen=True, kw_only=True):
    """End the worker's dispatch; its handlers have `drain_seconds`."""

    worker: int
    drain_seconds: float
    reason: EndReason | None


class ExitWorker(Struct, frozen=True, kw_only=True):
    """Ask the worker to end."""

    worker: int


class KillWorker(Struct, frozen=True, kw_only=True):
    """SIGKILL to the worker's process group. `crash`: it failed, and counts as if it had ended by itself."""

    worker: int
    reason: str
    crash: bool


class ServeUnavailable(Struct, frozen=True, kw_only=True):
    """Answer on the public port ourselves (`on`), updates with 503, since no worker accepts there; or cease to."""

    on: bool


class ExitProcess(Struct, frozen=True, kw_only=True):
    """End the supervisor. `faults` are lines for the operator."""

    code: int
    faults: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------- closed sets

# Whoever takes one of these apart ends in assert_never: what is added here and forgotten there fails mypy, and not an owner.

SessionAnswer = (
    Announced
    | LockAcquired
    | LockBusy
    | TermBegun
    | TermDenied
    | TermClosed
    | LockReleased
    | RegistrationRecorded
    | RegistrationConfirmed
)
CallAnswer = WebhookAsserted | CallRetrying | CallFailed | IdentityVerified | WebhookCompared

Event = (
    Ticked
    | StopRequested
    | ReplacementRequested
    | SessionOpened
    | SessionFailed
    | SessionLost
    | SessionAnswer
    | CallAnswer
    | WorkerSpawned
    | WorkerSaid
    | WorkerExited
)
"""Something that happened."""

SessionStatement = (
    Announce
    | TryLock
    | BeginTerm
    | WaitForLock
    | CloseTerm
    | ReleaseLock
    | RecordRegistration
    | ConfirmRegistration
)
"""What needs an open session."""

BotCall = SetWebhook | DeleteWebhook | VerifyIdentity | CompareWebhook
WorkerAction = TellHealth | Lead | Extend | StopAccepting | EndTerm | ExitWorker
"""What a worker is told."""

Action = (
    OpenSession
    | SessionStatement
    | CutWait
    | CloseSession
    | BotCall
    | SpawnWorker
    | WorkerAction
    | KillWorker
    | ServeUnavailable
    | ExitProcess
)
"""Something to be done by a shell."""
