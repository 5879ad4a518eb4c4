"""The judge proves itself: each safety is taken out in turn, and the scenarios in which that can show must object.

    python -m tests.campaign --sabotage all        a table: safety, scenario that caught it, what was said
    python -m tests.campaign --sabotage "dedupe"   one of them; exit status 1 where one was not caught

Scenarios are tried in the order below until one objects. That it fails for want of its end ("!") is no objection: it must say
what was broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deploy.local.postgres import PostgresServer
from tests.campaign.judge import Invariant, Objection
from tests.campaign.sabotage import Safety
from tests.campaign.scenario import Scenario
from tests.campaign.staging import Options, stage

SHOWS: dict[Safety, tuple[str, ...]] = {
    Safety.COMPLETION_FENCE: ("b10-locked", "b04"),
    Safety.CLAIM_FENCE: ("b10-locked",),
    Safety.DEDUPE: ("b03",),
    Safety.LANE_ORDER: ("b02", "b01"),
    Safety.ATTEMPTS_FIRST: ("b02",),
    Safety.COMMIT_FIRST: ("b08-late", "b10"),
    Safety.WORKER_DEADLINE: ("b04",),
    Safety.ASSERTION: ("b01",),
}
"""In which scenarios each can show, the likeliest first."""

HEADINGS = ("safety taken out", "caught by", "what it said", "tried")


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of one safety's absence; `caught_by` is None where nobody objected."""

    safety: Safety
    caught_by: str | None
    objection: Objection | None
    tried: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """The row, under HEADINGS."""
        return (
            self.safety.value,
            self.caught_by or "NOT CAUGHT",
            "" if self.objection is None else str(self.objection),
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
    """Stages scenarios without a safety until one objects."""
    tried: list[str] = []
    for id_ in SHOWS[safety]:
        tried.append(id_)
        result = await stage(scenarios[id_], server, replace(options, sabotage=safety, is_short=True))
        told = [item for item in result.objections if item.invariant is not Invariant.FAILED]
        if told:
            return Proof(safety, id_, told[0], tuple(tried))
    return Proof(safety, None, None, tuple(tried))


def format_proofs(proofs: Sequence[Proof]) -> str:
    """All rows as Markdown."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(proof.cells() for proof in proofs)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
