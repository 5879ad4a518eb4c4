"""b29: everything that strangers can do to the public port of a real worker, at the same time, beside Telegram's deliveries."""

import asyncio
import itertools
from collections import Counter, defaultdict
from pathlib import Path

from shared import wire
from tests.integration.worker.strangers import ATTACKS, MIB, Attack, Target, slow_body
from tests.integration.worker.worker_process import (
    HANG_SECONDS,
    client,
    database_of,
    most_memory_bytes,
    post,
    states,
    until_ready,
    update,
    worker,
)

ROUNDS = 3
ATTACKERS = 4  # of each kind
DELIVERERS = 8


async def test_b29_deliveries_succeed_whatever_strangers_do_meanwhile(
    database_url: str, tmp_path: Path
) -> None:
    """Every delivery is answered 200 and stored; every attack gets its status; the memory of the worker is bounded."""
    delivered: set[int] = set()
    answers: Counter[int] = Counter()
    found: dict[Attack, set[str]] = defaultdict(set)
    numbers = itertools.count(1)
    is_over = asyncio.Event()
    async with database_of(database_url) as database, worker(database_url, tmp_path) as process:
        await process.expect(wire.Accepting)
        host, port = process.url.removeprefix("http://").split(":")
        target = Target(host, int(port))

        async def deliver() -> None:
            async with client(process.url) as http:
                while not is_over.is_set():
                    number = next(numbers)
                    answers[(await post(http, update(number))).status_code] += 1
                    delivered.add(number)

        async def strike(attack: Attack) -> None:
            # One slow body outlasts all rounds of the others.
            for _ in range(1 if attack is slow_body else ROUNDS):
                found[attack] |= set(await attack(target))

        async with client(process.url) as http:
            await until_ready(http)
            for number in range(-100, 0):
                assert (await post(http, update(number))).status_code == 200
        before = most_memory_bytes(process.pid)
        async with asyncio.timeout(3 * HANG_SECONDS), asyncio.TaskGroup() as deliveries:
            for _ in range(DELIVERERS):
                deliveries.create_task(deliver())
            async with asyncio.TaskGroup() as attacks:
                for attack in ATTACKS:
                    for _ in range(ATTACKERS):
                        attacks.create_task(strike(attack))
            is_over.set()
        # A look-up of registrations has three seconds (INTERFACE.md: 503), which a busy machine may need for other things.
        assert {attack: statuses - {"503"} for attack, statuses in found.items()} == ATTACKS
        assert set(answers) == {200}
        stored = await states(database)
        assert {number for number in stored if number > 0} == delivered
        # Each of the bombs alone is larger, and there are dozens.
        assert most_memory_bytes(process.pid) - before < 64 * MIB
        assert "Traceback" not in process.log
