"""What a completed update leaves behind, and what it costs to forget it.

growth   1,000 updates a second with keys kept for days: what the inbox takes on the disk, indexes included, for a completed
         update; by how much it grew once the room for bodies was made, or what a row takes in a table that was written anew,
         whichever is more
purge    the same, and every few minutes the keys of a third of a day (of a bot with 600,000 updates a day) are due to go;
         the moments of a purge are compared with those without
"""

from __future__ import annotations

from bench.bed import Bed
from bench.contenders import Contender, count_query, run_owning
from bench.figures import Figure, Series
from bench.load import Updates
from bench.options import Options
from bench.steady import latency_ms, loaded, wait_until_all_done
from shared.database import CLEARED
from webhook_worker.inbox import KEY_DAYS

_SETTLING_MINUTES = 4.0
"""At first room is made, for what is in flight and for the bodies of what is done, until a vacuum gives that back; it is used
again and again, and nothing more comes of it."""
_GROWTH_MINUTES = 8.0
_DAY = 600_000
_PURGES = 3
_PURGE_ROUND_SECONDS = 200.0
"""A purge looks every 60 s, and forgets 2,500 keys a second at most: 80 s of 200, and the rest is without."""

_FILL = f"""
INSERT INTO webhook_supervisor.inbox (bot_id, update_id, state, finished_at, {", ".join(CLEARED)})
SELECT %(bot)s, id, 'done', due, {", ".join("NULL" for _ in CLEARED)}
  FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS id,
       LATERAL (SELECT now() - %(days)s * interval '1 day' + %(due_in)s * interval '1 second') AS d(due)
"""  # noqa: S608 - put together from constants


async def measure(bed: Bed, options: Options) -> tuple[list[Figure], list[Series]]:
    """Of figures.TARGETS: soak_bytes_per_update, purge_median_drift.

    Raises:
        RuntimeError: an answer was not 200, or too few keys were purged.
        TimeoutError: an update was never completed.
    """
    updates = Updates()
    async with run_owning(bed, updates) as contender:
        async with loaded(contender, updates) as load:
            before = (await load.sample_for(10 if options.quick else _SETTLING_MINUTES * 60))[-1]
            after = (await load.sample_for(20 if options.quick else _GROWTH_MINUTES * 60))[-1]
        await wait_until_all_done(contender)
        grown = (after.bytes - before.bytes) / (after.done - before.done)
        packed = await _packed_bytes(contender)
        # What bodies have left is filled up first, so that the table grows by less than a row for some time.
        beside = {
            "grown": round(grown, 1),
            "packed": round(packed, 1),
            "updates": after.done - before.done,
            "MiB before": round(before.bytes / 2**20, 1),
            "MiB after": round(after.bytes / 2**20, 1),
        }
        return [
            Figure("soak_bytes_per_update", max(grown, packed), beside=beside),
            await _purge(contender, bed, updates, options),
        ], []


async def _packed_bytes(contender: Contender) -> float:
    """What a completed update takes where nothing else is."""
    assert contender.database is not None
    await contender.database.execute("VACUUM (FULL) webhook_supervisor.inbox")
    size = await count_query(
        contender.database, "SELECT pg_total_relation_size('webhook_supervisor.inbox')::bigint"
    )
    return size / await contender.count()


async def _purge(contender: Contender, bed: Bed, updates: Updates, options: Options) -> Figure:
    purges, keys = (1, 20_000) if options.quick else (_PURGES, _DAY // _PURGES)
    round_seconds = 150.0 if options.quick else _PURGE_ROUND_SECONDS
    assert contender.database is not None
    first = 1
    for number in range(purges):
        await contender.database.execute(
            _FILL,
            {
                "bot": int(bed.emulator.token.partition(":")[0]),
                "days": KEY_DAYS,
                # Time to fill and to vacuum; then half a round without a purge.
                "due_in": 60 + round_seconds * (number + 0.5),
                "first": first,
                "last": first + keys - 1,
            },
        )
        first += keys
    await contender.database.execute("VACUUM (ANALYZE) webhook_supervisor.inbox")
    async with loaded(contender, updates) as load:
        samples = await load.sample_for(60 + round_seconds * (purges + 0.5))
    await wait_until_all_done(contender)
    quiet, purging = [], []
    for before, sample, after in zip(samples, samples[1:], samples[2:], strict=False):
        # Postgres counts late: only what lies in the midst of its kind.
        if after.deleted == before.deleted:
            quiet.append(sample)
        elif after.deleted > sample.deleted > before.deleted:
            purging.append(sample)
    purged = samples[-1].deleted - samples[0].deleted
    if purged < purges * keys or not quiet or not purging:
        raise RuntimeError(
            f"{purged} of {purges * keys} keys were purged, {len(purging)} samples beside it, {len(quiet)} without"
        )
    return Figure(
        "purge_median_drift",
        latency_ms(purging, 0.5) / latency_ms(quiet, 0.5),
        beside={
            "keys": purged,
            "ms": round(latency_ms(purging, 0.5), 2),
            "ms otherwise": round(latency_ms(quiet, 0.5), 2),
            "p99 ms": round(latency_ms(purging, 0.99), 2),
            "p99 ms otherwise": round(latency_ms(quiet, 0.99), 2),
        },
    )
