"""Deploys, rollbacks and rotations as the platform does them (deploy/local/platform): overlap, in Render's order."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from dataclasses import replace
from enum import Enum

from deploy.local.platform.records import Release
from deploy.local.platform.service import Timing
from supervisor.succession import REMEMBERED_SECONDS
from tests.campaign.field import Field
from tests.campaign.hosting import Hosting, Move, deploy_of, hosted
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario

LINUX = (Need.LINUX,)

_OVERLAP_SECONDS = 20.0
"""From the switch of traffic to SIGTERM for the old instances; 60 s on Render, and the longest wait of a deploy."""

_PER_SECOND = 25.0
"""Of updates: six instances and their starts share two cores with whoever handles them."""

_NO_GRACE_SECONDS = 1.0
"""From SIGTERM to SIGKILL: less than an instance lingers."""

_OVERLAP_OF_A_FAILURE_SECONDS = 60.0
"""Not shortened: four crashes and the next deploy must fit into it on a busy machine."""

_OVERLAP_OF_A_HANG_SECONDS = 120.0
"""The same, and in place of the crashes all the time that a start has (shared.wire.LEAD_SECONDS)."""

_FORGOTTEN_SECONDS = REMEMBERED_SECONDS + 15.0
"""Code whose last instance is gone so long is a young deploy when it comes back (supervisor/succession.py)."""


class Kind(Enum):
    """What is deployed; the value is its name in what is printed."""

    DEPLOY = "deploy"  # other code
    ROTATION = "rotation"  # the same code, other secrets of the webhook
    ROLLBACK = "rollback"  # the code before, gone for more than a minute
    HASTY_ROLLBACK = "hasty rollback"  # the code before, which runs still, or did within the last minute


_COURSE = (
    *(Kind.DEPLOY, Kind.ROTATION, Kind.HASTY_ROLLBACK, Kind.DEPLOY, Kind.ROLLBACK),
    *(Kind.ROTATION, Kind.DEPLOY, Kind.DEPLOY, Kind.ROTATION, Kind.DEPLOY),
)
_BEGINS = tuple(number for number, kind in enumerate(_COURSE) if kind in (Kind.DEPLOY, Kind.ROTATION))
"""Where a course may begin: at first there is nothing to roll back to."""


class Course:
    """Deploys, one after the other, and what came of each."""

    def __init__(self, field: Field, hosting: Hosting, chance: random.Random) -> None:
        """Nothing is live yet."""
        self._field = field
        self._hosting = hosting
        self._chance = chance
        self._releases = [Release("v1")]
        self._kinds: dict[int, Kind] = {}
        self._alone_since = 0.0

    async def begin(self, count: int) -> None:
        """The first deploy."""
        await self._hosting.wait_until_owned(await self._hosting.deploy(self._releases[0], count=count))
        await self._field.steady()

    async def take(self, kind: Kind) -> None:
        """One deploy, until it owns; every fourth until the old one is gone as well, the others into the overlap."""
        if kind is Kind.ROLLBACK:
            await self._settle()
            await asyncio.sleep(max(0.0, self._alone_since + _FORGOTTEN_SECONDS - time.monotonic()))
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))  # the random moment
        release = self._next(kind)
        # Some platforms do not wait for the end of what they have told to end (PLATFORMS.md: Railway 0 s, Fly 5 s).
        grace = _NO_GRACE_SECONDS if len(self._kinds) % 4 == 0 else Timing().shutdown_delay_seconds
        self._hosting.platform.timing = replace(self._hosting.platform.timing, shutdown_delay_seconds=grace)
        self._field.inject(kind.value)
        number = await self._hosting.deploy(release)
        self._kinds[number] = kind
        self._releases.append(release)
        # After a hasty rollback whatever is restarted is as good an owner as any: it would be a second change.
        if len(self._kinds) % 3 == 1 and kind is not Kind.HASTY_ROLLBACK:
            await self._restart_an_old_one(number)
        await self._hosting.wait_until_owned(number)
        if len(self._kinds) % 4 == 1:
            await self._settle()

    async def finish(self) -> None:
        """Waits for the end of all but the last, says how each went, and objects."""
        # In the short campaign too: of its two deploys only the last one's predecessor has the whole grace.
        await self._settle()
        for number, kind in self._kinds.items():
            move = await self._hosting.move(number)
            print(f"    {kind.value}: {move}", flush=True)
            self._judge(kind, move)

    def _next(self, kind: Kind) -> Release:
        match kind:
            case Kind.DEPLOY:
                return replace(self._releases[-1], commit=f"v{len(self._releases) + 1}")
            case Kind.ROTATION:
                return replace(self._releases[-1], environment=new_secrets())
            case Kind.ROLLBACK | Kind.HASTY_ROLLBACK:
                return self._releases[-2] if len(self._releases) > 1 else self._releases[-1]

    async def _restart_an_old_one(self, number: int) -> None:
        """By hand, in the platform's dashboard: any instance that has lost its traffic."""
        await asyncio.sleep(self._chance.uniform(0.0, 3.0))  # the random moment
        old = [slot.name for slot in self._hosting.platform.slots if slot.deploy != number]
        if old:
            self._hosting.platform.restart(self._chance.choice(old))

    async def _settle(self) -> None:
        await self._hosting.wait_until_alone(max(self._kinds, default=1))
        self._alone_since = time.monotonic()

    def _judge(self, kind: Kind, move: Move) -> None:
        field = self._field
        if move.refused:
            field.object(Invariant.AVAILABLE, f"{move.refused} answers other than 200 in a {kind.value}")
        if len(move.owners) != 1:
            field.object(
                Invariant.AVAILABLE,
                f"the owner changed {len(move.owners)} times in a {kind.value}: {move.owners}",
            )
        if move.owned_at is not None:
            field.times.setdefault(f"{kind.value}: switch of traffic to new owner", []).append(
                move.owned_at - move.live_at
            )
        # Code that was live a moment ago cannot be told from what is left of it, and is handed nothing before SIGTERM.
        if kind is not Kind.HASTY_ROLLBACK and not move.owned_before_sigterm:
            field.object(
                Invariant.AVAILABLE, f"a {kind.value} did not own before the old one's SIGTERM: {move}"
            )


def new_secrets() -> dict[str, str]:
    """A rotation."""
    return {
        "WEBHOOK_SECRET_PATH": secrets.token_urlsafe(24),
        "WEBHOOK_SECRET_TOKEN": secrets.token_urlsafe(24),
    }


async def _deploy_on_and_on(field: Field, chance: random.Random, count: int) -> None:
    async with (
        hosted(field, timing=replace(Timing(), overlap_seconds=_OVERLAP_SECONDS)) as hosting,
        field.flowing(_PER_SECOND),
    ):
        course = Course(field, hosting, chance)
        await course.begin(count)
        first = chance.choice(_BEGINS)  # else the short campaign never comes to the later ones
        for repetition in range(field.repetitions):
            await course.take(_COURSE[(first + repetition) % len(_COURSE)])
        await course.finish()


@scenario(id="b17", title="deploys, rollbacks, rotations; one instance", repetitions=50, short=2, needs=LINUX)  # fmt: skip
async def deploy_one(field: Field, chance: random.Random) -> None:
    """All answers are 200; the new deploy owns before the old one gets SIGTERM; one change of owner each."""
    await _deploy_on_and_on(field, chance, 1)


@scenario(id="b17-three", title="the same; three instances of each", repetitions=50, short=2, needs=LINUX)  # fmt: skip
async def deploy_three(field: Field, chance: random.Random) -> None:
    """All answers are 200; the new deploy owns before the old one gets SIGTERM; one change of owner each."""
    await _deploy_on_and_on(field, chance, 3)


async def _fail_as_owner(
    field: Field, chance: random.Random, bot: str, overlap_seconds: float = _OVERLAP_OF_A_FAILURE_SECONDS
) -> int:
    """Deploys that look well and fail when they own, each followed by a better one; the answers other than 200."""
    timing = replace(Timing(), overlap_seconds=overlap_seconds)
    refused = 0
    async with hosted(field, timing=timing) as hosting, field.flowing():
        good = await hosting.deploy(Release("good"), count=1)
        await hosting.wait_until_owned(good)
        await field.steady()
        for repetition in range(field.repetitions):
            await asyncio.sleep(chance.uniform(0.0, 2.0))  # the random moment
            field.inject("deploy that fails as owner")
            bad = await hosting.deploy(Release(f"bad{repetition}", {"BOT_APP": bot}))
            [failing] = hosting.platform.routed
            await hosting.instance(failing).wait_for("[LOCK] giving up the lock")
            await hosting.wait_until_owned(good)
            better = await hosting.deploy(Release(f"better{repetition}"))
            await hosting.wait_until_owned(better)
            failure, repair = await hosting.move(bad), await hosting.move(better)
            print(f"    failing deploy: {failure}\n    the next one: {repair}", flush=True)
            if [deploy_of(name) for name in failure.owners] != [bad, good]:
                field.object(
                    Invariant.AVAILABLE, f"it was to fail, and the old one to own again: {failure.owners}"
                )
            if [deploy_of(name) for name in repair.owners] != [better]:
                field.object(Invariant.AVAILABLE, f"the next deploy was to own: {repair.owners}")
            refused += failure.refused + repair.refused
            good = better
            if repetition + 1 < field.repetitions:
                await hosting.wait_until_alone(good)
    return refused


@scenario(id="b17-failing", title="a deploy that fails to start as owner", repetitions=10, short=1, needs=LINUX)  # fmt: skip
async def deploy_raising(field: Field, chance: random.Random) -> None:
    """The old deploy owns again, and keeps it until the next one owns; all answers are 200."""
    refused = await _fail_as_owner(field, chance, "tests.campaign.leaders:raising")
    if refused:
        field.object(Invariant.AVAILABLE, f"{refused} answers other than 200 around a deploy that fails")


@scenario(id="b17-hanging", title="a deploy that never starts as owner", repetitions=3, short=1, needs=LINUX)  # fmt: skip
async def deploy_hanging(field: Field, chance: random.Random) -> None:
    """The old deploy owns again within the minute after which platforms stop it; all answers are 200."""
    bot = "tests.campaign.leaders:hanging"
    refused = await _fail_as_owner(field, chance, bot, _OVERLAP_OF_A_HANG_SECONDS)
    if refused:
        field.object(Invariant.AVAILABLE, f"{refused} answers other than 200 around a deploy that hangs")


@scenario(id="b17-dying", title="a deploy that dies as owner", repetitions=10, short=1, needs=LINUX)  # fmt: skip
async def deploy_dying(field: Field, chance: random.Random) -> None:
    """The old deploy owns again, and keeps it until the next one owns. Workers that die cost answers, as in b02."""
    await _fail_as_owner(field, chance, "tests.campaign.leaders:dying")
