"""The few database sessions of an instance: how they are used is told, and when there are not enough, that is told, too."""

from __future__ import annotations

import asyncio

import psycopg

from tests.end_to_end.instance import World, eventually
from tests.end_to_end.test_standby import KNOWN, post_update, text_update


async def test_a32_sessions_in_use_are_told_and_exhaustion_is_503_and_no_silence(world: World) -> None:
    """All sessions are held up by somebody's lock: /status shows it, updates get 503 with Retry-After, and the log says why."""
    one = await world.start_public("one", **KNOWN, DB_POOL_SIZE="2")
    await one.wait_until_owner()

    async def pool() -> dict[str, int]:
        found: dict[str, int] = (await one.status())["pool"]
        return found

    async def is_at_rest() -> bool:
        return await pool() == {"size": 2, "in_use": 0, "waiting": 0}

    async def is_exhausted() -> bool:
        return (await pool())["waiting"] > 0

    await eventually(is_at_rest, "two sessions, none in use")
    async with await psycopg.AsyncConnection.connect(world.database_url) as connection:
        await connection.execute("LOCK TABLE webhook_supervisor.inbox IN ACCESS EXCLUSIVE MODE")
        posts = [
            asyncio.create_task(post_update(one, text_update(number, number, "work 0")))
            for number in range(1, 9)
        ]
        await eventually(is_exhausted, "somebody who waits for a session")
        # Not one of them is kept waiting until Telegram gives it up, and none is told what is not so.
        for answer in await asyncio.gather(*posts):
            assert (answer.status_code, answer.headers["retry-after"], answer.content) == (503, "2", b"")
        await one.wait_for("[WEBHOOK] updates are answered 503")
        await one.wait_for("[WORKER] updates cannot be stored")
        line = next(line for line in one.lines if line.event == "updates are answered 503")
        assert "no answer within" in str(line.fields)
        ready = await one.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "failing")
    await eventually(is_at_rest, "the sessions are free again")

    async def is_stored() -> bool:
        return (await post_update(one, text_update(1, 1, "work 0"))).status_code == 200

    await eventually(is_stored, "an update is stored again")
