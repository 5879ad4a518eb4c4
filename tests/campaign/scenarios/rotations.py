"""The webhook's secrets are changed while updates flow, old and new instances side by side; and somebody forges meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from http import HTTPStatus
from signal import SIGTERM

import httpx

from deploy.local.emulator.faults import Fault, FaultKind
from deploy.local.emulator.journal import Outcome
from tests.campaign.field import HANG, Field
from tests.campaign.forger import Forger, Webhook
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.probes import ask
from tests.campaign.scenario import Need, scenario
from tests.campaign.scenarios.deploys import new_secrets
from tests.campaign.webhooks import expected_webhook, wait_until_registered
from tests.end_to_end.instance import eventually

LINUX = (Need.LINUX,)
_KNOWLEDGE_SECONDS = 9.0
"""Longer than what a worker has looked up vouches for anybody, and a look-up may take (webhook_worker/registrations.py)."""

_UNCONFIRMED = (
    FaultKind.SERVER_ERROR,
    FaultKind.HANG,
    FaultKind.APPLIED_BUT_TIMED_OUT,
    FaultKind.APPLIED_BUT_DROPPED,
)


class Rotation:
    """The instances with the present secrets, and those to come."""

    def __init__(self, field: Field, chance: random.Random, forger: Forger) -> None:
        """Nothing runs yet."""
        self._field = field
        self._chance = chance
        self._forger = forger
        self._number = 0
        self.present: list[Instance] = []

    async def begin(self) -> None:
        """An owner, and in the long campaign a standby."""
        self.present = await self._start_some(new_secrets())
        await self._field.steady()
        self._forger.present = [_webhook(self.present[0])]

    async def rotate(self) -> None:
        """New secrets beside the old ones: owned, registered, and after a while the old instances end."""
        old, self.present = self.present, await self._start_some(new_secrets())
        # Everybody is forged from the moment on that it might be accepted.
        self._forger.present.append(_webhook(self.present[0]))
        await self._settle(old)

    async def rotate_twice(self) -> None:
        """The first of two rotations is recorded, and perhaps applied, and never confirmed."""
        field = self._field
        kind = self._chance.choice(_UNCONFIRMED)
        fault = await field.telegram.add_fault(Fault(kind, method="setWebhook", status=502))
        old = self.present
        unconfirmed = await self._start_some(new_secrets())
        self._forger.present.append(_webhook(unconfirmed[0]))
        await _until_one_tried(unconfirmed)
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))  # the random moment
        self.present = await self._start_some(new_secrets())
        self._forger.present.append(_webhook(self.present[0]))
        for instance in self.present:
            await instance.wait_until_healthy()
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))  # the length of the fault
        await field.telegram.clear_faults(fault)
        await self._settle([*old, *unconfirmed])

    async def expire(self) -> None:
        """Ten minutes pass for what was superseded; the first to come with such a secret is a forger."""
        gone = [webhook for webhook in self._forger.present if webhook != _webhook(self.present[0])]
        # Nobody forges meanwhile, and nobody of Telegram's comes with an old secret any more: nothing is looked up, and
        # the workers still know what they looked up during the rotation.
        self._forger.present = []
        await asyncio.sleep(_KNOWLEDGE_SECONDS)
        await self._field.recorder.fetch(
            "UPDATE webhook_supervisor.registrations SET superseded_at = superseded_at - interval '11 minutes' "
            "WHERE superseded_at IS NOT NULL RETURNING 1"
        )
        async with httpx.AsyncClient(trust_env=False, timeout=HANG) as client:
            for instance in self.present:
                for webhook in gone:
                    url = f"http://{instance.host}:{instance.port}/webhook/{webhook.path}"
                    await self._forger.send(client, "secret just over", url, webhook.secret)
        self._forger.over += gone
        self._forger.present = [_webhook(self.present[0])]

    async def _start_some(self, variables: Mapping[str, str]) -> list[Instance]:
        self._number += 1
        names = [f"r{self._number}a", f"r{self._number}b"][: 1 if self._field.is_short else 2]
        # Time enough to be seen stopping, as with the product's default of 5 s.
        settings = {"RECONCILE_SECONDS": "5", "LINGER_SECONDS": "5", **variables}
        return [await self._field.start(name, **settings) for name in names]

    async def _settle(self, old: list[Instance]) -> None:
        """The new ones own and are registered, side by side with the old ones, which end a while later."""
        field = self._field
        for instance in self.present:
            await instance.wait_until_healthy()

        async def is_owned() -> bool:
            return await field.owner() in self.present

        await eventually(is_owned, "an owner with the new secrets")
        await wait_until_registered(field, await field.owner())
        await asyncio.sleep(self._chance.uniform(1.0, 3.0))  # side by side
        for instance in old:
            await retire(field, instance)


async def retire(field: Field, instance: Instance) -> None:
    """Ends an instance as a platform does, which routes nothing more to it."""
    instance.signal(SIGTERM)

    async def is_stopping() -> bool:
        # Once it has said so itself, no probe of before can bring the traffic back.
        return (await ask(instance.name, instance.host, instance.port)).status != HTTPStatus.OK

    await eventually(is_stopping, f"{instance.name} says that it is stopping")
    field.prober.route(instance, False)
    if (status := await instance.wait_for_exit()) != 0:
        field.object(Invariant.HYGIENE, f"{instance.name} was told to stop and ended with {status}")


async def _until_one_tried(instances: list[Instance]) -> None:
    """Until one of them owns, and has been failed by Telegram."""

    async def has_tried() -> bool:
        return any(instance.has("[WEBHOOK] Telegram call failed") for instance in instances)

    await eventually(has_tried, "an owner whose setWebhook failed")


def _webhook(instance: Instance) -> Webhook:
    return Webhook(*expected_webhook(instance))


@scenario(id="b28", title="secrets rotated, once and twice; forgeries", repetitions=24, short=2, needs=LINUX)  # fmt: skip
async def rotate(field: Field, chance: random.Random) -> None:
    """Nothing of Telegram's is answered other than 200; forged requests always are refused."""
    forger = Forger(field, chance)
    rotation = Rotation(field, chance, forger)
    async with field.flowing(), forger.forging():
        await rotation.begin()
        begun_at = time.monotonic()  # before the first instance was routed to, there was nobody
        for repetition in range(field.repetitions):
            await asyncio.sleep(chance.uniform(0.0, 2.0))  # the random moment
            field.inject("rotation")
            await (rotation.rotate() if repetition % 2 == 0 else rotation.rotate_twice())
            await rotation.expire()
    await forger.conclude()
    await _expect_all_taken(field, begun_at)


async def _expect_all_taken(field: Field, since: float) -> None:
    refused = [
        attempt
        async for attempt in field.telegram.all_deliveries()
        # Abandoned is the server's doing: the webhook was changed while it waited for the answer.
        if attempt.started_monotonic >= since and attempt.outcome in (Outcome.RETRY, Outcome.DROPPED)
    ]
    if refused:
        first = refused[0]
        field.object(
            Invariant.AVAILABLE,
            f"{len(refused)} deliveries were answered other than 200, the first {first.status or first.error}",
        )
