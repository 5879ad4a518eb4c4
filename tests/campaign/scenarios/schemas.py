"""Code on a schema that is newer than it is: during the deploy that brings the migration, and after a rollback from it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from deploy.local.platform.records import Release
from deploy.local.platform.service import Timing
from shared.database import apply_schema, connect
from shared.database.schema import read_migrations
from tests.campaign.field import Field
from tests.campaign.hosting import hosted
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario

LINUX = (Need.LINUX,)
_TABLES = ("terms", "instances", "registrations", "inbox")
_OVERLAP_SECONDS = 8.0


async def _migrate(field: Field, number: int) -> None:
    """What later code brings: it only ever adds (shared/schema.sql). By the product's own way of applying it."""
    later = [
        "".join(
            f"ALTER TABLE webhook_supervisor.{table} ADD COLUMN later_{step} text NOT NULL DEFAULT '';"
            for table in _TABLES
        )
        + f"CREATE TABLE webhook_supervisor.later_{step} (bot_id bigint PRIMARY KEY);"
        + f"CREATE INDEX later_{step}_inbox ON webhook_supervisor.inbox (later_{step});"
        for step in range(1, number + 1)
    ]
    connection = await connect(field.database_url, application_name="campaign migration")
    async with connection:
        applied = await apply_schema(connection, (*read_migrations(), *(step.encode() for step in later)))
    assert applied == 1, f"{applied} migrations were applied, and one was missing"


@scenario(id="b18", title="rollback: old code, newer schema", repetitions=10, short=1, needs=LINUX)  # fmt: skip
async def roll_back(field: Field, chance: random.Random) -> None:
    """Old code runs on under the migration, and starts again on it: after the rollback, after a kill. All answers are 200."""
    timing = replace(Timing(), overlap_seconds=_OVERLAP_SECONDS)
    async with hosted(field, timing=timing) as hosting, field.flowing():
        await hosting.wait_until_owned(await hosting.deploy(Release("old"), count=1))
        await field.steady()
        field.exchanges.clear()  # before the first instance was routed to, there was nobody
        for repetition in range(field.repetitions):
            field.inject("deploy with a migration")
            new = hosting.platform.deploy(Release(f"new{repetition}"))
            # The random moment: old code runs, new code boots or waits.
            await asyncio.sleep(chance.uniform(0.0, 4.0))
            await _migrate(field, repetition + 1)
            await hosting.platform.wait_until_live(new)
            await hosting.wait_until_owned(new)
            field.inject("rollback")
            back = await hosting.deploy(Release("old"))
            await hosting.wait_until_owned(back)
            refused = [exchange for exchange in field.exchanges if exchange.path.startswith("/webhook/")]
            if refused:
                field.object(
                    Invariant.AVAILABLE,
                    f"{len(refused)} answers other than 200, the first {refused[0].status}",
                )
            await hosting.wait_until_alone(back)
            [name] = hosting.platform.routed
            await hosting.kill(name)
            await hosting.platform.wait_until(lambda: bool(hosting.platform.routed), limit_seconds=120)
            await hosting.wait_until_owned(back)
            field.exchanges.clear()
    versions = await field.recorder.fetch("SELECT max(version) FROM webhook_supervisor.schema_version")
    if versions[0][0] != len(read_migrations()) + field.repetitions:
        field.object(Invariant.FAILED, f"the schema's version is {versions[0][0]}")
