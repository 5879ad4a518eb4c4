"""Updates as nobody has sent them yet, through a real worker: stored as they came, handed to the bot, and the chat goes on."""

import asyncio
from pathlib import Path

from hypothesis import Phase, given, settings
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared import wire
from tests.integration.worker.worker_process import (
    HANG_SECONDS,
    client,
    database_of,
    post,
    until_ready,
    update,
    worker,
)
from tests.odd_updates import OddUpdate, odd_updates

CHAT = 7

# Each after its update_id, in the chat of the ordinary updates that come before and after.
ODD = {
    "NUL": r'"message": {"chat": {"id": 7, "type": "private"}, "message_id": 1, "date": 1, "text": "\u0000"}',
    "lone surrogate": r'"message": {"chat": {"id": 7, "type": "private"}, "message_id": 1, "date": 1, "text": "\ud800"}',
    "surrogates for names": r'"message": {"\udfff": 1, "chat": {"id": 7, "type": "private", "first_name": "\ud800"}}',
    "deep": '"message": {"chat": {"id": 7, "type": "private"}, "message_id": 1, "date": 1, "deep": '
    + "[" * 100
    + "]" * 100
    + "}",
    "deeper than Python reads": '"message": {"chat": {"id": 7}, "deep": '
    + '{"a":' * 30_000
    + "1"
    + "}" * 30_000
    + "}",
    "numbers outside int64": '"message": {"chat": {"id": 7, "type": "private"}, "message_id": 9223372036854775808,'
    ' "date": -1e400, "from": {"id": 170141183460469231731687303715884105728, "is_bot": false, "first_name": "x"}}',
    "a number of 5000 digits": '"message": {"chat": {"id": 7}, "message_id": ' + "9" * 5000 + "}",
    "a date in another age": '"message": {"chat": {"id": 7, "type": "private"}, "message_id": 1, "date": 9999999999999}',
    "duplicate keys": '"message": 5, "message": {"chat": 5, "chat": {"id": 7, "type": "private"}, "message_id": 1, "date": 1}',
    "wrong types everywhere": '"message": {"chat": {"id": 7, "type": [1]}, "message_id": "x", "date": "y", "entities": 5}',
    "a message that is a list": '"message": [{"chat": {"id": 7}}]',
    "two kinds at once": '"edited_message": {"chat": {"id": 7, "type": "private"}, "message_id": 1, "date": 1}, "poll": null',
    "an unknown kind": '"a_kind_of_the_future": {"chat": {"id": 7, "type": "private"}, "text": "hi"}',
    "an unknown kind that is a number": '"a_kind_of_the_future": 5',
    "nothing": '"": null',
}
HANDED = {
    *("NUL", "lone surrogate", "deep", "duplicate keys", "two kinds at once"),
    *("an unknown kind", "an unknown kind that is a number", "nothing"),
}
"""Those that python-telegram-bot can make an update of; the bot has no complaint about them."""


async def rows(database: AsyncConnection[TupleRow]) -> dict[int, tuple[str, str | None]]:
    """State and reason by update_id."""
    cursor = await database.execute("SELECT update_id, state, error FROM webhook_supervisor.inbox")
    return {update_id: (state, error) for update_id, state, error in await cursor.fetchall()}


async def until_finished(database: AsyncConnection[TupleRow]) -> dict[int, tuple[str, str | None]]:
    """Returns when everything is done or dead."""
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            found = await rows(database)
            if all(state in ("done", "dead") for state, _ in found.values()):
                return found
            await asyncio.sleep(0.02)


async def test_an_odd_update_is_handed_to_the_bot_or_a_dead_letter_and_its_chat_goes_on(
    database_url: str, tmp_path: Path
) -> None:
    """Also a kind that nobody knows. What the bot's library cannot read is a dead letter that says so; no other is touched."""
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path) as process,
        client(process.url) as http,
    ):
        await process.expect(wire.Accepting)
        await until_ready(http)
        await process.lead(database)
        await process.expect(wire.Dispatching)
        for number, content in enumerate(ODD.values()):
            assert (await post(http, update(2 * number, chat_id=CHAT))).status_code == 200
            odd = f'{{"update_id": {2 * number + 1}, {content}}}'.encode()
            assert (await post(http, odd)).status_code == 200
        assert (await post(http, update(2 * len(ODD), chat_id=CHAT))).status_code == 200
        found = await until_finished(database)
        for number, name in enumerate(ODD):
            assert found[2 * number][0] == "done", name
            state, error = found[2 * number + 1]
            assert state == ("done" if name in HANDED else "dead"), (name, error)
            if name in HANDED:
                assert f"end {2 * number + 1}" in process.observations, name
            else:
                assert error is not None
                assert "cannot read this update" in error, name
        assert found[2 * len(ODD)][0] == "done"
        assert process.is_alive()


def examples(count: int) -> list[OddUpdate]:
    """What hypothesis makes of the strategy, the same every time, each with a number of its own."""
    found: dict[int, OddUpdate] = {}

    @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate])
    @given(odd_updates())
    def collect(odd: OddUpdate) -> None:
        found[odd.update_id] = odd

    collect()
    return list(found.values())


async def test_any_updates_end_done_or_dead_and_none_takes_the_worker_along(
    database_url: str, tmp_path: Path
) -> None:
    """Beside ordinary ones, all of which are handled."""
    odd = examples(120)
    taken = {each.update_id for each in odd}
    ordinary = [number for number in range(1000, 2000) if number not in taken][:100]
    async with (
        database_of(database_url) as database,
        worker(database_url, tmp_path) as process,
        client(process.url) as http,
    ):
        await process.expect(wire.Accepting)
        await until_ready(http)
        await process.lead(database)
        await process.expect(wire.Dispatching)
        bodies = [each.body for each in odd] + [update(number, chat_id=number % 9 + 1) for number in ordinary]
        for begin in range(0, len(bodies), 20):
            answers = await asyncio.gather(*(post(http, body) for body in bodies[begin : begin + 20]))
            assert {answer.status_code for answer in answers} == {200}
        found = await until_finished(database)
        assert set(found) == taken | set(ordinary)
        assert {found[number] for number in ordinary} == {("done", None)}
        assert all((state == "dead") == (error is not None) for state, error in found.values())
        assert {found[each.update_id][0] for each in odd} == {"done", "dead"}
        assert process.is_alive()
