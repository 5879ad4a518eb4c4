"""What Telegram itself may do with updates: send them twice, in another order, and number them anew."""

from __future__ import annotations

import random
import time
from typing import Any

from tests.campaign.field import Field
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario
from tests.end_to_end.instance import eventually

LINUX = (Need.LINUX,)

_FIRST_CHAT = 920_001  # outside of the traffic's
_IN_A_ROW = 6


@scenario(
    id="b27",
    title="duplicates, reordering, update_id anew at random",
    repetitions=200,
    short=8,
    needs=LINUX,
    recovers_each=False,  # the owner is killed while the numbers of that repetition are delivered
)
async def number_at_random(field: Field, chance: random.Random) -> None:
    """In a chat of its own each time: numbers that fall, jump, or are negative; delivered up to three times, at once and one
    after the other, and again when they are handled; every fourth time the owner is killed in between. O and S are the judge's:
    no second run of what has ended well, and the order in which they were sent."""
    for name in ("one", "two"):
        await field.start(name)
    taken: set[int] = set()  # and the traffic's, which are counted up
    async with field.flowing(20.0):
        await field.steady()
        for repetition in range(field.repetitions):
            chat = _FIRST_CHAT + repetition
            traffic = min(number for number in field.traffic.sent if number not in taken)
            numbers = _numbers(chance, repetition, taken, range(traffic, traffic + 10**7))
            taken |= set(numbers)
            field.inject("renumbered")
            for number in numbers:
                update = _message(chat, number, chance.uniform(0.0, 0.2))
                await _send(field, chat, number, update, queue=None)
                for copy in range(chance.randint(0, 2)):
                    # From another queue: at the same time as the first.
                    await _send(field, chat, number, update, queue=f"copy {copy} of {number}")
            if repetition % 4 == 3:
                # Whole: an instance whose worker is killed so often gives up, and is no candidate for two minutes.
                owner = await field.owner()
                await field.kill_supervisor(owner)
                await field.restart(owner)
                await field.steady()
            await _until_done(field, numbers)
            for number in chance.sample(numbers, 2):
                await _send(field, chat, number, _message(chat, number, 0.0), queue=f"late copy of {number}")


def _numbers(chance: random.Random, repetition: int, taken: set[int], traffic: range) -> list[int]:
    """Fresh ones: update_id grows by one, or starts anew anywhere, as after a week; or whatever a server may do."""
    while True:
        start = (
            chance.randrange(-(2**63) + 100, 2**63 - 100)
            if repetition % 3 == 2
            else chance.randrange(1, 2**31)
        )
        numbers = list(range(start, start + _IN_A_ROW))
        if repetition % 3 == 1:
            numbers.reverse()
        if repetition % 3 == 2:
            chance.shuffle(numbers)
        if not taken & set(numbers) and not any(number in traffic for number in numbers):
            return numbers


def _message(chat: int, number: int, seconds: float) -> dict[str, Any]:
    person = {"id": chat, "is_bot": False, "first_name": "Ada"}
    return {
        "message": {
            "message_id": number % 1_000_000_007,
            "date": int(time.time()),
            "chat": {"id": chat, "type": "private", "first_name": "Ada"},
            "from": person,
            "text": f"work {seconds:.2f}",
        }
    }


async def _send(field: Field, chat: int, number: int, update: dict[str, Any], *, queue: str | None) -> None:
    injected = await field.telegram.inject(update, update_id=number, queue=queue)
    assert injected.update_id == number
    field.traffic.sent[number] = chat


async def _until_done(field: Field, numbers: list[int]) -> None:
    async def are_done() -> bool:
        rows = await field.recorder.fetch(
            "SELECT count(*) FROM webhook_supervisor.inbox WHERE update_id = ANY(%s) AND state = 'done'",
            numbers,
        )
        return bool(rows[0][0] == len(numbers))

    await eventually(are_done, "each of them handled")
    rows = await field.recorder.fetch(
        "SELECT count(*) FROM webhook_supervisor.inbox WHERE update_id = ANY(%s)", numbers
    )
    if rows[0][0] != len(numbers):
        field.object(Invariant.ONCE, f"{rows[0][0]} rows for {len(numbers)} updates")
