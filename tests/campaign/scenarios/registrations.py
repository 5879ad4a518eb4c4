"""The webhook's registration when Telegram, or somebody else with our token, does not play along."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from signal import SIGHUP

import httpx

from deploy.local.emulator.faults import Fault, FaultKind
from deploy.local.emulator.journal import ApiCall
from supervisor.call_observation import conflict_pause_seconds
from supervisor.registrar import FIRST_PAUSE_SECONDS
from tests.campaign.field import HANG, Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario
from tests.campaign.webhooks import expected_webhook, wait_until_registered
from tests.end_to_end.instance import eventually

LINUX = (Need.LINUX,)

_RECONCILE_SECONDS = 2
_TOLERANCE_SECONDS = 0.02
"""Of the emulator's times: an answer that is written late is not read early."""

_SHORTEST_SHARE = 0.8
"""Pauses are spread by a fifth (supervisor/registrar.py)."""


async def _calls(field: Field, after: int) -> list[ApiCall]:
    return await field.telegram.calls(after=after, method="setWebhook")


async def _last_call(field: Field) -> int:
    return (await field.telegram.state()).last_call_seq


async def _reassert(field: Field, owner: Instance) -> list[ApiCall]:
    """A new term of the owner, until it has asserted the webhook; the calls of setWebhook that it took."""
    after = await _last_call(field)
    terms = owner.count("[LOCK_CONTROLLER] ACTIVE MODE")
    asserted = owner.count("[LOCK_CONTROLLER] active services initialized")
    field.signal(owner, SIGHUP, "new term")
    await owner.wait_for("[LOCK_CONTROLLER] ACTIVE MODE", count=terms + 1)
    await owner.wait_for("[LOCK_CONTROLLER] active services initialized", count=asserted + 1)
    return await _calls(field, after)


def _pauses(calls: list[ApiCall]) -> list[float]:
    """Between the answer to a call and the begin of the next one."""
    return [
        later.started_monotonic - (earlier.finished_monotonic or earlier.started_monotonic)
        for earlier, later in pairwise(calls)
    ]


async def _too_many_requests(field: Field, chance: random.Random, owner: Instance) -> None:
    """429: retry_after is obeyed to the letter."""
    seconds, count = chance.randint(2, 4), chance.randint(1, 2)
    fault = Fault(FaultKind.TOO_MANY_REQUESTS, method="setWebhook", count=count, retry_after=seconds)
    await field.telegram.add_fault(fault)
    calls = await _reassert(field, owner)
    early = [pause for pause in _pauses(calls)[:count] if pause < seconds - _TOLERANCE_SECONDS]
    if early or len(calls) <= count:
        field.object(
            Invariant.WEBHOOK, f"told to wait {seconds} s, it called again after {early}; {len(calls)} calls"
        )


async def _server_error(field: Field, chance: random.Random, owner: Instance) -> None:
    """5xx, or the connection breaks: backed off, ever longer."""
    kind = chance.choice((FaultKind.SERVER_ERROR, FaultKind.DROP_CONNECTION, FaultKind.APPLIED_BUT_DROPPED))
    count = chance.randint(2, 3)
    await field.telegram.add_fault(
        Fault(kind, method="setWebhook", count=count, status=chance.choice((500, 502, 503, 504)))
    )
    pauses = _pauses(await _reassert(field, owner))[:count]
    least = [FIRST_PAUSE_SECONDS * 2**number * _SHORTEST_SHARE for number in range(count)]
    if len(pauses) < count or any(
        pause < bound - _TOLERANCE_SECONDS for pause, bound in zip(pauses, least, strict=True)
    ):
        field.object(Invariant.WEBHOOK, f"{kind.value}: it paused {pauses}, and not at least {least}")


async def _timed_out(field: Field, chance: random.Random, owner: Instance) -> None:
    """Applied, and never answered: given up after a while, and called again, which changes nothing."""
    kind = chance.choice((FaultKind.HANG, FaultKind.APPLIED_BUT_TIMED_OUT))
    await field.telegram.add_fault(Fault(kind, method="setWebhook", count=1))
    calls = await _reassert(field, owner)
    if len(calls) < 2 or calls[0].fault != kind.value:
        field.object(Invariant.WEBHOOK, f"{kind.value}: {len(calls)} calls")


async def _answered_late(field: Field, chance: random.Random, owner: Instance) -> None:
    """The call of an owner that has died by then is carried out after that of its successor, who sees it and mends it."""
    other = await field.standby()
    seconds = chance.uniform(4.0, 6.0)
    await field.telegram.add_fault(Fault(FaultKind.LATENCY, method="setWebhook", count=1, seconds=seconds))
    after = await _last_call(field)
    field.signal(owner, SIGHUP, "new term")

    async def is_under_way() -> bool:
        return bool(await _calls(field, after))

    await eventually(is_under_way, "setWebhook of the owner")
    await asyncio.sleep(chance.uniform(0.0, 0.5))  # the random moment
    await field.kill_supervisor(owner)
    await wait_until_registered(field, other)

    async def is_carried_out() -> bool:
        return (await _calls(field, after))[0].status is not None

    await eventually(is_carried_out, "the late setWebhook")
    late = (await _calls(field, after))[0]
    if late.status == 200:
        assert late.finished_monotonic is not None
        await wait_until_registered(field, other)
        calls = [
            call for call in await _calls(field, after) if call.started_monotonic > late.finished_monotonic
        ]
        if not calls:
            field.object(
                Invariant.WEBHOOK,
                "nobody called after the late call, and the webhook is right: it changed nothing",
            )
        else:
            mended = field.times.setdefault("late call to its repair", [])
            mended.append(calls[0].started_monotonic - late.finished_monotonic)
    elif late.status != 429:  # within a second of the successor's
        field.object(
            Invariant.FAILED,
            f"the late call was not carried out, but answered {late.status}: {late.description}",
        )
    await field.restart(owner)


_MISHAPS: tuple[Callable[[Field, random.Random, Instance], Awaitable[None]], ...] = (
    *(_too_many_requests, _server_error, _answered_late, _timed_out),
)


@scenario(
    id="b23",
    title="setWebhook: 429, 5xx, no answer, answered late",
    repetitions=40,
    short=3,
    needs=LINUX,
    recovers_each=False,  # whose call is late is killed in the middle of it
)
async def set_webhook_fails(field: Field, chance: random.Random) -> None:
    """Obeyed, backed off, repeated, reconciled; two instances with secrets of their own, so that each can be told apart."""
    for name in ("one", "two"):
        await field.start(
            name,
            RECONCILE_SECONDS=str(_RECONCILE_SECONDS),
            WEBHOOK_SECRET_PATH=secrets.token_urlsafe(24),
            WEBHOOK_SECRET_TOKEN=secrets.token_urlsafe(24),
            # Nobody hands over to anybody: who has no deploy id waits for the end of the owner.
            DEPLOY_ID="",
        )
    first = chance.randrange(len(_MISHAPS))  # else the short campaign never comes to the last one
    async with field.flowing():
        for repetition in range(field.repetitions):
            owner = await field.steady()
            await wait_until_registered(field, owner)
            # The random moment; Telegram's limit is a call in a second.
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            await _MISHAPS[(first + repetition) % len(_MISHAPS)](field, chance, owner)


class Intruder:
    """Another system with our token, which wants the webhook for itself; it takes it whenever it has not got it."""

    def __init__(self, field: Field) -> None:
        """Does nothing yet."""
        self._field = field
        # Nobody listens there: what goes there is not taken, and comes to us later.
        self._url = "http://127.0.0.1:1/webhook/of-another-system"
        field.urls_of_others.append(self._url)
        self.overwrites = 0
        self._over = asyncio.Event()

    def stop(self) -> None:
        """Let it go."""
        self._over.set()

    async def run(self) -> None:
        """Looks several times a second."""
        base = self._field.emulator.base_url
        async with httpx.AsyncClient(trust_env=False, timeout=HANG) as client:
            while not self._over.is_set():
                if (await self._field.telegram.webhook()).url != self._url:
                    answer = await client.post(
                        f"{base}/bot{self._field.emulator.token}/setWebhook", data={"url": self._url}
                    )
                    if answer.status_code == 200:
                        self.overwrites += 1
                        self._field.inject("overwritten")
                await asyncio.sleep(0.2)


@scenario(
    id="b30",
    title="another system keeps overwriting the webhook",
    repetitions=8,
    short=5,
    needs=LINUX,
    recovers_each=False,  # the other system waits for a repair, and not for what is delivered after it
)
async def overwritten(field: Field, chance: random.Random) -> None:
    """Mended at once twice, then ever more slowly, and named as a conflict; right again when the other system is gone."""
    one = await field.start("one", RECONCILE_SECONDS="1")
    async with field.flowing():
        await field.steady()
        await wait_until_registered(field, one)
        after = await _last_call(field)
        intruder = Intruder(field)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(intruder.run(), name="intruder")
            await _until_overwritten(intruder, field.repetitions)
            await one.wait_for("[WEBHOOK] conflict: something else keeps overwriting")

            async def says_so() -> bool:
                return not (await one.status())["webhook"]["in_sync"]

            # While the other system goes on: once it is gone, the next repair lasts.
            await eventually(says_so, "/status that says that the webhook is another system's")
            intruder.stop()
        await wait_until_registered(field, one)
    url, _ = expected_webhook(one)
    ours = [
        # A call within a second of the other system's is refused by Telegram, and repeated as told.
        call
        for call in await _calls(field, after)
        if call.parameters.get("url") == url and call.status == 200
    ]
    begin, end = field.faults[0].at, time.monotonic()
    pauses = [later.started_monotonic - earlier.started_monotonic for earlier, later in pairwise(ours)]
    shown = ", ".join(f"{pause:.1f}" for pause in pauses)
    print(
        f"    overwritten {intruder.overwrites} times in {end - begin:.0f} s; between the repairs {shown} s",
        flush=True,
    )
    # The first two at once; then from one repair to the next lies at least the pause of the conflict.
    for number, pause in enumerate(pauses, start=2):
        least = conflict_pause_seconds(number, 1.0)
        if pause < least - _TOLERANCE_SECONDS:
            field.object(
                Invariant.WEBHOOK,
                f"repair {number} came {pause:.1f} s after the one before, and not {least:.0f} s",
            )


async def _until_overwritten(intruder: Intruder, times: int) -> None:
    async def is_over() -> bool:
        return intruder.overwrites >= times

    await eventually(is_over, f"{times} overwrites")
