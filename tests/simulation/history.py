"""What happened in a simulation: written by everything in it, read by the checker and by whoever looks at a failing seed.

All times are the agenda's. Nothing here judges.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tests.models.inbox import Commit
from tests.simulation.agenda import Agenda


@dataclass(slots=True)
class Delivery:
    """One update on its way from Telegram.

    Attributes:
        lane: its chat.
        queue: Telegram's; the next of a queue is sent after the one before.
        answers: status of every attempt, with when it came; None: no answer.
        expires_at: Telegram forgets it then, wherever it is.
        expired_at: its next try would have come too late.
    """

    update_id: int
    lane: int
    queue: str
    created_at: float
    expires_at: float
    first_sent_at: float | None = None
    answers: list[tuple[float, int | None]] = field(default_factory=list)
    expired_at: float | None = None

    @property
    def taken_at(self) -> float | None:
        """When it was first answered 200."""
        return next((at for at, status in self.answers if status == 200), None)

    def is_expired(self, now: float) -> bool:
        """Whether Telegram has forgotten it without an answer 200."""
        return self.taken_at is None and (self.expired_at is not None or self.expires_at <= now)

    def is_over(self, now: float) -> bool:
        """Whether Telegram does not send it any more."""
        return self.taken_at is not None or self.is_expired(now)


@dataclass(slots=True)
class Run:
    """One time that the handler of an update ran.

    Attributes:
        seen_at: the last moment at which it is known to have run.
        ended: "done", "transient", "failed", "cancelled", "died"; None while it runs.
    """

    update_id: int
    lane: int
    term: str
    worker: str
    attempt: int
    began_at: float
    seen_at: float
    ended: str | None = None


@dataclass(frozen=True, slots=True)
class Failover:
    """A replica took over that had got everything up to `replicated_at`."""

    replicated_at: float
    promoted_at: float


@dataclass(frozen=True, slots=True)
class Term:
    """A term that was begun."""

    uuid: str
    number: int
    instance: str
    began_at: float


@dataclass(slots=True)
class Timers:
    """One time that the timers and jobs of a bot ran.

    Attributes:
        ended_at: None while they run.
    """

    term: str
    worker: str
    began_at: float
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A process said to a probe that its instance owns.

    Attributes:
        who: the process.
        until: the deadline of its instance's last term, as far as it was confirmed by then; None: it never had one.
    """

    at: float
    who: str
    instance: str
    until: float | None


@dataclass(slots=True)
class History:
    """Of one simulation.

    Attributes:
        commits: of the inbox, with the true time.
        deadlines: by term, the latest of which the database has assured its owner, by the answer to what that had sent.
        claims: of every probe, with one more at every deadline.
        database_returns: when it took connections again.
        timers: from when to when each application was started.
        ends: of terms whose owners have ended them, or were asked to stop: when.
        breaches: what was seen to be wrong at the moment at which it was.
    """

    agenda: Agenda
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    commits: list[tuple[float, Commit]] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    deadlines: dict[str, float] = field(default_factory=dict)
    timers: list[Timers] = field(default_factory=list)
    ends: dict[str, float] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    failovers: list[Failover] = field(default_factory=list)
    database_returns: list[float] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    notes: list[tuple[float, str, str]] = field(default_factory=list)

    def note(self, who: str, what: str) -> None:
        """A line of the story."""
        self.notes.append((self.agenda.now, who, what))

    def note_commit(self, commit: Commit) -> None:
        """A change of a row is committed."""
        self.commits.append((self.agenda.now, commit))

    def note_deadline(self, term: str, deadline: float) -> None:
        """Its owner may be sure of it until then."""
        if deadline > self.deadlines.get(term, 0.0):
            self.deadlines[term] = deadline

    def note_end(self, term: str) -> None:
        """Its owner calls nobody for it any more."""
        self.ends.setdefault(term, self.agenda.now)

    def note_claim(self, who: str, instance: str) -> None:
        """A process says now that its instance owns."""
        term = next((one.uuid for one in reversed(self.terms) if one.instance == instance), None)
        until = None if term is None else self.deadlines.get(term)
        self.claims.append(Claim(self.agenda.now, who, instance, until))

    def note_failover(self, replicated_at: float) -> None:
        """The primary is gone, and what it had not passed on."""
        self.failovers.append(Failover(replicated_at, self.agenda.now))
        self.note("postgres", f"failover: {self.agenda.now - replicated_at:.3f} s are lost")

    def object_to(self, letter: str, what: str) -> None:
        """Something that must never be."""
        self.breaches.append(f"{letter} {what}")
        self.note("BREACH", f"{letter} {what}")

    def text(self) -> str:
        """The story, a line for each note."""
        return "\n".join(f"{at - 1000.0:10.4f}  {who:<14} {what}" for at, who, what in self.notes)

    def digest(self) -> str:
        """The same for the same story, to the microsecond."""
        story = f"{self.text()}\n{self.runs}\n{[(at, c.update_id, c.state) for at, c in self.commits]}"
        return hashlib.sha256(story.encode()).hexdigest()[:16]
