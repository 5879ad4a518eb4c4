"""Who owns after whom, as scenarios watch it."""

from __future__ import annotations

import asyncio

from deploy.local.evidence import read_runs
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.recovery import Bound
from tests.campaign.tenure import instance_of
from tests.end_to_end.instance import eventually

_END_HOLDER = """
SELECT pg_terminate_backend(l.pid, 5000) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
 WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database()"""


async def end_lock_session(field: Field) -> None:
    """Ends the session that holds the lock, at the server."""
    await field.recorder.fetch(_END_HOLDER)


async def until_superseded(field: Field, owner: Instance) -> Instance:
    """Waits for an owner that is another, and returns it."""
    found: list[Instance] = []

    async def is_another() -> bool:
        found[:] = [await field.owner()]
        return found[0] is not owner

    await eventually(is_another, f"another owner than {owner.name}")
    return found[0]


async def until_recovered(field: Field) -> None:
    """Waits until all is over that was in flight when a process died. It runs again one at a time, so it piles up under faster
    faults; and the death of a process that runs one of these is put down to that one."""

    async def is_recovered() -> bool:
        rows = await field.recorder.fetch_when_back(
            "SELECT EXISTS (SELECT FROM webhook_supervisor.inbox i JOIN webhook_supervisor.terms t USING (bot_id) "
            "WHERE i.state IN ('pending', 'claimed') AND (i.attempts > 1 OR i.attempts > 0 "
            # Those whose turn has not come yet are still claimed by the term that they were in flight in.
            "AND (i.state = 'pending' OR i.term IS DISTINCT FROM t.uuid)))"
        )
        return not rows[0][0]

    await eventually(is_recovered, "the end of what was in flight when a process died")


async def count_terms(field: Field) -> int:
    """How many terms have begun so far."""
    return sum(not change.closed for change in await field.recorder.term_changes())


STOPPED_BEFORE = "from the last work of an owner that was not told to the next term"
STOPPED_BY_ITSELF = (
    Bound("an owner had stopped by itself before the next term began, least", 0.0, is_margin=True),
)


async def measure_silence(field: Field, owner: Instance) -> None:
    """How long an owner that was cut off, or whose supervisor stands still, had stopped working before the next term began;
    never less than nothing. To be called before it is told, or goes on: a step that was frozen ends then."""
    terms = [change for change in await field.recorder.term_changes() if not change.closed]
    index = max(at for at, term in enumerate(terms[:-1]) if instance_of(term.instance_id) == owner.name)
    earlier, later = terms[index], terms[index + 1]
    # Of a whole campaign it is much to read: not in the event loop, which probes.
    runs = await asyncio.to_thread(read_runs, field.history_folder, dict(field.traffic.sent))
    last_work = max(
        (run.last_seen_at for run in runs if run.owner == earlier.instance_id), default=earlier.at
    )
    field.times.setdefault(STOPPED_BEFORE, []).append(later.committed_at - last_work)
