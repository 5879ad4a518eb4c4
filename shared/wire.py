"""The control protocol between a supervisor and its worker: one JSON message a line over a socketpair.

    supervisor                                             worker
        │  SetHealth, Lead, Extend ──────────────────────────►  │
        │  StopAccepting, EndTerm, Exit ─────────────────────►  │
        │  ◄──────────────── Receiving, Accepting | StartFailed │
        │  ◄──────────────── Dispatching | LeadFailed           │
        │  ◄──────────────── Beat, SuspectRunning               │
        │  ◄──────────────── ForeignRegistration, TokenRefused  │
        │  ◄──────────────── ConnectionsClosed, TermEnded       │

Either side's end of file ends the other's work: a worker whose supervisor is gone kills its process group, a supervisor
whose worker is gone reaps and replaces it. Both sides are of one checkout (the supervisor spawns the worker), so the
protocol has no version; a line that does not decode is a bug and ends the connection (`WireError`).

All points in time are seconds on `shared.clock`.

Not promised: delivery. A message in the socket when its reader dies is gone; whoever needs to know looks at the process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import msgspec

from shared.answers import Role
from shared.errors import WireError

MAX_LINE_BYTES = 64 * 1024
"""Longest line of the protocol, newline included. The longest message is a StartFailed with a few lines of reason."""

LEAD_SECONDS = 45.0
"""How long a bot may take from Lead (with a persistence: from `recover_at`) to Dispatching; then it does not start. Loading and
warming up take seconds. A platform that has switched to a new deploy stops the old one 60 s later (Render): until then that can
have ownership back."""

DRAIN_GRACE_SECONDS = 3.0
"""What a worker may take beyond the drain of an EndTerm, for the dispatch's last statements, the stop of the application and
the flush of its persistence: the supervisor kills then."""

ANSWER_SECONDS = 3.0
"""What a worker may take beyond the linger of a StopAccepting, for what it is answering: at a latency of seconds, a commit. The
supervisor goes on without it after that, and at a stop sooner, if that has less left."""

BEAT_SECONDS = 1.0
"""From one Beat to the next."""

HANDOVER_LINGER_SECONDS = 2.0
"""How long one that is replaced serves its open connections, each told `Connection: close`: longer than the pauses of a client
under traffic, so that no request races with the close. A worker by another, which dispatches meanwhile; an early reception by
its own worker."""

# Together; a character has at most 6 bytes in JSON, and there is more in a line.
_MAX_FAULTS_CHARACTERS = 8 * 1024


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Any message of the protocol; the tag is the class's name."""


# ---------------------------------------------------------------------------------------------------- to the worker


class SetHealth(Message, frozen=True):
    """What the worker's /healthz says from now on. `reason` goes with one that is not ok.

    The one message that may come before Receiving and Accepting: a worker that replaces another answers probes in its place
    from its first connection on.
    """

    ok: bool
    role: Role
    reason: str | None = None


class Lead(Message, frozen=True):
    """Begin to dispatch, once in this worker's life, under `term`, until `deadline`.

    What was in flight under earlier terms, timers, job queue, polling and persistence wait until `recover_at`; fresh updates
    do not.
    """

    term: str  # UUID of the term
    deadline: float
    recover_at: float
    poll: bool = False  # fetch the updates as well, with getUpdates: BOT_MODE=polling


class Extend(Message, frozen=True):
    """The term's ownership was confirmed: dispatch may go on until `deadline`."""

    term: str
    deadline: float


class StopAccepting(Message, frozen=True):
    """Somebody else accepts on the socket, or nobody shall: close the listening socket, answer `Connection: close`.

    Answered by ConnectionsClosed when no connection is left, or `linger_seconds` are over and what was being answered then is
    answered, at most ANSWER_SECONDS later.
    """

    linger_seconds: float


class EndTerm(Message, frozen=True):
    """Stop claiming, wait at most `drain_seconds` for handlers, cancel the rest, stop the application, flush persistence.

    Answered by TermEnded. Updates are still accepted and stored. A worker that never led answers at once.
    """

    drain_seconds: float


class Exit(Message, frozen=True):
    """End the process with status 0; whatever is still open is closed."""


# ------------------------------------------------------------------------------------------------ to the supervisor


class Receiving(Message, frozen=True):
    """The worker accepts connections on the inherited socket and stores updates; BOT_APP is not built yet.

    Said only by one that was told to receive at once, before its Accepting or StartFailed. It obeys StopAccepting and Exit.
    """


class Accepting(Message, frozen=True):
    """BOT_APP is built, and the worker accepts connections on the inherited socket."""


class StartFailed(Message, frozen=True):
    """The worker cannot come up: one line for each reason, naming variable, expectation, remedy. It exits next."""

    faults: tuple[str, ...]


class Dispatching(Message, frozen=True):
    """The application runs and updates are claimed under the term of Lead."""


class LeadFailed(Message, frozen=True):
    """The application did not start (post_init raised or hung, its token was refused ...); nothing of it runs or will run.

    The worker goes on accepting until it is replaced: an instance whose bot is broken can still store. `reason` is the
    exception's type, a colon, and its text; `transient`: it says that something outside is away, and may come back;
    `retry_after_seconds`: not before, by its word (Telegram's flood limit), at most a day; `of_get_me`: it was getMe that was
    told so, which the supervisor calls too.
    """

    reason: str
    transient: bool = False
    retry_after_seconds: float | None = None
    of_get_me: bool = False


class InboxDepth(msgspec.Struct, frozen=True):
    """Counts of unfinished and dead updates of this bot, over all instances."""

    pending: int
    in_flight: int
    dead: int
    oldest_pending_seconds: float


class PoolUse(msgspec.Struct, frozen=True):
    """The worker's database connections: open, in use, and how many callers wait for one.

    However many updates come, a connection of its own has one caller, who stores all that wait: `unstored` is how many do.
    """

    size: int = 0
    in_use: int = 0
    waiting: int = 0
    unstored: int = 0


class Beat(Message, frozen=True):
    """Sent every BEAT_SECONDS by the worker's event loop, never by a thread: a blocked loop must miss its beat."""

    loop_lag_ms: float
    storing: bool  # an update sent now would be stored
    storing_reason: str | None
    inbox: InboxDepth | None  # None while it is not known
    pool: PoolUse
    polling_reason: str | None = None  # why updates cannot be fetched, where this worker fetches them
    completed: int = 0  # updates that this worker has handled without a fault, and committed
    dispatch_fault: str | None = None  # why the database is away for who dispatches here


class SuspectRunning(Message, frozen=True):
    """An update that was in flight at a crash is now run by itself (True), or has ended (False).

    A crash meanwhile is this update's doing and does not count toward the worker's restart limit.
    """

    running: bool


class ForeignRegistration(Message, frozen=True):
    """Somebody else seems to have set the webhook; sent at most once a second.

    A request came to a right path with a wrong or a previous secret; or, in BOT_MODE=polling, Telegram does not let us poll.
    """


class TokenRefused(Message, frozen=True):
    """Telegram answered 401 to the worker about the bot's token: asked after a handler's 401 (token_doubt.py), or polled."""


class ConnectionsClosed(Message, frozen=True):
    """The answer to StopAccepting."""


class TermEnded(Message, frozen=True):
    """The answer to EndTerm, told unasked too: nothing of this worker runs or will run."""


ToWorker = SetHealth | Lead | Extend | StopAccepting | EndTerm | Exit
ToSupervisor = (
    Receiving
    | Accepting
    | StartFailed
    | Dispatching
    | LeadFailed
    | Beat
    | SuspectRunning
    | ForeignRegistration
    | TokenRefused
    | ConnectionsClosed
    | TermEnded
)

_to_worker: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
_to_supervisor: msgspec.json.Decoder[ToSupervisor] = msgspec.json.Decoder(ToSupervisor)
_encode = msgspec.json.Encoder().encode
# What the decoder raises of itself, beside its own error: for bytes that are not UTF-8, and for what is nested too deep.
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(message: ToWorker | ToSupervisor) -> bytes:
    """One line, newline included. Lone surrogates, which a user of the bot can put into a reason, become question marks.

    Raises:
        WireError: the message is longer than MAX_LINE_BYTES; shorten its texts.
    """
    try:
        line = _encode(message) + b"\n"
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(message), ensure_ascii=False)
        line = text.encode("utf-8", "replace") + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise WireError(
            f"control message {type(message).__name__} has {len(line)} bytes, at most {MAX_LINE_BYTES} fit"
        )
    return line


def shortened(faults: Iterable[str]) -> tuple[str, ...]:
    """As many faults as fit into a StartFailed, and how many more there are."""
    kept: list[str] = []
    left_characters, more = _MAX_FAULTS_CHARACTERS, 0
    for fault in faults:
        if left_characters > 0:
            kept.append(fault[:left_characters])
            left_characters -= len(fault) + 1
        else:
            more += 1
    return (*kept, *([f"and {more} more faults"] if more else []))


class Lines:
    """Takes a stream apart into lines, in whatever pieces it comes."""

    def __init__(self) -> None:
        """Of a stream of which nothing has come yet."""
        self._rest = b""

    def end_in(self, piece: bytes) -> Iterator[bytes]:
        """The lines that end in this piece, without their newlines; take them all before the next piece.

        Raises:
            WireError: after those before it, for a line that is too long, so that nobody can fill our memory.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            _check_length(line)
            yield line
        _check_length(self._rest)


def _check_length(line: bytes) -> None:
    if len(line) >= MAX_LINE_BYTES:
        raise WireError(f"a control line has more than the {MAX_LINE_BYTES} bytes that fit")


def decode_for_worker(line: bytes) -> ToWorker:
    """A line that the supervisor sent.

    Raises:
        WireError: it is none; the two sides are not of one checkout, or something else writes into the socket.
    """
    try:
        return _to_worker.decode(line)
    except _UNDECODABLE as exc:
        raise WireError(f"control line from the supervisor does not decode: {exc}") from exc


def decode_for_supervisor(line: bytes) -> ToSupervisor:
    """A line that the worker sent.

    Raises:
        WireError: it is none; the two sides are not of one checkout, or something else writes into the socket.
    """
    try:
        return _to_supervisor.decode(line)
    except _UNDECODABLE as exc:
        raise WireError(f"control line from the worker does not decode: {exc}") from exc
