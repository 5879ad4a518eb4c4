"""A backlog, and those who write while it is there."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from deploy.local.emulator.control_messages import SendText
from deploy.local.evidence import read_runs
from deploy.local.history import Run
from tests.campaign.field import CHATS, Field
from tests.campaign.judge import Invariant
from tests.campaign.scenario import Need, scenario
from tests.end_to_end.instance import HANG_SECONDS
from tests.integration.worker.strangers import MIB
from tests.integration.worker.worker_process import most_memory_bytes

LINUX = (Need.LINUX,)

_UPDATES, _SHORT_UPDATES = 100_000, 5000
_FIRST_USER = 100_001  # the traffic's
_FIRST_FRESH_USER = 930_001  # nobody's
_BATCH = 500
_CONCURRENCY = 16
_WORK_SECONDS = 0.05
_WARM_SECONDS = 3.0
_LETTERS, _SHORT_LETTERS = 500, 3500
"""Of each message: a backlog of tens of megabytes, which is not to be had in memory unseen."""

_SHARE_IN_MEMORY = 0.5
"""Of the backlog's bodies, and less: what is held is a batch of a hundred or so. Parsed they are several times as large."""

_SHARE_OF_TIME = 0.1
"""A fresh chat waits for less of the backlog's time. Who had to wait for its place in it would wait for half of that."""

_FRESH_EVERY_SECONDS = 0.25


@scenario("b26", "backlog of 100,000; short: 5,000", repetitions=1, short=1, needs=LINUX, hang_seconds_each=9000.0)  # fmt: skip
async def backlog(field: Field, chance: random.Random) -> None:
    """Written while nothing ran, most of it, stored by an instance that may not own, and found by the owner that comes then: it
    is handled by no more handlers at a time than there may be, in bounded memory, and whoever writes meanwhile does not wait
    for it."""
    count = _SHORT_UPDATES if field.is_short else _UPDATES
    # The first one registers the webhook, which stays.
    first = await field.start("first", DISPATCH_CONCURRENCY=str(_CONCURRENCY))
    async with field.flowing():
        await field.steady()
        await asyncio.sleep(_WARM_SECONDS)
    # Of one that has done all of it, and never much at a time.
    before = most_memory_bytes(await first.worker_pid())
    await field.stop(first)
    # Telegram itself keeps 100,000 at most (TELEGRAM.md, "expiry").
    backlog = await _write(field, chance, count * 9 // 10)
    gate = await field.start("gate", IS_PULL_REQUEST="true")  # a preview: it stores, and never owns
    backlog |= await _write(field, chance, count - len(backlog))
    await _until(
        field, "stored", f"SELECT count(*) = {len(field.traffic.sent)} FROM webhook_supervisor.inbox"
    )
    size = await _backlog_bytes(field)
    await gate.wait_until_healthy()
    field.inject("an owner comes", first)
    await field.restart(first)
    await first.wait_until_healthy()
    worker = await first.worker_pid()
    begin = time.monotonic()
    waited = await _write_meanwhile(field, max(backlog))
    took = time.monotonic() - begin
    more = most_memory_bytes(worker) - before
    field.times["the backlog"] = [took]
    field.times["fresh chats, written while it was there"] = waited
    if more > _SHARE_IN_MEMORY * size:
        field.object(
            Invariant.AVAILABLE,
            f"the worker took {more / MIB:.1f} MiB more for {size / MIB:.1f} MiB of updates",
        )
    most = most_at_once(read_runs(field.history_folder, backlog))
    print(
        f"    {count} updates, {size / MIB:.1f} MiB: {most} handlers at one time, {more / MIB:.1f} MiB more memory",
        flush=True,
    )
    if most > _CONCURRENCY:
        field.object(Invariant.EXCLUSION, f"{most} handlers ran at one time, and {_CONCURRENCY} may")
    if not waited:
        field.object(Invariant.FAILED, "the backlog was gone before anybody wrote")
    elif (usual := sorted(waited)[:-2] or waited)[-1] > _SHARE_OF_TIME * took:
        # But for two, which a standstill of the machine explains.
        why = f"fresh chats waited up to {usual[-1]:.1f} s for a backlog of {took:.1f} s"
        field.object(Invariant.AVAILABLE, why)


async def _write(field: Field, chance: random.Random, count: int) -> dict[int, int]:
    """Messages of all users, in any order; the chat of each."""
    written: dict[int, int] = {}
    text = f"work {_WORK_SECONDS} {'x' * (_SHORT_LETTERS if field.is_short else _LETTERS)}"
    while len(written) < count:
        wishes = [
            SendText(_FIRST_USER + chance.randrange(CHATS), text)
            for _ in range(min(_BATCH, count - len(written)))
        ]
        for sent in await field.telegram.send_many(wishes):
            assert sent.update_id is not None
            written[sent.update_id] = sent.chat_id
    field.traffic.sent |= written
    return written


async def _backlog_bytes(field: Field) -> int:
    rows = await field.recorder.fetch(
        "SELECT sum(octet_length(body)) FROM webhook_supervisor.inbox WHERE state = 'pending'"
    )
    return int(rows[0][0])


async def _write_meanwhile(field: Field, last: int) -> list[float]:
    """People who never wrote before, one after the other, until the backlog is gone; how long each waited."""
    waited: list[float] = []
    user = _FIRST_FRESH_USER
    while await _is_left(field, last):
        sent = await field.telegram.send_text(user, "work 0.0")
        assert sent.update_id is not None
        field.traffic.sent[sent.update_id] = sent.chat_id
        begin = time.monotonic()
        await _until(
            field,
            "a fresh chat served",
            f"SELECT count(*) = 1 FROM webhook_supervisor.inbox WHERE update_id = {sent.update_id} AND state = 'done'",
        )
        waited.append(time.monotonic() - begin)
        user += 1
        await asyncio.sleep(_FRESH_EVERY_SECONDS)  # the pace of the writers
    return waited[:-1]  # of the last one it is not known whether the backlog was still there


async def _is_left(field: Field, last: int) -> bool:
    rows = await field.recorder.fetch(
        "SELECT EXISTS (SELECT FROM webhook_supervisor.inbox WHERE state IN ('pending', 'claimed') AND update_id <= %s)",
        last,
    )
    return bool(rows[0][0])


async def _until(field: Field, what: str, question: str) -> None:
    """Waits, for as long as there is any progress in the database, until a question is answered with yes."""

    async def changes() -> int:
        return int(
            (await field.recorder.fetch("SELECT coalesce(max(id), 0) FROM campaign.inbox_changes"))[0][0]
        )

    async def is_answered() -> bool:
        return bool((await field.recorder.fetch(question))[0][0])

    seen, seen_at = -1, time.monotonic()
    while not await is_answered():
        if (now := await changes()) != seen:
            seen, seen_at = now, time.monotonic()
        if time.monotonic() - seen_at > HANG_SECONDS:
            raise AssertionError(f"no progress, and not {what}")
        await asyncio.sleep(0.05)


def most_at_once(runs: Sequence[Run]) -> int:
    """The most that ran at one time."""
    steps = sorted([*((run.started_at, 1) for run in runs), *((run.last_seen_at, -1) for run in runs)])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most
