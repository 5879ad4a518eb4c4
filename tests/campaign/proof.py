"""The judge proves itself: each safety is taken out in turn, and the scenarios in which that can show must object.

    python -m tests.campaign --sabotage all        a table: safety, scenario that caught it, what was said
    python -m tests.campaign --sabotage "dedupe"   one of them; exit status 1 where one was not caught

Scenarios are tried in the order below until one objects to what the absence breaks; that it says something else does not do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.local.postgres import PostgresServer
from tests.campaign.judge import Invariant, Objection
from tests.campaign.sabotage import Safety
from tests.campaign.scenario import Scenario
from tests.campaign.staging import Options, stage

SHOWS: dict[Safety, tuple[Invariant, tuple[str, ...]]] = {
    Safety.COMPLETION_FENCE: (Invariant.FENCE, ("b10-locked", "b04")),
    Safety.CLAIM_FENCE: (Invariant.FENCE, ("b10-locked",)),
    Safety.DEDUPE: (Invariant.ONCE, ("b03", "b27")),
    Safety.LANE_ORDER: (Invariant.SEQUENCE, ("b02", "b01")),
    Safety.ATTEMPTS_FIRST: (Invariant.COUNTED, ("b02", "b25")),
    Safety.COMMIT_FIRST: (Invariant.LOSS, ("b08-late", "b10")),
    Safety.WORKER_DEADLINE: (Invariant.EXCLUSION, ("b04", "b08")),
    Safety.ASSERTION: (Invariant.WEBHOOK, ("b01", "b28")),
}
"""What its absence breaks, and in which scenarios that can show, the likeliest first."""

HEADINGS = ("safety taken out", "caught by", "what it said", "and besides", "tried")


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of one safety's absence.

    Attributes:
        caught_by: the scenario that objected to what the absence breaks; None where none did.
        objection: the first.
        besides: how often, by invariant, all that was objected to there.
        tried: all scenarios that were staged.
    """

    safety: Safety
    caught_by: str | None
    objection: Objection | None
    besides: Mapping[Invariant, int]
    tried: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """The row, under HEADINGS."""
        return (
            self.safety.value,
            self.caught_by or "NOT CAUGHT",
            "" if self.objection is None else str(self.objection),
            ", ".join(f"{invariant.value} {count}" for invariant, count in self.besides.items()),
            ", ".join(self.tried),
        )


def choose(name: str) -> Sequence[Safety]:
    """The safeties of that name; all of them for "all".

    Raises:
        ValueError: there is none.
    """
    return tuple(Safety) if name == "all" else (Safety(name),)


async def prove(
    safety: Safety, scenarios: dict[str, Scenario], server: PostgresServer, options: Options
) -> Proof:
    """Stages scenarios without a safety until one objects to what that breaks."""
    tried: list[str] = []
    broken, ids = SHOWS[safety]
    for id_ in ids:
        tried.append(id_)
        result = await stage(scenarios[id_], server, replace(options, sabotage=safety, is_short=True))
        told = next((item for item in result.objections if item.invariant is broken), None)
        if told is not None:
            counts = Counter(item.invariant for item in result.objections)
            return Proof(safety, id_, told, counts, tuple(tried))
    return Proof(safety, None, None, {}, tuple(tried))


def format_proofs(proofs: Sequence[Proof]) -> str:
    """All rows as Markdown."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(proof.cells() for proof in proofs)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
