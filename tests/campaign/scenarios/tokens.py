"""The bot's token is revoked while everything runs."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from typing import Any

from deploy.local.evidence import read_runs
from deploy.local.history import Ending
from tests.campaign.field import Field
from tests.campaign.instance import Instance
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario
from tests.campaign.webhooks import wait_until_registered
from tests.end_to_end.instance import eventually

LINUX = (Need.LINUX,)
_SUPERVISORS = frozenset(("getme", "getwebhookinfo", "setwebhook", "deletewebhook"))
_MOST_CALLS = 3
"""Of the supervisors of one bot in the seconds after its token is refused: a call that was under way, one that finds out, one
more of whoever takes over. They ask again after five minutes."""

_MOST_TRIES = 2 * 32
"""Of the owner's worker in the same seconds: what was under way in each slot of DISPATCH_CONCURRENCY, and as much again that
began before the first refusal was settled."""

_FIRST_PAUSE_SECONDS = 0.8
"""Between the first and the second run of an update that met the refused token, at least; then ever more (webhook_worker)."""


def _token(field: Field, number: int) -> str:
    """Another token of the same bot."""
    bot_id, _, _ = field.emulator.token.partition(":")
    return f"{bot_id}:reissued-{number:03d}-" + "B" * 24


async def _health(instance: Instance) -> dict[str, Any]:
    answer = await instance.get("/healthz")
    body: dict[str, Any] = answer.json()
    return {"code": answer.status_code, **body}


async def _refused_calls(field: Field, after: int) -> Counter[str]:
    """How often each method was called with the old token."""
    found: Counter[str] = Counter()
    while page := await field.telegram.calls(after=after):
        found.update(call.method.lower() for call in page if call.status == 401)
        after = page[-1].seq
    return found


@scenario(
    id="b24",
    title="token revoked while an instance has the new one",
    repetitions=12,
    short=1,
    needs=LINUX,
    recovers_each=False,  # nothing is delivered from the revocation until somebody comes with the new token
)
async def revoke(field: Field, chance: random.Random) -> None:
    """Loud, no hammering, health says so; ownership goes to the instance with the new token, and to nobody else for nothing."""
    token = field.emulator.token
    # Without a deploy's id nobody is younger than anybody: the token alone makes the difference.
    owners = [await _start(field, f"old{number}", token, "") for number in range(2)]
    for repetition in range(field.repetitions):
        async with field.flowing():
            owner = await field.steady()
            await wait_until_registered(field, owner)
            await asyncio.sleep(chance.uniform(0.0, 2.0))  # the random moment
            token = _token(field, repetition)
            after = (await field.telegram.state()).last_call_seq
            begun = len(await field.recorder.term_changes())
            await field.telegram.reissue_token(token)
            revoked = field.inject("token revoked", owner)

            async def says_so(owner: Instance = owner) -> bool:
                health = await _health(owner)
                return health["code"] == 503 and "401" in str(health.get("reason"))

            await eventually(says_so, "an owner that says that its token is refused")
            field.times.setdefault("token revoked to health that says so", []).append(
                time.monotonic() - revoked.at
            )
            await _expect_words(field, owner)
            watched = chance.uniform(6.0, 12.0)
            await asyncio.sleep(watched)  # the length of the fault
            _judge_calls(field, await _refused_calls(field, after), revoked.at)
            if len(await field.recorder.term_changes()) != begun:
                field.object(Invariant.AVAILABLE, "the owner changed, and nobody had a better token")
            # With a deploy's id in every other repetition: both reasons to hand over at once.
            name = f"new{repetition}"
            bearer = await _start(field, name, token, f"release{repetition}" if repetition % 2 else "")
            offered = field.inject("an instance with the new token", bearer)
            await bearer.wait_until_owner()
            field.times.setdefault("start of the bearer to its ownership", []).append(
                time.monotonic() - offered.at
            )
            await wait_until_registered(field, bearer)
            terms = [
                term
                for term in await field.recorder.term_changes()
                if not term.closed and term.at > revoked.at
            ]
            others = [term.instance_id for term in terms if not term.instance_id.startswith(f"{name}-")]
            if others:
                field.object(Invariant.AVAILABLE, f"owned without the new token: {', '.join(others)}")
            for old in owners:
                if (status := await field.stop(old)) != 0:
                    field.object(Invariant.HYGIENE, f"{old.name} was told to stop and ended with {status}")
            owners = [bearer, await _start(field, f"{name}standby", token, "")]


async def _start(field: Field, name: str, token: str, deploy_id: str) -> Instance:
    return await field.start(name, TELEGRAM_BOT_TOKEN=token, DEPLOY_ID=deploy_id, RECONCILE_SECONDS="5")


async def _expect_words(field: Field, owner: Instance) -> None:
    """Loud: an error in the log that names the token."""

    def is_told() -> bool:
        return any(line.level.lower() == "error" and "401" in str(line) for line in owner.lines)

    try:
        await owner.wait_until(is_told, "an error that names the token")
    except AssertionError:
        field.object(Invariant.TRUTH, f"{owner.name} said nothing of its token in its log")


def _judge_calls(field: Field, refused: Counter[str], since: float) -> None:
    seconds = time.monotonic() - since
    runs = Counter(
        run.update_id
        for run in read_runs(field.history_folder, field.traffic.sent)
        if run.started_at >= since and run.ending is Ending.FAILED
    )
    print(f"    in {seconds:.0f} s with the old token: {dict(refused)}, {len(runs)} updates", flush=True)
    ours = sum(count for method, count in refused.items() if method in _SUPERVISORS)
    if ours > _MOST_CALLS:
        field.object(
            Invariant.AVAILABLE, f"{ours} calls of supervisors with a refused token in {seconds:.0f} s"
        )
    if (tries := refused.total() - ours) > _MOST_TRIES:
        field.object(Invariant.AVAILABLE, f"{tries} calls of bots with a refused token in {seconds:.0f} s")
    # With pauses that double.
    most = 2 + int(math.log2(1 + seconds / _FIRST_PAUSE_SECONDS))
    if runs and max(runs.values()) > most:
        field.object(
            Invariant.AVAILABLE, f"an update was tried {max(runs.values())} times within {seconds:.0f} s"
        )
