"""Gathers what `history.judge` judges: deliveries from the emulator, runs from the bot's files, rows from the inbox.

Not promised: times of the inbox better than a few milliseconds; the database keeps wall clock time.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from deploy.local.emulator.client import EmulatorClient
from deploy.local.emulator.journal import DeliveryAttempt, Outcome
from deploy.local.history import Delivery, Ending, Row, Run

_POLL_SECONDS = 0.1


async def read_deliveries(emulator: EmulatorClient, chats: Mapping[int, int]) -> list[Delivery]:
    """How these updates were delivered.

    Args:
        emulator: whose history is read.
        chats: the chat of each update.
    """
    attempts: dict[int, list[DeliveryAttempt]] = defaultdict(list)
    async for attempt in emulator.all_deliveries():
        if attempt.update_id in chats:
            attempts[attempt.update_id].append(attempt)
    return [
        summarize_attempts(update_id, chat_id, attempts[update_id]) for update_id, chat_id in chats.items()
    ]


def summarize_attempts(update_id: int, chat_id: int, attempts: list[DeliveryAttempt]) -> Delivery:
    """The attempts to deliver one update, as one delivery; without any, it was never sent."""
    answers = [item.answered_200_monotonic for item in attempts if item.answered_200_monotonic is not None]
    return Delivery(
        update_id,
        chat_id,
        first_sent_at=min((item.started_monotonic for item in attempts), default=float("inf")),
        answered_at=min(answers, default=None),
        failures=sum(
            # Abandoned is the server's doing: the webhook was changed while it waited for the answer.
            item.outcome not in (None, Outcome.ABANDONED) and item.status != HTTPStatus.OK
            for item in attempts
        ),
    )


def read_runs(folder: Path, update_ids: Mapping[int, int]) -> list[Run]:
    """What the workers' files say about these updates; see traffic_bot."""
    runs: list[Run] = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = [msgspec.json.decode(line, type=dict[str, Any]) for line in path.read_bytes().splitlines()]
        runs += assemble_runs(line for line in lines if line["update_id"] in update_ids)
    return runs


def assemble_runs(lines: Any) -> list[Run]:
    """One worker's lines as runs; a run without its end was interrupted."""
    runs: list[Run] = []
    open_runs: dict[int, int] = {}
    for line in lines:
        update_id, at = line["update_id"], line["at"]
        if line["event"] == "start":
            open_runs[update_id] = len(runs)
            runs.append(
                Run(
                    *(update_id, line["chat_id"], line["instance"], line["pid"], at, at, Ending.INTERRUPTED),
                    owner=line.get("owner", ""),
                )
            )
            continue
        index = open_runs[update_id]
        is_end = line["event"] == "end"
        ending = Ending(line["ending"]) if is_end else Ending.INTERRUPTED
        is_work = not is_end or ending is not Ending.INTERRUPTED
        runs[index] = replace(
            runs[index],
            last_seen_at=at if is_work else runs[index].last_seen_at,
            ending=ending,
            is_told=is_end,
        )
    return runs


class InboxReader:
    """Reads the inbox's table, on a connection of its own."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        """Use `open`."""
        self._connection = connection

    @classmethod
    async def open(cls, dsn: str) -> InboxReader:
        """Connects."""
        return cls(await psycopg.AsyncConnection.connect(dsn, autocommit=True))

    async def close(self) -> None:
        """Disconnects."""
        await self._connection.close()

    async def count(self, *states: str) -> int:
        """How many updates are in one of these states."""
        cursor = await self._connection.execute(
            "SELECT count(*) FROM webhook_supervisor.inbox WHERE state = ANY(%s)", [list(states)]
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async def wait_for_count(
        self, *states: str, at_least: int = 0, at_most: int | None = None, limit_seconds: float
    ) -> int:
        """Returns the count when it is within the bounds.

        Raises:
            TimeoutError: it was not in time.
        """
        deadline = time.monotonic() + limit_seconds
        while True:
            count = await self.count(*states)
            if count >= at_least and (at_most is None or count <= at_most):
                return count
            if time.monotonic() > deadline:
                raise TimeoutError(f"{count} updates are {' or '.join(states)} after {limit_seconds} s")
            await asyncio.sleep(_POLL_SECONDS)

    async def rows(self, update_ids: Mapping[int, int]) -> list[Row]:
        """These updates, as far as the inbox has them."""
        since_boot = time.time() - time.monotonic()
        cursor = await self._connection.execute(
            "SELECT update_id, state, extract(epoch FROM finished_at)::float8 "
            "FROM webhook_supervisor.inbox WHERE update_id = ANY(%s)",
            [list(update_ids)],
        )
        return [
            Row(update_id, state, None if finished is None else finished - since_boot)
            for update_id, state, finished in await cursor.fetchall()
        ]
