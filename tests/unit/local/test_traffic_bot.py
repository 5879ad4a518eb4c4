"""The demo's bot records what it does, with python-telegram-bot's real dispatch and no network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from telegram import Bot, Update
from telegram.ext import Application, ApplicationBuilder
from telegram.request import BaseRequest

from deploy.local import traffic_bot
from deploy.local.evidence import read_runs
from deploy.local.history import Ending, Run
from tests.waiting import until


class Offline(BaseRequest):
    """Answers every call at once; remembers the methods, and fails those it is told to."""

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.fails = False

    @property
    def read_timeout(self) -> float | None:
        """None: nothing is read."""
        return None

    async def initialize(self) -> None:
        """Nothing to do."""

    async def shutdown(self) -> None:
        """Nothing to do."""

    async def do_request(self, url: str, *arguments: Any, **options: Any) -> tuple[int, bytes]:
        """An answer in Telegram's form."""
        method = url.rpartition("/")[2]
        self.methods.append(method)
        if self.fails and method == "sendMessage":
            return 400, b'{"ok": false, "error_code": 400, "description": "Bad Request: chat not found"}'
        result = (
            b'{"id": 1, "is_bot": true, "first_name": "b", "username": "b_bot"}'
            if method == "getMe"
            else b'{"message_id": 1, "date": 1, "chat": {"id": 7, "type": "private"}}'
        )
        return 200, b'{"ok": true, "result": ' + result + b"}"


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the bot's records."""
    monkeypatch.setenv("HISTORY_DIR", str(tmp_path))
    monkeypatch.setenv("RENDER_INSTANCE_ID", "srv-test")
    traffic_bot._history_descriptor.cache_clear()
    yield tmp_path
    if list(tmp_path.iterdir()):
        os.close(traffic_bot._history_descriptor())
    traffic_bot._history_descriptor.cache_clear()


def update(text: str, bot: Bot) -> Update:
    """A message to the bot."""
    data = {
        "update_id": 5,
        "message": {
            "message_id": 1,
            "date": 1,
            "chat": {"id": 7, "type": "private"},
            "from": {"id": 7, "is_bot": False, "first_name": "u"},
            "text": text,
            "entities": [{"type": "bot_command", "offset": 0, "length": 6}] if text == "/start" else [],
        },
    }
    made = Update.de_json(data, bot)
    assert made is not None
    return made


async def started(offline: Offline) -> Application[Any, Any, Any, Any, Any, Any]:
    """The bot, as the worker would start it."""
    application = traffic_bot.build(
        ApplicationBuilder().token("1:a").updater(None).request(offline).get_updates_request(Offline())
    )
    await application.initialize()
    return application


def the_run(history: Path) -> Run:
    """The only one that was recorded."""
    [run] = read_runs(history, {5: 7})
    assert (run.chat_id, run.instance, run.pid) == (7, "srv-test", os.getpid())
    return run


@pytest.mark.parametrize("text", ["work 1 please", "/start", "anything"])
async def test_a_run_is_recorded_and_answered_once(history: Path, text: str) -> None:
    """Its own messages and the built-in bot's; the built-in bot does not answer the former a second time."""
    offline = Offline()
    application = await started(offline)
    await application.process_update(update(text, application.bot))
    run = the_run(history)
    assert run.ending is Ending.WELL
    assert offline.methods.count("sendMessage") == 1
    if text.startswith("work"):
        assert run.last_seen_at - run.started_at >= 1
        # Its signs of life: two runs at one time would be seen before the first ends.
        assert len(next(history.iterdir()).read_text().splitlines()) >= 4
    await application.shutdown()


async def test_a_failed_and_a_cancelled_run_say_so(history: Path) -> None:
    """The handler raised; the handler was interrupted."""
    offline = Offline()
    application = await started(offline)
    offline.fails = True
    await application.process_update(update("work 0", application.bot))
    assert the_run(history).ending is Ending.FAILED
    task = asyncio.create_task(application.process_update(update("work 600", application.bot)))
    path = next(history.iterdir())
    await until(path.read_text, "two runs have begun", lambda text: text.count('"start"') == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [run.ending for run in read_runs(history, {5: 7})] == [Ending.FAILED, Ending.INTERRUPTED]
    await application.shutdown()
