"""What a campaign's judge judges: values, all times in seconds of the machine's monotonic clock.

    InboxChange, TermChange, Sign     written by the database itself (history.sql), read by recorder.py
    Probe                             /healthz of every instance, asked several times a second (probes.py)
    Call                              setWebhook and its kin, from the emulator's journal
    Delivery, Run, Row, Death         deploy.local.history

Not promised: that times of the database are those of the machine to better than a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deploy.local.history import Death, Delivery, Row, Run


@dataclass(frozen=True, slots=True)
class InboxChange:
    """A committed change of one row of the inbox; `old_state` is None for a new row, `new_state` for a deleted one.

    Attributes:
        at: when the statement changed it.
        committed_at: when its transaction was committed; `at` where the server does not keep that.
        backend: the session's process at the server.
    """

    at: float
    committed_at: float
    backend: int
    seq: int
    update_id: int
    old_state: str | None
    new_state: str | None
    old_term: str | None
    new_term: str | None
    starts: int | None
    attempts: int | None

    @property
    def is_claim(self) -> bool:
        """Whether the row was claimed by it."""
        return self.new_state == "claimed" and (self.old_state != "claimed" or self.old_term != self.new_term)

    @property
    def is_completion(self) -> bool:
        """Whether the update was over with it."""
        return self.new_state in ("done", "dead") and self.old_state not in ("done", "dead")


@dataclass(frozen=True, slots=True)
class TermChange:
    """A committed change of the term's row.

    Attributes:
        closed: it was ended by its owner.
        ended: that was a clean end: nothing is in flight.
    """

    at: float
    committed_at: float
    backend: int
    number: int
    uuid: str
    instance_id: str
    ended: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Sign:
    """A statement that an instance's lock session carried out: it confirms ownership when it is answered."""

    at: float
    backend: int
    instance_id: str


@dataclass(frozen=True, slots=True)
class Probe:
    """One GET /healthz, on the public or on the supervisor's own port; `status` is None where there was no answer.

    Attributes:
        reason: why it is not 200, in the instance's words.
        pid: of the supervisor that was asked; 0 if that was not noted.
        has_timed_out: no answer came within the limit, and it was not for us that none came.
    """

    instance: str
    asked_at: float
    answered_at: float
    status: int | None
    role: str = ""
    is_public: bool = True
    reason: str = ""
    pid: int = 0
    has_timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the Bot API; `status` is None where it was never answered.

    Attributes:
        url: what setWebhook was to set; empty also where the emulator failed it before it had read that.
        fault: how the scenario had the emulator fail it; empty if it did not.
    """

    method: str
    at: float
    status: int | None
    url: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Freeze:
    """A worker that stood still: stopped at `at`, told to go on at `until`."""

    pid: int
    at: float
    until: float


@dataclass(frozen=True, slots=True)
class Standstill:
    """A time in which an instance, or its worker, could not answer: stopped, blocked by its bot, out of descriptors."""

    instance: str
    at: float
    until: float

    def excuses(self, probe: Probe) -> bool:
        """Whether the probe fell into it, if only in part."""
        return (
            self.instance == probe.instance and self.at <= probe.answered_at and probe.asked_at <= self.until
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything about one scenario, when it is over.

    Attributes:
        urls: what each instance registers, by its name.
        urls_of_others: what somebody else registers, whom the scenario plays; whoever else does the same is not judged by it.
    """

    deliveries: Sequence[Delivery] = ()
    runs: Sequence[Run] = ()
    rows: Sequence[Row] = ()
    deaths: Sequence[Death] = ()
    changes: Sequence[InboxChange] = ()
    terms: Sequence[TermChange] = ()
    signs: Sequence[Sign] = ()
    probes: Sequence[Probe] = ()
    calls: Sequence[Call] = ()
    freezes: Sequence[Freeze] = ()
    standstills: Sequence[Standstill] = ()
    urls: Mapping[str, str] = field(default_factory=dict)
    urls_of_others: Sequence[str] = ()
    ended_at: float = field(default=float("inf"))
