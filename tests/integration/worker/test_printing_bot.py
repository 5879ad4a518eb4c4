"""A real worker whose bot prints, with standard output as its reader leaves it."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from shared import wire
from tests.integration.worker.worker_process import (
    TOKEN,
    client,
    database_of,
    post,
    until_ready,
    until_state,
    update,
    worker,
)

_SMALLEST_PIPE = 4096
_UPDATES = 40
_CHARACTERS = 100 * 1024  # together more than a queue of the log's holds


@pytest.mark.skipif(sys.platform != "linux", reason="pipes of a chosen size are Linux's")
async def test_b15_a_bot_that_prints_to_nobody_goes_on(database_url: str, tmp_path: Path) -> None:
    """Every update is handled once, the worker beats, and ends as it is told to."""
    reader, output = os.pipe()
    fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _SMALLEST_PIPE)
    with os.fdopen(reader), os.fdopen(output):
        async with (
            database_of(database_url) as database,
            worker(database_url, tmp_path, output=output) as process,
        ):
            await process.expect(wire.Accepting)
            await process.lead(database)
            async with client(process.url) as http:
                await until_ready(http)
                for number in range(1, _UPDATES + 1):
                    body = update(number, f"print {_CHARACTERS}", chat_id=number % 5)
                    assert (await post(http, body)).status_code == 200
            for number in range(1, _UPDATES + 1):
                await until_state(database, number, "done")
            assert sum(line.startswith("begin") for line in process.observations) == _UPDATES
            await process.expect(wire.Beat)
            process.send(wire.EndTerm(drain_seconds=5), wire.Exit())
            assert await process.exit_status() == 0


async def test_a21_what_a_bot_prints_is_in_the_log_at_once_and_without_secrets(
    database_url: str, tmp_path: Path
) -> None:
    """Between the log's own lines, while the worker lives."""
    async with worker(database_url, tmp_path, bot="telling") as process:
        await process.expect(wire.Accepting)
        await process.logged("the token is ***\nnot an error: ***\n")
        assert TOKEN not in process.log
