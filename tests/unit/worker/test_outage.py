"""What Telegram's answers to getMe say of an outage."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from shared.secret import Secret
from shared.telegram_api import TelegramApi
from webhook_worker.outage import Question
from webhook_worker.outcomes import Done, Transient

TOKEN = "123456789:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc"
ME = {"ok": True, "result": {"id": 123456789, "is_bot": True, "first_name": "B", "username": "b_bot"}}


def refusal(status: int, text: str, **parameters: int) -> httpx.Response:
    """As Telegram words it."""
    document = {"ok": False, "error_code": status, "description": text, "parameters": parameters}
    return httpx.Response(status, content=json.dumps(document))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(200, content=json.dumps(ME)), "there"),
        (refusal(401, "Unauthorized"), "there"),
        (refusal(400, "Bad Request"), "there"),
        (refusal(502, "Bad Gateway"), "away"),
        (httpx.Response(503, content="<html>"), "away"),
        (httpx.ConnectError("refused"), "away"),
        (RuntimeError(f"can't start new thread for {TOKEN}"), "away"),
        (refusal(429, "Too Many Requests: retry after 17", retry_after=17), "not before 17 s"),
    ],
    ids=[
        "answered",
        "token refused",
        "bad request",
        "502",
        "html",
        "no connection",
        "no thread",
        "flood limit",
    ],
)
def test_b31_what_an_answer_to_getme_says(answer: httpx.Response | Exception, said: str) -> None:
    """Asked twice, by one client: whoever refuses is there; and no text holds the token."""
    asked: list[str] = []
    made: list[TelegramApi] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path.rpartition("/")[2])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def make_api() -> TelegramApi:
        made.append(TelegramApi("http://127.0.0.1", Secret(TOKEN), transport=httpx.MockTransport(respond)))
        return made[-1]

    async def main() -> None:
        async with Question(make_api) as ask:
            for _ in range(2):
                match await ask():
                    case Done():
                        assert said == "there"
                    case Transient(reason, None):
                        assert said == "away"
                        assert TOKEN not in reason
                    case Transient(reason, seconds):
                        assert said == f"not before {seconds:g} s"
                        assert TOKEN not in reason
                    case other:
                        raise AssertionError(other)
        assert (asked, len(made)) == (["getMe", "getMe"], 1)
        with pytest.raises(RuntimeError, match="outside of its"):
            await made[0].get_me()  # its client is closed

    asyncio.run(main())


def test_a_bug_of_ours_is_no_outage_of_telegram() -> None:
    """Taken for one, it would be logged as one, and nobody would look for it."""

    def respond(request: httpx.Request) -> httpx.Response:
        raise TypeError

    async def main() -> None:
        transport = httpx.MockTransport(respond)
        async with Question(
            lambda: TelegramApi("http://127.0.0.1", Secret(TOKEN), transport=transport)
        ) as ask:
            with pytest.raises(TypeError):
                await ask()

    asyncio.run(main())
