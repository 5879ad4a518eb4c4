"""Strangers at the public port."""

from __future__ import annotations

import asyncio
import random

from tests.campaign.field import Field
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario
from tests.integration.worker.strangers import ATTACKS, MIB, Attack, Target, slow_body
from tests.integration.worker.worker_process import PATH, SECRET, most_memory_bytes

LINUX = (Need.LINUX,)

_MORE_BYTES = 64 * MIB
"""Each of the bombs alone is larger, and there are many at a time."""


@scenario("b29", "10 MB, slow bodies, bad JSON, bombs, garbage", repetitions=120, short=3, needs=LINUX)  # fmt: skip
async def attack(field: Field, chance: random.Random) -> None:
    """All kinds of it at once, at the owner's port and the standby's, beside steady traffic: no delivery gets another answer
    than 200, every stranger gets the status of INTERFACE.md, and the workers' memory is bounded."""
    secrets = {"WEBHOOK_SECRET_PATH": PATH, "WEBHOOK_SECRET_TOKEN": SECRET}
    for name in ("one", "two"):
        await field.start(name, **secrets)
    async with field.flowing(), asyncio.TaskGroup() as slow:
        await field.steady()
        field.exchanges.clear()  # before the first instance was routed to, there was nobody
        before = {instance.name: most_memory_bytes(await instance.worker_pid()) for instance in field.running}
        pids = {instance.name: await instance.worker_pid() for instance in field.running}
        # A slow body outlasts the others of its repetition by far, and goes on beside the next ones.
        quick = [attack for attack in ATTACKS if attack is not slow_body]
        for _ in range(field.repetitions):
            await asyncio.sleep(chance.uniform(0.0, 0.5))  # the random moment
            field.inject("attack")
            async with asyncio.TaskGroup() as attacks:
                for instance in field.running:
                    target = Target(instance.host, instance.port)
                    slow.create_task(_strike(field, slow_body, target))
                    for attack in chance.sample(quick, len(quick)):
                        attacks.create_task(_strike(field, attack, target))
        for instance in field.running:
            more = most_memory_bytes(pids[instance.name]) - before[instance.name]
            print(
                f"    the worker of {instance.name} took {more / MIB:.1f} MiB more under attack", flush=True
            )
            if more > _MORE_BYTES:
                field.object(
                    Invariant.AVAILABLE, f"the worker of {instance.name} took {more / MIB:.0f} MiB more"
                )
            if await instance.worker_pid() != pids[instance.name]:
                field.object(Invariant.AVAILABLE, f"the worker of {instance.name} did not outlive the attack")
    if field.exchanges:
        first = field.exchanges[0]
        field.object(
            Invariant.AVAILABLE,
            f"{len(field.exchanges)} deliveries got another answer than 200: {first.status} {first.fault}",
        )


async def _strike(field: Field, attack: Attack, target: Target) -> None:
    if (found := set(await attack(target))) != ATTACKS[attack]:
        field.object(Invariant.FAILED, f"{attack.__name__} got {found}, not {ATTACKS[attack]}")
