"""BOT_MODE=polling: what is acknowledged, when, and what becomes of a call that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import pytest

from shared.errors import BadRequest, Conflict, RetryLater, TelegramUnavailable, TokenRefused
from webhook_worker.ingest import NotStored
from webhook_worker.poller import (
    AWAY_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    REFUSED_PAUSE_SECONDS,
    WAIT_SECONDS,
    Poller,
)

HANG_SECONDS = 30.0
NONE = b'{"ok":true,"result":[]}'


def answer(*updates: int | bytes) -> bytes:
    """Telegram's, with messages of these numbers, or whatever these are."""
    texts = [
        item if isinstance(item, bytes) else b'{"update_id":%d,"message":{"chat":{"id":%d}}}' % (item, 7)
        for item in updates
    ]
    return b'{"ok":true,"result":[' + b",".join(texts) + b"]}"


class Scene:
    """Telegram, the inbox and the clock, as far as the poller sees them."""

    def __init__(self) -> None:
        self.answers: list[bytes | Exception] = []
        self.offsets: list[int | None] = []
        self.stored: list[tuple[int, int | None, bytes]] = []
        self.refused: set[int] = set()
        self.hold: set[int] = set()
        self.pauses: list[float] = []
        self.told: list[str] = []
        self.time = 0.0
        self.takes = float(WAIT_SECONDS)  # an answer without updates
        self.may_fetch = True
        self.unmade = 0  # clients
        self.clients = self.opened = 0
        self.is_idle = asyncio.Event()
        self.poller = Poller(
            lambda: self,  # type: ignore[arg-type, return-value]
            self,
            allowed_updates=("message", "poll"),
            webhook_active=lambda: self.told.append("webhook"),
            token_refused=lambda: self.told.append("token"),
            may_fetch=lambda: self.may_fetch,
            now=lambda: self.time,
            sleep=self.sleep,
        )

    async def __aenter__(self) -> Self:
        if self.unmade:
            self.unmade -= 1
            raise TelegramUnavailable("a client", "cannot be made", may_be_applied=False)
        self.clients += 1
        self.opened += 1
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.clients -= 1

    async def get_updates(
        self, offset: int | None, *, wait_seconds: int, allowed_updates: tuple[str, ...]
    ) -> bytes:
        assert (wait_seconds, allowed_updates) == (WAIT_SECONDS, ("message", "poll"))
        self.offsets.append(offset)
        if not self.answers:
            self.is_idle.set()
            await asyncio.Event().wait()
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        if found == NONE:
            self.time += self.takes
        return found

    def store(self, update_id: int, lane: int | None, body: bytes) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if update_id in self.refused:
            self.refused.discard(update_id)
            future.set_exception(NotStored("database away"))
        elif update_id not in self.hold:
            self.stored.append((update_id, lane, body))
            future.set_result(None)
        return future

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    @property
    def ids(self) -> list[int]:
        return [update_id for update_id, _, _ in self.stored]


@asynccontextmanager
async def polling(scene: Scene) -> AsyncIterator[None]:
    """While the block runs, from when everything that Telegram had to say is said."""
    task = asyncio.create_task(scene.poller.run())
    try:
        async with asyncio.timeout(HANG_SECONDS):
            idle = asyncio.create_task(scene.is_idle.wait())
            await asyncio.wait({task, idle}, return_when=asyncio.FIRST_COMPLETED)
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()
    assert scene.clients == 0


async def test_a28_each_answer_is_acknowledged_by_the_next_call_and_nothing_twice() -> None:
    """The bodies as they came, with their lanes; after an empty answer no offset, since Telegram may number anew."""
    scene = Scene()
    scene.answers = [answer(5, 6), answer(7), NONE, answer(2)]
    async with polling(scene):
        assert scene.ids == [5, 6, 7, 2]
        assert scene.offsets == [None, 7, 8, None, 3]
        assert scene.stored[0] == (5, 7, b'{"update_id":5,"message":{"chat":{"id":7}}}')
        assert scene.pauses == []


async def test_a28_nothing_is_acknowledged_before_it_is_committed() -> None:
    """The flush is under way: there is no other call."""
    scene = Scene()
    scene.hold = {6}
    scene.answers = [answer(5, 6, 7)]
    task = asyncio.create_task(scene.poller.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert scene.offsets == [None]
    task.cancel()
    await asyncio.wait({task})


async def test_a28_what_is_not_stored_is_asked_for_again() -> None:
    """What was stored before it is acknowledged, what comes after it is not, whether it was stored or not."""
    scene = Scene()
    scene.refused = {6}
    other_chat = b'{"update_id":7,"message":{"chat":{"id":8}}}'
    scene.answers = [answer(5, 6, other_chat), answer(6, other_chat)]
    async with polling(scene):
        assert scene.offsets == [None, 6, 8]
        assert scene.ids == [5, 7, 6, 7]
        assert scene.pauses == [1.0]


async def test_an_acknowledgement_that_failed_is_made_again() -> None:
    """Whether it was applied, nobody knows."""
    scene = Scene()
    scene.answers = [answer(5), TelegramUnavailable("getUpdates", "no answer"), NONE]
    async with polling(scene):
        assert scene.offsets == [None, 6, 6, None]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            Conflict("getUpdates", "409 Conflict: can't use getUpdates method while webhook is active"),
            ["webhook"],
        ),
        (Conflict("getUpdates", "409 Conflict: terminated by setWebhook request"), ["webhook"]),
        (Conflict("getUpdates", "409 Conflict: terminated by other getUpdates request"), []),
        (TokenRefused("getUpdates", "401 Unauthorized"), ["token"]),
        (TelegramUnavailable("getUpdates", "status 502"), []),
        (BadRequest("getUpdates", "400 Bad Request: no such kind of update"), []),
    ],
)
async def test_a28_whatever_fails_is_tried_again_ever_more_slowly_and_told_once(
    error: Exception, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Who can do something about it is told each time, the log when it begins and when it is over."""
    scene = Scene()
    scene.answers = [*[error] * 7, answer(5), error]
    async with polling(scene):
        assert scene.ids == [5]
        longest = REFUSED_PAUSE_SECONDS if told == ["token"] else LONGEST_PAUSE_SECONDS
        if isinstance(error, TelegramUnavailable):
            longest = AWAY_PAUSE_SECONDS
        assert scene.pauses == [*(min(2.0**n, longest) for n in range(7)), 1.0]
        assert scene.told == told * 8
        log = capsys.readouterr().out
        assert log.count("updates cannot be fetched") == 2
        assert log.count("polling again") == 1


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (TelegramUnavailable("getUpdates", "status 502"), {1.0, 2.0}),
        (NotStored("the database is away"), {1.0}),
    ],
)
async def test_b31_after_an_hours_outage_updates_are_fetched_within_seconds(
    error: Exception, pauses: set[float]
) -> None:
    """Whatever was away, Telegram or the database; and what Telegram refuses then is not held against the outage."""
    scene = Scene()
    scene.answers = [error] * 1800
    scene.answers += [Conflict("getUpdates", "409 Conflict: terminated by other getUpdates request")]
    scene.answers += [answer(5)]
    async with polling(scene):
        assert scene.ids == [5]
        assert set(scene.pauses[:-1]) == pauses
        assert scene.pauses[-1] == 1.0
        assert scene.opened == 1, "a client for each failure takes time from the handlers"


async def test_b31_a_client_that_cannot_be_made_is_made_again() -> None:
    """A file of certificates that is not there yet."""
    scene = Scene()
    scene.unmade = 3
    scene.answers = [answer(5)]
    async with polling(scene):
        assert scene.ids == [5]
        assert scene.pauses == [1.0, 2.0, 2.0]


async def test_telegram_says_when_to_come_back() -> None:
    """retry_after is obeyed to the letter."""
    scene = Scene()
    scene.answers = [RetryLater("getUpdates", "429 Too Many Requests", seconds) for seconds in (77.0, 0.0)]
    async with polling(scene):
        assert scene.pauses == [77.05, 1.0]


async def test_a_failure_that_goes_on_is_told_of_now_and_then_and_shown_meanwhile(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line from yesterday is not found by anybody."""
    scene = Scene()
    scene.answers = [TelegramUnavailable("getUpdates", "status 502")] * 60
    async with polling(scene):
        assert scene.poller.fault == "getUpdates: status 502"
        assert capsys.readouterr().out.count("updates cannot be fetched") == 1 + int(scene.time // 600)
    other = Scene()
    other.answers = [TelegramUnavailable("getUpdates", "status 502"), answer(5)]
    async with polling(other):
        assert other.poller.fault is None


@pytest.mark.parametrize("empty", [NONE, b'{"ok":true,"result":[null]}'])
async def test_a_server_that_does_not_wait_is_not_asked_in_a_spin(empty: bytes) -> None:
    """A proxy, or a server of one's own, that takes no notice of the time-out."""
    scene = Scene()
    scene.takes = 0.001
    scene.answers = [empty] * 3
    async with polling(scene):
        assert scene.pauses == [1.0] * 3


async def test_a28_a_process_that_stood_still_ends_nobodys_call(capsys: pytest.CaptureFixture[str]) -> None:
    """By the clock it is no owner any more, before anybody has told the poller; and who ended its own call is no stranger."""
    scene = Scene()
    scene.may_fetch = False
    task = asyncio.create_task(scene.poller.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert scene.offsets == []
    task.cancel()
    await asyncio.wait({task})

    thawed = Scene()

    async def overtaken(offset: int | None, *, wait_seconds: int, allowed_updates: tuple[str, ...]) -> bytes:
        thawed.offsets.append(offset)
        thawed.may_fetch = False
        raise Conflict("getUpdates", "409 Conflict: terminated by other getUpdates request")

    thawed.get_updates = overtaken  # type: ignore[method-assign]
    task = asyncio.create_task(thawed.poller.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert thawed.offsets == [None]
    assert "cannot be fetched" not in capsys.readouterr().out
    task.cancel()
    await asyncio.wait({task})


async def test_a28_a_term_that_is_confirmed_at_the_last_moment_is_polled_in() -> None:
    """The poller looked just before the word of the owner's heartbeat came; the term never ended."""
    scene = Scene()
    scene.may_fetch = False
    scene.answers = [answer(5)]
    task = asyncio.create_task(scene.poller.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert scene.offsets == []
    scene.may_fetch = True
    async with asyncio.timeout(HANG_SECONDS):
        await scene.is_idle.wait()
    assert scene.ids == [5]
    assert set(scene.pauses) == {0.25}
    task.cancel()
    await asyncio.wait({task})


async def test_an_update_without_a_number_is_passed_over_and_never_asked_for_in_a_spin() -> None:
    """It goes with the acknowledgement of the next one; alone it is left where it is, and looked at now and then."""
    scene = Scene()
    odd = b'{"update_id":"five"}'
    scene.answers = [answer(odd, 6), answer(odd), answer(odd)]
    async with polling(scene):
        assert scene.ids == [6]
        assert scene.offsets == [None, 7, None, None]
        assert scene.pauses == [1.0, 2.0]


@pytest.mark.parametrize(
    "odd", [b"", b"[]", b'{"ok":true}', b'{"ok":true,"result":[{"update_id":5}', b"<html>{[{}]}"]
)
async def test_an_answer_that_is_none_is_a_failure(odd: bytes) -> None:
    """A proxy's page, or half an answer: nothing of it is stored or acknowledged."""
    scene = Scene()
    scene.answers = [odd]
    async with polling(scene):
        assert scene.pauses == [1.0]
        assert scene.ids == []
        assert scene.offsets == [None, None]


def test_what_the_scene_writes_is_what_telegram_writes() -> None:
    """Else the tests above would show nothing."""
    assert json.loads(answer(5, 6))["result"][1]["update_id"] == 6
